# SPDX-License-Identifier: Apache-2.0
"""Stage 0 of the embedded default, not part of the paper: a small vision tower, pretrained on phantoms.

The paper freezes EVA ViT-g. Where nothing but PyPI is in reach, this module trains a small tower of the same kind
(`Blip2VisionModel`) for two minutes to name what phantoms show, and the two stages then freeze it alike. The language
model sees the patch tokens after the last layer norm, in groups of four; so those are what the classifiers read.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Blip2VisionConfig, Blip2VisionModel

from pefomed_recipes.data.phantoms import FORM_VERSION as PHANTOM_VERSION

from ..devices import default_dtype
from ..errors import PeFoMedError
from .phantom_targets import ATTRIBUTES, PATCH_LABELS, UNKNOWN, PhantomBatch, phantom_batch, prefetched_batches

logger = logging.getLogger(__name__)

RECORD_FILE = "phantom_tower.json"
FORM_VERSION = 1
POST_LAYERNORM_EPS = 1e-5  # the paper's; the config holds the blocks' 1e-6 only
GROUP_SIZE = 4


@dataclass
class TowerSettings:
    """Sizes and schedule. The defaults were tuned on two CPU cores to end within 150 seconds."""

    hidden_size: int = 128
    intermediate_size: int = 256
    layers: int = 4
    heads: int = 4
    image_size: int = 64
    patch_size: int = 8
    difficulty: str = "easy"
    steps: int = 1000
    batch_size: int = 32
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    warmup_steps: int = 60
    seed: int = 0


class TowerWithHeads(nn.Module):
    """The tower and three linear classifiers of its patch tokens after `post_layernorm` (CLS is dropped).

    `of_image` reads the mean of all patch tokens, `of_group` each group of four (as the projector does), `of_patch`
    each patch token.
    """

    def __init__(self, settings: TowerSettings) -> None:
        super().__init__()
        width, outputs = settings.hidden_size, sum(map(len, ATTRIBUTES.values()))
        self.tower = build_tower(settings)
        self.of_image = nn.Linear(width, outputs)
        self.of_group = nn.Linear(GROUP_SIZE * width, outputs)
        self.of_patch = nn.Linear(width, sum(map(len, PATCH_LABELS.values())))

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return logits: image `(N, outputs)`, groups `(N, groups, outputs)`, patches `(N, patches, classes)`."""
        tokens = self.tower(pixel_values).last_hidden_state[:, 1:]  # (N, patches, width)
        groups = tokens.reshape(len(tokens), -1, GROUP_SIZE * tokens.shape[-1])
        return self.of_image(tokens.mean(1)), self.of_group(groups), self.of_patch(tokens)


def build_tower(settings: TowerSettings) -> Blip2VisionModel:
    """Return an untrained tower of the paper's kind in the given sizes."""
    tower = Blip2VisionModel(
        Blip2VisionConfig(
            hidden_size=settings.hidden_size,
            intermediate_size=settings.intermediate_size,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            image_size=settings.image_size,
            patch_size=settings.patch_size,
            initializer_range=0.02,  # the default of 1e-10 is meant for loading weights
        )
    )
    tower.post_layernorm.eps = POST_LAYERNORM_EPS
    with torch.no_grad():
        # Positions as weak as initializer_range are hardly learned in so few steps: left and right stay unread.
        tower.embeddings.position_embedding[0, 1:] = sine_positions(
            settings.image_size // settings.patch_size, settings.hidden_size
        )
    return tower


