# SPDX-License-Identifier: Apache-2.0
"""Plans: their arithmetic is that of the fact sheets, more memory never means less, and the YAML is a real config."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from modeling_pefomed import PeFoMedConfig
from pefomed_recipes.data.phantoms import write_phantoms
from pefomed_recipes.errors import ConfigError, PeFoMedError
from pefomed_recipes.plan import plan as launcher
from pefomed_recipes.records import Sample
from pefomed_recipes.training.arguments import parse_arguments
from pefomed_recipes.training.estimates import (
    CARDS,
    GIB,
    Gpu,
    Mode,
    ModelSizes,
    estimate_memory,
    estimate_seconds,
    find_gpu,
    model_sizes,
)
from pefomed_recipes.training.planning import DataSizes, data_sizes, make_plan, plan_run, total_hours

from ..modeling.tiny import build_config, build_processor, save_tiny_base

PLAIN, CHECKPOINTED, PACKED = Mode("none", False), Mode("none", True), Mode("nf4", True)
# VQA-RAD's training split: 3,064 questions about 314 images.
VQA_RAD = DataSizes(
    samples=3064,
    rows=314,
    validation_rows=32,
    images_per_row=1,
    questions_per_row=9.76,
    tokens=653,
    longest_tokens=1024,
    longest_labelled=56,
    measured=False,
)


@pytest.fixture(scope="module")
def paper() -> ModelSizes:
    """The paper's sizes."""
    return model_sizes(PeFoMedConfig())


def card(gib: float) -> Gpu:
    return replace(find_gpu("RTX 3090"), memory=gib * GIB)


def test_the_papers_sizes_are_the_papers(paper: ModelSizes) -> None:
    assert (paper.tower, paper.projector, paper.trained(64)) == (987_033_600, 23_072_768, 56_627_200)
    assert paper.linear == 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    assert paper.linear + paper.other == 6_738_415_616  # LLaMA-2-7B
    assert (paper.image_tokens, paper.tower_tokens) == (256, 1025)


def test_memory_is_what_a_hand_computes(paper: ModelSizes) -> None:
    """7.7 B frozen parameters in bfloat16, AdamW on 56.6 M, 198 kB a token and layer."""
    one_row = {"lora_r": 64, "rows": 1, "row_tokens": 704, "images_per_row": 1, "labelled": 35}
    parts = estimate_memory(paper, PLAIN, **one_row)
    assert parts["frozen weights"] == 2 * (987_033_600 + 6_738_415_616) + 4 * 23_072_768
    assert parts["trained weights, gradients, AdamW"] == 18 * 56_627_200
    assert parts["activations of the language model"] == 704 * 32 * 198_656
    assert parts["logits of supervised tokens"] == 35 * 32_000 * 10
    assert sum(parts.values()) / 1e9 == pytest.approx(15.54 + 1.02 + 4.48 + 0.06, abs=0.02)
    kept = estimate_memory(paper, CHECKPOINTED, **one_row)["activations of the language model"]
    assert kept / 1e9 == pytest.approx(0.32, abs=0.01)  # the sheet's 0.35 GB for a row of some 700 tokens
    packed = estimate_memory(paper, PACKED, **one_row)["frozen weights"]
    assert packed / 1e9 == pytest.approx(0.516 * 6.476 + 2 * (0.987 + 0.262) + 0.092, abs=0.01)


def test_flops_are_those_of_the_fact_sheet(paper: ModelSizes) -> None:
    """One question of 303 tokens: 10.4 TFLOP; the tower alone 2.25; a token forward 13.1 GFLOP."""
    unit = Gpu("1 FLOP/s at full use", 1.0, 1 / 0.36)

    def flops(tokens: float, training: bool) -> float:
        shape = {"lora_r": 64, "rows": 1, "row_tokens": tokens, "images_per_row": 1}
        return estimate_seconds(paper, PLAIN, unit, **shape, training=training)

    assert flops(303, training=True) / 1e12 == pytest.approx(10.4, abs=0.2)
    assert flops(0, training=False) / 1e12 == pytest.approx(2.25, abs=0.02)
    assert (flops(303, training=False) - flops(0, training=False)) / 303 / 1e9 == pytest.approx(13.1, abs=0.05)


def test_a_step_is_never_faster_than_its_launches(paper: ModelSizes) -> None:
    fast = Gpu("", 1.0, 1e20)
    shape = {"lora_r": 64, "rows": 1, "row_tokens": 303, "images_per_row": 1}
    assert estimate_seconds(paper, PLAIN, fast, **shape) == pytest.approx(0.026, abs=0.001)


