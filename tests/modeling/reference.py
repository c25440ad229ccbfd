# SPDX-License-Identifier: Apache-2.0
"""The released model in plain torch, written from its description: no transformers, no PEFT, nothing of this project.

EVA ViT -> ln_vision -> 4 consecutive tokens joined -> llama_proj -> Llama with LoRA on q and v. Parameters bear the
released names, so that `state_dict()` is a released checkpoint. One image and one question at a time, without padding,
cache or packing: slow and plain on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Sizes:
    """Sizes of the model; the defaults are tiny, and no two are equal that could be mixed up."""

    image: int = 32
    patch: int = 8
    width: int = 40
    depth: int = 3
    heads: int = 4
    inner: int = 72
    group: int = 4
    vocabulary: int = 380
    hidden: int = 48
    layers: int = 2
    query_heads: int = 4
    key_heads: int = 2
    feed_forward: int = 96
    norm_eps: float = 1e-6
    rank: int = 3
    alpha: int = 6


class EvaAttention(nn.Module):
    """Self-attention with a bias of queries and of values, and none of keys."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.q_bias = nn.Parameter(torch.zeros(sizes.width))
        self.v_bias = nn.Parameter(torch.zeros(sizes.width))
        self.qkv = nn.Linear(sizes.width, 3 * sizes.width, bias=False)
        self.proj = nn.Linear(sizes.width, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        images, tokens, width = x.shape
        split = [images, tokens, self.heads, width // self.heads]
        query, key, value = self.qkv(x).split(width, dim=-1)
        query = (query + self.q_bias).view(split).transpose(1, 2) / math.sqrt(width // self.heads)
        key = key.view(split).transpose(1, 2)
        value = (value + self.v_bias).view(split).transpose(1, 2)
        weights = (query @ key.transpose(-1, -2)).softmax(-1)
        return self.proj((weights @ value).transpose(1, 2).reshape(images, tokens, width))


class EvaMlp(nn.Module):
    """Two linear layers with the exact GELU between them."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.fc1 = nn.Linear(sizes.width, sizes.inner)
        self.fc2 = nn.Linear(sizes.inner, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * 0.5 * (1 + torch.erf(x / math.sqrt(2))))


class EvaBlock(nn.Module):
    """Attention and MLP, each behind a LayerNorm of epsilon 1e-6 and beside a residual."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(sizes.width, eps=1e-6)
        self.attn = EvaAttention(sizes)
        self.norm2 = nn.LayerNorm(sizes.width, eps=1e-6)
        self.mlp = EvaMlp(sizes)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """Patches in row-major order."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, sizes.width, sizes.patch, stride=sizes.patch)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class EvaVisionTransformer(nn.Module):
    """The tower: CLS and patches, positions, blocks; no norm at its end."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, sizes.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (sizes.image // sizes.patch) ** 2, sizes.width))
        self.patch_embed = PatchEmbed(sizes)
        self.blocks = nn.ModuleList(EvaBlock(sizes) for _ in range(sizes.depth))

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return x


def positions_for(stored: Tensor, grid: int) -> Tensor:
    """What the released code makes of `pos_embed` (1, 1 + n^2, width) at load for a grid of another side."""
    side = math.isqrt(stored.shape[1] - 1)
    cls, patches = stored[:, :1].float(), stored[:, 1:].float()
    square = patches.transpose(1, 2).unflatten(2, (side, side))
    larger = functional.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([cls, larger.flatten(2).transpose(1, 2)], dim=1)


class LoraLinear(nn.Module):
    """A frozen matrix without bias, plus `alpha / rank * B A x`."""

    def __init__(self, inputs: int, outputs: int, sizes: Sizes) -> None:
        super().__init__()
        self.scale = sizes.alpha / sizes.rank
        self.weight = nn.Parameter(torch.zeros(outputs, inputs))
        self.lora_A = nn.ModuleDict({"default": nn.Linear(inputs, sizes.rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(sizes.rank, outputs, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + self.scale * self.lora_B["default"](self.lora_A["default"](x))


class RootMeanSquareNorm(nn.Module):
    """`x / sqrt(mean(x^2) + eps)`, scaled."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.eps = sizes.norm_eps
        self.weight = nn.Parameter(torch.ones(sizes.hidden))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x / torch.sqrt(x.square().mean(-1, keepdim=True) + self.eps)


def rotate(x: Tensor) -> Tensor:
    """Rotary positions 0..T-1 of (heads, T, size): the first half of a head's entries pairs with the second."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[-2])[:, None] * 10000.0 ** (-torch.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    return torch.cat(
        [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], dim=-1
    )


class LlamaAttention(nn.Module):
    """Causal self-attention with grouped keys."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes, self.size = sizes, sizes.hidden // sizes.query_heads
        self.q_proj = LoraLinear(sizes.hidden, sizes.hidden, sizes)
        self.k_proj = nn.Linear(sizes.hidden, sizes.key_heads * self.size, bias=False)
        self.v_proj = LoraLinear(sizes.hidden, sizes.key_heads * self.size, sizes)
        self.o_proj = nn.Linear(sizes.hidden, sizes.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        tokens = len(x)
        query = rotate(self.q_proj(x).view(tokens, -1, self.size).transpose(0, 1))
        key = rotate(self.k_proj(x).view(tokens, -1, self.size).transpose(0, 1))
        value = self.v_proj(x).view(tokens, -1, self.size).transpose(0, 1)
        repeats = self.sizes.query_heads // self.sizes.key_heads
        key, value = key.repeat_interleave(repeats, 0), value.repeat_interleave(repeats, 0)
        scores = query @ key.transpose(-1, -2) / math.sqrt(self.size)
        scores = scores.masked_fill(torch.ones(tokens, tokens).triu(1).bool(), -torch.inf)
        return self.o_proj((scores.softmax(-1) @ value).transpose(0, 1).reshape(tokens, -1))


class LlamaMlp(nn.Module):
    """`down(silu(gate) * up)`."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(sizes.hidden, sizes.feed_forward, bias=False)
        self.up_proj = nn.Linear(sizes.hidden, sizes.feed_forward, bias=False)
        self.down_proj = nn.Linear(sizes.feed_forward, sizes.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate_proj(x)
        return self.down_proj(gate * torch.sigmoid(gate) * self.up_proj(x))


class LlamaLayer(nn.Module):
    """One decoder layer."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.self_attn = LlamaAttention(sizes)
        self.mlp = LlamaMlp(sizes)
        self.input_layernorm = RootMeanSquareNorm(sizes)
        self.post_attention_layernorm = RootMeanSquareNorm(sizes)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Holder(nn.Module):
    """Gives its children the names that wrappers gave them."""

    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


class Reference(nn.Module):
    """The whole model, with random weights in which every parameter matters.

    Args:
        sizes: its sizes.
        seed: of the weights.
    """

    def __init__(self, sizes: Sizes, seed: int = 0) -> None:
        super().__init__()
        self.sizes = sizes
        self.visual_encoder = EvaVisionTransformer(sizes)
        self.ln_vision = nn.LayerNorm(sizes.width)
        self.llama_proj = nn.Linear(sizes.width * sizes.group, sizes.hidden)
        decoder = Holder(
            embed_tokens=nn.Embedding(sizes.vocabulary, sizes.hidden),
            layers=nn.ModuleList(LlamaLayer(sizes) for _ in range(sizes.layers)),
            norm=RootMeanSquareNorm(sizes),
        )
        causal_lm = Holder(model=decoder, lm_head=nn.Linear(sizes.hidden, sizes.vocabulary, bias=False))
        self.llama_model = Holder(base_model=Holder(model=causal_lm))
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            nn.init.normal_(parameter, mean=1.0 if is_norm else 0.0, std=0.2, generator=generator)
            parameter.requires_grad_("lora_" in name or name.startswith("llama_proj"))

    def features(self, image: Tensor) -> Tensor:
        """Tower and last norm: (1, 3, H, W) -> (1, 1 + patches, width)."""
        return self.ln_vision(self.visual_encoder(image))

    def image_tokens(self, image: Tensor) -> Tensor:
        """(1, 3, H, W) -> (patches / group, hidden)."""
        patches = self.features(image)[0, 1:]
        return self.llama_proj(patches.reshape(len(patches) // self.sizes.group, -1))

    def logits(self, image: Tensor, before: Sequence[int], after: Sequence[int]) -> Tensor:
        """Logits (T, vocabulary) of `before`, the image's tokens and `after`."""
        causal_lm = self.llama_model.base_model.model
        embed = causal_lm.model.embed_tokens
        x = torch.cat([embed(torch.tensor(before)), self.image_tokens(image), embed(torch.tensor(after))])
        for layer in causal_lm.model.layers:
            x = layer(x)
        return causal_lm.lm_head(causal_lm.model.norm(x))

    def answer_losses(
        self, image: Tensor, before: Sequence[int], after: Sequence[int], answer: Sequence[int]
    ) -> Tensor:
        """The negative log likelihood of each token of the answer."""
        logits = self.logits(image, before, [*after, *answer])
        return functional.cross_entropy(logits[-len(answer) - 1 : -1], torch.tensor(answer), reduction="none")

    @torch.no_grad()
    def greedy(self, image: Tensor, before: Sequence[int], after: Sequence[int], end: int, most: int) -> list[int]:
        """The tokens of the likeliest continuation, up to and with `end`, but at most `most`."""
        answer: list[int] = []
        while len(answer) < most and (not answer or answer[-1] != end):
            answer.append(int(self.logits(image, before, [*after, *answer])[-1].argmax()))
        return answer
