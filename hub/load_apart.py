# SPDX-License-Identifier: Apache-2.0
"""Runs in a Python that cannot import this project, as `python -I load_apart.py FOLDER WORK`.

Loads a folder by the remote code alone, as a stranger does from the Hub, puts the prompts of `WORK/prompts.json` to it
and writes the logits to `WORK/logits.safetensors`. Nothing of this project is imported.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

OWN_PACKAGES = ("modeling_pefomed", "pefomed_recipes", "pefomed_hub", "pefomed_demo")


class NotInstalled:
    """Stands before all finders of packages, and makes this project's look as if they were not installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in OWN_PACKAGES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def main(folder: str, work: Path) -> None:
    """Load, ask, write."""
    import torch
    from PIL import Image
    from safetensors.torch import save_file
    from transformers import AutoModelForImageTextToText, AutoProcessor

    settings = json.loads((work / "prompts.json").read_text(encoding="utf-8"))
    options = {"trust_remote_code": True, "dtype": "auto"}
    if settings["revision"]:
        options["revision"] = settings["revision"]  # of the base; the folder has no revisions
    model = AutoModelForImageTextToText.from_pretrained(folder, **options).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    logits = {}
    for index, prompt in enumerate(settings["prompts"]):
        image = Image.open(work / prompt["image"])
        content = [{"type": "image", "image": image}, {"type": "text", "text": prompt["text"]}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            task=prompt["task"],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        with torch.inference_mode():
            logits[str(index)] = model(**inputs).logits.float().contiguous()
    save_file(logits, work / "logits.safetensors")


if __name__ == "__main__":
    sys.meta_path.insert(0, NotInstalled())
    main(sys.argv[1], Path(sys.argv[2]))
