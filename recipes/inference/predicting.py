# SPDX-License-Identifier: Apache-2.0
"""From a data set and an adapter to a prediction file: resumable, deterministic, with controls."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import CompileConfig

from modeling_pefomed import PeFoMedForConditionalGeneration, PeFoMedProcessor

from ..answers import YES_NO, closed_options
from ..data.instructions import VqaInstruction
from ..errors import PeFoMedError
from ..models.feature_cache import FeatureCache
from ..records import Prediction, Sample, read_records, write_records
from .asking import Prompts, distinct_questions, read_requests
from .controls import BLANK, MIRRORED, SHUFFLED, blank_image, control_in_records
from .generate import generate_answers
from .loading import adapter_base, load_model, load_processor
from .requests import Request
from .scoring_text import answer_probabilities, sentence_support

logger = logging.getLogger(__name__)

# Tasks whose answers are made of sentences.
HAVE_SENTENCES = ("caption", "report")


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
    feature_cache: Path | None = None,
    probabilities: bool = False,
    merge: bool = False,
    compile_step: bool = False,
    model_and_processor: tuple[PeFoMedForConditionalGeneration, PeFoMedProcessor] | None = None,
) -> Path:
    """Answer every sample and write `out`, one [`Prediction`] a line in the samples' order; return `out`.

    Answers are kept in `out.partial` as they come. A second call with the same model, control and instruction goes on
    from there; `out` itself appears only when it is whole, and is then left as it is.

    Args:
        folder: adapter or base model.
        control: "", `blank` (every image replaced by a blank one), `shuffle` (by another study's) or `mirror` (left
            and right exchanged); records keep the longer names of `CONTROLS`, which may be given too.
        instruction: wording of VQA questions.
        feature_cache: a folder that `pefomed features` wrote; no image is decoded then. Blank and mirrored images are
            encoded live.
        probabilities: also write `p_yes` of yes/no questions and `sentence_support` of captions and reports, which
            prefills their images again.
        merge: see [`load_model`].
        compile_step: compile the decoding step; for GPUs, from some hundred answers on.
        model_and_processor: what `load_model(folder)` returned, when it is loaded already.

    Raises:
        PeFoMedError: no samples, a missing or unreadable image, one that is not in the feature cache, or `out` cannot
            be written or holds predictions of another model.
        ConfigError: an unknown control.
    """
    control = control_in_records(control)
    if not samples:
        raise PeFoMedError("There is nothing to predict: found 0 samples.")
    _check_writable(out)
    model_name, adapter = model_identity(folder)
    who = {"control": control, "model": model_name, "adapter": adapter}
    processor = model_and_processor[1] if model_and_processor else load_processor(folder)
    prompts = Prompts(processor, samples, instruction)

    def is_current(prediction: Prediction) -> bool:
        """By this model, under this control, to the prompt that its sample has now, with what is wanted beside it."""
        return (
            all(getattr(prediction, key) == value for key, value in who.items())
            and prediction.prompt_sha256 == prompts.sha256.get(prediction.id)
            and not (probabilities and _lacks_probabilities(prediction))
        )

    if out.is_file():
        _check_finished(read_records(out, Prediction), samples, is_current)
        return out
    partial = out.with_name(out.name + ".partial")
    done = {p.id: p for p in _read_partial(partial) if is_current(p)}
    if done:
        logger.info("%d of %d answers are there already", len(done), len(samples))
    asked = distinct_questions([sample for sample in samples if sample.id not in done], samples, prompts, control)
    without_tower = feature_cache is not None and control in ("", SHUFFLED) and not probabilities
    cached = None if control in (BLANK, MIRRORED) else feature_cache
    model = (model_and_processor or load_model(folder, merge=merge, without_tower=without_tower))[0]
    features = None if cached is None else FeatureCache.open(cached, model, processor.image_processor)
    p_yes: dict[str, float] = {}
    pictured: dict[str, Request] = {}  # reports on their way, whose sentences are scored when they are there

    def requests() -> Iterator[Request]:
        for same in read_requests(asked, control, processor, features):
            if probabilities:
                closed = [request for request in same if any(map(_is_yes_no, asked[request.id].samples))]
                found = answer_probabilities(model, processor, closed, YES_NO, features=features)
                p_yes.update((name, shares["yes"]) for name, shares in found.items())
                pictured.update((request.id, request) for request in same if request.task in HAVE_SENTENCES)
            yield from same

    with partial.open("a", encoding="utf-8") as lines, tqdm(
        total=len(samples), initial=len(done), desc=f"answers{' ' + control if control else ''}",
        disable=not sys.stderr.isatty(),
    ) as progress:  # fmt: skip
        options = {"rows_per_batch": rows_per_batch, "features": features}
        options["compile_config"] = CompileConfig() if compile_step else None
        for sample_id, answer in generate_answers(model, processor, requests(), **options):
            support = None
            if request := pictured.pop(sample_id, None):
                blank = blank_image(processor)
                scored = sentence_support(model, processor, request, answer, blank, features=features)
                support = [sentence.support for sentence in scored]
            for sample in asked[sample_id].samples:
                own: dict[str, Any] = {**who, "prompt_sha256": prompts.sha256[sample.id], "sentence_support": support}
                own["p_yes"] = p_yes.get(sample_id) if _is_yes_no(sample) else None
                done[sample.id] = Prediction.of(sample, answer, **own)
                lines.write(json.dumps(asdict(done[sample.id]), ensure_ascii=False) + "\n")
                progress.update()
            lines.flush()
    write_records(out, (done[sample.id] for sample in samples))
    partial.unlink()
    return out


def _is_yes_no(item: Sample | Prediction) -> bool:
    """Whether this is a question that yes or no answers."""
    return item.task == "vqa" and closed_options(item.instruction, item.answers[0] if item.answers else "") == YES_NO


def _lacks_probabilities(prediction: Prediction) -> bool:
    if prediction.task in HAVE_SENTENCES:
        return prediction.sentence_support is None
    return prediction.p_yes is None and _is_yes_no(prediction)


def _check_writable(out: Path) -> None:
    """Check that a file can be written, before a model is loaded for it; the folders above it are made.

    Raises:
        PeFoMedError: it cannot.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise PeFoMedError(f"{out}: cannot be written ({error.strerror}); name another file with --out") from None


def _read_partial(path: Path) -> list[Prediction]:
    """Return the whole lines of an interrupted run; a torn last line is dropped."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    path.write_bytes(content[: content.rfind(b"\n") + 1])
    return read_records(path, Prediction)


def _check_finished(
    predictions: list[Prediction], samples: list[Sample], is_current: Callable[[Prediction], bool]
) -> None:
    """Check that a finished file is by the same model about the same samples.

    Raises:
        PeFoMedError: it is not.
    """
    if not all(map(is_current, predictions)) or [p.id for p in predictions] != [s.id for s in samples]:
        raise PeFoMedError(
            "The output file holds predictions of another model or data set, or lacks probabilities; name another "
            "file or delete it."
        )