def test_more_memory_never_gives_a_smaller_batch(paper: ModelSizes) -> None:
    plans = [make_plan(paper, card(gib), 8, VQA_RAD, max_length=1024) for gib in range(9, 160)]
    batches = [plan.config["per_device_train_batch_size"] for plan in plans]
    assert batches == sorted(batches)
    assert batches[0] == 1 < batches[-1]
    speeds = [
        plan.step_seconds / plan.config["gradient_accumulation_steps"] / batch
        for plan, batch in zip(plans, batches, strict=True)
    ]
    assert speeds[-1] == min(speeds)
    for plan, gib in zip(plans, range(9, 160), strict=True):
        assert sum(plan.memory.values()) <= card(gib).usable


@pytest.mark.parametrize(
    ("gpu", "quantization", "checkpointing"),
    [("12GB", "nf4", True), ("24GB", "none", True), ("80GB", "none", False), ("H200", "none", False)],
)
def test_cards_get_the_fastest_mode_that_fits(
    paper: ModelSizes, gpu: str, quantization: str, checkpointing: bool
) -> None:
    config = make_plan(paper, find_gpu(gpu), 8, VQA_RAD, max_length=1024).config
    assert (config["quantization"], config["gradient_checkpointing"]) == (quantization, checkpointing)
    questions = config["per_device_train_batch_size"] * config["gradient_accumulation_steps"] * 9.76
    assert 32 <= questions < 80
    assert config["lora_r"] == 4 * config["lora_alpha"] == 64


def test_the_run_stays_within_the_hours(paper: ModelSizes) -> None:
    for hours in (0.2, 1, 8, 100):
        plan = make_plan(paper, find_gpu("24GB"), hours, VQA_RAD, max_length=1024)
        assert total_hours(plan) <= hours
        assert plan.passes <= 20.1
    assert plan.config["max_steps"] < plan.steps_in_time  # 100 hours would be 100 passes and more
    longer = [make_plan(paper, find_gpu("24GB"), hours, VQA_RAD, max_length=1024) for hours in (0.2, 0.4, 0.8)]
    steps = [plan.config["max_steps"] for plan in longer]
    assert steps == sorted(steps)
    assert steps[0] < steps[-1]


def test_what_does_not_fit_says_what_would(paper: ModelSizes) -> None:
    with pytest.raises(PeFoMedError) as error:
        make_plan(paper, find_gpu("6GB"), 8, VQA_RAD, max_length=1024)
    for said in ("6 GB", "needs some", "RTX 3060", "a smaller language model"):
        assert said in str(error.value)
    needed = float(str(error.value).split("needs some ")[1].split(" GB")[0])
    assert make_plan(paper, card(needed + 0.05), 8, VQA_RAD, max_length=1024).config["lora_r"] == 16


def test_too_few_hours_say_how_many_are_needed(paper: ModelSizes) -> None:
    with pytest.raises(PeFoMedError, match="not enough for one step") as error:
        make_plan(paper, find_gpu("24GB"), 0.001, VQA_RAD, max_length=1024)
    needed = float(str(error.value).split("one step needs ")[1].split(" hours")[0])
    assert make_plan(paper, find_gpu("24GB"), 1.2 * needed, VQA_RAD, max_length=1024).config["max_steps"] >= 1


@pytest.mark.parametrize(
    ("text", "gib", "tflops"),
    [("24GB", 24, 71), ("24 GiB", 24, 71), ("rtx-4090", 24, 165.2), ("NVIDIA A100", 80, 312), ("300GB", 300, 989)],
)
def test_a_card_is_named_or_sized(text: str, gib: float, tflops: float) -> None:
    gpu = find_gpu(text)
    assert (gpu.memory / GIB, gpu.flops / 1e12) == (gib, tflops)


@pytest.mark.parametrize("text", ["", "0GB", "-1GB", "24", "24MB", "RTX 4091", "GB"])
def test_an_unknown_card_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected memory as 24GB or one of RTX 3060"):
        find_gpu(text)


def test_a_known_card_is_as_fast_as_its_datasheet_says() -> None:
    assert all(find_gpu(name) == Gpu(name, gib * GIB, tflops * 1e12) for name, (gib, tflops) in CARDS.items())


