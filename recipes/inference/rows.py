# SPDX-License-Identifier: Apache-2.0
"""Rows that are decoded together and independently: each starts from its image's prefix and leaves when it ends.

In the cache of a row, the token at position p lies in column p. So there is no padding between prompt and answer,
prompts and limits of any length stand side by side, a row that ends hands its place to the next request, and every
step writes in place: growing a cache by concatenation copies all of it, which took most of a step's time.

transformers' own continuous batching takes token ids only and finds shared prefixes by them: the places of all images
bear the same id, so that one image's keys and values would be taken for another's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from transformers import Cache, CompileConfig, DynamicCache
from transformers.cache_utils import DynamicLayer

from ..models.adapter_models import ProjectorPeftModel
from .prefixes import Beginning, Prefix

COLUMNS_ROUNDED_TO = 64
# The share of places that must be free before the next rows are let in: their prompts are fed together.
REFILL_SHARE = 0.25
# Settings that leave greedy decoding as it is, whatever their values.
NEUTRAL_SETTINGS = {
    *("bos_token_id", "eos_token_id", "pad_token_id", "suppress_tokens", "use_cache", "transformers_version"),
    *("do_sample", "temperature", "top_k", "top_p", "max_length", "max_new_tokens", "_from_model_config"),
    *("output_attentions", "output_hidden_states", "return_dict_in_generate"),
}

Context = Callable[[], AbstractContextManager[bool]]


@dataclass(eq=False)
class Row:
    """A request's prompt and answer as token ids; `limit` is the longest answer."""

    id: str
    prompt: list[int]
    limit: int
    adapter: str | None = None
    tokens: list[int] = field(default_factory=list)


@dataclass
class Group:
    """Rows whose prompts begin alike; the prefix is computed when the first of them gets a place."""

    rows: list[Row]
    beginning: Beginning
    prefix: Prefix | None = None


def decodes_rows(model: Any) -> bool:
    """Whether the rows here say what `generate` says: greedy settings, and a language model that keeps the keys and
    values of all tokens, knows positions by rotations only, and takes a mask."""
    if isinstance(model, ProjectorPeftModel):  # virtual tokens, or attention of its own
        return False
    language_model = (model.get_base_model() if isinstance(model, PeftModel) else model).model.language_model
    return (
        hasattr(language_model, "rotary_emb")
        and language_model.config._attn_implementation == "sdpa"
        and all(type(layer) is DynamicLayer for layer in DynamicCache(config=language_model.config).layers)
        and set(model.generation_config.to_diff_dict()) <= NEUTRAL_SETTINGS
    )


def decode_rows(
    decoder: RowDecoder, groups: Iterator[Group], prefill: Callable[[list[Beginning]], list[Prefix]]
) -> Iterator[Row]:
    """Yield rows as they end; the next ones are let in when enough places are free.

    Args:
        groups: what is to be decoded, taken as places become free.
        prefill: computes prefixes.
    """
    left: Group | None = None  # only some of its rows have got a place
    more = True
    while more or decoder.rows:
        free = decoder.size - len(decoder.rows)
        if not more or (decoder.rows and free < decoder.size * REFILL_SHARE):
            yield from decoder.step()
            continue
        taken: list[tuple[list[Row], Group]] = []
        while free and (group := left or next(groups, None)):
            rows, group.rows = group.rows[:free], group.rows[free:]
            taken.append((rows, group))
            left = group if group.rows else None
            free -= len(rows)
        more = free == 0
        new = [group for _, group in taken if group.prefix is None]
        for group, prefix in zip(new, prefill([group.beginning for group in new]), strict=True):
            group.prefix = prefix
        if taken:
            yield from decoder.admit([(rows, group.prefix) for rows, group in taken if group.prefix])


class RowLayer(DynamicLayer):
    """Keys and values `(rows, heads, columns, width)` of one layer; tokens are written at their rows and columns.

    Args:
        like: keys and values `(heads, tokens, width)` of this layer.
    """

    def __init__(self, rows: int, columns: int, like: tuple[torch.Tensor, torch.Tensor]) -> None:
        super().__init__()
        self.keys, self.values = (part.new_empty(rows, part.shape[0], columns, part.shape[-1]) for part in like)
        self.dtype, self.device = self.keys.dtype, self.keys.device
        self.is_initialized = True
        self.at: tuple[torch.Tensor, torch.Tensor] = (torch.empty(0), torch.empty(0))
        self.seen = (slice(None), slice(None), slice(None))

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the tokens' keys and values and return those that their rows see."""
        rows, columns = self.at
        self.keys[rows, :, columns] = key_states.transpose(1, 2)
        self.values[rows, :, columns] = value_states.transpose(1, 2)
        return self.keys[self.seen], self.values[self.seen]


