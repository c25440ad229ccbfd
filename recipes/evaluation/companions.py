# SPDX-License-Identifier: Apache-2.0
"""What a headline is read beside: trivial baselines and controls, which are there, and how the rest is made."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from ..errors import ConfigError, did_you_mean
from ..records import CONTROLS, Prediction, Sample
from .results import Companion
from .slices import is_laterality

BLANK, SHUFFLED, MIRRORED = CONTROLS.values()
SHORT = {name: short for short, name in CONTROLS.items()}
OPEN_OR_CLOSED = "the most frequent training answer to the same question, else of its question and answer types"
PURPOSES = {
    BLANK: "the question alone: what the images add",
    SHUFFLED: "another study's images: whether it looks at the image that is asked about",
    MIRRORED: "left and right exchanged: whether sides are seen",
}


def control_names(given: Mapping[str, object]) -> dict[str, str]:
    """Return the name that records keep of each control, by the name that was given: that, or the short one.

    Raises:
        ConfigError: a control is unknown, or given under both names.
    """
    names = {name: CONTROLS.get(name, name) for name in given}
    for name, kept in names.items():
        if kept not in SHORT:
            hint = did_you_mean(name, (*CONTROLS, *SHORT))
            raise ConfigError(f"--control: unknown control {name!r}{hint}; expected {', '.join(CONTROLS)}")
    if len(set(names.values())) < len(names):
        raise ConfigError(f"--control: found {' and '.join(names)}, expected each control once")
    return names


def companions_of(
    predictions: Sequence[Prediction],
    controls: Mapping[str, Sequence[Prediction]],
    train: Sequence[Sample],
    validation: Sequence[Sample] = (),
) -> list[Companion]:
    """Return the trivial baseline and the three controls of these predictions, those that are missing among them.

    The headline needs the baseline, blank images and shuffled images. Mirrored images are needed where questions ask
    for left or right, and then for laterality alone; else they are only shown where they are there.
    """
    task = predictions[0].task
    found = [_baseline(task, len(train), len(validation))]
    sides = any(is_laterality(item) for item in predictions)
    for name, purpose in PURPOSES.items():
        needed = "headline" if name != MIRRORED else "laterality" if sides else ""
        command = "" if name in controls else _commands(predictions[0], name)
        found.append(Companion(name, name in controls, needed, purpose, command))
    return found


def what_is_missing(predictions: Sequence[Prediction], companions: Sequence[Companion]) -> list[str]:
    """Return what the headline cannot be shown without, as ends of the sentence `It says nothing without ...`."""
    missing = []
    if control := predictions[0].control:
        missing.append(
            f"the images themselves: these predictions were made under the control {control}; score those of "
            f"unchanged images, and give this file as --control {SHORT.get(control, control)}=FILE"
        )
    for one in companions:
        if one.needed == "headline" and not one.is_there:
            missing.append(f"{one.name.replace('_', ' ')} ({one.purpose}): {one.command}")
    return missing


def _baseline(task: str, train: int, validation: int) -> Companion:
    name = {"vqa": "majority_answer", "refer": "median_train_box"}.get(task, "constant_text")
    if task == "vqa":
        rule = f"{OPEN_OR_CLOSED}; of the training split"
    elif task == "refer":
        rule = "the box of the training boxes' median corners"
    else:
        split = f"{validation:,} validation samples" if validation else "the training split, no validation being given"
        rule = f"of the most frequent training texts the one that scores best on {split}; ties to the more frequent"
    return Companion(name, bool(train), "headline", rule, "" if train else "add --train FILE, such as train.jsonl")


def _commands(item: Prediction, control: str) -> str:
    """Return how a control's answers are made and given. What the predictions do not hold stands in capitals."""
    model = shlex.quote(item.adapter.partition("@")[0] or item.model or "MODEL")
    out = f"predictions-{control}.jsonl"
    return (
        f"`pefomed predict {model} --data-root DATA --task {item.task} --control {SHORT[control]} --out {out}` with "
        f"the options of the first run, then add --control {SHORT[control]}={out}"
    )
