# SPDX-License-Identifier: Apache-2.0
"""One painter a view: the anatomy, its variation from patient to patient, and the findings, in layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from .phantom_canvas import Array, Canvas
from .phantom_truth import Draws, Phantom

Painter: TypeAlias = Callable[[Canvas, Phantom, Draws, np.random.PCG64], None]

_LEFT = {"left": 1.0, "right": -1.0}  # the patient's left is on the right of the image


def _ct_axial_head(canvas: Canvas, phantom: Phantom, draws: Draws, bits: np.random.PCG64) -> None:
    wide, brain = draws.between(0.94, 1.04), draws.between(0.42, 0.5)
    canvas.ellipse(0, 0, 0.71 * wide, 0.89, 0.34)
    canvas.ellipse(0, 0, 0.67 * wide, 0.85, 0.96)
    canvas.ellipse(0, 0, 0.6 * wide, 0.77, brain, ripple=0.01)
    canvas.texture(0.035)
    canvas.ellipse(0, -0.5, 0.012, 0.25, brain + 0.16)
    canvas.ellipse(0, 0.52, 0.012, 0.23, brain + 0.16)
    _ventricles_axial(canvas, phantom, 0.19)
    canvas.lesions()


def _ventricles_axial(canvas: Canvas, phantom: Phantom, value: float) -> None:
    if phantom.ventricles:
        canvas.pair(0.13, -0.13, 0.1, 0.2, value, tilt=0.12)
        canvas.pair(0.15, 0.16, 0.11, 0.19, value, tilt=-0.16)
        canvas.ellipse(0, 0.02, 0.05, 0.15, value)
    else:
        canvas.pair(0.07, -0.11, 0.03, 0.14, value, tilt=0.16)
        canvas.pair(0.085, 0.13, 0.03, 0.13, value, tilt=-0.22)


def _ct_axial_chest(canvas: Canvas, phantom: Phantom, draws: Draws, bits: np.random.PCG64) -> None:
    high, lung, soft = draws.between(0.95, 1.05), draws.between(0.25, 0.31), 0.5
    blood = 0.88 if phantom.contrast else 0.55
    _ct_trunk(canvas, draws, 0.93, 0.68 * high)
    canvas.pair(0.44, -0.02, 0.35, 0.47 * high, lung)
    canvas.texture(0.05)
    canvas.ellipse(0, -0.05, 0.16, 0.5 * high, soft, softness=1.3)
    canvas.ellipse(draws.between(0.08, 0.13), -0.14, 0.22, 0.19, blood, tilt=0.25)
    canvas.ellipse(-0.05, -0.33, 0.07, 0.06, blood)
    canvas.pair(0.06, 0.14, 0.035, 0.04, 0.05)  # main bronchi
    canvas.ellipse(0.11, 0.28, 0.065, 0.065, blood)
    if phantom.effusion in _LEFT:
        side = _LEFT[phantom.effusion]
        canvas.ellipse(side * 0.43, 0.36 * high, 0.29, 0.15, 0.66, tilt=-0.12 * side)
    _vertebra(canvas, 0.45 * high)
    canvas.pair(0.84, 0.05, 0.025, 0.13, 0.9, tilt=0.02)
    canvas.pair(0.7, 0.4 * high, 0.03, 0.12, 0.9, tilt=0.4)
    canvas.pair(0.66, -0.42 * high, 0.025, 0.11, 0.9, tilt=-0.45)
    canvas.ellipse(0, -0.54 * high, 0.12, 0.03, 0.88)
    canvas.lesions()


def _ct_trunk(canvas: Canvas, draws: Draws, wide: float, high: float) -> None:
    """Skin, fat and the muscle wall of an axial slice."""
    fat = draws.between(0.04, 0.09)
    canvas.ellipse(0, 0, wide, high, 0.27)
    canvas.ellipse(0, 0, wide - fat, high - fat, 0.5, ripple=0.015)


def _vertebra(canvas: Canvas, y: float) -> None:
    canvas.ellipse(0, y + 0.1, 0.035, 0.13, 0.86)
    canvas.ellipse(0, y + 0.07, 0.2, 0.035, 0.86)
    canvas.ellipse(0, y - 0.03, 0.125, 0.1, 0.94)
    canvas.ellipse(0, y + 0.075, 0.04, 0.035, 0.5)


def _ct_axial_abdomen(canvas: Canvas, phantom: Phantom, draws: Draws, bits: np.random.PCG64) -> None:
    high, liver = draws.between(0.96, 1.05), draws.between(0.56, 0.62)
    kidney, blood = (0.8, 0.9) if phantom.contrast else (0.53, 0.53)
    _ct_trunk(canvas, draws, 0.93, 0.69 * high)
    canvas.ellipse(0, -0.04, 0.78, 0.53 * high, 0.33, ripple=0.03)
    canvas.ellipse(0.22, -0.22, 0.28, 0.2, 0.47, ripple=0.06, tilt=0.2)
    canvas.ellipse(-0.36, -0.1, 0.4, 0.38, liver, ripple=0.03)
    canvas.ellipse(-0.08, -0.24, 0.22, 0.17, liver, tilt=0.1)
    canvas.ellipse(0.6, 0.06, 0.15, 0.25, liver + 0.02, tilt=0.2, ripple=0.03)
    canvas.texture(0.04)
    canvas.pair(0.36, 0.3 * high, 0.12, 0.14, kidney, tilt=-0.2)
    canvas.pair(0.33, 0.3 * high, 0.045, 0.06, kidney - 0.13, tilt=-0.2)
    canvas.ellipse(0.07, 0.17, 0.062, 0.062, blood)
    canvas.ellipse(-0.09, 0.15, 0.065, 0.055, blood - 0.06 * bool(phantom.contrast))
    _vertebra(canvas, 0.38 * high)
    canvas.lesions()


def _ct_coronal_abdomen(canvas: Canvas, phantom: Phantom, draws: Draws, bits: np.random.PCG64) -> None:
    wide, liver = draws.between(0.95, 1.04), draws.between(0.56, 0.62)
    kidney, blood = (0.8, 0.9) if phantom.contrast else (0.53, 0.5)
    canvas.ellipse(0, 0.1, 0.84 * wide, 1.25, 0.27, square=True)
    canvas.ellipse(0, 0.1, 0.77 * wide, 1.2, 0.5, square=True)
    canvas.ellipse(0, 0.12, 0.7 * wide, 0.85, 0.36, square=True, ripple=0.04)
    canvas.pair(0.38, -0.92, 0.31, 0.34, 0.1)
    canvas.ellipse(-0.36, -0.36, 0.36, 0.28, liver, tilt=-0.12, ripple=0.02)
    canvas.ellipse(0.5, -0.4, 0.17, 0.24, liver + 0.02, tilt=0.12)
    canvas.ellipse(0.2, -0.34, 0.2, 0.15, 0.46, ripple=0.05)
    canvas.texture(0.04)
    canvas.ellipse(0, -0.05, 0.1, 0.72, 0.78, square=True)
    for y in (-0.55, -0.28, -0.01, 0.26, 0.53):
        canvas.ellipse(0, y, 0.095, 0.022, 0.5)
    canvas.ellipse(0.15, -0.1, 0.045, 0.5, blood, softness=1.2)
    canvas.pair(0.34, 0.06, 0.1, 0.2, kidney, tilt=-0.1)
    canvas.pair(0.31, 0.06, 0.035, 0.09, kidney - 0.13, tilt=-0.1)
    canvas.pair(0.46, 0.74, 0.17, 0.28, 0.9, tilt=0.2)
    canvas.pair(0.45, 0.73, 0.12, 0.22, 0.55, tilt=0.2)
    canvas.ellipse(0, 0.84, 0.19, 0.13, 0.42)
    canvas.lesions()


def _mri_tones(phantom: Phantom, draws: Draws) -> tuple[float, float, float, float]:
    """Return the grey values of fat, fluid, grey matter and white matter."""
    gain = draws.between(0.94, 1.06)
    fat, fluid, grey, white = (0.82, 0.12, 0.44, 0.62) if phantom.sequence == "t1" else (0.5, 0.84, 0.5, 0.33)
    return fat * gain, fluid * gain, grey * gain, white * gain


def _mri_axial_head(canvas: Canvas, phantom: Phantom, draws: Draws, bits: np.random.PCG64) -> None:
    fat, fluid, grey, white = _mri_tones(phantom, draws)
    wide = draws.between(0.94, 1.04)
    canvas.ellipse(0, 0, 0.74 * wide, 0.91, fat)
    canvas.ellipse(0, 0, 0.69 * wide, 0.86, 0.06)
    canvas.ellipse(0, 0, 0.64 * wide, 0.81, fluid)
    canvas.ellipse(0, 0, 0.6 * wide, 0.77, grey, ripple=0.03)
    canvas.pair(0.26 * wide, 0, 0.25 * wide, 0.62, white, ripple=0.13)
    canvas.texture(0.05)
    canvas.ellipse(0, -0.55, 0.016, 0.2, fluid)
    canvas.ellipse(0, 0.57, 0.016, 0.18, fluid)
    _ventricles_axial(canvas, phantom, fluid)
    canvas.lesions()


def _mri_coronal_head(canvas: Canvas, phantom: Phantom, draws: Draws, bits: np.random.PCG64) -> None:
    fat, fluid, grey, white = _mri_tones(phantom, draws)
    wide = draws.between(0.95, 1.04)
    canvas.ellipse(0, 0.85, 0.34, 0.45, fat * 0.7, square=True)
    canvas.ellipse(0, 0.85, 0.29, 0.45, grey * 0.8, square=True)
    canvas.ellipse(0, -0.12, 0.76 * wide, 0.8, fat)
    canvas.ellipse(0, -0.13, 0.71 * wide, 0.75, 0.06)
    canvas.ellipse(0, -0.15, 0.66 * wide, 0.69, fluid)
    canvas.pair(0.29 * wide, -0.25, 0.34 * wide, 0.52, grey, ripple=0.04)
    canvas.pair(0.4 * wide, 0.16, 0.22, 0.25, grey, ripple=0.04)
    canvas.pair(0.28 * wide, -0.24, 0.24 * wide, 0.4, white, ripple=0.14)
    canvas.pair(0.2, 0.43, 0.21, 0.15, grey * 0.95, ripple=0.08)
    canvas.texture(0.05)
    canvas.ellipse(0, 0.4, 0.1, 0.32, white * 0.95)
    canvas.ellipse(0, -0.56, 0.016, 0.2, fluid)
    if phantom.ventricles:
        canvas.pair(0.13, -0.22, 0.13, 0.14, fluid, tilt=0.3)
        canvas.ellipse(0, -0.04, 0.045, 0.14, fluid)
    else:
        canvas.pair(0.08, -0.24, 0.075, 0.035, fluid, tilt=-0.2)
        canvas.ellipse(0, -0.06, 0.02, 0.09, fluid)
    canvas.lesions()


def _mri_sagittal_head(canvas: Canvas, phantom: Phantom, draws: Draws, bits: np.random.PCG64) -> None:
    fat, fluid, grey, white = _mri_tones(phantom, draws)
    canvas.ellipse(0.12, 0.85, 0.34, 0.5, fat * 0.75, square=True)
    canvas.ellipse(0.12, 0.85, 0.29, 0.5, grey * 0.7, square=True)
    canvas.ellipse(-0.42, 0.4, 0.34, 0.42, fat * 0.8, tilt=-0.1)  # face
    canvas.ellipse(-0.4, 0.42, 0.28, 0.34, grey * 0.65, ripple=0.3)
    canvas.ellipse(-0.76, 0.28, 0.1, 0.13, fat * 0.8, tilt=-0.3)  # nose
    canvas.ellipse(-0.5, 0.52, 0.17, 0.06, 0.05)  # mouth
    canvas.ellipse(0.03, -0.18, 0.83, 0.71, fat)
    canvas.ellipse(0.03, -0.17, 0.78, 0.66, 0.06)
    canvas.ellipse(0.03, -0.18, 0.74, 0.62, fluid)
    canvas.ellipse(0.03, -0.22, 0.71, 0.56, grey, ripple=0.05)
    canvas.ellipse(0.03, -0.22, 0.54, 0.4, white, ripple=0.16)
    canvas.texture(0.05)
    canvas.ellipse(0.02, -0.13, 0.3, 0.17, white + 0.2)  # corpus callosum: an arch
    canvas.ellipse(0.02, -0.07, 0.25, 0.14, fluid)
    canvas.ellipse(0.02, 0.02, 0.2, 0.11, grey)
    canvas.ellipse(0.44, 0.3, 0.24, 0.17, grey * 0.9, ripple=0.12)  # cerebellum
    canvas.ellipse(0.14, 0.4, 0.1, 0.36, white * 0.95, tilt=-0.08)  # brain stem and cord
    canvas.lesions()


def _xray_pa_chest(canvas: Canvas, phantom: Phantom, draws: Draws, bits: np.random.PCG64) -> None:
    lung, wide = draws.between(0.24, 0.32), draws.between(0.95, 1.05)
    canvas.ellipse(0, -0.95, 0.25, 0.5, 0.5, square=True, softness=2)
    canvas.ellipse(0, 0.65, 0.96, 1.5, 0.5, square=True, softness=2)
    canvas.pair(0.43 * wide, -0.08, 0.31 * wide, 0.68, lung, softness=2.5)
    canvas.texture(0.05)
    _ribs(canvas, lung, 0.62)
    canvas.pair(0.42, -0.72, 0.36, 0.03, 0.66, tilt=-0.1)
    canvas.ellipse(0, -0.1, 0.13, 0.95, 0.7, softness=2.5)
    canvas.ellipse(0, -0.82, 0.045, 0.35, 0.38, softness=3)  # trachea
    if phantom.cardiomegaly:
        canvas.ellipse(0.12, 0.33, 0.49, 0.31, 0.76, tilt=0.12, softness=2)
    else:
        canvas.ellipse(0.11, 0.32, 0.24, 0.24, 0.76, tilt=0.2, softness=2)
    canvas.pair(0.43, 0.9, 0.46, 0.34, 0.74, softness=2)
    if phantom.effusion in _LEFT:
        side = _LEFT[phantom.effusion]
        canvas.ellipse(side * 0.58, 0.9, 0.36, 0.56, 0.82, tilt=-0.06 * side, softness=2.5)
    canvas.lesions()


def _ribs(canvas: Canvas, lung: float, reach: float) -> None:
    """Brighten bands that run down and outwards across the lungs."""
    bands = canvas.x * canvas.x
    bands *= 0.55
    bands += canvas.y
    bands *= 5.5
    bands -= np.floor(bands)
    bands -= 0.5
    np.abs(bands, out=bands)  # 0 in the middle of a rib
    bands *= -6.0
    bands += 1.4
    np.maximum(bands, 0.0, out=bands)
    np.minimum(bands, 1.0, out=bands)
    bands *= 0.11
    bands *= (canvas.pixels > 0.12) & (np.abs(canvas.y + 0.1) < reach)
    canvas.pixels += bands


def _xray_lateral_chest(canvas: Canvas, phantom: Phantom, draws: Draws, bits: np.random.PCG64) -> None:
    lung = draws.between(0.25, 0.33)
    canvas.ellipse(0.0, -0.9, 0.42, 0.55, 0.5, softness=2)
    canvas.ellipse(0.02, 0.12, 0.84, 1.05, 0.48, softness=2)
    canvas.ellipse(0.05, -0.06, 0.6, 0.66, lung, softness=2.5)
    canvas.texture(0.05)
    canvas.ellipse(0.0, -0.8, 0.3, 0.25, 0.58, softness=3)  # shoulders
    canvas.ellipse(-0.66, -0.05, 0.045, 0.5, 0.75, tilt=0.04, softness=1.5)  # sternum
    canvas.ellipse(0.66, 0.0, 0.12, 1.1, 0.6, tilt=-0.03, softness=2)
    for step in range(8):
        canvas.ellipse(0.66, -0.8 + 0.23 * step, 0.1, 0.085, 0.82, square=True)
    heart = draws.between(0.24, 0.27)
    canvas.ellipse(-0.36, 0.36, heart, heart, 0.68, tilt=-0.2, softness=2)
    canvas.ellipse(-0.05, 0.88, 0.68, 0.36, 0.72, softness=2)
    if phantom.effusion == "yes":
        canvas.ellipse(0.42, 0.86, 0.3, 0.52, 0.84, tilt=-0.03, softness=2.5)
    canvas.lesions()


def _ultrasound_oblique_abdomen(canvas: Canvas, phantom: Phantom, draws: Draws, bits: np.random.PCG64) -> None:
    below = canvas.y + 1.08  # depth under the probe, which lies on the upper edge
    np.maximum(below, 0.02, out=below)
    ray = canvas.x / below  # tangent of the beam's angle
    depth = np.sqrt(canvas.x * canvas.x + below * below)
    canvas.pixels += draws.between(0.42, 0.48)
    canvas.texture(0.09)
    for layer in (0.34, 0.44):
        canvas.pixels += 0.28 * np.maximum(1 - np.abs(depth - layer) * 40, 0)
    canvas.pixels += 0.4 * np.maximum(1 - np.abs(depth - draws.between(1.82, 1.88)) * 22, 0)  # diaphragm
    tilt = draws.between(-0.12, 0.12)
    canvas.ellipse(0, 0.14, 0.115, 0.235, 0.72, tilt=tilt)
    canvas.ellipse(0, 0.14, 0.09, 0.21, 0.06, tilt=tilt)
    if phantom.gallstone:
        shadow = np.maximum(1 - np.abs(ray) * 11, 0) * (canvas.y > 0.2)
        canvas.pixels *= 1 - np.minimum(shadow * 3, 0.9)
        canvas.ellipse(0, 0.2, 0.085, 0.065, 1.0)
    canvas.lesions()
    canvas.pixels *= 0.62 + 0.76 * _speckle(ray, depth, bits)
    fan: Array = (np.abs(ray) < 0.76) & (depth < 2.02) & (depth > 0.24)
    canvas.pixels *= fan


def _speckle(ray: Array, depth: Array, bits: np.random.PCG64) -> Array:
    """Return the grain of ultrasound, 0..1, laid out along beams and depths."""
    cells = 80
    raw = np.asarray(bits.random_raw(cells * cells // 4)).astype("<u8", copy=False).view(np.uint8)
    grain = raw.reshape(2, cells, cells).sum(axis=0, dtype=np.uint16).astype(np.float32).reshape(-1)
    row = np.minimum(depth * 37, cells - 1.01)
    column = np.minimum(np.maximum(ray * 50 + 40, 0), cells - 1.01)
    row_below, column_below = row.astype(np.intp), column.astype(np.intp)
    row -= row_below
    column -= column_below
    at = row_below * cells + column_below
    upper, lower = grain[at], grain[at + cells]
    upper += column * (grain[at + 1] - upper)
    lower += column * (grain[at + cells + 1] - lower)
    upper += row * (lower - upper)
    upper *= 1 / 510
    return upper


PAINTERS: dict[str, Painter] = {
    "ct_axial_head": _ct_axial_head,
    "ct_axial_chest": _ct_axial_chest,
    "ct_axial_abdomen": _ct_axial_abdomen,
    "ct_coronal_abdomen": _ct_coronal_abdomen,
    "mri_axial_head": _mri_axial_head,
    "mri_coronal_head": _mri_coronal_head,
    "mri_sagittal_head": _mri_sagittal_head,
    "xray_pa_chest": _xray_pa_chest,
    "xray_lateral_chest": _xray_lateral_chest,
    "ultrasound_oblique_abdomen": _ultrasound_oblique_abdomen,
}
