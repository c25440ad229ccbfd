# SPDX-License-Identifier: Apache-2.0
"""Splits a data set anew so that no image, study or patient is in two splits; VQA-RAD, above all, needs it.

Whole groups move: samples stay together that share an image file, an image, a study or a patient, by the data set's
names for them or by equal pixels, be it through others. Groups are put in an order that depends on the seed and their
image ids alone; each goes to the split that lacks most samples of its former number. So the result is the same on
every machine, and every split is as large as before, up to the size of a group.

Samples that repeat the images, question and answers of another one stay in training and are left out elsewhere:
VQA-RAD's prepared form holds 1,267 generated rows, many of which repeat a person's, and none is to be scored twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import PeFoMedError
from ..records import Sample
from ..staging import whole_folder
from .datasets_index import find_source, stream_samples
from .grouping import connected, group_keys
from .image_facts import examine_images, relative_name
from .jsonl import LABEL_KEYS
from .parquet_images import is_parquet_reference, read_parquet_image
from .reading import MAX_LISTED_PROBLEMS, SPLIT_SPELLINGS, DatasetError, MissingSplitError
from .tallies import content_key

SPLIT_FILE = "split.json"
METHOD = "image-disjoint"
GROUPED_BY = ("image file", "image", "study", "patient", "equal pixels")
_ANSWER_KEYS = {"vqa": "answer", "caption": "caption", "report": "report"}


def write_disjoint_split(
    dataset: str,
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    language: str | None = None,
    seed: int = 0,
    workers: int | None = None,
) -> Path:
    """Write a data set with other splits as JSON lines, to be read as `jsonl`, and return its folder.

    The folder holds one file a split, the images under the names that they have below `root`, and `split.json`, which
    says how the split was made. Images are hard links, which take no space, where the file system allows it, else
    copies; images in Parquet files become files of their own. The folder appears only when it is whole.

    Args:
        dataset: slug of the data set.
        root: its folder.
        out: a new or empty folder.
        language: as for reading.
        seed: another seed gives another split.
        workers: processes that decode images, to find equal pixels.

    Raises:
        ConfigError, DatasetError: the data set cannot be read, images cannot be used, or there are fewer groups than
            splits.
        PeFoMedError: `out` holds something.
    """
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PeFoMedError(f"{folder} exists and is not empty; name a new folder for the split")
    source = find_source(dataset)
    before: dict[str, list[Sample]] = {}
    for split in SPLIT_SPELLINGS:
        try:
            before[split] = list(stream_samples(dataset, root, split, language=language))
        except MissingSplitError:
            continue
    samples = [sample for split in before.values() for sample in split]
    _refuse_repeated_ids(samples, root)
    groups = _groups(samples, root, workers)
    split_of = assign_groups(samples, groups, {split: len(rows) for split, rows in before.items()}, seed)
    after = {
        split: [sample for sample, group in zip(samples, groups, strict=True) if split_of[group] == split]
        for split in before
    }
    repeats = {}
    for split in [split for split in after if split != "train"]:
        unique: dict[int, Sample] = {}
        for sample in after[split]:
            unique.setdefault(content_key(sample), sample)
        repeats[split] = len(after[split]) - len(unique)
        after[split] = list(unique.values())
    with whole_folder(folder) as staged:
        names = _place_images(samples, root, staged)
        for split, rows in after.items():
            lines = [json.dumps(_to_row(sample, names), ensure_ascii=False) + "\n" for sample in rows]
            (staged / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        record = {
            "method": METHOD,
            "seed": seed,
            "grouped_by": GROUPED_BY,
            "dataset": dataset,
            "title": source.title,
            "layout": source.recognise(root).name,
            "language": language,
            "groups": len(split_of),
            "before": {split: _counts(rows) for split, rows in before.items()},
            "after": {split: _counts(rows) for split, rows in after.items()},
            "repeats_left_out": repeats,
        }
        (staged / SPLIT_FILE).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return folder


def assign_groups(
    samples: Sequence[Sample], groups: Sequence[Any], wanted: dict[str, int], seed: int
) -> dict[Any, str]:
    """Return the split of each group, each split about as large as wanted.

    Args:
        samples: all of them.
        groups: of each sample, the group.
        wanted: samples of each split.
        seed: decides the groups' order.

    Raises:
        DatasetError: there are fewer groups than splits, so that one would be empty.
    """
    sizes = Counter(groups)
    if len(sizes) < len(wanted):
        raise DatasetError(
            f"found {len(sizes)} group(s) of samples that share images, studies or patients, expected at least "
            f"{len(wanted)}, one for each split"
        )
    names: dict[Any, str] = {}
    for sample, group in zip(samples, groups, strict=True):
        name = sample.image_id or sample.id
        names[group] = min(names.get(group, name), name)
    ranked = sorted(names, key=lambda group: hashlib.sha256(f"{seed}:{names[group]}".encode()).digest())
    lacking = dict(wanted)
    split_of: dict[Any, str] = {}
    unused = dict.fromkeys(wanted)
    for left, group in zip(range(len(ranked), 0, -1), ranked, strict=True):
        # towards the end, a split that has nothing yet comes first
        split = max(unused if left <= len(unused) else wanted, key=lacking.__getitem__)
        unused.pop(split, None)
        split_of[group] = split
        lacking[split] -= sizes[group]
    return split_of


def _groups(samples: Sequence[Sample], root: str | os.PathLike[str], workers: int | None) -> list[Any]:
    """Return the group of each sample.

    Raises:
        DatasetError: images cannot be used; they are named.
    """
    paths = list(dict.fromkeys(path for sample in samples for path in sample.image_paths))
    pixels, problems = {}, []
    for path, facts in examine_images(paths, workers=workers):
        if facts.state == "good":
            pixels[path] = facts.pixels
        else:
            problems.append(f"  {relative_name(path, root)}: {facts.problem}")
    if problems:
        listed = problems[:MAX_LISTED_PROBLEMS]
        listed += [f"  and {len(problems) - len(listed)} more"] if len(problems) > len(listed) else []
        raise DatasetError("\n".join([f"{root}: {len(problems)} images cannot be used", *listed]))
    return connected(
        [*group_keys(sample), *(("pixels", pixels[path]) for path in sample.image_paths)] for sample in samples
    )


def _refuse_repeated_ids(samples: Sequence[Sample], root: str | os.PathLike[str]) -> None:
    repeated = [id for id, count in Counter(sample.id for sample in samples).items() if count > 1]
    if repeated:
        raise DatasetError(
            f"{root}: {len(repeated)} ids occur in two splits ({', '.join(repeated[:5])}); they must differ over all"
        )


def _place_images(samples: Sequence[Sample], root: str | os.PathLike[str], folder: Path) -> dict[str, str]:
    """Link, copy or write every image into a folder; return the name of each there, by its path."""
    names: dict[str, str] = {}
    for path in dict.fromkeys(path for sample in samples for path in sample.image_paths):
        if is_parquet_reference(path):
            content = read_parquet_image(path)
            names[path] = f"images/{hashlib.sha256(content).hexdigest()[:32]}"
            target = folder / names[path]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            continue
        names[path] = relative_name(path, root)
        target = folder / names[path]
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, target)
        except OSError:  # another file system, or one without links
            shutil.copyfile(path, target)
    return names


def _to_row(sample: Sample, names: dict[str, str]) -> dict[str, Any]:
    """Return the sample as the `jsonl` form writes it."""
    images = [names[path] for path in sample.image_paths]
    row: dict[str, Any] = {"id": sample.id, "image": images[0] if len(images) == 1 else images}
    if sample.task == "refer":
        row |= {"phrase": sample.instruction, "box": [int(edge) for edge in re.findall(r"\d+", sample.answers[0])]}
    elif sample.task == "vqa":
        row |= {"question": sample.instruction, "answer": _one_or_list(sample.answers)}
    else:
        row[_ANSWER_KEYS[sample.task]] = _one_or_list(sample.answers)
        row["instruction"] = sample.instruction
    row |= {
        "answer_type": sample.answer_type,
        "answer_type_derived": sample.answer_type_derived,
        "question_type": sample.question_types,
    }
    for key in (*LABEL_KEYS, "language", "source", "licence"):
        row[key] = getattr(sample, key)
    row["credentialed"] = sample.credentialed
    return {key: value for key, value in row.items() if value not in ("", [], False)}


def _one_or_list(answers: list[str]) -> str | list[str]:
    return answers[0] if len(answers) == 1 else answers


def _counts(samples: Sequence[Sample]) -> dict[str, int]:
    types = Counter(sample.answer_type for sample in samples)
    images = {path for sample in samples for path in sample.image_paths}
    return {"samples": len(samples), "images": len(images), "closed": types["CLOSED"], "open": types["OPEN"]}