def sine_positions(patches_a_side: int, width: int) -> torch.Tensor:
    """Return position embeddings `(patches, width)` to start from: waves along columns and along rows, -0.5..0.5."""
    at = (torch.arange(patches_a_side) + 0.5) / patches_a_side
    waves = at[:, None] * math.pi * torch.linspace(0.5, patches_a_side / 2, width // 4)
    one_axis = 0.5 * torch.cat([waves.sin(), waves.cos()], dim=-1)  # (patches_a_side, width / 2)
    rows = one_axis[:, None].expand(-1, patches_a_side, -1)
    columns = one_axis[None].expand(patches_a_side, -1, -1)
    return torch.cat([rows, columns], dim=-1).reshape(patches_a_side**2, width)


def pretrain_tower(
    folder: str | os.PathLike[str], settings: TowerSettings | None = None, *, seconds: float | None = None
) -> dict[str, Any]:
    """Pretrain the tower, save it and return its record; a folder that holds the same tower is reused.

    The folder holds the tower as `Blip2VisionModel.save_pretrained` writes it, and `phantom_tower.json`: settings,
    steps, seconds, and the accuracy on held-out phantoms, per attribute, of the heads (`head_accuracy`) and of a
    linear probe of the mean patch token (`probe_accuracy`). No phantom that is trained on or held out here is in any
    split of a data set.

    Args:
        folder: where to save; it appears only when it is whole.
        settings: sizes and schedule.
        seconds: end after this time at the latest; the learning rate then follows the clock, and two runs differ.
            Without it the number of steps alone decides.

    Raises:
        PeFoMedError: the folder holds something else.
    """
    folder = Path(folder)
    settings = settings or TowerSettings()
    wanted = {
        "form_version": FORM_VERSION,
        "phantoms": PHANTOM_VERSION,
        "settings": asdict(settings),
        "seconds_limit": seconds,
    }
    record_path = folder / RECORD_FILE
    if record_path.is_file():
        record = json.loads(record_path.read_text(encoding="utf-8"))
        if all(record.get(key) == value for key, value in wanted.items()):
            return record
    if folder.exists() and not record_path.is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise PeFoMedError(f"{folder} exists and holds no phantom tower; name a new or empty folder")

    started = time.monotonic()
    torch.manual_seed(settings.seed)
    model = TowerWithHeads(settings).to("cuda" if torch.cuda.is_available() else "cpu")
    steps = _train(model, settings, seconds)
    trained = time.monotonic()
    model.eval()
    record = {
        **wanted,
        "steps": steps,
        "train_seconds": round(trained - started, 1),
        "parameters": sum(parameter.numel() for parameter in model.tower.parameters()),
        **measure_tower(model, settings),
        "measure_seconds": round(time.monotonic() - trained, 1),
    }
    _save(folder, model.tower, record)
    return record


def _train(model: TowerWithHeads, settings: TowerSettings, seconds: float | None) -> int:
    decayed = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        betas=(0.9, 0.98),
    )
    device = next(model.parameters()).device
    is_mixed = default_dtype() == torch.bfloat16
    batches: Iterator[PhantomBatch] = prefetched_batches(
        "tower_train", settings.steps, settings.batch_size, **_rendering(settings)
    )
    started = last_line = time.monotonic()
    model.train()
    step = 0
    for step, batch in enumerate(batches, start=1):
        progress = step / settings.steps
        if seconds is not None:
            progress = max(progress, (time.monotonic() - started) / seconds)
            if progress > 1:
                break
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _rate(progress, step / max(settings.warmup_steps, 1))
        batch = batch.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=is_mixed):
            logits = model(batch.pixel_values)
        loss = tower_loss(logits, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if time.monotonic() - last_line > 10:
            last_line = time.monotonic()
            named = accuracy(logits[0].detach(), batch.labels)
            shown = ", ".join(f"{name} {named[name]:.0f} %" for name in ("modality", "plane", "organ", "side", "size"))
            logger.info(
                "stage 0, step %d of %d, %.0f s: loss %.3f, on this batch %s",
                step, settings.steps, last_line - started, loss.item(), shown,
            )  # fmt: skip
    batches.close()  # type: ignore[attr-defined]
    return step


def _rendering(settings: TowerSettings) -> dict[str, Any]:
    return {
        "seed": settings.seed,
        "difficulty": settings.difficulty,
        "image_size": settings.image_size,
        "patch_size": settings.patch_size,
    }


def _rate(progress: float, warmup: float) -> float:
    """Return the learning rate's share of its peak: linear warm-up, then a cosine to 0."""
    return min(warmup, 1.0) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def tower_loss(logits: tuple[torch.Tensor, torch.Tensor, torch.Tensor], batch: PhantomBatch) -> torch.Tensor:
    """Return the sum of the losses: attributes from the whole image, from every group alone, lesions of patches."""
    of_image, of_group, of_patch = (part.float() for part in logits)
    groups = of_group.shape[1]
    image_loss = _attribute_loss(of_image, batch.labels)
    group_loss = _attribute_loss(of_group.flatten(0, 1), batch.labels.repeat_interleave(groups, dim=0))
    return image_loss + group_loss + _patch_loss(of_patch.flatten(0, 1), batch)


def _patch_loss(logits: torch.Tensor, batch: PhantomBatch) -> torch.Tensor:
    parts = logits.split([len(classes) for classes in PATCH_LABELS.values()], dim=-1)
    labels = batch.patch_labels.flatten(0, 1)  # (N * patches, labels)
    losses = []
    for column, part in enumerate(parts):
        # Most patches show no lesion: they would drown the others.
        weight = torch.tensor([0.2] + [1.0] * (part.shape[-1] - 1), device=part.device)
        losses.append(F.cross_entropy(part, labels[:, column], weight))
    return torch.stack(losses).mean()


def _attribute_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    losses = [
        F.cross_entropy(part, labels[:, column], ignore_index=UNKNOWN)
        for column, part in enumerate(_split(logits))
        if bool((labels[:, column] != UNKNOWN).any())
    ]
    return torch.stack(losses).mean()


def _split(logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return logits.split([len(classes) for classes in ATTRIBUTES.values()], dim=-1)


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Return the share of right answers in percent per attribute, of the images that tell it; NaN where none does."""
    named = {}
    for column, (name, part) in enumerate(zip(ATTRIBUTES, _split(logits), strict=True)):
        told = labels[:, column] != UNKNOWN
        right = (part.argmax(-1) == labels[:, column])[told]
        named[name] = 100 * right.float().mean().item()
    return named


@torch.inference_mode()
def measure_tower(
    model: TowerWithHeads, settings: TowerSettings, *, test: int = 1000, probe: int = 3000
) -> dict[str, Any]:
    """Return the accuracies on `test` held-out phantoms; the linear probe is fitted on `probe` other held-out ones."""
    device = next(model.parameters()).device
    features, labels, head = [], [], []
    for first in range(0, test + probe, 250):
        count = min(250, test + probe - first)
        batch = phantom_batch("tower_heldout", first, count, **_rendering(settings)).to(device)
        tokens = model.tower(batch.pixel_values).last_hidden_state[:, 1:]
        features.append(tokens.mean(1))
        labels.append(batch.labels)
        head.append(model.of_image(tokens.mean(1)))
    x, y = torch.cat(features), torch.cat(labels)
    probed = linear_probe(x[test:], y[test:], x[:test])
    return {
        "test_cases": test,
        "head_accuracy": _rounded(accuracy(torch.cat(head)[:test], y[:test])),
        "probe_accuracy": _rounded(accuracy(probed, y[:test])),
    }


def _rounded(named: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 1) for name, value in named.items()}


def linear_probe(x: torch.Tensor, labels: torch.Tensor, x_test: torch.Tensor, ridge: float = 1.0) -> torch.Tensor:
    """Return the logits `(tests, outputs)` of a ridge regression per attribute onto one-hot labels, in closed form.

    Args:
        x: features `(cases, width)` to fit on.
        labels: `(cases, attributes)`, `UNKNOWN` where an image does not tell.
        x_test: features to answer for.
        ridge: penalty, in units of one case's standardised feature.
    """
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, x_test = ((part - mean) / std for part in (x, x_test))
    x, x_test = (F.pad(part.double(), (0, 1), value=1.0) for part in (x, x_test))
    answers = []
    for column, classes in enumerate(ATTRIBUTES.values()):
        told = labels[:, column] != UNKNOWN
        known, target = x[told], F.one_hot(labels[told, column], len(classes)).double()
        penalty = ridge * torch.eye(x.shape[1], dtype=torch.float64, device=x.device)
        answers.append(x_test @ torch.linalg.solve(known.T @ known + penalty, known.T @ target))
    return torch.cat(answers, dim=-1)


def _save(folder: Path, tower: Blip2VisionModel, record: dict[str, Any]) -> None:
    staged = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(staged, ignore_errors=True)
    tower.save_pretrained(staged)
    (staged / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(staged, folder)
