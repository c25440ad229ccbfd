# SPDX-License-Identifier: Apache-2.0
"""Recipes of PeFoMed: data, two-stage fine-tuning, inference and evaluation. Importing this turns telemetry off."""

import logging
import os
import sys

# Images and texts of patients stay where they are: whoever wants a library to report sets its variable beforehand.
TELEMETRY_OPT_OUTS = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "VLLM_NO_USAGE_STATS": "1",
}
for _name, _value in TELEMETRY_OPT_OUTS.items():
    os.environ.setdefault(_name, _value)

# Where bitsandbytes is installed, PEFT imports it, and on some CPUs it then warns that a faster kernel is missing.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

# huggingface_hub reads its variable once, when it is imported; a notebook may have imported it before this package.
_constants = sys.modules.get("huggingface_hub.constants")
if _constants is not None and os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1":
    _constants.HF_HUB_DISABLE_TELEMETRY = True  # type: ignore[attr-defined]
