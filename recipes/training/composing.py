# SPDX-License-Identifier: Apache-2.0
"""Composes a base model from a pretrained language model and a pretrained vision tower, with a fresh projector.

Any decoder and any tower whose patch tokens come last will do. What a family does differently is read from its own
files: the image transform, the grid of patches, a bias of the head, padding and end tokens.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import metadata_load
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, Blip2VisionModel, GenerationConfig
from transformers.utils import cached_file

from modeling_pefomed import PeFoMedConfig, PeFoMedForConditionalGeneration, PeFoMedImageProcessor, PeFoMedProcessor
from modeling_pefomed.tokenization_pefomed import load_tokenizer

from ..errors import ConfigError, PeFoMedError
from ..staging import whole_folder

COMPOSE_RECORD = "compose.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# What is taken over from a tower's own image processor; cropping is not: it would cut off anatomy.
TRANSFORM_KEYS = ("image_mean", "image_std", "resample", "rescale_factor", "do_rescale", "do_normalize")
# What is taken over from a language model's generation settings; sampling, penalties and kinds of cache are not.
GENERATION_KEYS = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "output_attentions", "output_hidden_states"),
    *("_from_model_config", "transformers_version"),
)
CHECKED_TEXT = "Is there a mass in the left lung?"
# What transformers could not load is told, so that it can be refused.
REPORTED = {"output_loading_info": True, "ignore_mismatched_sizes": True}
# Of the largest logit. The two ways do the same arithmetic; a head or an embedding that is missed costs far more.
LOGITS_TOLERANCE = 1e-3


@dataclass
class Parts:
    """Two pretrained models as they were loaded; `transform` is the tower's own, `{}` where it brings none."""

    language_model: Any
    tokenizer: Any
    tower: Any
    transform: dict[str, Any]


