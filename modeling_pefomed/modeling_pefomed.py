# SPDX-License-Identifier: Apache-2.0
"""PeFoMed: a frozen vision tower, token grouping, one linear projector and a frozen language model.

pixel_values (N, 3, 448, 448)
  -> vision_tower           (N, 1025, 1408)    EVA ViT-g, CLS first
  -> group_patch_tokens     (N, 256, 5632)     CLS dropped, 4 consecutive tokens concatenated
  -> multi_modal_projector  (N, 256, 4096)     the image tokens of the prompt
  -> language_model         (B, T, 4096)       LLaMA-2, LoRA on q_proj and v_proj when fine-tuned
"""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModel, Blip2VisionModel, GenerationMixin, PreTrainedModel
from transformers.masking_utils import and_masks, create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.utils import can_return_tuple, torch_compilable_check

from .configuration_pefomed import PeFoMedConfig


@dataclass
class PeFoMedModelOutputWithPast(BaseModelOutputWithPast):
    """`last_hidden_state` (B, T, hidden); `image_hidden_states` (image tokens, hidden), `None` without images."""

    image_hidden_states: torch.Tensor | None = None


@dataclass
class PeFoMedCausalLMOutputWithPast(CausalLMOutputWithPast):
    """`logits` (B, T, vocab), or (labelled positions, vocab) when `labels` were given."""

    image_hidden_states: torch.Tensor | None = None


def group_patch_tokens(hidden_states, num_patches, group_size):
    """
    Return grouped patch tokens of shape `(N, num_patches / group_size, group_size * width)`: a pure view.

    Args:
        hidden_states (`torch.Tensor` of shape `(N, extra + num_patches, width)`):
            The tower's output. Extra tokens (CLS, registers) come first and are dropped.
        num_patches (`int`): patch tokens of one image, in row-major order.
        group_size (`int`): how many consecutive tokens, a horizontal strip of patches, make one image token.

    Raises:
        ValueError: the tower gave fewer tokens than patches.

    Source: the released code's `encode_img` (4 consecutive tokens, 1024 x 1408 -> 256 x 5632).
    """
    extra = hidden_states.shape[1] - num_patches
    if extra < 0:
        raise ValueError(
            f"The vision tower gave {hidden_states.shape[1]} tokens an image, expected at least {num_patches} patch "
            "tokens; towers that merge or pool their patches cannot be used."
        )
    patches = hidden_states[:, extra:]
    return patches.reshape(patches.shape[0], num_patches // group_size, group_size * patches.shape[-1])


def shared_prefix_mask_function(segment_ids, image_group_ids=None):
    """
    Return the mask function of rows that pack several segments behind a shared prefix.

    A token sees what comes before it in its own segment and in the shared prefix (segment 0) of its image group.

    Args:
        segment_ids (`torch.LongTensor` of shape `(B, T)`):
            0 for the shared prefix, 1..n for the segments behind it, -1 for padding.
        image_group_ids (`torch.LongTensor` of shape `(B, T)`, *optional*):
            Which image's prefix a token belongs to, for rows that hold several images; one group a row when missing.
    """

    def mask(batch_idx, head_idx, q_idx, kv_idx):
        key, query = segment_ids[batch_idx, kv_idx], segment_ids[batch_idx, q_idx]
        visible = (key == 0) | (key == query)
        if image_group_ids is not None:
            visible = visible & (image_group_ids[batch_idx, kv_idx] == image_group_ids[batch_idx, q_idx])
        return visible

    return mask


def position_window_mask_function(position_ids, window):
    """Return the mask function of sliding attention in packed rows: a token sees the `window` last *positions*.

    transformers counts columns, and would put the prefix out of the later segments' reach.

    Args:
        position_ids (`torch.LongTensor` of shape `(B, T)`): where each token stands in its own sequence.
        window (`int`): how many positions are seen, the token's own included.
    """

    def mask(batch_idx, head_idx, q_idx, kv_idx):
        return position_ids[batch_idx, kv_idx] > position_ids[batch_idx, q_idx] - window

    return mask


class PeFoMedPreTrainedModel(PreTrainedModel):
    """Loading, saving and the capabilities that both model classes share."""

    config: PeFoMedConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]
    # The projector is trained: in a bfloat16 model its updates would be lost in rounding.
    _keep_in_fp32_modules_strict = {"multi_modal_projector"}
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def save_pretrained(self, save_directory, **kwargs):
        """As `PreTrainedModel.save_pretrained`; the folder can be opened by `AutoModel` and
        `AutoModelForImageTextToText` alike, whichever of the two classes was saved."""
        self.config.auto_map = {
            "AutoConfig": "configuration_pefomed.PeFoMedConfig",
            "AutoModel": "modeling_pefomed.PeFoMedModel",
            "AutoModelForImageTextToText": "modeling_pefomed.PeFoMedForConditionalGeneration",
        }
        super().save_pretrained(save_directory, **kwargs)


