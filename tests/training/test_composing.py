# SPDX-License-Identifier: Apache-2.0
"""Base models from pretrained parts: nothing of a part is changed, and what is saved loads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Blip2VisionModel,
    CLIPConfig,
    CLIPModel,
    GenerationConfig,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaForCausalLM,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

from modeling_pefomed import PeFoMedImageProcessor, PeFoMedProcessor
from pefomed_recipes.compose import compose as launcher
from pefomed_recipes.errors import PeFoMedError
from pefomed_recipes.training.composing import build_base, check_grid, compose, load_vision_tower, save_base

from ..modeling.tiny import (
    INITIALIZER_RANGE,
    ask,
    build_processor,
    build_tokenizer,
    draw_image,
    encode,
    text_config,
    vision_config,
)


@pytest.fixture(scope="module")
def processor() -> PeFoMedProcessor:
    """The tiny model's processor."""
    return build_processor()


@pytest.fixture(scope="module")
def inputs(processor: PeFoMedProcessor) -> dict[str, Any]:
    """One image and one question."""
    return encode(processor, ask("Is there a mass?", draw_image(0)))


@pytest.fixture(scope="module")
def llm_folder(tmp_path_factory: pytest.TempPathFactory, processor: PeFoMedProcessor) -> Path:
    """A language model as its makers publish it: weights, and a tokenizer that knows no image token."""
    folder = tmp_path_factory.mktemp("llm")
    LlamaForCausalLM(text_config(processor)).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


TOWER_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}


def save_tower(folder: Path, kind: str) -> None:
    sizes = TOWER_SIZES
    torch.manual_seed(0)
    if kind == "blip2":
        Blip2VisionModel(vision_config()).save_pretrained(folder)
    elif kind == "siglip":
        SiglipVisionModel(SiglipVisionConfig(**sizes)).save_pretrained(folder)
    else:  # a two-tower model, of which the vision part is wanted
        text = sizes | {"vocab_size": 99, "image_size": None, "patch_size": None}
        CLIPModel(CLIPConfig(vision_config=sizes, text_config=text)).save_pretrained(folder)


@pytest.mark.parametrize("kind", ["blip2", "siglip", "clip"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_base_is_its_pretrained_parts_and_a_float32_projector(
    llm_folder: Path, tmp_path: Path, kind: str, dtype: torch.dtype
) -> None:
    save_tower(tmp_path / "tower", kind)
    model, processor = build_base(llm_folder, tmp_path / "tower", dtype=dtype)
    llm = LlamaForCausalLM.from_pretrained(llm_folder, dtype=dtype)
    tower = load_vision_tower(tmp_path / "tower", dtype)
    parts = (
        (model.model.language_model, llm.model),
        (model.lm_head, llm.lm_head),
        (model.model.vision_tower, tower),
    )
    for part, source in parts:
        weights, expected = part.state_dict(), source.state_dict()
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in weights)
    assert {parameter.dtype for parameter in model.model.multi_modal_projector.parameters()} == {torch.float32}
    assert processor.image_token_id == model.config.image_token_id == model.config.text_config.vocab_size
    assert processor.image_seq_length == model.config.image_seq_length == 4
    inputs = encode(processor, ask("Is there a mass?", draw_image(0)))
    answer = model.generate(**inputs, max_new_tokens=2, min_new_tokens=2)
    assert answer.shape[1] == inputs["input_ids"].shape[1] + 2


def test_the_projectors_start_depends_on_the_seed_alone(llm_folder: Path, tmp_path: Path) -> None:
    save_tower(tmp_path, "blip2")

    def projector(seed: int) -> torch.Tensor:
        return build_base(llm_folder, tmp_path, dtype=torch.float32, seed=seed)[0].model.multi_modal_projector.weight

    first = projector(1)
    torch.manual_seed(99)
    assert torch.equal(projector(1), first)
    assert not torch.equal(projector(2), first)
    assert first.std().item() == pytest.approx(INITIALIZER_RANGE, rel=0.9)


def test_padding_of_answers_uses_the_tokenizers_own_token(llm_folder: Path, tmp_path: Path) -> None:
    save_tower(tmp_path, "blip2")
    model, processor = build_base(llm_folder, tmp_path, dtype=torch.float32)
    assert model.generation_config.pad_token_id == processor.tokenizer.pad_token_id


def test_a_saved_base_loads_and_replaces_an_older_one(
    llm_folder: Path, tmp_path: Path, inputs: dict[str, Any]
) -> None:
    save_tower(tmp_path / "tower", "blip2")
    model, processor = build_base(llm_folder, tmp_path / "tower", dtype=torch.float32)
    folder = tmp_path / "base"
    (folder / "left over").mkdir(parents=True)
    save_base(folder, model, processor)
    assert not (folder / "left over").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "tower"]
    loaded = AutoModelForImageTextToText.from_pretrained(folder)
    assert torch.equal(loaded(**inputs).logits, model.eval()(**inputs).logits)
    reloaded = AutoProcessor.from_pretrained(folder)
    assert reloaded.encode_prompt("Is it?", "vqa") == processor.encode_prompt("Is it?", "vqa")


