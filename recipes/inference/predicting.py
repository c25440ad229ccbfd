# SPDX-License-Identifier: Apache-2.0
"""From a data set and an adapter to a prediction file: resumable, deterministic, with controls."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from modeling_pefomed import PeFoMedForConditionalGeneration, PeFoMedProcessor

from ..data.images import load_image
from ..data.instructions import VqaInstruction, render_instruction
from ..errors import ConfigError, PeFoMedError
from ..records import Prediction, Sample, read_records, write_records
from .generate import Request, adapter_base, generate_answers, load_model, load_processor

logger = logging.getLogger(__name__)

CONTROLS = ("", "blank_image")


def blank_image(processor: PeFoMedProcessor) -> Image.Image:
    """Return an image that says nothing: uniform, at the mean colour, so that all its pixels are 0 when normalised."""
    size = processor.image_processor.size
    colour = tuple(round(255 * mean) for mean in processor.image_processor.image_mean)
    return Image.new("RGB", (size["width"], size["height"]), colour)


def model_identity(folder: str | Path) -> tuple[str, str]:
    """Return the names of the base model and of the adapter for the record, without any folder of this machine.

    An adapter is named by its folder's last part and the first digits of its weights' sha256; "" means a bare base.
    """
    folder = Path(folder)
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        return folder.name, ""
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:16]
    return Path(adapter_base(folder)).name, f"{folder.name}@{digest}"


def predict(
    folder: str | Path,
    samples: list[Sample],
    out: Path,
    *,
    control: str = "",
    instruction: VqaInstruction = "short_answer",
    rows_per_batch: int = 64,
    model_and_processor: tuple[PeFoMedForConditionalGeneration, PeFoMedProcessor] | None = None,
) -> Path:
    """Answer every sample and write `out`, one [`Prediction`] a line in the samples' order; return `out`.

    Answers are kept in `out.partial` as they come. A second call with the same model, control and instruction goes on
    from there; `out` itself appears only when it is whole, and is then left as it is.

    Args:
        folder: adapter or base model.
        control: "" or `blank_image` (every image replaced by a blank one).
        instruction: wording of VQA questions.
        model_and_processor: what `load_model(folder)` returned, when it is loaded already.

    Raises:
        PeFoMedError: no samples, an unreadable image, or `out` holds predictions of another model.
        ConfigError: an unknown control.
    """
    if control not in CONTROLS:
        raise ConfigError(f"unknown control {control!r}; expected blank_image")
    if not samples:
        raise PeFoMedError("There is nothing to predict: found 0 samples.")
    model_name, adapter = model_identity(folder)
    who = {"control": control, "model": model_name, "adapter": adapter}
    processor = model_and_processor[1] if model_and_processor else load_processor(folder)
    prompts = {sample.id: _prompt_sha256(sample, processor, instruction) for sample in samples}
    if out.is_file() and _matches(read_records(out, Prediction), samples, prompts, who):
        return out
    partial = out.with_name(out.name + ".partial")
    done = {p.id: p for p in _read_partial(partial) if _is_by(p, prompts, who)}
    if done:
        logger.info("%d of %d answers are there already", len(done), len(samples))
    model = (model_and_processor or load_model(folder))[0]
    blank = blank_image(processor) if control == "blank_image" else None
    # Decoding is deterministic: what is asked twice is answered once. All images of a control look alike, so there
    # each wording is asked once.
    twins: dict[tuple[object, ...], list[Sample]] = {}
    for sample in samples:
        if sample.id not in done:
            images = len(sample.image_paths) if blank else tuple(sample.image_paths)
            twins.setdefault((images, prompts[sample.id]), []).append(sample)
    asked = {group[0].id: group for group in twins.values()}
    out.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("a", encoding="utf-8") as lines, tqdm(
        total=len(samples), initial=len(done), desc=f"answers{' ' + control if control else ''}",
        disable=not sys.stderr.isatty(),
    ) as progress:  # fmt: skip
        first = [group[0] for group in asked.values()]
        for requests in _requests(first, blank, instruction, rows_per_batch):
            for sample_id, answer in generate_answers(model, processor, requests, rows_per_batch=rows_per_batch):
                for sample in asked[sample_id]:
                    prediction = Prediction.of(sample, answer, prompt_sha256=prompts[sample.id], **who)
                    done[sample.id] = prediction
                    lines.write(json.dumps(asdict(prediction), ensure_ascii=False) + "\n")
                    progress.update()
            lines.flush()
    write_records(out, (done[sample.id] for sample in samples))
    partial.unlink()
    return out


def _prompt_sha256(sample: Sample, processor: PeFoMedProcessor, instruction: VqaInstruction) -> str:
    """Return the fingerprint of a sample's prompt as token ids."""
    asked = render_instruction(sample, training=False, instruction=instruction)
    ids = processor.encode_prompt(asked, sample.task, num_images=len(sample.image_paths))
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()


def _is_by(prediction: Prediction, prompts: dict[str, str], who: dict[str, str]) -> bool:
    """Whether a prediction is by this model, under this control, to the prompt that its sample has now."""
    same_model = all(getattr(prediction, key) == value for key, value in who.items())
    return same_model and prediction.prompt_sha256 == prompts.get(prediction.id)


def _requests(
    samples: list[Sample], blank: Image.Image | None, instruction: VqaInstruction, size: int
) -> Iterator[list[Request]]:
    """Yield requests in portions whose images fit into memory.

    Samples about the same image are put side by side first, so that few images are opened twice.
    """
    groups: dict[tuple[str, ...], list[Sample]] = {}
    for sample in samples:
        groups.setdefault(tuple(sample.image_paths), []).append(sample)
    ordered = [sample for group in groups.values() for sample in group]
    for portion in (ordered[start : start + size] for start in range(0, len(ordered), size)):
        opened = {path: blank or load_image(path) for sample in portion for path in sample.image_paths}
        yield [
            Request(
                sample.id,
                sample.task,
                render_instruction(sample, training=False, instruction=instruction),
                tuple(opened[path] for path in sample.image_paths),
            )
            for sample in portion
        ]


def _read_partial(path: Path) -> list[Prediction]:
    """Return the whole lines of an interrupted run; a torn last line is dropped."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    path.write_bytes(content[: content.rfind(b"\n") + 1])
    return read_records(path, Prediction)


def _matches(
    predictions: list[Prediction], samples: list[Sample], prompts: dict[str, str], who: dict[str, str]
) -> bool:
    """Whether a finished file is by the same model about the same samples.

    Raises:
        PeFoMedError: it is not.
    """
    if all(_is_by(p, prompts, who) for p in predictions) and [p.id for p in predictions] == [s.id for s in samples]:
        return True
    raise PeFoMedError(
        "The output file holds predictions of another model or data set; name another file or delete it."
    )