def compose(
    vision_tower: str,
    llm: str,
    out: Path,
    *,
    patch_group_size: int = 4,
    image_size: int | None = None,
    dtype: str = "auto",
    seed: int = 42,
) -> dict[str, Any]:
    """Write a base model folder made of two pretrained parts and return what its `compose.json` says.

    Before it is written, a text and an image go through it: the text's logits must be the language model's own.

    Args:
        vision_tower: Hub id or folder of a vision backbone, or of a model that has one.
        llm: Hub id or folder of a decoder language model with its tokenizer.
        out: the new folder; it appears only when it is whole.
        patch_group_size: consecutive patch tokens concatenated into one image token.
        image_size: in pixels; by default what the tower's own image processor makes, else the tower's. Position
            embeddings are interpolated once, by the tower's own rule.
        dtype: of the frozen parts: `float32`, `bfloat16`, `float16`, or `auto` for the one the language model is
            published in. The projector stays in float32.
        seed: of the projector's initialisation.

    Raises:
        ConfigError: the folder is not empty, or the dtype is unknown.
        PeFoMedError: the parts cannot be loaded or do not go together.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: exists already and is not an empty folder; name another --out or delete it")
    if dtype not in ("auto", *DTYPES):
        raise ConfigError(f"--dtype: found {dtype!r}, expected one of auto, {', '.join(DTYPES)}")
    chosen = DTYPES[dtype] if dtype != "auto" else published_dtype(llm)
    _say(f"loading {llm} and {vision_tower} in {str(chosen).removeprefix('torch.')}")
    parts = load_parts(llm, vision_tower, chosen)
    _say("composing them")
    model, processor = assemble(
        parts, dtype=chosen, patch_group_size=patch_group_size, image_size=image_size, seed=seed
    )
    _say("checking it: a text against the language model alone, and one image")
    check_base(parts, model, processor)
    text: Any = model.config.text_config
    vision: Any = model.config.vision_config
    record = {
        "vision_tower": {**source_of(vision_tower), "model_type": vision.model_type},
        "language_model": {**source_of(llm), "model_type": text.model_type},
        "image_size_px": vision.image_size,
        "image_transform": "the tower's own" if parts.transform else "CLIP's mean and standard deviation, bicubic",
        "image_tokens": model.config.image_seq_length,
        "patch_group_size": patch_group_size,
        "dtype": str(chosen).removeprefix("torch."),
        "seed": seed,
    }
    _say(f"writing {out}")
    save_base(out, model, processor, record)
    return record


def build_base(
    llm: str | Path,
    vision_tower: str | Path,
    *,
    dtype: torch.dtype,
    patch_group_size: int = 4,
    image_size: int | None = None,
    seed: int = 42,
) -> tuple[PeFoMedForConditionalGeneration, PeFoMedProcessor]:
    """Return a base model with a fresh projector between two pretrained parts, and its processor; see [`compose`]."""
    parts = load_parts(llm, vision_tower, dtype)
    return assemble(parts, dtype=dtype, patch_group_size=patch_group_size, image_size=image_size, seed=seed)


def load_parts(llm: str | Path, vision_tower: str | Path, dtype: torch.dtype) -> Parts:
    """Load the two parts.

    Raises:
        PeFoMedError: a part is not there or of another kind, some of its weights are missing, or the tokenizer has no
            end token.
    """
    try:
        language_model, info = AutoModelForCausalLM.from_pretrained(llm, dtype=dtype, **REPORTED)
        tokenizer = load_tokenizer(llm)
    except (OSError, ValueError) as error:
        raise PeFoMedError(f"{llm}: cannot load a language model with its tokenizer ({_first_line(error)})") from None
    _refuse_missing(llm, info)
    if tokenizer.eos_token_id is None:
        raise PeFoMedError(f"{llm}: its tokenizer has no end token; answers could never end. Set eos_token there.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # labels tell padding and the end apart, never this id
    return Parts(language_model, tokenizer, load_vision_tower(vision_tower, dtype), read_transform(vision_tower))


def load_vision_tower(vision_tower: str | Path, dtype: torch.dtype) -> torch.nn.Module:
    """Return the vision part of any model that has one: a plain backbone, or the tower inside a two-tower model.

    Raises:
        PeFoMedError: there is no such model, or some of its weights are missing.
    """
    try:
        config = AutoConfig.from_pretrained(vision_tower)
        if config.model_type in ("blip_2_vision_model", "blip-2"):
            names = {r"^vision_model\.": ""}  # inside BLIP-2
            model, info = Blip2VisionModel.from_pretrained(vision_tower, dtype=dtype, key_mapping=names, **REPORTED)
        else:
            model, info = AutoModel.from_pretrained(vision_tower, dtype=dtype, **REPORTED)
    except (OSError, ValueError, TypeError) as error:  # TypeError: sizes that the family's code cannot take
        raise PeFoMedError(f"{vision_tower}: cannot load a vision tower ({_first_line(error)})") from None
    _refuse_missing(vision_tower, info)
    return getattr(model, "vision_model", model)


def read_transform(vision_tower: str | Path) -> dict[str, Any]:
    """Return the settings of the tower's own image processor, `{}` where it brings none."""
    try:
        return PeFoMedImageProcessor.get_image_processor_dict(vision_tower)[0]
    except OSError:
        return {}