@pytest.fixture
def parts(llm_folder: Path, tmp_path: Path) -> dict[str, str]:
    """Copies of a language model and a tower that a test may spoil."""
    shutil.copytree(llm_folder, tmp_path / "llm")
    save_tower(tmp_path / "tower", "blip2")
    return {"llm": str(tmp_path / "llm"), "vision_tower": str(tmp_path / "tower")}


def composed(parts: dict[str, str], tmp_path: Path, **options: Any) -> tuple[dict[str, Any], Any, Any]:
    """What `compose` says of a base, the base and its processor."""
    record = compose(out=tmp_path / "base", **parts, **options)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "base")
    return record, model, AutoProcessor.from_pretrained(tmp_path / "base")


def write_json(path: Path, **content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


CLIP_MEAN = PeFoMedImageProcessor.image_mean
TRANSFORMS: dict[str, tuple[dict[str, Any], int, list[float], int]] = {
    "siglip": ({"size": {"height": 48, "width": 48}, "image_mean": [0.5] * 3, "resample": 2}, 48, [0.5] * 3, 2),
    "clip": (
        {"size": {"shortest_edge": 16}, "do_center_crop": True, "crop_size": {"height": 16, "width": 16}},
        16,
        CLIP_MEAN,
        3,
    ),
    "clip of 2021": ({"size": 16, "do_center_crop": True, "crop_size": 16}, 16, CLIP_MEAN, 3),
    "dinov2": (
        {"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": {"height": 48, "width": 48}},
        48,
        CLIP_MEAN,
        3,
    ),
    "oblong": ({"size": {"height": 48, "width": 16}}, 32, CLIP_MEAN, 3),
    "none": ({}, 32, CLIP_MEAN, 3),
}


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_the_towers_own_image_transform_is_kept_without_its_crop(
    parts: dict[str, str], tmp_path: Path, kind: str
) -> None:
    settings, size, mean, resample = TRANSFORMS[kind]
    if settings:
        write_json(tmp_path / "tower" / "preprocessor_config.json", **settings)
    record, model, processor = composed(parts, tmp_path)
    transform = processor.image_processor
    assert dict(transform.size) == {"height": size, "width": size}
    assert (list(transform.image_mean), transform.resample) == (list(mean), resample)
    assert not getattr(transform, "do_center_crop", False)
    assert model.config.vision_config.image_size == record["image_size_px"] == size
    assert processor.image_seq_length == (size // 8) ** 2 // 4
    assert record["image_transform"].startswith("the tower's own" if settings else "CLIP's")


def test_the_image_size_asked_for_wins(parts: dict[str, str], tmp_path: Path) -> None:
    write_json(tmp_path / "tower" / "preprocessor_config.json", size=16)
    record, model, processor = composed(parts, tmp_path, image_size=48, patch_group_size=6)
    assert (record["image_size_px"], record["image_tokens"], processor.image_seq_length) == (48, 6, 6)
    inputs = encode(processor, ask("Is there a mass?", draw_image(0)))
    assert inputs["pixel_values"].shape[-2:] == (48, 48)
    assert model(**inputs).logits.isfinite().all()


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((518, 14, 4), ["37 x 37 patches", "--image-size 476, 504, 532, 560", "--patch-group-size 1, 37, 1369"]),
        (
            (224, 16, 3),
            ["14 x 14", "--patch-group-size 3, these work: --image-size 144, 192, 240, 288", "1, 2, 4, 7, 14"],
        ),
        ((220, 16, 4), ["13.75 x 13.75", "--image-size 160, 192, 224, 256"]),
        ((8, 16, 4), ["0.5 x 0.5", "--image-size 32"]),
        ((32, 8, 0), ["grouped by 0", "--patch-group-size 1, 2, 4, 8, 16"]),
    ],
)
def test_sizes_that_do_not_go_together_name_those_that_do(sizes: tuple[int, int, int], said: list[str]) -> None:
    with pytest.raises(PeFoMedError) as error:
        check_grid(*sizes)
    assert [words for words in said if words not in str(error.value)] == []
    listed = str(error.value).split("--image-size ")[1].split(";")[0]
    for size in map(int, listed.split(", ")):
        check_grid(size, sizes[1], max(sizes[2], 1))