class PeFoMedModel(PeFoMedPreTrainedModel):
    """The vision tower, the projector and the language model without its head.

    Args:
        config ([`PeFoMedConfig`]): the sizes; without arguments the paper's.
    """

    def __init__(self, config):
        super().__init__(config)
        if config.vision_config.model_type == "blip_2_vision_model":
            # transformers knows this config, but has no AutoModel entry for it
            self.vision_tower = Blip2VisionModel._from_config(config.vision_config)
            self.vision_tower.post_layernorm.eps = config.vision_post_layernorm_eps
        else:
            self.vision_tower = AutoModel.from_config(config.vision_config)
        # A bare Linear on purpose: PEFT can then mix adapters within one batch.
        self.multi_modal_projector = nn.Linear(
            config.vision_config.hidden_size * config.patch_group_size, config.text_config.hidden_size
        )
        self.language_model = AutoModel.from_config(config.text_config)
        # Blip2 names classes here that its vision model does not contain; FSDP would look for them and fail.
        present = {type(module).__name__ for module in self.vision_tower.modules()}
        self.vision_tower._no_split_modules = (set(self.vision_tower._no_split_modules or ()) & present) - {
            "Blip2Attention"
        }
        self.post_init()

    def train(self, mode=True):
        """Set training mode; the frozen tower stays in evaluation mode (no dropout, no drop path)."""
        super().train(mode)
        self.vision_tower.eval()
        return self

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.language_model.set_input_embeddings(value)

    def project_image_features(self, grouped):
        """Return image tokens `(N, tokens, hidden)` from grouped patch tokens `(N, tokens, group_size * width)`."""
        projector = self.multi_modal_projector
        return projector(grouped.to(projector.weight.dtype))

    @can_return_tuple
    def get_image_features(self, pixel_values, **kwargs):
        """
        Encode images into image tokens. The tower runs without gradients.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(N, 3, image_size, image_size)`): preprocessed images.

        Returns:
            `BaseModelOutputWithPooling`: `last_hidden_state` is the tower's output `(N, extra + patches, width)`,
            `pooler_output` a list of N tensors `(image_seq_length, hidden)`.
        """
        output = BaseModelOutputWithPooling(last_hidden_state=self.get_tower_output(pixel_values))
        output.pooler_output = self.get_image_tokens(output)
        return output

    @torch.no_grad()  # gradient checkpointing would otherwise build a graph through the whole tower
    def get_tower_output(self, pixel_values):
        """Return the frozen tower's output `(N, extra + patches, width)`: a pure function of the image.

        A tower in 16 bits computes in its own format under autocast too, so that one image has the same features in
        training and in prediction.
        """
        tower_dtype = next((parameter.dtype for parameter in self.vision_tower.parameters()), pixel_values.dtype)
        device, is_half = pixel_values.device.type, tower_dtype in (torch.bfloat16, torch.float16)
        with torch.autocast(device, enabled=False) if is_half and device != "meta" else nullcontext():
            return self.vision_tower(pixel_values.to(tower_dtype), return_dict=True).last_hidden_state

    def get_image_tokens(self, image_output):
        """
        Return the image tokens of an output of [`PeFoMedModel.get_image_features`], a list of N tensors
        `(image_seq_length, hidden)`. Where its `pooler_output` is missing, they are projected here, with gradients.

        Args:
            image_output (`BaseModelOutputWithPooling` or `dict`):
                With `pooler_output`, or else the tower's `last_hidden_state` of shape `(N, extra + patches, width)`,
                with or without its extra tokens.

        Raises:
            ValueError: it holds neither, or features of another tower's sizes.
        """
        tokens = image_output.get("pooler_output")
        if tokens is not None:
            return tokens
        hidden_states = image_output.get("last_hidden_state")
        width = self.config.vision_config.hidden_size
        if hidden_states is None or hidden_states.ndim != 3 or hidden_states.shape[-1] != width:
            found = "nothing" if hidden_states is None else f"last_hidden_state of shape {tuple(hidden_states.shape)}"
            raise ValueError(
                f"mm_encoder_outputs['image'] holds {found}; expected pooler_output, or last_hidden_state of shape "
                f"(images, tokens, {width}). Compute it with this model's vision tower."
            )
        grouped = group_patch_tokens(hidden_states, self.config.num_patches, self.config.patch_group_size)
        return list(self.project_image_features(grouped))

    def _embed(self, input_ids, image_features):
        """Look up text tokens and put image tokens at the placeholders; `(B, T, hidden)`."""
        is_image = input_ids == self.config.image_token_id
        # The placeholder's id may lie outside the embedding matrix, so it is never looked up.
        inputs_embeds = self.get_input_embeddings()(input_ids.masked_fill(is_image, 0))
        tokens, features = is_image.sum(), 0 if image_features is None else image_features.shape[0]
        torch_compilable_check(
            tokens == features,
            lambda: (
                f"Image features and image tokens do not match, tokens: {int(tokens)}, features: {features}. Each "
                f"image needs {self.config.image_seq_length} image tokens; build the inputs with PeFoMedProcessor and "
                "do not cut them."
            ),
        )
        if image_features is None:
            return inputs_embeds
        return inputs_embeds.masked_scatter(is_image.unsqueeze(-1), image_features.to(inputs_embeds.dtype))

    def _packed_mask(self, inputs_embeds, attention_mask, position_ids, past_key_values, segment_ids, image_group_ids):
        """Build the 4-D mask of packed rows, or one for each type of layer where the language model has several, after
        refusing every combination that would be silently wrong."""
        if position_ids is None:
            raise ValueError(
                "segment_ids without position_ids: the positions of each segment must restart behind the shared "
                "prefix. Pass both (the project's collator builds them)."
            )
        if past_key_values is not None and past_key_values.get_seq_length() > 0:
            raise ValueError("segment_ids describe a whole row and cannot be combined with a filled cache.")
        attention = self.language_model.config._attn_implementation
        if attention not in ("eager", "sdpa", "flex_attention"):
            raise ValueError(f"segment_ids need sdpa, eager or flex_attention; {attention} cannot express their mask.")
        if attention_mask is None:
            attention_mask = (segment_ids >= 0).long()
        config = self.language_model.config

        def build(mask_function):
            return create_causal_mask(
                config,
                inputs_embeds,
                attention_mask,
                past_key_values,
                position_ids=position_ids,
                and_mask_function=mask_function,
            )

        full = sliding = shared_prefix_mask_function(segment_ids, image_group_ids)
        if getattr(config, "sliding_window", None) is not None:
            sliding = and_masks(full, position_window_mask_function(position_ids, config.sliding_window))
        functions = {"full_attention": full, "sliding_attention": sliding}
        types = set(getattr(config, "layer_types", None) or ())
        if types - functions.keys():
            raise ValueError(
                f"segment_ids need layers of full or sliding attention; a {config.model_type} model also has "
                f"{', '.join(sorted(types - functions.keys()))}."
            )
        if len(types) > 1:
            return {kind: build(functions[kind]) for kind in types}
        return build(functions[types.pop()] if types else sliding)

    @can_return_tuple
    def forward(
        self,
        input_ids=None,
        pixel_values=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        mm_encoder_outputs=None,
        segment_ids=None,
        image_group_ids=None,
        **kwargs,
    ):
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(B, T)`, *optional*):
                Token ids with one placeholder per image token.
            pixel_values (`torch.FloatTensor` of shape `(N, 3, image_size, image_size)`, *optional*):
                All images of the batch, in the order of their placeholders.
            attention_mask (`torch.LongTensor` of shape `(B, T)`, *optional*): 1 for tokens, 0 for padding.
            position_ids (`torch.LongTensor` of shape `(B, T)`, *optional*): required with `segment_ids`.
            past_key_values (`Cache`, *optional*): keys and values of earlier tokens.
            inputs_embeds (`torch.FloatTensor` of shape `(B, T, hidden)`, *optional*):
                Instead of `input_ids`, with the image tokens already in place.
            mm_encoder_outputs (`dict`, *optional*):
                `{"image": output of get_image_features}`, instead of `pixel_values`; or, without its `pooler_output`,
                `{"image": {"last_hidden_state": features}}`: see [`PeFoMedModel.get_image_tokens`].
            segment_ids (`torch.LongTensor` of shape `(B, T)`, *optional*):
                Packs several questions behind one image: see [`shared_prefix_mask_function`].
            image_group_ids (`torch.LongTensor` of shape `(B, T)`, *optional*):
                For packed rows that hold several images.

        Raises:
            ValueError: images and placeholders do not match, or a packed row is described incompletely.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of input_ids and inputs_embeds.")
        if image_group_ids is not None and segment_ids is None:
            raise ValueError("image_group_ids need segment_ids.")
        image_output = (mm_encoder_outputs or {}).get("image")
        if pixel_values is not None:
            if image_output is not None:
                raise ValueError("Pass either pixel_values or mm_encoder_outputs, not both.")
            image_output = self.get_image_features(pixel_values, return_dict=True)
        image_features = None if image_output is None else torch.cat(list(self.get_image_tokens(image_output)), dim=0)

        if inputs_embeds is None:
            inputs_embeds = self._embed(input_ids, image_features)
        elif image_features is not None:
            raise ValueError("inputs_embeds must already hold the image tokens; pass no images beside them.")

        if segment_ids is not None:
            attention_mask = self._packed_mask(
                inputs_embeds, attention_mask, position_ids, past_key_values, segment_ids, image_group_ids
            )
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )
        return PeFoMedModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=image_features,
        )


class PeFoMedForConditionalGeneration(PeFoMedPreTrainedModel, GenerationMixin):
    """PeFoMed with its language-model head: training, generation, `pipeline("image-text-to-text")`."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.model = PeFoMedModel(config)
        self.lm_head = nn.Linear(
            config.text_config.hidden_size,
            config.text_config.vocab_size,
            bias=getattr(config.text_config, "lm_head_bias", False),
        )
        embeddings = self.model.get_input_embeddings()
        name = next(name for name, module in self.model.named_modules() if module is embeddings)
        self._tied_weights_keys = {"lm_head.weight": f"model.{name}.weight"}
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head

    def _logits(self, hidden_states):
        """Return the head's logits; Gemma 2 and 3 bound them softly behind the head."""
        logits = self.lm_head(hidden_states)
        bound = getattr(self.config.text_config, "final_logit_softcapping", None)
        return logits if bound is None else torch.tanh(logits / bound) * bound

    def _get_logits_processor(self, *args, encoder_input_ids=None, **kwargs):
        """As in `GenerationMixin`; processors that look the prompt's ids up in the logits see its first token in place
        of image tokens, whose id may lie outside the vocabulary."""
        if encoder_input_ids is not None and encoder_input_ids.ndim == 2:
            is_image = encoder_input_ids == self.config.image_token_id
            encoder_input_ids = torch.where(is_image, encoder_input_ids[:, :1], encoder_input_ids)
        return super()._get_logits_processor(*args, encoder_input_ids=encoder_input_ids, **kwargs)

    def get_image_features(self, pixel_values, **kwargs):
        """See [`PeFoMedModel.get_image_features`]; `generate` calls this once, also for beams."""
        return self.model.get_image_features(pixel_values, **kwargs)

    def _prepare_multimodal_encoder_kwargs_for_generation(self, model_kwargs):
        """As in `GenerationMixin`; features that are not projected yet are projected once, also for beams."""
        model_kwargs = super()._prepare_multimodal_encoder_kwargs_for_generation(model_kwargs)
        encoded = model_kwargs["mm_encoder_outputs"]
        if encoded.get("image") is not None:
            tokens = self.model.get_image_tokens(encoded["image"])
            model_kwargs["mm_encoder_outputs"] = {**encoded, "image": BaseModelOutputWithPooling(pooler_output=tokens)}
        return model_kwargs

    @can_return_tuple
    def forward(
        self,
        input_ids=None,
        pixel_values=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        logits_to_keep=0,
        mm_encoder_outputs=None,
        segment_ids=None,
        image_group_ids=None,
        num_items_in_batch=None,
        **kwargs,
    ):
        r"""
        Args beside those of [`PeFoMedModel.forward`]:
            labels (`torch.LongTensor` of shape `(B, T)`, *optional*):
                Token ids to be predicted, -100 elsewhere. The head is applied at labelled positions only: the same
                loss without `(B, T, vocab)` logits, and `logits` then has shape `(labelled positions, vocab)`.
            logits_to_keep (`int` or `torch.Tensor`, defaults to 0):
                Without labels: logits of the last n positions (0 = all), or of the given positions.
            num_items_in_batch (`torch.Tensor`, *optional*):
                Number of labelled tokens in the whole (accumulated) batch: the loss is then a sum divided by it.

        Raises:
            ValueError: positions jump back within a row and no `segment_ids` say what that means: transformers would
                take the row for separate sequences, and each question would lose its image.
        """
        if labels is not None and segment_ids is None and position_ids is not None:
            jumps_back = position_ids[:, 1:] < position_ids[:, :-1]
            if attention_mask is not None:
                jumps_back = jumps_back & (attention_mask[:, 1:] * attention_mask[:, :-1]).bool()
            if bool(jumps_back.any()):
                raise ValueError(
                    "position_ids jump back within a row, but no segment_ids say which tokens see which. "
                    "Pass segment_ids (the project's collator builds them)."
                )
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            mm_encoder_outputs=mm_encoder_outputs,
            segment_ids=segment_ids,
            image_group_ids=image_group_ids,
            return_dict=True,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state

        loss = None
        if labels is not None:
            targets = labels[:, 1:]
            labelled = targets != -100
            targets = targets[labelled]
            logits = self._logits(hidden_states[:, :-1][labelled])
            loss = self.loss_function(
                logits,
                labels=None,
                shift_labels=targets,
                vocab_size=self.config.text_config.vocab_size,
                num_items_in_batch=num_items_in_batch,
            )
        elif isinstance(logits_to_keep, int):
            logits = self._logits(hidden_states[:, -logits_to_keep:] if logits_to_keep else hidden_states)
        else:
            logits = self._logits(hidden_states[:, logits_to_keep])

        return PeFoMedCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
        )


__all__ = ["PeFoMedForConditionalGeneration", "PeFoMedModel", "PeFoMedPreTrainedModel"]
