# SPDX-License-Identifier: Apache-2.0
"""What the doctor examines, read without loading weights: configurations, the processor, headers of weight files."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoProcessor

from modeling_pefomed import PeFoMedConfig, PeFoMedImageProcessor, PeFoMedProcessor

from ..errors import PeFoMedError
from ..models.adapter_folders import adapter_folder

PARTS = {"vision_tower": "vision tower", "multi_modal_projector": "projector", "": "language model"}


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be. `level` is `error` (do not train), `warning` or `note`."""

    level: str
    found: str
    expected: str
    advice: str

    def __str__(self) -> str:
        return f"{self.level}: {self.found}\n    expected: {self.expected}\n    to do:    {self.advice}"


@dataclass
class Subject:
    """What is examined: a base, or an adapter and the base it names. What could not be read is `None` or empty."""

    name: str
    processor: PeFoMedProcessor
    transform: dict[str, Any]
    adapter: Path | None = None
    adapter_config: dict[str, Any] = field(default_factory=dict)
    base: str = ""
    config: PeFoMedConfig | None = None
    problems: list[Finding] = field(default_factory=list)


def open_subject(name: str) -> Subject:
    """Return what lies at a folder or a Hub id, as far as it can be read; the rest is among its `problems`.

    Raises:
        PeFoMedError: nothing of this project's is there.
    """
    try:
        processor = AutoProcessor.from_pretrained(name)
        transform = PeFoMedImageProcessor.get_image_processor_dict(name)[0]
        adapter, settings, base = adapter_folder(name), {}, name
        if adapter is not None:
            settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
            base = settings.get("base_model_name_or_path") or ""
    except (OSError, ValueError) as error:
        raise PeFoMedError(f"{name}: cannot read an adapter or a base model ({_first_line(error)})") from None
    if not isinstance(processor, PeFoMedProcessor):
        raise PeFoMedError(f"{name}: found a {type(processor).__name__}, expected a PeFoMed model")
    subject = Subject(name, processor, transform, adapter, settings, base)
    try:
        subject.config = AutoConfig.from_pretrained(subject.base)
    except (OSError, ValueError) as error:
        subject.problems.append(
            Finding(
                "error",
                f"the base {subject.base!r} cannot be read ({_first_line(error)})",
                "the base that the adapter was trained on",
                "put it back, or write its place into base_model_name_or_path of adapter_config.json",
            )
        )
    return subject


def base_dtypes(subject: Subject) -> dict[str, set[str]]:
    """Return the number formats of each part of the base, from its weight files' headers; of a base on the Hub, what
    its configuration says."""
    files = sorted(Path(subject.base).glob("*.safetensors")) if subject.base and Path(subject.base).is_dir() else []
    if not files:
        return {"configuration": {str(getattr(subject.config, "dtype", None)).removeprefix("torch.")}}
    formats: dict[str, set[str]] = {}
    for path in files:
        for name, (_, kind) in tensor_header(path).items():
            part = next(words for mark, words in PARTS.items() if mark in name)
            formats.setdefault(part, set()).add(kind)
    return dict(sorted(formats.items()))


def adapter_shapes(folder: Path) -> dict[str, tuple[list[int], str]]:
    """Return shape and number format of each tensor of an adapter, `{}` where its file is missing."""
    path = folder / "adapter_model.safetensors"
    return tensor_header(path) if path.is_file() else {}


def tensor_header(path: Path) -> dict[str, tuple[list[int], str]]:
    """Return shape and number format of each tensor of a file, without reading its values.

    Raises:
        PeFoMedError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as weights:
            views = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118 (no mapping)
            return {name: (view.get_shape(), view.get_dtype()) for name, view in views.items()}
    except (SafetensorError, OSError) as error:
        raise PeFoMedError(f"{path}: not a whole safetensors file ({_first_line(error)}); fetch it again") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
