# SPDX-License-Identifier: Apache-2.0
"""The exact truth of a phantom: what is to be seen, where it lies, and the label set that a report states.

A phantom is drawn from its seed with arithmetic that IEEE 754 fixes (no sine, exponential or logarithm), so that the
same seed means the same case on every machine. Nothing here imports numpy.

Lengths are in body units: the image spans -1..1 in both directions, x to the right and y downwards, before the pose
(shift, scale, rotation) is applied. Sides are the patient's, in the radiological convention: the patient's right is
on the left of the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Literal, TypeVar

from ..errors import ConfigError, did_you_mean

Difficulty = Literal["easy", "medium", "hard"]
Box = tuple[int, int, int, int]
Choice = TypeVar("Choice")

SPLITS = ("train", "validation", "test")
# Each purpose draws from seeds of its own, so that no image of one is ever met in another.
SEED_STREAMS = (*SPLITS, "tower_train", "tower_heldout", "preview")

LESION_COUNT_SHARES = (0.36, 0.48, 0.11, 0.05)  # 0, 1, 2, 3 lesions
FINDING_SHARE = 0.35  # of the images in which a finding could be seen
OTHER_SIDE = {"left": "right", "right": "left"}


@dataclass(frozen=True)
class View:
    """One way to image a part of the body, and what may be found in it.

    `columns` and `rows` are the centres of the four places where a lesion may lie. `levels` names the two rows;
    `is_sided` says whether the columns are the patient's right and left. `findings` lists the attributes of
    [`Phantom`] that may be abnormal.
    """

    modality: str
    plane: str
    organ: str
    share: float
    columns: tuple[float, float]
    rows: tuple[float, float]
    levels: tuple[str, str]
    is_sided: bool = True
    findings: tuple[str, ...] = ()
    has_contrast: bool = False


VIEWS = {
    "ct_axial_head": View(
        "ct", "axial", "head", 0.07, (-0.32, 0.32), (-0.36, 0.36), ("anterior", "posterior"), findings=("ventricles",)
    ),
    "ct_axial_chest": View(
        "ct", "axial", "chest", 0.08, (-0.47, 0.47), (-0.2, 0.2), ("anterior", "posterior"),
        findings=("effusion",), has_contrast=True,
    ),
    "ct_axial_abdomen": View(
        "ct", "axial", "abdomen", 0.07, (-0.46, 0.46), (-0.24, 0.24), ("anterior", "posterior"), has_contrast=True
    ),
    "ct_coronal_abdomen": View(
        "ct", "coronal", "abdomen", 0.08, (-0.4, 0.4), (-0.2, 0.38), ("upper", "lower"), has_contrast=True
    ),
    "mri_axial_head": View(
        "mri", "axial", "head", 0.08, (-0.32, 0.32), (-0.36, 0.36), ("anterior", "posterior"), findings=("ventricles",)
    ),
    "mri_coronal_head": View(
        "mri", "coronal", "head", 0.08, (-0.36, 0.36), (-0.46, 0.06), ("upper", "lower"), findings=("ventricles",)
    ),
    "mri_sagittal_head": View(
        "mri", "sagittal", "head", 0.09, (-0.3, 0.36), (-0.46, 0.02), ("upper", "lower"), is_sided=False
    ),
    "xray_pa_chest": View(
        "xray", "pa", "chest", 0.14, (-0.46, 0.46), (-0.34, 0.18), ("upper", "lower"),
        findings=("cardiomegaly", "effusion"),
    ),
    "xray_lateral_chest": View(
        "xray", "lateral", "chest", 0.11, (-0.24, 0.26), (-0.38, 0.14), ("upper", "lower"),
        is_sided=False, findings=("effusion",),
    ),
    "ultrasound_oblique_abdomen": View(
        "ultrasound", "oblique", "abdomen", 0.2, (-0.32, 0.32), (-0.16, 0.46), ("superficial", "deep"),
        is_sided=False, findings=("gallstone",),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class _Level:
    """Radii in body units; the length of an elongated lesion over its width, and whether some stand upright."""

    small: tuple[float, float]
    large: tuple[float, float]
    aspect: float
    turns: bool


_LEVELS: dict[str, _Level] = {
    "easy": _Level((0.085, 0.105), (0.165, 0.19), 2.0, False),
    "medium": _Level((0.08, 0.11), (0.15, 0.19), 1.7, True),
    "hard": _Level((0.06, 0.085), (0.11, 0.16), 1.5, True),
}
DIFFICULTIES = tuple(_LEVELS)


@dataclass(frozen=True)
class Pose:
    """Where the body lies: image x = shift_x + scale_x * (cos * x - sin * y), image y alike."""

    shift_x: float
    shift_y: float
    scale_x: float
    scale_y: float
    cos: float
    sin: float


@dataclass(frozen=True)
class Lesion:
    """One lesion: `side` is left, right or "" (not told by the view), `level` one of the view's two.

    `x`, `y` is the centre and `radius_x`, `radius_y` the half-axes in body units. `box` is (x1, y1, x2, y2) in
    hundredths of the image's width and height.
    """

    side: str
    level: str
    size: str
    tone: str
    shape: str
    x: float
    y: float
    radius_x: float
    radius_y: float
    box: Box


@dataclass(frozen=True)
class Phantom:
    """All that is true of one image. `None` marks what the view cannot tell.

    `sequence` is t1, t2 or "" (no MRI). `effusion` is left, right, yes (a view without sides) or no. `is_mirrored`
    marks a case that [`mirror`] has reflected; all else then holds for the reflected image.
    """

    seed: int
    difficulty: str
    view: str
    modality: str
    plane: str
    organ: str
    sequence: str
    contrast: bool | None
    cardiomegaly: bool | None
    effusion: str | None
    ventricles: bool | None
    gallstone: bool | None
    lesions: tuple[Lesion, ...]
    pose: Pose
    is_mirrored: bool = False

    @property
    def is_normal(self) -> bool:
        """Whether nothing abnormal is to be seen."""
        findings = (self.cardiomegaly, self.ventricles, self.gallstone, self.effusion not in (None, "no"))
        return not self.lesions and not any(findings)


class Draws:
    """Random draws whose stream is the same in every Python version: only `Random.random()` is promised to be."""

    def __init__(self, seed: int, stream: int) -> None:
        self._random = Random(seed * 16 + stream)

    def share(self, probability: float) -> bool:
        """Return True with this probability."""
        return self._random.random() < probability

    def between(self, low: float, high: float) -> float:
        """Return a number, evenly distributed in low..high."""
        return low + (high - low) * self._random.random()

    def pick(self, items: Sequence[Choice], shares: Sequence[float] | None = None) -> Choice:
        """Return one item, evenly or by shares that need not sum to 1."""
        if shares is None:
            return items[min(int(self._random.random() * len(items)), len(items) - 1)]
        left = self._random.random() * math.fsum(shares)
        for item, share in zip(items, shares, strict=True):
            left -= share
            if left < 0:
                return item
        return items[-1]


def case_seed(seed: int, stream: str, index: int) -> int:
    """Return the seed of one case; different (seed, stream, index) never meet.

    Args:
        seed: the data set's seed, 0 or more.
        stream: one of `SEED_STREAMS`, such as the split's name.
        index: number of the case within the stream, 0 .. 2**32 - 1.

    Raises:
        ConfigError: the seed is negative or the stream is unknown.
    """
    if seed < 0:
        raise ConfigError(f"Found phantom seed {seed}; expected 0 or more")
    if stream not in SEED_STREAMS:
        raise ConfigError(f"Unknown phantom split {stream!r}{did_you_mean(stream, SEED_STREAMS)}")
    return ((seed * len(SEED_STREAMS) + SEED_STREAMS.index(stream)) << 32) + index


def draw_phantom(seed: int, difficulty: Difficulty | str = "easy") -> Phantom:
    """Return the case of a seed: view, findings, lesions and pose.

    Args:
        seed: 0 or more; see [`case_seed`] for seeds that keep splits apart.
        difficulty: `easy` (clear at 64 px), `medium`, or `hard` (subtle).

    Raises:
        ConfigError: the difficulty is unknown.
    """
    if difficulty not in _LEVELS:
        raise ConfigError(
            f"Unknown phantom difficulty {difficulty!r}{did_you_mean(difficulty, _LEVELS)}; "
            f"expected {', '.join(_LEVELS)}"
        )
    draws = Draws(seed, 0)
    name = draws.pick(tuple(VIEWS), [view.share for view in VIEWS.values()])
    view = VIEWS[name]
    pose = _draw_pose(draws, tilts=view.modality != "ultrasound")
    present = {finding: draws.share(FINDING_SHARE) for finding in view.findings}
    effusion = None
    if "effusion" in present:
        seen = draws.pick(("left", "right")) if view.is_sided else "yes"
        effusion = seen if present["effusion"] else "no"
    return Phantom(
        seed=seed,
        difficulty=str(difficulty),
        view=name,
        modality=view.modality,
        plane=view.plane,
        organ=view.organ,
        sequence=draws.pick(("t1", "t2")) if view.modality == "mri" else "",
        contrast=draws.share(0.5) if view.has_contrast else None,
        cardiomegaly=present.get("cardiomegaly"),
        effusion=effusion,
        ventricles=present.get("ventricles"),
        gallstone=present.get("gallstone"),
        lesions=_draw_lesions(draws, view, pose, _LEVELS[difficulty]),
        pose=pose,
    )


def _draw_pose(draws: Draws, tilts: bool) -> Pose:
    half = draws.between(-0.045, 0.045) if tilts else 0.0  # tangent of half the angle: up to 5 degrees
    scale = draws.between(0.93, 1.01)
    return Pose(
        shift_x=draws.between(-0.04, 0.04),
        shift_y=draws.between(-0.04, 0.04),
        scale_x=scale * draws.between(0.97, 1.0),
        scale_y=scale * draws.between(0.97, 1.0),
        cos=(1 - half * half) / (1 + half * half),
        sin=2 * half / (1 + half * half),
    )


def _draw_lesions(draws: Draws, view: View, pose: Pose, level: _Level) -> tuple[Lesion, ...]:
    count = draws.pick(range(len(LESION_COUNT_SHARES)), LESION_COUNT_SHARES)
    places = [(column, row) for row in (0, 1) for column in (0, 1)]
    lesions = []
    for _ in range(count):
        column, row = draws.pick(places)
        places.remove((column, row))
        size, tone, shape = draws.pick(("small", "large")), draws.pick(("bright", "dark")), "round"
        radius = draws.between(*(level.small if size == "small" else level.large))
        radius_x = radius_y = radius
        if draws.share(0.5):
            shape = "elongated"
            stretch = math.sqrt(level.aspect)  # the area stays
            radius_x, radius_y = radius * stretch, radius / stretch
            if level.turns and draws.share(0.5):
                radius_x, radius_y = radius_y, radius_x
        x = view.columns[column] + draws.between(-0.04, 0.04)
        y = view.rows[row] + draws.between(-0.04, 0.04)
        side = ("right", "left")[column] if view.is_sided else ""
        box = _image_box(pose, x, y, radius_x, radius_y)
        lesions.append(Lesion(side, view.levels[row], size, tone, shape, x, y, radius_x, radius_y, box))
    return tuple(sorted(lesions, key=lambda lesion: (lesion.y, lesion.x)))


def _image_box(pose: Pose, x: float, y: float, radius_x: float, radius_y: float) -> Box:
    centre_x = pose.shift_x + pose.scale_x * (pose.cos * x - pose.sin * y)
    centre_y = pose.shift_y + pose.scale_y * (pose.sin * x + pose.cos * y)
    half_x = pose.scale_x * _hypotenuse(pose.cos * radius_x, pose.sin * radius_y)
    half_y = pose.scale_y * _hypotenuse(pose.sin * radius_x, pose.cos * radius_y)
    edges = (centre_x - half_x, centre_y - half_y, centre_x + half_x, centre_y + half_y)
    x1, y1, x2, y2 = (min(100, max(0, math.floor(50 * (1 + edge) + 0.5))) for edge in edges)
    return x1, y1, x2, y2


def _hypotenuse(a: float, b: float) -> float:
    return math.sqrt(a * a + b * b)  # math.hypot is not correctly rounded everywhere


def mirror(phantom: Phantom) -> Phantom:
    """Return the truth of the left-right reflected image: left and right change places, boxes are reflected."""
    lesions = tuple(
        replace(
            lesion,
            side=OTHER_SIDE.get(lesion.side, lesion.side),
            box=(100 - lesion.box[2], lesion.box[1], 100 - lesion.box[0], lesion.box[3]),
        )
        for lesion in phantom.lesions
    )
    effusion = OTHER_SIDE.get(phantom.effusion, phantom.effusion) if phantom.effusion else phantom.effusion
    return replace(phantom, lesions=lesions, effusion=effusion, is_mirrored=not phantom.is_mirrored)


def facts(phantom: Phantom) -> frozenset[str]:
    """Return the label set that a report of this phantom states, such as `{"modality=ct", "side=left", ...}`.

    Keys: modality, plane, organ, sequence (MRI), contrast, cardiomegaly, effusion, ventricles, gallstone (where the
    view tells them, absence included), lesions (their number) and, of each lesion, side, level, size, tone, shape.
    """
    stated = {f"modality={phantom.modality}", f"plane={phantom.plane}", f"organ={phantom.organ}"}
    if phantom.sequence:
        stated.add(f"sequence={phantom.sequence}")
    for key in ("contrast", "cardiomegaly", "gallstone"):
        seen = getattr(phantom, key)
        if seen is not None:
            stated.add(f"{key}={'yes' if seen else 'no'}")
    if phantom.ventricles is not None:
        stated.add(f"ventricles={'enlarged' if phantom.ventricles else 'normal'}")
    if phantom.effusion is not None:
        stated.add(f"effusion={phantom.effusion}")
    stated.add(f"lesions={len(phantom.lesions)}")
    for lesion in phantom.lesions:
        for key in ("side", "level", "size", "tone", "shape"):
            if getattr(lesion, key):
                stated.add(f"{key}={getattr(lesion, key)}")
    return frozenset(stated)
