# SPDX-License-Identifier: Apache-2.0
"""Finds images that are in several data sets or splits: a test image seen in stage 1 makes an evaluation worthless."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, PeFoMedError
from ..staging import whole_file
from .datasets_index import find_source, stream_samples
from .image_facts import examine_images, relative_name
from .near_duplicates import MAX_DISTANCE, Picture, find_near_duplicates
from .reading import SPLIT_SPELLINGS, MissingSplitError
from .tallies import image_keys, pairs_of


def find_duplicates(
    sets: Sequence[str],
    *,
    language: str | None = None,
    max_distance: int = MAX_DISTANCE,
    workers: int | None = None,
) -> dict[str, Any]:
    """Return which images are in more than one part: a part is a split of one of the sets, called `roco/train`.

    Args:
        sets: `NAME:DIR` each; names that come twice get a number.
        language: as for reading.
        max_distance: see [`find_near_duplicates`]; equal pixels are listed whatever it is.
        workers: processes that decode images.

    Returns:
        `parts`: number of images of each; `unusable`: of images that could not be decoded; `listed`: pairs, each with
        `names` (part and file), `distance` in bits and `equal` (the same pixels); `counts`: for two parts, how many
        of the second one's pictures are in the first; `summary`: these as lines of text.

    Raises:
        ConfigError: a set is not given as `NAME:DIR`, or is unknown.
        DatasetError: a folder cannot be read.
    """
    pictures: dict[str, Picture] = {}
    images: dict[str, int] = {}
    unusable = 0
    for label, name, root in _parsed(sets):
        shown_in = _images(name, root, label, language)
        for path, facts in examine_images(list(shown_in), workers=workers):
            if facts.state != "good":
                unusable += 1
                continue
            picture = pictures.setdefault(facts.pixels, Picture(facts.hash, facts.look))
            for part in shown_in[path]:
                picture.names.setdefault(part, []).append(relative_name(path, root))
        for parts in shown_in.values():
            for part in parts:
                images[part] = images.get(part, 0) + 1
    listed = list(_pairs(list(pictures.values()), list(images), max_distance))
    twins = {(*pair["parts"], pair.pop("picture")) for pair in listed}
    counts = sorted(Counter((first, second) for first, second, _ in twins).items())
    summary = [f"{part}: {count:,} images" for part, count in images.items()]
    summary += [f"{count:,} pictures of {second} are in {first}, too, or nearly" for (first, second), count in counts]
    if unusable:
        summary.append(f"{unusable:,} images are missing or corrupt; `pefomed data check` names them")
    return {
        "parts": images,
        "unusable": unusable,
        "pairs": len(listed),
        "counts": [{"parts": list(parts), "pictures": count} for parts, count in counts],
        "listed": listed,
        "summary": summary,
    }


def write_duplicates(report: dict[str, Any], path: Path) -> None:
    """Write what was found as JSON; the file appears only when it is whole."""
    with whole_file(path) as staged:
        staged.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _parsed(sets: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return (label, slug, folder) of each set."""
    parsed = []
    names = Counter(entry.partition(":")[0] for entry in sets)
    seen: Counter[str] = Counter()
    for entry in sets:
        name, colon, root = entry.partition(":")
        if not colon or not root:
            raise ConfigError(f"found {entry!r}; expected NAME:DIR, a data set and its folder, such as roco:data/roco")
        find_source(name)
        seen[name] += 1
        parsed.append((f"{name}#{seen[name]}" if names[name] > 1 else name, name, os.path.abspath(root)))
    return parsed


def _images(name: str, root: str, label: str, language: str | None) -> dict[str, list[str]]:
    """Return the images of a set: path -> the parts that show it.

    Raises:
        DatasetError: the set has no split.
    """
    found: dict[str, tuple[str, list[str]]] = {}
    splits = 0
    for split in SPLIT_SPELLINGS:
        try:
            for sample in stream_samples(name, root, split, language=language):
                for key, path in zip(image_keys(sample), sample.image_paths, strict=True):
                    parts = found.setdefault(key, (path, []))[1]
                    if f"{label}/{split}" not in parts:
                        parts.append(f"{label}/{split}")
        except MissingSplitError:
            continue
        splits += 1
    if not splits:
        raise PeFoMedError(f"{root}: found no split; expected some of {', '.join(SPLIT_SPELLINGS)}")
    return dict(found.values())


def _pairs(pictures: Sequence[Picture], parts: Sequence[str], max_distance: int) -> Iterator[dict[str, Any]]:
    """Yield the pairs of parts that hold the same picture, then those that hold nearly the same one."""
    for at, picture in enumerate(pictures):
        for first, second in pairs_of(sorted(picture.names, key=parts.index)):
            yield _pair(picture.names[first][0], first, picture.names[second][0], second, at, 0, equal=True)
    for near in find_near_duplicates(pictures, max_distance=max_distance):
        for part in pictures[near.first].names:
            for other in pictures[near.second].names:
                if part != other:
                    ends = sorted([(parts.index(part), near.first), (parts.index(other), near.second)])
                    (first, second), (name, twin) = zip(
                        *((parts[index], pictures[at].names[parts[index]][0]) for index, at in ends), strict=True
                    )
                    yield _pair(name, first, twin, second, ends[1][1], near.distance, equal=False)


def _pair(name: str, part: str, other: str, other_part: str, at: int, distance: int, *, equal: bool) -> dict[str, Any]:
    names = [f"{part} {name}", f"{other_part} {other}"]
    return {"parts": [part, other_part], "names": names, "distance": distance, "equal": equal, "picture": at}
