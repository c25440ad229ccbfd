# SPDX-License-Identifier: Apache-2.0
"""Whether a staged folder answers as what it was made of: loaded by a stranger's Python, its logits compared."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from pefomed_recipes.errors import PeFoMedError

from .manifest import Check

# Of the largest logit. Both processes do the same arithmetic on the same numbers.
TOLERANCE = 1e-4
# Of the largest logit: beyond it, numbers were not rounded but changed.
ROUNDING_LIMIT = 0.05
PROMPTS = (("vqa", "Is there a mass in the left lung?"), ("caption", "Describe the image."))
NO_COMMIT = "0" * 40  # under which a base lies in a cache that no Hub has filled

Logits = list[torch.Tensor]


def prompt_images(size_px: int = 96) -> list[Image.Image]:
    """Return one image for each of `PROMPTS`: coarse noise, without any symmetry."""
    drawn = np.random.default_rng(0).integers(0, 256, (len(PROMPTS), 12, 12, 3), dtype=np.uint8)
    return [Image.fromarray(pixels).resize((size_px, size_px), Image.Resampling.BILINEAR) for pixels in drawn]


@torch.inference_mode()
def logits_here(model: Any, processor: Any) -> Logits:
    """Return the logits of a loaded model for `PROMPTS`, `(1, tokens, vocabulary)` each, float32."""
    logits = []
    for (task, text), image in zip(PROMPTS, prompt_images(), strict=True):
        content = [{"type": "image", "image": image}, {"type": "text", "text": text}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}], task=task, tokenize=True, return_dict=True, return_tensors="pt"
        )
        logits.append(model.eval()(**inputs).logits.float())
    return logits


def logits_apart(folder: Path, *, base_id: str = "", base_folder: Path | None = None, revision: str | None) -> Logits:
    """Return the logits of a staged folder in a process that has neither this package nor a network.

    Args:
        base_id, base_folder: a base that is not on the Hub yet, which the process then finds in a cache under its id.
        revision: the base's commit, as somebody would give it who pins it.

    Raises:
        PeFoMedError: the folder does not load there.
    """
    gc.collect()  # this process must not hold a model beside the other one's
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for index, image in enumerate(prompt_images()):
            image.save(work / f"{index}.png")
        prompts = [{"task": task, "text": text, "image": f"{index}.png"} for index, (task, text) in enumerate(PROMPTS)]
        settings = {"prompts": prompts, "revision": revision}
        (work / "prompts.json").write_text(json.dumps(settings), encoding="utf-8")
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(work / "modules")}
        if base_folder is not None:
            fill_cache(work / "hub", base_id, base_folder, revision or NO_COMMIT)
            environment["HF_HUB_CACHE"] = str(work / "hub")
        script = Path(__file__).with_name("load_apart.py")
        process = subprocess.run(
            [sys.executable, "-I", str(script), str(folder.resolve()), str(work)],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if process.returncode != 0:
            last = (process.stderr.strip().splitlines() or ["no message"])[-1]
            raise PeFoMedError(f"the staged folder does not load without this package ({last}); nothing was written")
        found = load_file(work / "logits.safetensors")
        return [found[str(index)] for index in range(len(PROMPTS))]


def compare(apart: Logits, expected: Logits, original: Logits) -> Check:
    """Compare what a stranger gets with what was staged, and with what it was made of.

    Args:
        expected: of the same numbers in this process, after rounding where there was any.
        original: of the model as it was trained.

    Raises:
        PeFoMedError: they differ by more than rounding explains.
    """
    difference, rounding = _difference(apart, expected), _difference(apart, original)
    check = Check(len(PROMPTS), difference, TOLERANCE, 0.0 if expected is original else rounding)
    if not difference <= TOLERANCE:
        raise PeFoMedError(
            f"loaded without this package, the folder's logits differ from this process's by {difference:.2g} of the "
            f"largest, expected at most {TOLERANCE:g}; nothing was written. Was the base changed since the training?"
        )
    if not rounding <= ROUNDING_LIMIT:
        raise PeFoMedError(
            f"rounding moves the logits by {rounding:.2g} of the largest, expected at most {ROUNDING_LIMIT:g}; "
            "nothing was written. Use --dtype float32."
        )
    return check


def fill_cache(cache: Path, repo_id: str, folder: Path, commit: str) -> None:
    """Lay a folder into a cache of huggingface_hub as if it had been fetched from the Hub."""
    repo = cache / f"models--{repo_id.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit, encoding="ascii")
    (repo / "snapshots" / commit).mkdir(parents=True)
    for file in folder.iterdir():
        if file.is_file():
            (repo / "snapshots" / commit / file.name).symlink_to(file.resolve())


def _difference(found: Logits, expected: Logits) -> float:
    """Return the largest difference as a share of the largest logit, NaN where one of them is."""
    pairs = list(zip(found, expected, strict=True))
    if any(one.shape != other.shape for one, other in pairs):
        return float("inf")  # another tokenizer or another vocabulary
    largest = max(float(other.abs().max()) for _, other in pairs)
    return float(torch.stack([(one - other).abs().max() for one, other in pairs]).max()) / largest