def test_words_stand_for_tokens_as_counted_for_vqa_rad() -> None:
    """A question of 7 words in its long wording, an answer of 1.4 words: 40 tokens."""
    question, answers = "Is there a mass in the lung?", ["yes"] * 6 + ["left lung"] * 4
    samples = [Sample(str(n), "vqa", ["a.png"], question, [answer]) for n, answer in enumerate(answers)]

    def long_wording(sample: Sample) -> str:
        return "Based on the image, respond to this question with a short answer: " + sample.instruction

    sizes = data_sizes(samples, [], long_wording, image_tokens=256, max_length=1024, max_questions_per_image=16)
    assert (sizes.rows, sizes.questions_per_row, sizes.images_per_row) == (1, 10, 1)
    assert (sizes.tokens - 263) / 10 == pytest.approx(40, abs=1.5)
    halves = data_sizes(samples, [], long_wording, image_tokens=256, max_length=1024, max_questions_per_image=5)
    assert (halves.rows, halves.longest_tokens) == (2, 263 + (sizes.longest_tokens - 263) // 2 + 2)
    with pytest.raises(PeFoMedError, match="raise it"):
        data_sizes(samples, [], long_wording, image_tokens=256, max_length=290, max_questions_per_image=16)


def test_a_tokenizer_counts_where_there_is_one() -> None:
    samples = [Sample(str(n), "vqa", ["a.png"], "Is there a mass?", ["yes"]) for n in range(3)]
    options = {"image_tokens": 4, "max_length": 256, "max_questions_per_image": 16}
    processor = build_processor()
    counted = data_sizes(samples, samples, lambda s: s.instruction, **options, processor=processor)
    assert counted.measured
    assert (counted.rows, counted.validation_rows, counted.longest_labelled) == (
        1,
        1,
        3 * len(processor.encode_answer("yes")),
    )


def test_sizes_of_a_model_without_the_layers_are_refused() -> None:
    with pytest.raises(PeFoMedError, match="no layers qkv_proj; found down_proj"):
        model_sizes(build_config(build_processor()), ["qkv_proj"])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few phantoms."""
    folder = tmp_path_factory.mktemp("plans") / "data"
    return write_phantoms(folder, tasks=("vqa",), cases_per_split={"train": 4, "validation": 2, "test": 2}, size_px=32)


@pytest.mark.parametrize("with_base", [True, False])
def test_the_plan_is_a_config_of_a_run(data: Path, tmp_path: Path, with_base: bool) -> None:
    base = str(save_tiny_base(tmp_path / "base")) if with_base else None
    text, table = plan_run("24GB", 1, str(data), dataset="phantoms", base=base)
    (tmp_path / "plan.yaml").write_text(text, encoding="utf-8")
    recipe, config = parse_arguments([f"--config={tmp_path / 'plan.yaml'}"], {}, "a plan")
    assert (recipe.data_root, recipe.dataset, recipe.task) == (str(data), "phantoms", "vqa")
    assert recipe.base == (base or "BASE")
    assert f"{config.max_steps}            steps" in table
    assert (recipe.quantization, recipe.target_modules) == ("none", "q_proj,v_proj")
    assert "nothing of it measured" in table
    assert ("tokenizer" if with_base else "words") in table


def test_the_config_goes_to_stdout_and_the_table_to_stderr(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launcher(gpu="H100", hours=2, data=str(data), dataset="phantoms")
    out, err = capsys.readouterr()
    assert "max_steps: " in out
    assert "TFLOP/s" not in out
    assert "989 TFLOP/s (datasheet)" in err


MISTAKES: dict[str, tuple[dict[str, object], int, str]] = {
    "gpu": ({"gpu": "RTX 4080"}, 2, "did you mean"),
    "hours": ({"hours": 0}, 2, "expected more than 0"),
    "data": ({"data": "missing"}, 1, "no such folder"),
    "base": ({"base": "missing"}, 1, "cannot load a PeFoMed base model"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_in_one_line(data: Path, capsys: pytest.CaptureFixture[str], mistake: str) -> None:
    changed, code, said = MISTAKES[mistake]
    run: Callable[..., None] = launcher
    with pytest.raises(SystemExit) as stop:
        run(**{"gpu": "24GB", "hours": 1, "data": str(data), "dataset": "phantoms", **changed})
    out, err = capsys.readouterr()
    assert (stop.value.code, out, err.count("\n")) == (code, "", 1)
    assert said in err
