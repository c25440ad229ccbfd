# SPDX-License-Identifier: Apache-2.0
"""The answers that are worth looking at: the worst, and those about which rules, judges and raters differ most.

Texts and images are shown only when they are asked for, and never those of credentialed data.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...errors import PeFoMedError
from ...records import Prediction, is_credentialed, read_jsonl
from ..accuracy import score_answer
from ..calibration import tempered, with_p_yes
from ..item_metrics import item_metrics
from ..panels import Panel
from .inputs import ReportInputs

SHOWN = 12  # items of each kind
SIDE_PX = 160  # longest side of a thumbnail


@dataclass
class Item:
    """One answer on the page. `why` says how it came there; the texts are "" unless they are to be shown."""

    id: str
    why: list[str]
    about: str = ""
    question: str = ""
    references: list[str] = field(default_factory=list)
    answer: str = ""
    others: dict[str, str] = field(default_factory=dict)
    image: str = ""


@dataclass
class Items:
    """`worst` and `disputed`, most so first, of how many each; `hidden` counts the shown ones of credentialed data."""

    worst: list[Item] = field(default_factory=list)
    disputed: list[Item] = field(default_factory=list)
    all_worst: int = 0
    all_disputed: int = 0
    hidden: int = 0
    missing_images: int = 0


def choose_items(
    inputs: ReportInputs, *, samples: str | os.PathLike[str] | None = None, show_text: bool = False
) -> Items:
    """Return the items to look at.

    Args:
        samples: JSON lines with `id` and `image` (or `image_paths`), whose images become thumbnails; paths are taken
            from the file's folder.
        show_text: put questions, references and answers on the page.

    Raises:
        PeFoMedError: `samples` cannot be read or hold none of the items.
    """
    worst, disputed = _worst(inputs), _disputed(inputs)
    by_id = {item.id: item for item in inputs.predictions}
    found = Items(worst[:SHOWN], disputed[:SHOWN], len(worst), len(disputed))
    images = _images_of(samples, by_id) if samples is not None else {}
    hidden, missing = set(), set()
    for item in (*found.worst, *found.disputed):
        prediction = by_id[item.id]
        item.about = ", ".join(filter(None, (*prediction.question_types, prediction.organ, prediction.modality)))
        if is_credentialed(prediction):
            hidden.add(item.id)
            continue
        if show_text:
            item.question, item.references, item.answer = (
                prediction.instruction,
                prediction.answers,
                prediction.prediction,
            )
            item.others = _answers_under_controls(inputs, item.id)
        if item.id in images:
            item.image = thumbnail(images[item.id])
            missing |= set() if item.image else {item.id}
    found.hidden, found.missing_images = len(hidden), len(missing)
    return found


def _answers_under_controls(inputs: ReportInputs, item_id: str) -> dict[str, str]:
    return {
        name: answer.prediction for name, items in inputs.controls.items() for answer in items if answer.id == item_id
    }


def _worst(inputs: ReportInputs) -> list[Item]:
    """Return wrong answers, the most confident first, then those that are right on a blank image, then those with the
    fewest right words; of reports and captions all, the lowest ROUGE-L first; of boxes all, the lowest IoU first.
    """
    if not inputs.predictions:
        return []
    metrics = item_metrics(inputs.predictions)
    units = {item.id: (item.id, item.system) for item in inputs.predictions}
    if inputs.results.task == "vqa":
        return _worst_answers(inputs, {name: metrics["token_f1"][unit] for name, unit in units.items()})
    name, title = ("iou", "IoU") if inputs.results.task == "refer" else ("rouge_l_f1", "ROUGE-L F1")
    values = {item_id: metrics[name][unit] for item_id, unit in units.items()}
    found = []
    for item in sorted(inputs.predictions, key=lambda item: (values[item.id], _spread(item.id))):
        why = [f"{title} {values[item.id]:.2f}"]
        low = [f"{support:+.1f}" for support in item.sentence_support or () if support < 0]
        why += [f"sentences that the image made less likely: {len(low)} ({', '.join(low)} nats)"] if low else []
        found.append(Item(item.id, why))
    return found


def _worst_answers(inputs: ReportInputs, overlap: dict[str, float]) -> list[Item]:
    temperature = inputs.results.calibration.temperature if inputs.results.calibration else 1.0
    p_yes = {item.id: float(tempered(np.array(item.p_yes), temperature)) for item in with_p_yes(inputs.predictions)}
    sure = {item_id: max(p, 1 - p) for item_id, p in p_yes.items()}
    blank = {item.id: score_answer(item)[0] for item in inputs.controls.get("blank_image", ())}
    wrong = []
    for item in inputs.predictions:
        correct, unparsed = score_answer(item)
        if not correct:
            why = ["no answer that the rules can read" if unparsed else "wrong"]
            why += [f"confidence {sure[item.id]:.2f}"] if item.id in sure else []
            why += ["right on a blank image"] if blank.get(item.id) else []
            order = (-sure.get(item.id, 0), not blank.get(item.id), overlap[item.id], _spread(item.id))
            wrong.append((order, Item(item.id, why)))
    return [item for _, item in sorted(wrong, key=lambda one: one[0])]


def _disputed(inputs: ReportInputs) -> list[Item]:
    """Return the answers on which the parties' scores differ, as shares of the scale: the widest range first, then the
    largest spread.
    """
    ranked = [found for panel in inputs.panels for found in _disputes(panel)]
    return [item for _, item in sorted(ranked, key=lambda one: one[0])]


def _disputes(panel: Panel) -> list[tuple[tuple[float, float, str], Item]]:
    found = []
    for at, (item_id, _) in enumerate(panel.units):
        said = {judge: samples[at] for judge, samples in panel.samples.items()}
        said |= {f"rater {name}": scores[at : at + 1] for name, scores in panel.raters.items()}
        said = {who: scores[np.isfinite(scores)] / panel.top for who, scores in said.items()}
        if "accuracy" in panel.metrics:
            said = {"our rules": panel.metrics["accuracy"][at : at + 1], **said}
        shares = np.concatenate(list(said.values())) if said else np.empty(0)
        if len(shares) > 1 and np.ptp(shares) > 0:
            why = [
                f"{who}: {', '.join(f'{share * panel.top:g}' for share in scores)}"
                for who, scores in said.items()
                if len(scores)
            ]
            order = (-float(np.ptp(shares)), -round(float(shares.std()), 9), _spread(item_id))
            found.append((order, Item(item_id, [*why, f"scale 0 to {panel.top}"])))
    return found


def _spread(item_id: str) -> str:
    """Return what puts ties in an order that does not favour the first images."""
    return hashlib.sha256(item_id.encode()).hexdigest()


def _images_of(samples: str | os.PathLike[str], wanted: dict[str, Prediction]) -> dict[str, Path]:
    """Return the first image of each wanted item of a file of samples that is not credentialed."""
    path = Path(samples)
    images: dict[str, Path] = {}
    known = False
    for _, row in read_jsonl(path):
        item_id = str(row.get("id", ""))
        known |= item_id in wanted
        given = row.get("image_paths") or row.get("image")
        first = given[0] if isinstance(given, list) and given else given
        if item_id in wanted and isinstance(first, str) and not row.get("credentialed"):
            images[item_id] = path.parent / first
    if not known:
        raise PeFoMedError(f"{path}: none of the scored items is in it; expected samples with their id and image")
    return images


def thumbnail(path: Path) -> str:
    """Return an image, at most 160 px wide and high, as a `data:` address; "" where it cannot be opened.

    What an image file says beside its pixels is left out.
    """
    from PIL import Image

    try:
        with Image.open(path) as opened:
            opened.thumbnail((SIDE_PX, SIDE_PX))
            if opened.mode[0] in "IF":  # more than 8 bits: from the darkest pixel to the brightest
                pixels = np.asarray(opened, dtype=np.float64)
                span = float(np.ptp(pixels)) or 1.0
                small = Image.fromarray(((pixels - pixels.min()) / span * 255).astype(np.uint8))
            else:
                small = opened.convert("L" if opened.mode in ("1", "L", "LA") else "RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return ""
    out = io.BytesIO()
    small.save(out, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii")
