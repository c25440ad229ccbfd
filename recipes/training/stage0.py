# SPDX-License-Identifier: Apache-2.0
"""Stage 0 of the embedded default, not part of the paper: a small vision tower and the projector's start.

The paper freezes EVA ViT-g and starts from MiniGPT-v2's projector. Where nothing but PyPI is in reach, a small tower
of the same kind (`Blip2VisionModel`) and a projector are pretrained on phantoms, in two minutes: the image tokens must
become the words that describe the image, in the frozen language model's own word embeddings (the language model itself
does not run). Both later stages then freeze the tower, as the paper does.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, Blip2VisionConfig, Blip2VisionModel

from modeling_pefomed import PeFoMedImageProcessor, group_patch_tokens

from ..data.phantoms import case_seed, draw_phantom, facts, render_phantom
from ..errors import PeFoMedError
from ..staging import whole_folder

logger = logging.getLogger(__name__)

RECORD, PROJECTOR = "stage0.json", "projector.safetensors"
GROUP_SIZE = 4
FINDING_SHARE = 0.6  # of the steps; the rest is for wording
WORDING_WEIGHT = 0.4
# How a fact is said, where its value alone does not say it.
PHRASES = {
    "modality=ct": "CT", "modality=mri": "MRI", "modality=xray": "X-ray", "plane=pa": "PA",
    "sequence=t1": "T1", "sequence=t2": "T2", "contrast=yes": "contrast", "contrast=no": "no contrast",
    "cardiomegaly=yes": "cardiomegaly", "cardiomegaly=no": "normal heart",
    "ventricles=enlarged": "enlarged ventricles", "ventricles=normal": "normal ventricles",
    "gallstone=yes": "gallstone", "gallstone=no": "no gallstone",
    "effusion=no": "no effusion", "effusion=yes": "effusion", "effusion=left": "left effusion",
    "effusion=right": "right effusion",
    "lesions=0": "no lesion", "lesions=1": "one lesion", "lesions=2": "two lesions", "lesions=3": "three lesions",
}  # fmt: skip


@dataclass
class StageZeroSettings:
    """Sizes and schedule; tuned on held-out phantoms to take about two minutes on two CPU cores."""

    hidden_size: int = 128
    intermediate_size: int = 256
    layers: int = 4
    heads: int = 4
    image_size: int = 64
    patch_size: int = 8
    cases: int = 24_000
    steps: int = 2000
    batch_size: int = 32
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.02
    warmup_steps: int = 50
    seed: int = 0


@dataclass
class Cases:
    """Phantoms as `pixels` uint8 `(N, size, size)` and `stated` float32 `(N, facts)`, 1 where a fact is true."""

    pixels: torch.Tensor
    stated: torch.Tensor


class VisualWords(nn.Module):
    """Tower, grouping and projector, whose image tokens are compared with words.

    Args:
        words: one embedding per fact, `(facts, hidden)`: the mean of its words' embeddings.
        origin: the mean embedding of the whole vocabulary `(hidden,)`; a token there, or beyond, says nothing.
    """

    words: torch.Tensor
    origin: torch.Tensor
    directions: torch.Tensor

    def __init__(self, settings: StageZeroSettings, words: torch.Tensor, origin: torch.Tensor) -> None:
        super().__init__()
        self.tower = new_tower(settings)
        self.projector = nn.Linear(GROUP_SIZE * settings.hidden_size, words.shape[1])
        self.bias = nn.Parameter(torch.zeros(len(words)))
        self.log_scale = nn.Parameter(torch.ones(()))
        self.num_patches = (settings.image_size // settings.patch_size) ** 2
        self.projector.bias.data.copy_(origin)
        self.register_buffer("words", words)
        self.register_buffer("origin", origin)
        self.register_buffer("directions", F.normalize(words - origin, dim=1))

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return image tokens `(N, tokens, hidden)` and how much each points at each fact `(N, tokens, facts)`."""
        hidden_states = self.tower(pixel_values).last_hidden_state
        tokens = self.projector(group_patch_tokens(hidden_states, self.num_patches, GROUP_SIZE))
        return tokens, (tokens - self.origin) @ self.directions.T * self.log_scale.exp()

    def finding_loss(self, pixel_values: torch.Tensor, stated: torch.Tensor) -> torch.Tensor:
        """First part: an image states a fact where some token points at it, however long the token, whatever else it
        points at. Easy to learn, but a language model was not trained to read such tokens."""
        _, pointing = self(pixel_values)
        return F.binary_cross_entropy_with_logits(torch.logsumexp(pointing, dim=1) + self.bias, stated)

    def wording_loss(self, pixel_values: torch.Tensor, stated: torch.Tensor) -> torch.Tensor:
        """Second part: each token says one fact or none, and lies where the fact's words lie.

        An image states a fact where one token or more say it (noisy-or); beside it the expected squared distance of a
        token from the words that it says, relative to the words' own distance from the origin.
        """
        tokens, pointing = self(pixel_values)
        says, unsaid = self.wording(pointing)
        said = (-torch.expm1(unsaid)).clamp(min=1e-6)
        cross_entropy = -(stated * said.log() + (1 - stated) * unsaid).mean()
        places = torch.cat([self.words, self.origin[None]])
        distances = tokens.square().sum(-1, keepdim=True) - 2 * tokens @ places.T + places.square().sum(-1)
        unit = (self.words - self.origin).square().sum(-1).mean()
        return cross_entropy + WORDING_WEIGHT * (says * distances).sum(-1).mean() / unit

    @staticmethod
    def wording(pointing: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the probability that a token says a fact, or nothing, `(N, tokens, facts + 1)`, and the log
        probability that no token says it `(N, facts)`."""
        says = F.pad(pointing, (0, 1)).softmax(-1)
        return says, torch.log1p(-says[..., :-1].clamp(max=1 - 1e-6)).sum(1)

    @torch.no_grad()
    def shorten(self, pixel_values: torch.Tensor) -> None:
        """Make image tokens as long as words, seen from the origin, without a change to what they point at."""
        own = (self.words - self.origin).norm(dim=-1).mean()
        factor = own / (self(pixel_values)[0] - self.origin).norm(dim=-1).mean()
        self.projector.weight.mul_(factor)
        self.projector.bias.copy_(self.origin + factor * (self.projector.bias - self.origin))
        self.log_scale.sub_(factor.log())


def new_tower(settings: StageZeroSettings) -> Blip2VisionModel:
    """Return an untrained tower of the paper's kind in the given sizes."""
    config = Blip2VisionConfig(
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        image_size=settings.image_size,
        patch_size=settings.patch_size,
        initializer_range=0.02,  # the default of 1e-10 is meant for loading weights
    )
    tower = Blip2VisionModel(config)
    tower.post_layernorm.eps = 1e-5  # the paper's
    return tower


def random_tower(folder: Path, settings: StageZeroSettings) -> None:
    """Save an untrained tower: the control that shows what pretraining is worth."""
    torch.manual_seed(settings.seed)
    new_tower(settings).save_pretrained(folder)


def load_projector(folder: Path) -> dict[str, torch.Tensor]:
    """Return the state of the projector that [`pretrain_tower`] saved."""
    return load_file(folder / PROJECTOR)


def draw_cases(stream: str, count: int, vocabulary: list[str], settings: StageZeroSettings) -> Cases:
    """Return the first phantoms of a stream of seeds; no split of a data set uses the streams of stage 0."""
    pixels = np.empty((count, settings.image_size, settings.image_size), dtype=np.uint8)
    stated = torch.zeros(count, len(vocabulary))
    column = {fact: index for index, fact in enumerate(vocabulary)}
    for index in tqdm(range(count), desc=f"phantoms of {stream}", disable=not sys.stderr.isatty()):
        phantom = draw_phantom(case_seed(settings.seed, stream, index), "easy")
        pixels[index] = render_phantom(phantom, settings.image_size)
        for fact in facts(phantom):
            if fact in column:
                stated[index, column[fact]] = 1
    return Cases(torch.from_numpy(pixels), stated)


def fact_vocabulary(settings: StageZeroSettings, cases: int = 2000) -> list[str]:
    """Return all facts that phantoms state, sorted."""
    drawn = (draw_phantom(case_seed(settings.seed, "tower_train", index), "easy") for index in range(cases))
    return sorted(set().union(*(facts(phantom) for phantom in drawn)))


def fact_embeddings(llm: str, vocabulary: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one embedding per fact `(facts, hidden)`, the mean of the embeddings of its words, and the mean embedding
    of the whole vocabulary `(hidden,)`."""
    tokenizer = AutoTokenizer.from_pretrained(llm)
    embeddings = AutoModelForCausalLM.from_pretrained(llm, dtype=torch.float32).get_input_embeddings().weight.detach()
    rows = []
    for fact in vocabulary:
        words = PHRASES.get(fact, fact.partition("=")[2])
        rows.append(embeddings[tokenizer.encode(" " + words, add_special_tokens=False)].mean(0))
    return torch.stack(rows), embeddings.mean(0)


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """Return `pixel_values` `(N, 3, size, size)` of grey images, as [`PeFoMedImageProcessor`] makes them."""
    mean = torch.tensor(PeFoMedImageProcessor.image_mean).view(1, 3, 1, 1)
    std = torch.tensor(PeFoMedImageProcessor.image_std).view(1, 3, 1, 1)
    return (pixels[:, None].float() / 255 - mean) / std


def pretrain_tower(folder: Path, llm: str, settings: StageZeroSettings) -> dict[str, Any]:
    """Pretrain tower and projector, save both and return the record; a finished folder is reused.

    The folder holds the tower as `save_pretrained` writes it, `projector.safetensors`, and `stage0.json`: settings,
    seconds, and the accuracy on 1000 held-out phantoms by kind of fact, of the objective's own scores and of a linear
    probe on the mean patch token.

    Args:
        folder: where to save; it appears only when it is whole.
        llm: Hub id or folder of the language model whose word embeddings are the targets.
    """
    if (folder / RECORD).is_file():
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if found["settings"] != asdict(settings):
            differing = [key for key, value in asdict(settings).items() if found["settings"].get(key) != value]
            raise PeFoMedError(
                f"{folder} holds a stage 0 of other settings ({', '.join(differing)}); name another or delete it"
            )
        return found
    started = time.monotonic()
    torch.manual_seed(settings.seed)
    vocabulary = fact_vocabulary(settings)
    model = VisualWords(settings, *fact_embeddings(llm, vocabulary))
    # Few steps need few cases; never an image twice where that can be helped.
    count = min(settings.cases, settings.steps * settings.batch_size)
    _train(model, draw_cases("tower_train", count, vocabulary, settings), settings)
    record = {
        "settings": asdict(settings),
        "seconds": round(time.monotonic() - started, 1),
        "parameters": sum(p.numel() for p in model.tower.parameters()),
        **_measure(model.eval(), vocabulary, settings),
    }
    projector = {name: value.contiguous() for name, value in model.projector.state_dict().items()}
    with whole_folder(folder, replace=True) as staged:
        model.tower.save_pretrained(staged)
        save_file(projector, staged / PROJECTOR)
        (staged / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def _train(model: VisualWords, cases: Cases, settings: StageZeroSettings) -> None:
    finding_steps = round(FINDING_SHARE * settings.steps)
    batches = _batches(len(cases.pixels), settings)
    model.train()
    with tqdm(total=settings.steps, desc="stage 0", disable=not sys.stderr.isatty()) as bar:
        _fit(model, model.finding_loss, finding_steps, cases, batches, settings, bar)
        model.shorten(normalised(cases.pixels[: settings.batch_size]))
        _fit(model, model.wording_loss, settings.steps - finding_steps, cases, batches, settings, bar)


def _batches(count: int, settings: StageZeroSettings) -> Iterator[torch.Tensor]:
    """Yield indices of cases without end, each once before any comes again."""
    generator, order = torch.Generator().manual_seed(settings.seed), torch.empty(0, dtype=torch.long)
    while True:
        if len(order) < settings.batch_size:
            order = torch.cat([order, torch.randperm(count, generator=generator)])
        yield order[: settings.batch_size]
        order = order[settings.batch_size :]


def _fit(
    model: VisualWords,
    loss_function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    steps: int,
    cases: Cases,
    batches: Iterator[torch.Tensor],
    settings: StageZeroSettings,
    bar: tqdm,
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    for step in range(1, steps + 1):
        batch = next(batches)
        rate = min(1.0, step / settings.warmup_steps) * (0.51 + 0.49 * math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = settings.learning_rate * rate
        loss = loss_function(normalised(cases.pixels[batch]), cases.stated[batch])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        bar.update()
        if step % 100 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
            logger.info("stage 0, step %d of %d: loss %.3f", step, steps, loss.item())


@torch.inference_mode()
def _measure(model: VisualWords, vocabulary: list[str], settings: StageZeroSettings) -> dict[str, Any]:
    """Return held-out accuracies in percent by kind of fact: of what image tokens say, and of a linear probe."""
    cases = draw_cases("tower_heldout", 4000, vocabulary, settings)
    scores, features = [], []
    for start in range(0, len(cases.pixels), 250):
        pixel_values = normalised(cases.pixels[start : start + 250])
        scores.append(-model.wording(model(pixel_values)[1])[1])
        features.append(model.tower(pixel_values).last_hidden_state[:, 1:].mean(1))
    probed = linear_probe(torch.cat(features)[1000:], cases.stated[1000:], torch.cat(features)[:1000])
    kinds: dict[str, list[int]] = {}
    for index, fact in enumerate(vocabulary):
        kinds.setdefault(fact.partition("=")[0], []).append(index)
    accuracy: dict[str, dict[str, float]] = {"accuracy": {}, "probe_accuracy": {}}
    for kind, columns in kinds.items():
        truth = cases.stated[:1000, columns]
        told = truth.sum(1) == 1  # images that state exactly one fact of this kind
        for name, values in (("accuracy", torch.cat(scores)[:1000]), ("probe_accuracy", probed)):
            hits = values[:, columns][told].argmax(1) == truth[told].argmax(1)
            accuracy[name][kind] = round(100 * hits.float().mean().item(), 1)
    return {"heldout_cases": 1000, **accuracy}


def linear_probe(x: torch.Tensor, targets: torch.Tensor, x_test: torch.Tensor, ridge: float = 1.0) -> torch.Tensor:
    """Return the values `(tests, facts)` of a ridge regression of `targets` `(cases, facts)` on `x` `(cases, width)`.

    A straight line per fact: what it can read is linearly there in the features.
    """
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, x_test = (F.pad(((part - mean) / std).double(), (0, 1), value=1.0) for part in (x, x_test))
    penalty = ridge * torch.eye(x.shape[1], dtype=torch.float64)
    return x_test @ torch.linalg.solve(x.T @ x + penalty, x.T @ targets.double())
