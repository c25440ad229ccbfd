# SPDX-License-Identifier: Apache-2.0
"""Adapters on a base model: PEFT's classes, and ours for the methods that cannot carry the projector by themselves.

PEFT saves the projector with every method that knows `modules_to_save`. LLaMA-Adapter, prompt tuning, prefix tuning
and p-tuning do not. For them the classes here keep a trained copy of the projector beside the frozen one, and save all
that is trained in `adapter_model.safetensors` under names of our own. `adapter_folders.load_adapter` loads it, while
`PeftModel.from_pretrained` and `AutoModelForImageTextToText.from_pretrained` end with an error: the projector is never
silently left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, PeftModelForCausalLM
from peft.tuners.adaption_prompt import AdaptedAttention
from peft.tuners.adaption_prompt.config import TRANSFORMERS_MODEL_CONFIG
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import load_file, save_file
from torch.nn.functional import pad
from transformers import DynamicCache

from modeling_pefomed import PeFoMedForConditionalGeneration

from ..errors import PeFoMedError

WEIGHTS = "adapter_model.safetensors"
# Starts of LoRA that take something out of the base's weights.
CHANGE_THE_BASE = ("pissa", "olora")
VIRTUAL_TOKEN_METHODS = ("PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING")


class ProjectorPeftModel(PeftModelForCausalLM):
    """A PEFT model that trains, saves and loads the projector although its method does not."""

    def __init__(self, model: PeFoMedForConditionalGeneration, peft_config: PeftConfig, adapter_name: str = "default"):
        peft_config.base_model_name_or_path = peft_config.base_model_name_or_path or model.name_or_path
        super().__init__(model, peft_config, adapter_name)
        parent = self.get_base_model().model
        parent.multi_modal_projector = ModulesToSaveWrapper(parent.multi_modal_projector, adapter_name)
        parent.multi_modal_projector.modules_to_save[adapter_name].requires_grad_(True)

    def trained_tensors(self) -> dict[str, torch.nn.Parameter]:
        """Return what the method trains, by name in the model: its own tensors and the copy of the projector."""
        marks = (".modules_to_save.", "prompt_encoder.", ".adaption_")
        return {name: tensor for name, tensor in self.named_parameters() if any(mark in name for mark in marks)}

    def _saved_name(self, name: str) -> str:
        return name.replace(f".{self.active_adapter}.", ".")

    def save_pretrained(
        self, save_directory: str | Path, state_dict: dict[str, torch.Tensor] | None = None, **kwargs: Any
    ) -> None:
        """Write `adapter_config.json` and all that is trained, whose values `state_dict` may give instead."""
        if not kwargs.get("is_main_process", True):
            return
        os.makedirs(save_directory, exist_ok=True)
        tensors = {name: (state_dict or {}).get(name, tensor) for name, tensor in self.trained_tensors().items()}
        saved = {self._saved_name(name): tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(saved, Path(save_directory) / WEIGHTS, metadata={"format": "pt"})
        config = self.active_peft_config
        inference_mode, config.inference_mode = config.inference_mode, True
        config.save_pretrained(str(save_directory))
        config.inference_mode = inference_mode

    def load_adapter(self, model_id: str | Path, *args: Any, **kwargs: Any) -> None:
        """Copy a saved adapter of the same sizes into this one; Trainer calls it for checkpoints.

        Raises:
            RuntimeError: other tensors or other sizes are there.
        """
        found = load_file(Path(model_id) / WEIGHTS)
        own = {self._saved_name(name): tensor for name, tensor in self.trained_tensors().items()}
        differing = sorted(
            name for name in found.keys() | own.keys()
            if name not in found or name not in own or found[name].shape != own[name].shape
        )  # fmt: skip
        if differing:
            raise RuntimeError(f"size mismatch: {len(differing)} tensors, such as {differing[0]}")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(found[name])

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """As PEFT's, and the base's own projector is used."""
        projector = self.get_base_model().model.multi_modal_projector
        projector.enable_adapters(False)
        try:
            with super().disable_adapter():
                yield
        finally:
            projector.enable_adapters(True)


class LlamaAdapterPeftModel(ProjectorPeftModel):
    """LLaMA-Adapter: learned keys and values, gated from zero, beside every attention of the language model.

    Raises:
        PeFoMedError: the language model is neither llama nor mistral.
    """

    def __init__(self, model: PeFoMedForConditionalGeneration, peft_config: PeftConfig, adapter_name: str = "default"):
        kind = model.config.get_text_config().model_type
        if kind not in ("llama", "mistral"):
            raise PeFoMedError(f"llama_adapter works on llama and mistral language models; found {kind}. Use lora.")
        # PEFT looks the attention's layout up by the whole model's type.
        TRANSFORMERS_MODEL_CONFIG[model.config.model_type] = TRANSFORMERS_MODEL_CONFIG[kind]
        try:
            super().__init__(model, peft_config, adapter_name)
        finally:
            del TRANSFORMERS_MODEL_CONFIG[model.config.model_type]
        for module in self.modules():
            if isinstance(module, AdaptedAttention):
                module.model_type = kind


class VirtualTokensPeftModel(ProjectorPeftModel):
    """Prompt tuning, p-tuning and prefix tuning, for images and packed rows.

    The virtual tokens stand at the start of the shared prefix: before the image, seen by every question of the row. A
    packed row trains as one row per question does. Prompt tuning and p-tuning learn the tokens' embeddings; prefix
    tuning learns their keys and values in every layer.

    Differs: PEFT's own forward drops position ids and knows neither images nor packed rows.
    """

    @property
    def num_virtual_tokens(self) -> int:
        """Learned tokens in front of the prompt."""
        return self.active_peft_config.num_virtual_tokens

    def forward(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the base's, behind the virtual tokens. A filled cache holds them already; `attention_mask` then covers
        them too. Logits without labels include the virtual tokens' own, except for prefix tuning.

        Raises:
            ValueError: rows that hold several images (`image_group_ids`).
        """
        kwargs |= {"segment_ids": segment_ids, "labels": labels}
        if self._adapters_disabled or (past_key_values is not None and past_key_values.get_seq_length() > 0):
            return self.base_model(
                input_ids,
                pixel_values=pixel_values,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                **kwargs,
            )
        if kwargs.pop("image_group_ids", None) is not None:
            raise ValueError("Virtual tokens belong to one prefix a row; pass no image_group_ids.")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        positions = (mask.cumsum(-1) - 1).clamp(min=0) if position_ids is None else position_ids
        if self.peft_type == "PREFIX_TUNING":
            with self._keys_and_values_in_front(len(input_ids), past_key_values):
                return self.base_model(
                    input_ids, pixel_values=pixel_values, attention_mask=mask, position_ids=positions, **kwargs
                )
        count, model = self.num_virtual_tokens, self.base_model.model
        image = kwargs.pop("mm_encoder_outputs", None) or {}
        if pixel_values is not None:
            image = {"image": model.get_image_features(pixel_values, return_dict=True)}
        features = torch.cat(list(model.get_image_tokens(image["image"]))) if image else None
        embeds = model._embed(input_ids, features)
        virtual = self.get_prompt(len(input_ids)).to(embeds)
        ahead = torch.arange(count, device=positions.device).expand(len(input_ids), -1)
        kwargs["segment_ids"] = None if segment_ids is None else pad(segment_ids, (count, 0), value=0)
        kwargs["labels"] = None if labels is None else pad(labels, (count, 0), value=-100)
        return self.base_model(
            inputs_embeds=torch.cat([virtual, embeds], dim=1),
            attention_mask=pad(mask, (count, 0), value=1),
            position_ids=torch.cat([ahead, positions + count], dim=1),
            past_key_values=past_key_values,
            **kwargs,
        )

    @contextmanager
    def _keys_and_values_in_front(self, rows: int, cache: DynamicCache | None) -> Iterator[None]:
        """While it lasts, the language model finds the virtual tokens in its cache, and every token sees them."""
        virtual, count = self.get_prompt(rows), self.num_virtual_tokens
        if cache is not None:
            for index, layer in enumerate(virtual.layers):
                cache.update(layer.keys, layer.values, index)

        def inject(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            mask = kwargs["attention_mask"]
            if not isinstance(mask, torch.Tensor):
                raise ValueError(
                    "Prefix tuning of packed rows needs sdpa or eager attention, and layers that all see the whole "
                    "row; use prompt_tuning or p_tuning."
                )
            visible = 0.0 if mask.is_floating_point() else 1
            return args, kwargs | {
                "attention_mask": pad(mask, (count, 0), value=visible),
                "position_ids": kwargs["position_ids"] + count,
                "past_key_values": virtual if cache is None else cache,
            }

        hook = self.base_model.model.language_model.register_forward_pre_hook(inject, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """As the base's: ids of prompt and answer, without the virtual tokens. A filled cache holds them already."""
        if self._adapters_disabled:
            return self.base_model.generate(
                input_ids=input_ids, attention_mask=attention_mask, past_key_values=past_key_values, **kwargs
            )
        count = self.num_virtual_tokens
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        cache = DynamicCache(config=self.config.get_text_config()) if past_key_values is None else past_key_values
        if cache.get_seq_length() == 0:
            image = {name: kwargs.pop(name, None) for name in ("pixel_values", "mm_encoder_outputs")}
            prompt = {"input_ids": input_ids[:, :-1], "attention_mask": mask[:, :-1]}
            self(**prompt, **image, past_key_values=cache, use_cache=True, logits_to_keep=1)
        # The virtual tokens are in the cache: ids of any kind hold their places.
        places = input_ids[:, :1].expand(-1, count)
        output = self.base_model.generate(
            input_ids=torch.cat([places, input_ids], dim=1),
            attention_mask=pad(mask, (count, 0), value=1),
            past_key_values=cache,
            **kwargs,
        )
        return output[:, count:]

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """The base alone: no virtual tokens, and the base's own projector."""
        projector = self.get_base_model().model.multi_modal_projector
        projector.enable_adapters(False)
        self._adapters_disabled = True
        try:
            yield
        finally:
            self._adapters_disabled = False
            projector.enable_adapters(True)


def own_class(config: PeftConfig) -> type[ProjectorPeftModel] | None:
    """Return the class here that a method needs, or `None` where PEFT's own carries the projector."""
    if config.peft_type in VIRTUAL_TOKEN_METHODS:
        return VirtualTokensPeftModel
    return LlamaAdapterPeftModel if config.peft_type == "ADAPTION_PROMPT" else None


def train_in_float32(model: PeftModel) -> PeftModel:
    """Return the model with all that is trained in float32: in bfloat16 small updates would be lost in rounding."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model