class RowDecoder:
    """Up to `size` rows of greedy decoding; those at work lie in the first places of the cache, as `rows` says.

    Args:
        model: in evaluation mode; see [`decodes_rows`].
        size: the most rows; more are never held in memory.
        context: entered around every use of the model; yields whether calls need the rows' adapters by name.
        compile_config: compiles the decoding step, which then always has one shape: all places and all columns. For
            GPUs, where many small steps are bound by the time that it takes to start them.
    """

    def __init__(self, model: Any, size: int, context: Context, compile_config: CompileConfig | None = None) -> None:
        self.model, self.size, self.context = model, size, context
        self.rows: list[Row] = []
        self.layers: list[RowLayer] = []
        self.columns = 0
        self.compiled = None if compile_config is None else model.get_compiled_call(compile_config)
        settings = model.generation_config
        ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
        self.ends = {end for end in ends if end is not None}
        self.suppressed = settings.suppress_tokens

    def admit(self, groups: Sequence[tuple[list[Row], Prefix]]) -> list[Row]:
        """Give places to rows, feed the rest of their prompts, and return those that end with their first token."""
        first = len(self.rows)
        logits = self.place(groups)
        return self._append(first, logits[:, -1])

    def place(self, groups: Sequence[tuple[list[Row], Prefix]], keep: int = 1) -> torch.Tensor:
        """Give places to rows, feed the rest of their prompts, and return the logits `(rows, keep, vocabulary)` of the
        last tokens."""
        new = [row for rows, _ in groups for row in rows]
        self._reserve(max(len(row.prompt) + row.limit for row in new) + 1, groups[0][1])
        first = place = len(self.rows)
        ids, positions = [], []
        for rows, prefix in groups:
            start = len(prefix.ids)
            for layer, (keys, values) in zip(self.layers, prefix.layers, strict=True):
                for part, own in ((layer.keys, keys), (layer.values, values)):
                    part[place : place + len(rows), :, :start] = own
                    part[place : place + len(rows), :, start:] = 0  # what is masked must still be finite
            place += len(rows)
            ids += [row.prompt[start:] for row in rows]
            positions += [list(range(start, len(row.prompt))) for row in rows]
        self.rows += new
        longest = max(map(len, ids))
        ids = [[0] * (longest - len(row)) + row for row in ids]
        positions = [[-1] * (longest - len(row)) + row for row in positions]
        return self._feed(first, ids, positions, keep)

    def step(self) -> list[Row]:
        """Decode one more token of every row and return the rows that end with it."""
        ids = [[row.tokens[-1]] for row in self.rows]
        positions = [[len(row.prompt) + len(row.tokens) - 1] for row in self.rows]
        idle = (self.size - len(self.rows)) if self.compiled else 0
        logits = self._feed(0, ids + [[0]] * idle, positions + [[-1]] * idle)
        return self._append(0, logits[: len(self.rows), -1])

    def _feed(self, first: int, ids: list[list[int]], positions: list[list[int]], keep: int = 1) -> torch.Tensor:
        """Feed tokens to the rows from place `first` on and return logits of the last `keep`; -1 marks padding."""
        device = self.model.device
        call = self.compiled if self.compiled and len(ids) == self.size and len(ids[0]) == 1 else self.model
        width = self.columns if call is self.compiled else max(row[-1] for row in positions) + 1
        at = torch.tensor(positions, device=device)
        columns = at.where(at >= 0, self.columns - 1)  # padding is written where nobody looks
        places = torch.arange(first, first + len(ids), device=device)[:, None]
        for layer in self.layers:
            layer.at = (places, columns)
            layer.seen = (slice(first, first + len(ids)), slice(None), slice(width))
        at = at.clamp(min=0)
        with self.context() as mixed:
            rows = self.rows[first:] + [self.rows[-1]] * (first + len(ids) - len(self.rows))
            names = {"adapter_names": [row.adapter or self.model.active_adapter for row in rows]} if mixed else {}
            output = call(
                input_ids=torch.tensor(ids, device=device),
                attention_mask=torch.arange(width, device=device) <= at[:, None, :, None],
                position_ids=at,
                past_key_values=Cache(layers=self.layers),
                use_cache=True,
                logits_to_keep=keep,
                **names,
            )
        return output.logits

    def _append(self, first: int, logits: torch.Tensor) -> list[Row]:
        """Append the likeliest token to each row from place `first` on; return and dismiss those that end."""
        if self.suppressed:
            logits = logits.index_fill(-1, torch.tensor(self.suppressed, device=logits.device), -torch.inf)
        ended = []
        for place, token in reversed(list(enumerate(logits.argmax(-1).tolist(), start=first))):
            row = self.rows[place]
            row.tokens.append(token)
            if token in self.ends or len(row.tokens) >= row.limit:
                ended.append(row)
                self._leave(place)
        return ended[::-1]

    def _leave(self, place: int) -> None:
        """Free a place: the last row moves there."""
        last = self.rows.pop()
        if place == len(self.rows):
            return
        used = len(last.prompt) + len(last.tokens)
        for layer in self.layers:
            for part in (layer.keys, layer.values):
                part[place, :, :used] = part[len(self.rows), :, :used]
        self.rows[place] = last

    def _reserve(self, columns: int, like: Prefix) -> None:
        """Make room for longer rows."""
        if columns <= self.columns:
            return
        columns = -(-columns // COLUMNS_ROUNDED_TO) * COLUMNS_ROUNDED_TO
        layers = [RowLayer(self.size, columns, pair) for pair in like.layers]
        for new, old in zip(layers, self.layers, strict=False):
            for part, own in ((new.keys, old.keys), (new.values, old.values)):
                part[: len(self.rows), :, : self.columns] = own[: len(self.rows)]
                part[: len(self.rows), :, self.columns :] = 0
        if self.compiled:  # CUDA graphs take a tensor that is written to only from one address
            for layer in layers:
                layer.keys[len(self.rows) :], layer.values[len(self.rows) :] = 0, 0  # idle places are computed, too
                torch._dynamo.mark_static_address(layer.keys)
                torch._dynamo.mark_static_address(layer.values)
        self.layers, self.columns = layers, columns
