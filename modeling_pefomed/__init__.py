# SPDX-License-Identifier: Apache-2.0
"""The model of PeFoMed: importing this package registers it with transformers' Auto classes.

The flat files beside this one are also the Hub's remote code: a saved folder carries copies of them.
"""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor

from .configuration_pefomed import PeFoMedConfig
from .image_processing_pefomed import PeFoMedImageProcessor
from .modeling_pefomed import PeFoMedForConditionalGeneration, PeFoMedModel, group_patch_tokens
from .processing_pefomed import PeFoMedProcessor, shared_prefix_length

AutoConfig.register("pefomed", PeFoMedConfig, exist_ok=True)
AutoModel.register(PeFoMedConfig, PeFoMedModel, exist_ok=True)
AutoModelForImageTextToText.register(PeFoMedConfig, PeFoMedForConditionalGeneration, exist_ok=True)
AutoImageProcessor.register(PeFoMedConfig, image_processor_classes={"pil": PeFoMedImageProcessor}, exist_ok=True)
AutoProcessor.register(PeFoMedConfig, PeFoMedProcessor, exist_ok=True)

# Saved folders then carry these files and name them in `auto_map`, so that they load without this package.
PeFoMedConfig.register_for_auto_class()
PeFoMedModel.register_for_auto_class("AutoModel")
PeFoMedForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
PeFoMedImageProcessor.register_for_auto_class("AutoImageProcessor")
PeFoMedProcessor.register_for_auto_class("AutoProcessor")

__all__ = [
    "PeFoMedConfig",
    "PeFoMedForConditionalGeneration",
    "PeFoMedImageProcessor",
    "PeFoMedModel",
    "PeFoMedProcessor",
    "group_patch_tokens",
    "shared_prefix_length",
]
