# SPDX-License-Identifier: Apache-2.0
"""Configuration of PeFoMed: a vision tower, token grouping and a language model."""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


@strict
class PeFoMedConfig(PreTrainedConfig):
    r"""
    The sizes of a PeFoMed model. Without arguments: the paper's (EVA ViT-g at 448 px, LLaMA-2-7B).

    Args:
        vision_config (`dict` or `PreTrainedConfig`, *optional*):
            Any vision backbone with patch tokens; defaults to `Blip2VisionModel` at the sizes of EVA-CLIP ViT-g/14
            (39 blocks of width 1408, 448 px, 14 px patches: 1024 patch tokens and one CLS token).
        text_config (`dict` or `PreTrainedConfig`, *optional*):
            Any decoder language model; defaults to LLaMA-2-7B.
        patch_group_size (`int`, defaults to 4):
            How many *consecutive* patch tokens (a horizontal strip of patches) are concatenated into one image token.
        image_token_id (`int`, defaults to 32000):
            Id of the placeholder `<ImageHere>`. It may lie outside the language model's vocabulary: it is masked
            before the embedding lookup, so the frozen embedding matrix keeps its size.
        vision_post_layernorm_eps (`float`, defaults to 1e-5):
            Epsilon of the tower's last LayerNorm, for `Blip2VisionModel` towers only.
            Source: the released code's `ln_vision`. Differs: transformers uses the blocks' 1e-6 here.
        tie_word_embeddings (`bool`, *optional*):
            Whether the LM head shares the input embeddings; taken from `text_config` when not given.

    Example:

    ```python
    >>> from modeling_pefomed import PeFoMedConfig

    >>> PeFoMedConfig().image_seq_length
    256
    ```
    """

    model_type = "pefomed"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="blip_2_vision_model",
            # transformers' own initializer_range of 1e-10 makes a fresh tower emit zeros
            init_kwargs={"image_size": 448, "initializer_range": 0.02},
        ),
        "text_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="llama",
            init_kwargs={"max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
        ),
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    patch_group_size: int = 4
    image_token_id: int = 32000
    vision_post_layernorm_eps: float = 1e-5
    tie_word_embeddings: bool | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = bool(self.text_config.tie_word_embeddings)
        if self.patch_group_size < 1 or self.num_patches % self.patch_group_size:
            raise ValueError(
                f"patch_group_size is {self.patch_group_size}, but it must divide the {self.num_patches} patch tokens "
                f"of a {self.vision_config.image_size} px image with {self.vision_config.patch_size} px patches."
            )

    @property
    def num_patches(self) -> int:
        """Number of patch tokens of one image, without CLS or register tokens."""
        return (self.vision_config.image_size // self.vision_config.patch_size) ** 2

    @property
    def image_seq_length(self) -> int:
        """Number of image tokens that one image occupies in the prompt: patch tokens / `patch_group_size`."""
        return self.num_patches // self.patch_group_size


__all__ = ["PeFoMedConfig"]
