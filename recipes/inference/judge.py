# SPDX-License-Identifier: Apache-2.0
"""Judge models on this machine: what texts are put before them never leaves it.

Two ways to ask: a chat model writes a reply, which is then read strictly; or transformers' decision pipeline takes the
probabilities of the levels from one forward pass, so that nothing has to be read.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from ..devices import default_dtype
from ..errors import PeFoMedError

Message = dict[str, str]


class LocalJudgeModel:
    """A language model from a folder or the Hub's cache, which answers deterministically.

    Raises:
        PeFoMedError: there is none, or its tokenizer has no chat template.
    """

    def __init__(self, model: str | Path):
        self.name = Path(model).name
        device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
            self.model = AutoModelForCausalLM.from_pretrained(model, dtype=default_dtype()).to(device).eval()
        except (OSError, ValueError) as error:
            raise PeFoMedError(f"{model}: cannot load a language model ({str(error).splitlines()[0]})") from None
        if not self.tokenizer.chat_template:
            raise PeFoMedError(
                f"{model}: the tokenizer has no chat template; a judge must be an instruction-tuned model"
            )
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    @torch.inference_mode()
    def replies(self, chats: Sequence[list[Message]], max_new_tokens: int, rows_per_batch: int = 8) -> list[str]:
        """Return the greedy reply to each chat."""
        found: list[str] = []
        bar = tqdm(total=len(chats), desc="judged", disable=not sys.stderr.isatty())
        for start in range(0, len(chats), rows_per_batch):
            batch = [list(chat) for chat in chats[start : start + rows_per_batch]]
            inputs = self.tokenizer.apply_chat_template(
                batch, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
            ).to(self.model.device)
            output = self.model.generate(
                **inputs, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=self.tokenizer.pad_token_id
            )
            new = output[:, inputs["input_ids"].shape[1] :]
            found += self.tokenizer.batch_decode(new, skip_special_tokens=True)
            bar.update(len(batch))
        bar.close()
        return found

    @cached_property
    def _decide(self) -> Any:
        return pipeline("decision", model=self.model, tokenizer=self.tokenizer)

    def probabilities(
        self, instructions: Sequence[str], texts: Sequence[str], levels: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """Return for each text the probability of each of its levels, lowest first, from one forward pass.

        Control tokens in a text are taken as text.
        """
        found = []
        asked = list(zip(instructions, texts, levels, strict=True))
        for told, text, criteria in tqdm(asked, desc="judged", disable=not sys.stderr.isatty()):
            question = {"type": "score", "instructions": told, "criteria": list(criteria)}
            answer = self._decide({"state": text, "questions": {"score": question}})["score"]
            found.append([answer["probabilities"][str(level)] for level in range(len(criteria))])
        return found
