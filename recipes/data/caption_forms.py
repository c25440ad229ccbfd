# SPDX-License-Identifier: Apache-2.0
"""Forms in which several sets of captions are found: a prepared JSON list, the Hub's Parquet files, a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..records import Sample
from .files import (
    ImageFinder,
    json_of_split,
    peek_json,
    read_json_rows,
    split_in_name,
    text_of,
)
from .ids import Ids
from .parquet_images import image_column, open_parquet, parquet_reference, read_rows
from .reading import DatasetError, LeftOut, MissingSplitError, Problems, canonical_split

ReadTable = Callable[[Path, Problems, Sequence[str]], Iterator[tuple[int, dict[str, str]]]]
EMPTY = "with an empty caption"
PREPARED_EXPECTED = "train.json, a list of {image, caption}, and the images that it names"
HUB_EXPECTED = "train-*.parquet with the columns image, image_id and caption"


def has_prepared_captions(root: Path) -> bool:
    """Whether a folder holds a JSON list of `{"image", "caption"}`."""
    return any(_is_prepared(peek_json(path)) for path in sorted(root.glob("*.json")))


def read_prepared_captions(slug: str, root: Path, split: str, places: Sequence[str]) -> Iterator[Sample]:
    """Yield the samples of a split from its JSON list; ids are `{slug}-{split}-{image}`.

    Args:
        places: where the images may lie, as for [`ImageFinder`].

    Raises:
        MissingSplitError, DatasetError: as [`Layout`] says.
    """
    split = canonical_split(split)
    path = json_of_split(root, split, _is_prepared)
    problems = Problems(path)
    left_out = LeftOut(problems)
    ids, images = Ids(), ImageFinder(root, places)
    for number, row in read_json_rows(path, problems):
        name, caption = text_of(row, "image", number, problems), text_of(row, "caption", number, problems)
        if name is None or caption is None:
            continue
        image = images.find_or_note(name, number, problems)
        ids.add(name, number)
        if not caption:
            left_out.add(EMPTY, number)
        elif image:
            yield Sample(f"{slug}-{split}-{name}", "caption", [image], "", [caption], image_id=images.relative(image))
    ids.note_repeats(problems)
    problems.raise_if_any()
    left_out.log(split)


def read_caption_table(
    path: Path, split: str, read: ReadTable, places: Sequence[str], licences: Mapping[str, str] | None = None
) -> Iterator[Sample]:
    """Yield the samples of a table with the columns `id` and `caption`, whose images are `{id}.jpg`.

    Args:
        path: the table, in the data set's folder.
        read: `read_csv` or `read_tsv`.
        places: where the images may lie, as for [`ImageFinder`].
        licences: of single figures, by id.

    Raises:
        DatasetError: as [`Layout`] says.
    """
    problems = Problems(path, "line")
    left_out = LeftOut(problems)
    ids, images = Ids(), ImageFinder(path.parent, places)
    for number, row in read(path, problems, ("id", "caption")):
        name, caption = row["id"].strip(), text_of(row, "caption", number, problems)
        image = images.find_or_note(f"{name}.jpg" if name else "", number, problems)
        ids.add(name, number)
        if not image or caption is None:
            continue
        if not caption:
            left_out.add(EMPTY, number)
        else:
            licence = (licences or {}).get(name, "")
            yield Sample(name, "caption", [image], "", [caption], image_id=name, licence=licence)
    ids.note_repeats(problems)
    problems.raise_if_any()
    left_out.log(split)


def has_hub_captions(root: Path) -> bool:
    """Whether a folder holds Parquet files with images and captions."""
    files = _parquet_files(root)
    if not files:
        return False
    try:
        with open_parquet(files[0]) as parquet:
            schema = parquet.schema_arrow
    except DatasetError:  # damaged: told when it is read
        return True
    return {"image_id", "caption"} <= set(schema.names) and image_column(schema) is not None


def read_hub_captions(root: Path, split: str) -> Iterator[Sample]:
    """Yield the samples of a split from its Parquet files, in the order of their names; ids are the Hub's `image_id`.

    Raises:
        MissingSplitError, DatasetError: as [`Layout`] says.
    """
    split = canonical_split(split)
    files = [path for path in _parquet_files(root) if split_in_name(path.stem) == split]
    if not files:
        raise MissingSplitError(f"{root}: no Parquet file of the {split} split; expected {split}-*.parquet")
    seen: dict[str, str] = {}
    for path in files:
        problems = Problems(path)
        left_out = LeftOut(problems)
        for row, cells in read_rows(path, ["image_id", "caption"]):
            number = row + 1
            name, caption = text_of(cells, "image_id", number, problems), text_of(cells, "caption", number, problems)
            if name is None or caption is None:
                continue
            if not name:
                problems.add(number, "image_id is missing or empty; expected text")
            elif name in seen:
                problems.add(number, f"the id of {seen[name]} again; ids must differ")
            elif not caption:
                left_out.add(EMPTY, number)
            else:
                yield Sample(name, "caption", [parquet_reference(path, row)], "", [caption], image_id=name)
            seen.setdefault(name, f"{path.name}, row {number}")
        problems.raise_if_any()
        left_out.log(split)


def _is_prepared(peeked: Any) -> bool:
    return (
        isinstance(peeked, list)
        and bool(peeked)
        and isinstance(peeked[0], dict)
        and {"image", "caption"} <= peeked[0].keys()
    )


def _parquet_files(root: Path) -> list[Path]:
    return sorted([*root.glob("*.parquet"), *root.glob("*/*.parquet")])