def assemble(
    parts: Parts, *, dtype: torch.dtype, patch_group_size: int, image_size: int | None, seed: int
) -> tuple[PeFoMedForConditionalGeneration, PeFoMedProcessor]:
    """Return the parts as one model, and its processor.

    Raises:
        PeFoMedError: the tower is not square or cannot be resized, or its patches cannot be grouped so.
    """
    language_model, tokenizer = parts.language_model, parts.tokenizer
    patch_size = _square(parts.tower.config, "patch_size")
    image_size = image_size or _transform_size(parts.transform) or _square(parts.tower.config, "image_size")
    check_grid(image_size, patch_size, patch_group_size)
    vision_config, tower_state = resized_tower(parts.tower, image_size, patch_size)
    text_config = language_model.config.get_text_config().to_dict()
    head = language_model.get_output_embeddings()
    if head.bias is not None:
        text_config["lm_head_bias"] = True
    processor = PeFoMedProcessor(
        image_processor=PeFoMedImageProcessor(
            size={"height": image_size, "width": image_size},
            **{key: parts.transform[key] for key in TRANSFORM_KEYS if parts.transform.get(key) is not None},
        ),
        tokenizer=tokenizer,
        image_seq_length=(image_size // patch_size) ** 2 // patch_group_size,
    )
    config = PeFoMedConfig(
        vision_config=vision_config,
        text_config=text_config,
        patch_group_size=patch_group_size,
        image_token_id=processor.image_token_id,
    )
    torch.manual_seed(seed)
    model = PeFoMedForConditionalGeneration._from_config(config, dtype=dtype)
    model.model.vision_tower.load_state_dict(tower_state)
    model.model.language_model.load_state_dict(language_model.get_decoder().state_dict())
    model.lm_head.load_state_dict(head.state_dict())
    model.tie_weights()
    model.model.multi_modal_projector.float()
    model.generation_config = _greedy(language_model.generation_config, tokenizer)
    if processor.image_token_id < text_config["vocab_size"]:
        # A spare row of the head: were it ever the likeliest, the next step would look for an image.
        model.generation_config.suppress_tokens = [processor.image_token_id]
    return model, processor


def check_grid(image_size: int, patch_size: int, patch_group_size: int) -> None:
    """Refuse sizes that do not go together, naming those that do.

    Raises:
        PeFoMedError: the image is no multiple of the patch, or the patches cannot be grouped so.
    """
    patches = (image_size // patch_size) ** 2
    if image_size > 0 and image_size % patch_size == 0 and patch_group_size > 0 and patches % patch_group_size == 0:
        return
    group = max(patch_group_size, 1)
    near = sorted(range(1, 4 * group + image_size // patch_size), key=lambda n: abs(n * patch_size - image_size))
    sizes = sorted(n * patch_size for n in [n for n in near if n * n % group == 0][:4])
    groups = [] if image_size % patch_size else [n for n in range(1, patches + 1) if patches % n == 0][:8]
    raise PeFoMedError(
        f"images of {image_size} px in patches of {patch_size} px give {image_size / patch_size:g} x "
        f"{image_size / patch_size:g} patches, which cannot be grouped by {patch_group_size}. With --patch-group-size "
        f"{group}, these work: --image-size {', '.join(map(str, sizes))}"
        + (f"; with --image-size {image_size}: --patch-group-size {', '.join(map(str, groups))}" if groups else "")
    )


def resized_tower(tower: Any, image_size: int, patch_size: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the configuration and the weights of a tower for images of another size.

    Position embeddings are interpolated in float32 by the tower's own method: families differ in antialiasing.

    Raises:
        PeFoMedError: the tower has no such method.
    """
    own_size = _square(tower.config, "image_size")
    config, state = tower.config.to_dict(), tower.state_dict()
    config |= {"image_size": image_size, "patch_size": patch_size}
    name = next((name for name in state if name.startswith("embeddings.position_embedding")), None)
    if image_size == own_size or name is None:  # None: positions are rotations, not weights
        return config, state
    if not hasattr(tower.embeddings, "interpolate_pos_encoding"):
        raise PeFoMedError(f"a {config['model_type']} tower cannot be resized; use --image-size {own_size}")
    own = state[name]
    others = own.shape[-2] - (own_size // patch_size) ** 2  # CLS; register tokens have no position
    tokens = torch.empty(1, others + (image_size // patch_size) ** 2, own.shape[-1])
    tower.embeddings.patch_size = patch_size  # ViT divides by it as its configuration writes it: perhaps a pair
    with torch.no_grad():
        resized = tower.embeddings.float().interpolate_pos_encoding(tokens, image_size, image_size)
    state[name] = resized.reshape(*own.shape[:-2], *resized.shape[-2:]).to(own.dtype)
    return config, state


@torch.inference_mode()
def check_base(parts: Parts, model: PeFoMedForConditionalGeneration, processor: PeFoMedProcessor) -> None:
    """Send a text and an image through a composed model.

    Raises:
        PeFoMedError: the text's logits are not the language model's own, or the tower's tokens are not its patches.
    """
    model.eval()
    ids = parts.tokenizer(CHECKED_TEXT, return_tensors="pt")["input_ids"]
    expected, found = parts.language_model.eval()(input_ids=ids).logits.float(), model(input_ids=ids).logits.float()
    difference = (found - expected).abs().max().item()
    if not difference <= LOGITS_TOLERANCE * expected.abs().max().item():
        raise PeFoMedError(
            f"composed with this {parts.language_model.config.model_type} model, a text's logits differ by up to "
            f"{difference:.3g} from its own: it does something behind its decoder that PeFoMed does not do. Use "
            "another language model."
        )
    size = processor.image_processor.size
    pixels = torch.zeros(1, 3, size["height"], size["width"])
    try:
        model.get_image_features(pixels)
    except ValueError as error:
        raise PeFoMedError(_first_line(error)) from None


def save_base(
    folder: Path,
    model: PeFoMedForConditionalGeneration,
    processor: PeFoMedProcessor,
    record: dict[str, Any] | None = None,
) -> None:
    """Write a base model folder that loads with and without this package; it appears only when it is whole.

    Args:
        record: what `compose.json` shall say; no such file without it.
    """
    with whole_folder(folder, replace=True) as staged:
        model.save_pretrained(staged)
        processor.save_pretrained(staged)
        if record is not None:
            (staged / COMPOSE_RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def published_dtype(llm: str) -> torch.dtype:
    """Return the dtype that a language model is published in, float32 where its configuration says none.

    Raises:
        PeFoMedError: there is no such model.
    """
    try:
        config = AutoConfig.from_pretrained(llm).get_text_config()
    except (OSError, ValueError) as error:
        raise PeFoMedError(f"{llm}: cannot load a language model with its tokenizer ({_first_line(error)})") from None
    return DTYPES.get(str(config.dtype).removeprefix("torch."), torch.float32)


def _square(config: Any, name: str) -> int:
    """Return an image or patch size that may be written as one number or as an equal pair."""
    value = getattr(config, name, None)
    sides = {value} if isinstance(value, int) else set(value or ())
    if len(sides) != 1:
        raise PeFoMedError(
            f"a {config.model_type} tower has {name} {value}, expected one number of pixels or two equal ones; use a "
            "ViT, CLIP, SigLIP, DINOv2 or BLIP-2 tower of a fixed square size"
        )
    return int(sides.pop())


def _transform_size(transform: dict[str, Any]) -> int | None:
    """Return the side of the square images that an image processor makes, `None` where it makes no square."""
    size = transform.get("crop_size") if transform.get("do_center_crop") else transform.get("size")
    if isinstance(size, dict):
        sides = {size.get("height", size.get("shortest_edge")), size.get("width", size.get("shortest_edge"))}
        size = sides.pop() if len(sides) == 1 else None
    return size


def _greedy(published: GenerationConfig, tokenizer: Any) -> GenerationConfig:
    """Return a language model's generation settings for greedy decoding, as in the paper. What is trained to end an
    answer ends it."""
    plain = GenerationConfig()
    for key in published.to_diff_dict().keys() - set(GENERATION_KEYS):
        setattr(published, key, getattr(plain, key, None))
    ends = published.eos_token_id if isinstance(published.eos_token_id, list) else [published.eos_token_id]
    if tokenizer.eos_token_id not in ends:
        published.eos_token_id = [tokenizer.eos_token_id, *(token for token in ends if token is not None)]
    published.pad_token_id = tokenizer.pad_token_id
    return published


def _refuse_missing(part: str | Path, info: dict[str, Any]) -> None:
    """Refuse weights that transformers would draw at random; a pooler is never used.

    Raises:
        PeFoMedError: weights are missing from the part's files, or have other sizes there.
    """
    missing = sorted(name for name in info["missing_keys"] if "pooler" not in name)
    if missing:
        raise PeFoMedError(f"{part}: {len(missing)} weights are missing from its files, such as {missing[0]}")
    for name, found, expected in sorted(info["mismatched_keys"]):
        raise PeFoMedError(f"{part}: {name} has shape {list(found)}, expected {list(expected)} as config.json says")


def source_of(part: str) -> dict[str, str]:
    """Return a part's Hub id, or the last name of its folder, and the licence that its model card names."""
    card = Path(part) / "README.md"
    if not Path(part).is_dir():
        flags = ("missing_entries", "gated_repo", "connection_errors")
        card = cached_file(part, "README.md", **{f"_raise_exceptions_for_{flag}": False for flag in flags})
    metadata = metadata_load(card) if card is not None and Path(card).is_file() else None
    name = Path(part).resolve().name if Path(part).is_dir() else part
    return {"id": name, "licence": str((metadata or {}).get("license", "not stated"))}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _say(text: str) -> None:
    print(text, file=sys.stderr)
