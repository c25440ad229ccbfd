# SPDX-License-Identifier: Apache-2.0
"""What a check sees of images: whether they can be used, and which show the same."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from PIL import Image

from .image_facts import examine_images, relative_name
from .near_duplicates import Picture, find_near_duplicates
from .reading import SPLIT_SPELLINGS
from .tallies import MAX_NAMES, Names, finding, pairs_of


class ImageChecks:
    """Looks at each image of a data set once.

    Args:
        root: the data set's folder.
        images: of each image its path, and in which splits it is, with the id of the first sample that shows it.
    """

    def __init__(self, root: str, images: Mapping[str, tuple[str, dict[str, str]]]) -> None:
        self.root = root
        self.images = images
        self.pictures: dict[str, Picture] = {}  # by the fingerprint of their pixels
        self.pixels: dict[str, str] = {}  # that fingerprint, by path
        self.unusable: dict[str, list[str]] = {"missing": [], "corrupt": []}
        self.thumbnails: dict[str, Image.Image] = {}  # by path
        self.sides: list[tuple[int, int]] = []
        self.may_hold_text = Names()

    def examine(self, thumbnails: Collection[str], workers: int | None) -> None:
        """Decode every image; keep small pictures of some."""
        shown_in = dict(self.images.values())
        for path, facts in examine_images(list(shown_in), thumbnails=thumbnails, workers=workers):
            name = relative_name(path, self.root)
            if facts.state != "good":
                where = ", ".join(f"{split} {first}" for split, first in shown_in[path].items())
                problem = f"{facts.problem}; " if facts.state == "corrupt" else ""
                self.unusable[facts.state].append(f"{name} ({problem}{where})")
                continue
            self.sides.append((facts.width, facts.height))
            if facts.may_hold_text:
                self.may_hold_text.add(name)
            if facts.thumbnail:
                self.thumbnails[path] = facts.thumbnail
            self.pixels[path] = facts.pixels
            picture = self.pictures.setdefault(facts.pixels, Picture(facts.hash, facts.look))
            for split in shown_in[path]:
                picture.names.setdefault(split, []).append(name)

    def pixels_by_key(self) -> dict[str, str]:
        """Return the fingerprint of each image's pixels by what samples know the image by."""
        return {key: self.pixels[path] for key, (path, _) in self.images.items() if path in self.pixels}

    def findings(self) -> Iterator[dict[str, Any]]:
        """Yield images that cannot be used, by name, and pictures that are in one split under several names."""
        for kind, words in (("missing", "are not there"), ("corrupt", "cannot be decoded")):
            if self.unusable[kind]:
                yield finding(kind, f"{len(self.unusable[kind])} image files {words}", self.unusable[kind])
        repeated: dict[str, Names] = {}
        for picture in self.pictures.values():
            for split, names in picture.names.items():
                if len(names) > 1:
                    repeated.setdefault(split, Names()).add(" = ".join(names))
        for split, found in repeated.items():
            text = f"{found.count} pictures are there under several names"
            yield finding("duplicates", text, found, split)

    def shared(self) -> Iterator[dict[str, Any]]:
        """Yield for each pair of splits the pictures that are in both, but in no file of both."""
        there = {split for picture in self.pictures.values() for split in picture.names}
        splits = [split for split in SPLIT_SPELLINGS if split in there]
        for first, second in pairs_of(splits):
            here = [picture for picture in self.pictures.values() if second in picture.names]
            both = [
                picture
                for picture in here
                if first in picture.names and not set(picture.names[first]) & set(picture.names[second])
            ]
            names = [f"{picture.names[first][0]} = {picture.names[second][0]}" for picture in both[:MAX_NAMES]]
            yield {"by": "content", "splits": [first, second], "groups": len(both), "of": len(here), "names": names}

    def near(self) -> dict[str, Any]:
        """Return the pairs of pictures of different splits that look the same, see [`near_duplicates`]."""
        pictures = list(self.pictures.values())
        pairs = find_near_duplicates(pictures)
        return {
            "pairs": len(pairs),
            "listed": [
                {
                    "names": _in_different_parts(pictures[pair.first], pictures[pair.second]),
                    "distance": pair.distance,
                    "correlation": pair.correlation,
                }
                for pair in pairs[:MAX_NAMES]
            ],
        }

    def summary(self) -> dict[str, Any]:
        """Return how many images there are, the range of their sizes, and which may show text, such as a name."""
        counts = {"good": len(self.sides), **{kind: len(names) for kind, names in self.unusable.items()}}
        if not self.sides:
            return counts
        return {
            **counts,
            "different_pictures": len(self.pictures),
            "smallest": min(self.sides, key=lambda side: side[0] * side[1]),
            "largest": max(self.sides, key=lambda side: side[0] * side[1]),
            "may_hold_text": {"count": self.may_hold_text.count, "names": self.may_hold_text.names},
        }


def _in_different_parts(first: Picture, second: Picture) -> list[str]:
    """Return a name of each of two pictures with the split that it is in: another one for each."""
    part, other = next((a, b) for a in first.names for b in second.names if a != b)
    return [f"{part} {first.names[part][0]}", f"{other} {second.names[other][0]}"]
