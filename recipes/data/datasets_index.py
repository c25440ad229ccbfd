# SPDX-License-Identifier: Apache-2.0
"""Which datasets there are by slug, and what stands in for a validation split that is not there."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import ConfigError, did_you_mean
from ..records import TASKS, Sample, is_credentialed
from .clef_caption import SOURCE as CLEF_CAPTION
from .csv_form import SOURCE as CSV
from .grouping import connected, group_keys
from .ids import Ids
from .image_folder import SOURCE as IMAGE_FOLDER
from .iu_xray import SOURCE as IU_XRAY
from .jsonl import keep_task, require_task, stream_jsonl_samples, stream_task
from .medicat import SOURCE as MEDICAT
from .mimic_cxr import SOURCE as MIMIC_CXR
from .mimic_diff_vqa import SOURCE as MIMIC_DIFF_VQA
from .ms_cxr import SOURCE as MS_CXR
from .path_vqa import SOURCE as PATH_VQA
from .pmc_vqa import SOURCE as PMC_VQA
from .prepared import SOURCE as PREPARED
from .reading import (
    MAX_LISTED_PROBLEMS,
    DatasetError,
    Layout,
    MissingSplitError,
    Problems,
    Source,
    canonical_split,
    samples_to_dataset,
    samples_to_stream,
)
from .roco import SOURCE as ROCO
from .rocov2 import SOURCE as ROCOV2
from .slake import SOURCE as SLAKE
from .vqa_rad import SOURCE as VQA_RAD

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

logger = logging.getLogger(__name__)

# People's own data, and phantoms, which come in the same form. The data sets of the paper stand in files of their own.
JSONL = Layout(
    name="jsonl",
    recognises=lambda root: True,
    read=stream_jsonl_samples,
    expected="train.jsonl, one JSON object a line, and the images that it names",
)
SOURCES = {
    source.slug: source
    for source in (
        Source("jsonl", "a folder of JSON lines", TASKS, "", (JSONL,), languages=()),
        Source("phantoms", "phantoms", TASKS, "CC0-1.0", (JSONL,)),
        PREPARED,
        CSV,
        IMAGE_FOLDER,
        VQA_RAD,
        SLAKE,
        PATH_VQA,
        PMC_VQA,
        MIMIC_DIFF_VQA,
        ROCO,
        ROCOV2,
        CLEF_CAPTION,
        MEDICAT,
        MIMIC_CXR,
        IU_XRAY,
        MS_CXR,
    )
}
# One fixed seed, whatever the run's: training and validation must agree on who is held out.
HOLD_OUT_SHARE, HOLD_OUT_SEED = 0.1, 0


def load_samples(
    dataset: str,
    data_root: str | os.PathLike[str],
    split: str,
    task: str | None = None,
    *,
    language: str | None = None,
    on_missing: Literal["fail", "skip"] = "fail",
) -> list[Sample]:
    """Return the samples of one split of a dataset.

    Where the dataset has no validation split, 10 % of its training images, with all their samples, are held out:
    always the same ones, whatever the task, so that no stage trains on an image that another one validates on.

    Args:
        dataset: slug of the dataset, one of `SOURCES`.
        data_root: the dataset's folder, in any of the dataset's layouts.
        split: `train`, `validation` or `test`.
        task: keep the samples of this task only; all without. For `caption`, reports count where there is nothing
            else.
        language: keep the samples in this language only, or `all`; must be said where a dataset mixes languages.
        on_missing: what to do about samples whose image file is not there: list them and stop, or leave them out and
            say how many.

    Raises:
        ConfigError: the slug, split, task or language is unknown, or the language is not said where it must be.
        DatasetError: the folder or split is missing, its content cannot be used, or nothing is left for the task.
    """
    split = canonical_split(split)
    require_task(task)
    _require_language(find_source(dataset), language)

    def read(split: str) -> list[Sample]:
        return present(stream_samples(dataset, data_root, split, language=language), data_root, on_missing)

    if split == "test" or _has_validation(dataset, data_root):
        samples = read(split)
    else:
        train = read("train")
        kept, held_out = hold_out(train, HOLD_OUT_SHARE, HOLD_OUT_SEED)
        logger.warning(
            "%s has no validation split: %d of %d training samples (%.0f %% of the images) are held out for it",
            *(data_root, len(held_out), len(train), 100 * HOLD_OUT_SHARE),
        )
        samples = kept if split == "train" else [replace(sample, split=split) for sample in held_out]
    if task == "caption" and all(sample.task == "report" for sample in samples):
        samples = [_as_caption(sample) for sample in samples]
    return keep_task(samples, task, data_root, split)


def _has_validation(dataset: str, data_root: str | os.PathLike[str]) -> bool:
    """Whether a data set has a validation split, in whichever language, by its first sample."""
    try:
        next(stream_samples(dataset, data_root, "validation", language="all"), None)
    except MissingSplitError:
        return False
    return True


def load_dataset(
    dataset: str,
    data_root: str | os.PathLike[str],
    split: str,
    task: str | None = None,
    *,
    language: str | None = None,
    on_missing: Literal["fail", "skip"] = "fail",
    streaming: bool = False,
) -> Dataset | IterableDataset:
    """Return one split as a `datasets.Dataset` with the columns of the record `Sample`.

    Args:
        dataset, data_root, split, task, language, on_missing: as for [`load_samples`].
        streaming: read row by row instead, in memory that does not grow with the rows. Nothing is then held out, and
            images are not looked for.

    Raises:
        ConfigError, DatasetError: as [`load_samples`]; a stream raises what it finds when it is read.
    """
    if not streaming:
        samples = load_samples(dataset, data_root, split, task, language=language, on_missing=on_missing)
        return samples_to_dataset(samples)
    wanted = canonical_split(split)
    require_task(task)
    _require_language(find_source(dataset), language)

    def every() -> Iterator[Sample]:
        return stream_samples(dataset, data_root, wanted, language=language)

    def read() -> Iterator[Sample]:
        # a pass of its own, which ends at the first sample that is no report: only then is it known what counts
        reports_only = task == "caption" and all(sample.task == "report" for sample in every())
        return stream_task(map(_as_caption, every()) if reports_only else every(), task, data_root, wanted)

    return samples_to_stream(read)


def _as_caption(sample: Sample) -> Sample:
    """Return a report as a caption, as which it counts in a data set that has reports only.

    Source: the paper's stage 1, in which MIMIC-CXR's reports are captions.
    """
    return replace(sample, task="caption")


def find_source(dataset: str) -> Source:
    """Return the source of a slug.

    Raises:
        ConfigError: there is none; the nearest is suggested.
    """
    if dataset not in SOURCES:
        raise ConfigError(
            f"Unknown dataset {dataset!r}{did_you_mean(dataset, SOURCES)}; expected one of {', '.join(SOURCES)}"
        )
    return SOURCES[dataset]


@cache
def _tell_layout(data_root: str, title: str, layout: str) -> None:
    """Name the recognised layout in the log, once for all splits."""
    logger.info("%s recognised as %s, %s", data_root, title, layout)


def stream_samples(
    dataset: str, data_root: str | os.PathLike[str], split: str, *, language: str | None = None
) -> Iterator[Sample]:
    """Yield the samples of one split as they are read, whether or not their images are there.

    Every sample says where it is from and under which terms.

    Raises:
        ConfigError, DatasetError: as [`load_samples`]; at the end, where no sample is in the language.
    """
    source = find_source(dataset)
    _require_language(source, language)
    layout = source.recognise(data_root)
    _tell_layout(str(data_root), source.title, layout.name)
    found: Counter[str] = Counter()
    for sample in layout.read(Path(os.path.abspath(data_root)), split):
        found[sample.language] += 1
        if language in (None, "all", sample.language):
            yield replace(
                sample,
                split=sample.split or split,
                source=sample.source or source.slug,
                licence=sample.licence or source.licence,
                credentialed=source.credentialed or is_credentialed(sample),
            )
    if not found:
        raise DatasetError(f"{data_root}: found no sample of the {split} split that can be used; expected some")
    if language not in (None, "all", *found):
        languages = ", ".join(f"{count} in {name}" for name, count in found.most_common(10))
        raise DatasetError(
            f"{data_root}: 0 of {found.total()} {split} samples are in the language {language!r}, found {languages}; "
            "choose one of these, or all"
        )


def _require_language(source: Source, language: str | None) -> None:
    """Check that a data set can hold samples in a language, and that one is chosen of several.

    Raises:
        ConfigError: it cannot, or none is.
    """
    languages = " and ".join(source.languages)
    if len(source.languages) > 1 and language not in (*source.languages, "all"):
        raise ConfigError(
            f"{source.title} holds questions in {languages}, found language {language!r}; "
            f"choose one with --language {'|'.join(source.languages)} (all mixes them and leaks images between splits)"
        )
    if source.languages and language not in (None, *source.languages, "all"):
        raise ConfigError(f"{source.title} is in {languages} only, found language {language!r}; leave --language out")


def present(
    samples: Iterator[Sample], root: str | os.PathLike[str], on_missing: Literal["fail", "skip"]
) -> list[Sample]:
    """Return the samples whose image files are all there; an image inside a Parquet file is there with the file.

    Raises:
        DatasetError: ids come twice; or files are missing, all of them named, the first 20 listed, and `on_missing` is
            `fail`, or it is `skip` and no sample is left.
    """
    kept: list[Sample] = []
    there: dict[str, bool] = {}
    missing: dict[str, list[str]] = {}
    problems, ids = Problems(root, "sample"), Ids()
    for number, sample in enumerate(samples, start=1):
        ids.add(sample.id, number)
        absent = []
        for path in sample.image_paths:
            file = path.partition(".parquet#")[0] + ".parquet" if ".parquet#" in path else path
            if file not in there:
                there[file] = os.path.isfile(file)
            if not there[file]:
                absent.append(path)
        for path in absent:
            missing.setdefault(path, []).append(sample.id)
        if not absent:
            kept.append(sample)
    ids.note_repeats(problems)
    problems.raise_if_any()
    if not missing:
        return kept
    listed = [
        f"  {os.path.relpath(path, root)} of {ids[0]}" + (f" and {len(ids) - 1} more" if len(ids) > 1 else "")
        for path, ids in list(missing.items())[:MAX_LISTED_PROBLEMS]
    ]
    if len(missing) > len(listed):
        listed.append(f"  and {len(missing) - len(listed)} more")
    noun = "image file is" if len(missing) == 1 else "image files are"
    if on_missing == "fail":
        raise DatasetError("\n".join([f"{root}: {len(missing)} {noun} missing", *listed]))
    if not kept:
        raise DatasetError(
            "\n".join([f"{root}: {len(missing)} {noun} missing, and without them no sample is left", *listed])
        )
    logger.warning("%s: %d %s missing; their samples are left out: %s", root, len(missing), noun, "; ".join(listed))
    return kept


def hold_out(samples: Sequence[Sample], share: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Split samples in two, (kept, held out): samples that share an image, study or patient stay together.

    Args:
        samples: in any order; both parts keep it.
        share: of the groups to hold out, 0..1; at least one group lands on each side.
        seed: decides which groups; the same on every machine and wherever the folder lies.

    Raises:
        DatasetError: all samples belong to one group.
    """
    roots = connected(group_keys(sample) for sample in samples)
    # A group is ranked by its smallest image id: unlike the paths, it names no machine.
    names: dict[tuple[str, str], str] = {}
    for sample, group in zip(samples, roots, strict=True):
        name = sample.image_id or sample.id
        names[group] = min(names.get(group, name), name)
    if len(names) < 2:
        raise DatasetError(
            f"Cannot hold out: found {len(names)} group(s) by image, study and patient, expected at least 2; "
            "add images or a validation split"
        )
    ranked = sorted(names, key=lambda group: hashlib.sha256(f"{seed}:{names[group]}".encode()).digest())
    chosen = set(ranked[: min(max(round(share * len(ranked)), 1), len(ranked) - 1)])
    kept = [sample for sample, group in zip(samples, roots, strict=True) if group not in chosen]
    held_out = [sample for sample, group in zip(samples, roots, strict=True) if group in chosen]
    return kept, held_out
