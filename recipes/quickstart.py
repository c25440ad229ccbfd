# SPDX-License-Identifier: Apache-2.0
"""The main job, small but real: phantoms -> base -> stage 1 -> stage 2 -> predictions -> scores."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from pefomed_recipes.errors import one_line_errors


def quickstart(
    out: Annotated[Path, typer.Option(help="Everything lands here; what is complete is reused.")] = Path(
        "runs/quickstart"
    ),
    llm: Annotated[str | None, typer.Option(help="Language model: Hub id or folder; embedded by default.")] = None,
    vision_tower: Annotated[str | None, typer.Option(help="Vision backbone: Hub id or folder.")] = None,
    cases: Annotated[int, typer.Option(help="Training images; for validation, one for every 40 of them.")] = 1600,
    test_cases: Annotated[int, typer.Option(help="Test images, about 10 questions each.")] = 110,
    stage0_steps: Annotated[int, typer.Option(help="Steps of the tower's pretraining.")] = 2000,
    stage1_steps: Annotated[int | None, typer.Option(help="Steps of stage 1; the recipe's by default.")] = None,
    stage2_steps: Annotated[int | None, typer.Option(help="Steps of stage 2; the recipe's by default.")] = None,
    task: Annotated[str, typer.Option(help="What stage 2 learns: vqa, report or refer.")] = "vqa",
    random_tower: Annotated[bool, typer.Option(help="Control: do not pretrain the tower.")] = False,
) -> None:
    """Fine-tune, predict and score on phantoms, from nothing to a table."""
    with one_line_errors():
        from pefomed_recipes.data.datasets_index import load_samples
        from pefomed_recipes.evaluation.scoring import score
        from pefomed_recipes.evaluation.tables import markdown_report
        from pefomed_recipes.inference.generate import load_model
        from pefomed_recipes.inference.predicting import predict
        from pefomed_recipes.records import CONTROLS
        from pefomed_recipes.training.embedded import quickstart_base, quickstart_phantoms
        from pefomed_recipes.training.stage0 import StageZeroSettings
        from pefomed_recipes.training.stages import STAGE1_DEFAULTS, STAGE2_DEFAULTS, main

        data = quickstart_phantoms(out, {"train": cases, "validation": max(2, cases // 40), "test": test_cases})
        settings = StageZeroSettings(steps=stage0_steps)
        base = quickstart_base(out, llm=llm, vision_tower=vision_tower, settings=settings, pretrained=not random_tower)
        common = [f"--base={base}", f"--data_root={data}"]
        steps1, steps2 = ([] if n is None else [f"--max_steps={n}"] for n in (stage1_steps, stage2_steps))
        main(["--config=stage1/phantoms", *common, f"--output_dir={out / 'stage1'}", *steps1], STAGE1_DEFAULTS, "")
        continued = [*common, f"--adapter={out / 'stage1'}", f"--output_dir={out / 'stage2'}", *steps2]
        main([f"--config=stage2/phantoms_{task}", *continued], STAGE2_DEFAULTS, "")
        shutil.copyfile(out / "stage2" / "loss.png", out / "loss.png")

        samples, loaded = load_samples("phantoms", data, "test", task), load_model(out / "stage2")
        answers, controls = out / "predictions.jsonl", {c: out / f"predictions-{c}.jsonl" for c in CONTROLS.values()}
        for control, path in {"": answers, **controls}.items():
            predict(out / "stage2", samples, path, control=control, instruction="plain", model_and_processor=loaded)
        results = score(answers, controls=controls, train_samples=data / "train.jsonl", out=out / "results.json")
        print(markdown_report(results), end="")


if __name__ == "__main__":
    typer.run(quickstart)