def test_the_record_names_the_parts_and_their_licences(parts: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "llm" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n", encoding="utf-8")
    record, _, _ = composed(parts, tmp_path)
    assert json.loads((tmp_path / "base" / "compose.json").read_text(encoding="utf-8")) == record
    assert record["language_model"] == {"id": "llm", "licence": "apache-2.0", "model_type": "llama"}
    assert record["vision_tower"] == {"id": "tower", "licence": "not stated", "model_type": "blip_2_vision_model"}
    assert str(tmp_path) not in json.dumps(record)


@pytest.mark.parametrize(("asked", "expected"), [("auto", "bfloat16"), ("float32", "float32")])
def test_frozen_parts_keep_the_dtype_they_are_published_in(
    parts: dict[str, str], tmp_path: Path, asked: str, expected: str
) -> None:
    model = LlamaForCausalLM.from_pretrained(parts["llm"], dtype=torch.bfloat16)
    model.save_pretrained(parts["llm"])
    record, _, _ = composed(parts, tmp_path, dtype=asked)
    weights = load_file(tmp_path / "base" / "model.safetensors")
    formats = {str(t.dtype).removeprefix("torch.") for name, t in weights.items() if "projector" not in name}
    assert formats == {expected} == {record["dtype"]}
    assert {t.dtype for name, t in weights.items() if "projector" in name} == {torch.float32}


def test_answers_are_decoded_greedily_and_end_where_training_ends_them(parts: dict[str, str], tmp_path: Path) -> None:
    published = {"do_sample": True, "temperature": 0.6, "repetition_penalty": 1.1, "cache_implementation": "hybrid"}
    write_json(tmp_path / "llm" / "generation_config.json", **published, eos_token_id=5, pad_token_id=7)
    _, model, processor = composed(parts, tmp_path)
    settings = model.generation_config
    for key in published:
        assert getattr(settings, key) == getattr(GenerationConfig(), key), key
    assert settings.eos_token_id == [processor.tokenizer.eos_token_id, 5]
    assert settings.pad_token_id == processor.tokenizer.pad_token_id


def test_a_tokenizer_without_begin_and_padding_tokens_can_batch(parts: dict[str, str], tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.bos_token = tokenizer.pad_token = None
    tokenizer.save_pretrained(parts["llm"])
    _, model, processor = composed(parts, tmp_path)
    inputs = encode(processor, ask("Is it?", draw_image(0)), ask("Which organ is shown in it?", draw_image(1)))
    assert inputs["input_ids"].shape[0] == 2
    assert model.generate(**inputs, max_new_tokens=1).shape[0] == 2


def spoil_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[next(name for name in weights if "layers.1" in name)]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def without_end(folder: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)


def scaled_logits(folder: Path) -> None:
    """A family whose head divides its logits: it is known to transformers, but not to PeFoMed."""
    sizes = text_config(build_processor()).to_dict()
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    GraniteForCausalLM(GraniteConfig(**{key: sizes[key] for key in kept}, logits_scaling=8.0)).save_pretrained(folder)


def other_sizes(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", **config | {"intermediate_size": 72})


BAD_PARTS: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "no language model": ("llm", shutil.rmtree, "cannot load a language model with its tokenizer"),
    "no tower": ("vision_tower", shutil.rmtree, "cannot load a vision tower"),
    "torn language model": ("llm", spoil_weights, "weights are missing from its files, such as model.layers.1"),
    "torn tower": ("vision_tower", spoil_weights, "weights are missing from its files, such as encoder.layers.1"),
    "language model of other sizes": (
        "llm",
        other_sizes,
        r"down_proj.weight has shape \[48, 96\], expected \[48, 72\] as config",
    ),
    "tower of other sizes": ("vision_tower", other_sizes, r"fc1.bias has shape \[64\], expected \[72\] as config"),
    "no end token": ("llm", without_end, "has no end token"),
    "another head": ("llm", scaled_logits, "a text's logits differ by up to"),
}


@pytest.mark.parametrize("kind", BAD_PARTS)
def test_parts_that_cannot_be_used_leave_nothing_behind(parts: dict[str, str], tmp_path: Path, kind: str) -> None:
    part, spoil, said = BAD_PARTS[kind]
    spoil(Path(parts[part]))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(PeFoMedError, match=said):
        compose(out=tmp_path / "base", **parts)
    assert sorted(tmp_path.iterdir()) == before


def test_a_text_model_is_no_tower(parts: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(PeFoMedError, match="a llama tower has patch_size None, expected one number"):
        compose(parts["llm"], parts["llm"], tmp_path / "base")


def test_an_oblong_tower_is_refused(parts: dict[str, str], tmp_path: Path) -> None:
    ViTModel(ViTConfig(**TOWER_SIZES | {"image_size": [32, 16]})).save_pretrained(tmp_path / "vit")
    with pytest.raises(PeFoMedError, match=r"image_size \[32, 16\], expected one number of pixels or two equal ones"):
        compose(str(tmp_path / "vit"), parts["llm"], tmp_path / "base")


def test_a_tower_without_a_fixed_size_is_refused(parts: dict[str, str], tmp_path: Path) -> None:
    """SigLIP 2 in its form for any aspect ratio; in its fixed sizes it is a SigLIP."""
    sizes = {key: value for key, value in TOWER_SIZES.items() if key != "image_size"}
    Siglip2VisionModel(Siglip2VisionConfig(**sizes, num_patches=16)).save_pretrained(tmp_path / "siglip2")
    with pytest.raises(PeFoMedError, match="image_size None, expected one number of pixels"):
        compose(str(tmp_path / "siglip2"), parts["llm"], tmp_path / "base")


def test_a_save_that_fails_leaves_nothing_behind(
    parts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(PeFoMedProcessor, "save_pretrained", full)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match="No space left"):
        compose(out=tmp_path / "base", **parts)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "said"), [({}, "not an empty folder"), ({"dtype": "fp8"}, "expected one of auto")]
)
def test_a_mistake_ends_in_one_line_and_changes_nothing(
    parts: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any], said: str
) -> None:
    out = tmp_path / "base"
    if not options:
        out.mkdir()
        (out / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        launcher(**parts, out=out, **options)
    text, err = capsys.readouterr()
    assert (stop.value.code, text, err.count("\n")) == (2, "", 1)
    assert said in err
    assert not out.exists() or [path.name for path in out.iterdir()] == ["mine.txt"]


def test_progress_goes_to_stderr(parts: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "base").mkdir()  # empty: welcome
    launcher(**parts, out=tmp_path / "base")
    text, err = capsys.readouterr()
    assert text == ""
    for step in ("loading", "composing", "checking", "writing", "wrote"):
        assert step in err
