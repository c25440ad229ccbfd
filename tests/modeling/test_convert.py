# SPDX-License-Identifier: Apache-2.0
"""Released files become folders that load, with nothing lost, nothing run and nothing left out in silence."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, LlamaForCausalLM

from modeling_pefomed import PeFoMedForConditionalGeneration, PeFoMedProcessor
from pefomed_recipes.inference.generate import load_model
from pefomed_recipes.training.adapters import add_adapter

from .reference import positions_for
from .released import (
    LLAMA,
    Released,
    as_released,
    assert_same_tensors,
    change,
    language_state,
    manifest_of,
    release,
    tower_state,
    trained_state,
    weights_of,
)
from .tiny import ask, draw_image, encode, text_config

pytestmark = pytest.mark.integration

ADAPTER_LLAMA = "base_model.model.model.language_model."


# ------------------------------------------------------------------------------------------------ what is written


def test_every_tensor_has_its_place(released: Released, converted: Path) -> None:
    state = released.reference.state_dict()
    base, adapter = weights_of(converted / "base"), weights_of(converted / "adapter")
    for name, tensor in language_state(state).items():
        ours = name if name.startswith("lm_head") else name.replace("model.", "model.language_model.", 1)
        assert torch.equal(base.pop(ours), tensor)
    tower = tower_state(state)
    for block in range(3):
        biases = tower.pop(f"blocks.{block}.attn.q_bias"), tower.pop(f"blocks.{block}.attn.v_bias")
        joined = torch.cat([biases[0], torch.zeros(40), biases[1]])
        assert torch.equal(base.pop(f"model.vision_tower.encoder.layers.{block}.self_attn.qkv.bias"), joined)
    assert torch.equal(base.pop("model.vision_tower.post_layernorm.weight"), torch.ones(40))
    assert torch.equal(base.pop("model.vision_tower.post_layernorm.bias"), torch.zeros(40))
    for part in ("weight", "bias"):
        projector = state[f"llama_proj.{part}"]
        assert torch.equal(base.pop(f"model.multi_modal_projector.{part}"), projector)
        assert torch.equal(adapter.pop(f"base_model.model.model.multi_modal_projector.{part}"), projector)
    assert len(base) == len(tower), "and the rest is the tower, whose outputs test_reference_parity compares"
    for name, tensor in trained_state(state).items():
        if ".lora_" in name:
            ours = name.replace(f"{LLAMA}model.", ADAPTER_LLAMA).replace(".default.", ".")
            assert torch.equal(adapter.pop(ours), tensor)
    assert adapter == {}


def test_sizes_are_those_of_the_tensors(released: Released, converted: Path) -> None:
    config: Any = AutoConfig.from_pretrained(converted / "base")
    vision = config.vision_config
    assert (vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers) == (40, 72, 3)
    assert (vision.patch_size, vision.image_size, vision.num_attention_heads) == (8, 32, 4)
    assert config.vision_post_layernorm_eps == 1e-5
    assert config.image_seq_length == 4
    assert config.text_config.hidden_size == 48
    assert config.image_token_id == released.processor.image_token_id == config.text_config.vocab_size
    settings = LoraConfig.from_pretrained(converted / "adapter")
    assert (settings.r, settings.lora_alpha, settings.lora_dropout) == (3, 6, 0.05)


def test_both_ways_of_loading_the_adapter_agree(converted: Path, released: Released) -> None:
    base = AutoModelForImageTextToText.from_pretrained(converted / "base")
    assert isinstance(base, PeFoMedForConditionalGeneration)
    inputs = encode(released.processor, ask("Is there a mass?", draw_image(0)))
    bare = base(**inputs).logits
    wrapped = PeftModel.from_pretrained(base, converted / "adapter").eval()(**inputs).logits
    direct = AutoModelForImageTextToText.from_pretrained(converted / "adapter")(**inputs).logits
    assert torch.equal(wrapped, direct)
    assert not torch.allclose(wrapped, bare, atol=0.1), "the adapter must matter"
    for folder in ("base", "adapter"):
        model, processor = load_model(converted / folder, torch.float32)
        assert torch.equal(model(**inputs).logits, direct if folder == "adapter" else bare)
        assert isinstance(processor, PeFoMedProcessor)


def test_adapter_files_are_what_peft_would_write(converted: Path, tmp_path: Path) -> None:
    base = PeFoMedForConditionalGeneration.from_pretrained(converted / "base")
    add_adapter(base, r=3, alpha=6, dropout=0.05).save_pretrained(tmp_path)
    ours, theirs = weights_of(converted / "adapter"), weights_of(tmp_path)
    assert {name: tensor.shape for name, tensor in ours.items()} == {n: t.shape for n, t in theirs.items()}
    settings, expected = (LoraConfig.from_pretrained(folder).to_dict() for folder in (converted / "adapter", tmp_path))
    assert {key: settings[key] for key in settings if settings[key] != expected[key]} == {}


def test_base_folder_has_the_files_of_a_saved_model(converted: Path, tmp_path: Path) -> None:
    PeFoMedForConditionalGeneration.from_pretrained(converted / "base").save_pretrained(tmp_path)
    PeFoMedProcessor.from_pretrained(converted / "base").save_pretrained(tmp_path)
    saved = {path.name for path in tmp_path.iterdir()}
    assert {path.name for path in (converted / "base").iterdir()} == saved | {"manifest.json"}
    assert [name for name in saved if "convert" in name or "weight_" in name] == [], "no converter in remote code"
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (converted / "base", tmp_path))
    assert ours == theirs


def test_generation_is_greedy_by_default(converted: Path) -> None:
    generation = AutoModelForImageTextToText.from_pretrained(converted / "base").generation_config
    assert not generation.do_sample
    assert (generation.bos_token_id, generation.eos_token_id) == (1, 2)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_frozen_tensors_stay_as_stored_or_get_the_wanted_dtype(tmp_path: Path, dtype: torch.dtype | None) -> None:
    released = release(tmp_path, dtype=torch.float16, eva_image_size=24)
    released.convert(tmp_path / "out", dtype=dtype)
    base = weights_of(tmp_path / "out" / "base")
    found = {name: tensor.dtype for name, tensor in base.items() if "multi_modal_projector" not in name}
    position = found.pop("model.vision_tower.embeddings.position_embedding")
    fresh = {found.pop(f"model.vision_tower.post_layernorm.{part}") for part in ("weight", "bias")}
    assert set(found.values()) == {dtype or torch.float16}
    assert {position, *fresh} == {dtype or torch.float32}, "interpolated and fresh tensors are float32"
    assert base["model.multi_modal_projector.weight"].dtype == torch.float32
    assert {tensor.dtype for tensor in weights_of(tmp_path / "out" / "adapter").values()} == {torch.float32}
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "out" / "base")
    assert loaded.dtype == (dtype or torch.float16)


def test_position_embeddings_are_interpolated_once_in_float32(tmp_path: Path) -> None:
    released = release(tmp_path, dtype=torch.float16, eva_image_size=24)
    released.convert(tmp_path / "out")
    stored = torch.load(released.eva, weights_only=True)["pos_embed"]
    positions = weights_of(tmp_path / "out" / "base")["model.vision_tower.embeddings.position_embedding"]
    assert torch.equal(positions, positions_for(stored, grid=4))


def test_large_models_are_written_in_parts(released: Released, converted: Path, tmp_path: Path) -> None:
    released.convert(tmp_path, max_shard_bytes=100_000)
    parts = sorted((tmp_path / "base").glob("*.safetensors"))
    assert len(parts) > 2
    index = json.loads((tmp_path / "base" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {path.name for path in parts}
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in weights_of(converted / "base").values())
    one, other = (AutoModelForImageTextToText.from_pretrained(f / "base").state_dict() for f in (converted, tmp_path))
    assert_same_tensors(one, other)


def test_tied_heads_stay_tied(own: Released, tmp_path: Path) -> None:
    model = LlamaForCausalLM(text_config(own.processor, tie_word_embeddings=True))
    model.save_pretrained(own.llm)
    save_file(
        model.state_dict() | {"lm_head.weight": torch.ones(380, 48)}, own.llm / "model.safetensors", {"format": "pt"}
    )
    manifests = own.convert(tmp_path)
    assert "lm_head.weight" not in weights_of(tmp_path / "base")
    assert manifests["base"]["sources"]["llama"]["unused"] == ["llama_model.lm_head.weight"]
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "base")
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight


def test_an_adapter_names_its_base_for_good(converted: Path, released: Released, tmp_path: Path) -> None:
    settings = json.loads((converted / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(converted.resolve() / "base")
    released.convert(tmp_path, base_name="someone/pefomed-base")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "someone/pefomed-base"


def test_more_checkpoints_need_no_second_base(released: Released, converted: Path, tmp_path: Path) -> None:
    released.convert(
        tmp_path, llm=None, vision=None, out=None, base=converted / "base", checkpoints=[released.minigpt]
    )
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    earlier, later = weights_of(tmp_path / "adapter"), weights_of(converted / "adapter")
    assert earlier.keys() == later.keys()
    assert all(torch.equal(earlier[name], later[name] + 1) for name in later)
    assert (
        manifest_of(tmp_path / "adapter")["base_weights_sha256"] == manifest_of(converted / "base")["weights_sha256"]
    )
    AutoModelForImageTextToText.from_pretrained(tmp_path / "adapter")


def test_without_a_checkpoint_the_projector_starts_at_random_by_seed(released: Released, tmp_path: Path) -> None:
    projectors = []
    for number, seed in enumerate((1, 1, 2)):
        folder = tmp_path / str(number)
        manifest = released.convert(folder, checkpoints=[], adapter_out=None, seed=seed)["base"]
        assert "model.multi_modal_projector.weight" in manifest["fresh"]
        projectors.append(weights_of(folder / "base")["model.multi_modal_projector.weight"])
    assert torch.equal(projectors[0], projectors[1])
    assert not torch.equal(projectors[0], projectors[2])
    assert 0 < projectors[0].std() < 1


# ----------------------------------------------------------------------------------------------- what may be read


def older_peft(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace(".default.", "."): tensor for name, tensor in state.items()}


def base_layer(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("q_proj.weight", "q_proj.base_layer.weight"): tensor for name, tensor in state.items()}


def distributed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{name}": tensor for name, tensor in state.items()}


def unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("llama_model.base_model.model.", "llama_model."): tensor for name, tensor in state.items()}


@pytest.mark.parametrize("spelling", [older_peft, base_layer, distributed, unwrapped])
def test_every_spelling_of_a_checkpoint_is_read(
    own: Released, converted: Path, tmp_path: Path, spelling: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> None:
    """The checkpoint here holds the whole model, as one does that was saved with nothing left out."""
    state = {k: v for k, v in own.reference.state_dict().items() if not k.startswith("ln_vision")}
    torch.save(as_released(spelling(state)), own.stage2)
    own.convert(tmp_path, vision=None, checkpoints=[own.stage2])
    for folder in ("base", "adapter"):
        assert_same_tensors(weights_of(tmp_path / folder), weights_of(converted / folder))


@pytest.mark.parametrize("form", ["bare", "older torch"])
def test_every_form_of_a_checkpoint_file_is_read(own: Released, converted: Path, tmp_path: Path, form: str) -> None:
    content = torch.load(own.stage2, weights_only=True)
    torch.save(
        content["model"] if form == "bare" else content, own.stage2, _use_new_zipfile_serialization=form == "bare"
    )
    own.convert(tmp_path)
    assert_same_tensors(weights_of(tmp_path / "adapter"), weights_of(converted / "adapter"))


def test_the_last_norm_comes_from_a_checkpoint_that_has_it(own: Released, tmp_path: Path) -> None:
    change(
        own.minigpt,
        lambda state: state | {"ln_vision.weight": torch.full([40], 3.0), "ln_vision.bias": torch.ones(40)},
    )
    manifest = own.convert(tmp_path)["base"]
    assert torch.equal(
        weights_of(tmp_path / "base")["model.vision_tower.post_layernorm.weight"], torch.full([40], 3.0)
    )
    assert manifest["fresh"] == {}


def blip2_folder(released: Released, converted: Path, folder: Path, parts: int) -> Path:
    """A BLIP-2 model's folder: the tower with a last norm of its own, beside another model's parts."""
    tower = {
        name.replace("model.vision_tower.", "vision_model."): tensor
        for name, tensor in weights_of(converted / "base").items()
        if name.startswith("model.vision_tower.")
    }
    tower["vision_model.post_layernorm.weight"] = torch.full([40], 2.0)
    tensors = tower | {"qformer.layernorm.weight": torch.ones(4), "language_model.lm_head.weight": torch.ones(3, 3)}
    folder.mkdir()
    names = sorted(tensors)
    files = [f"pytorch_model-{n}.bin" if parts > 1 else "pytorch_model.bin" for n in range(parts)]
    where = {name: files[number % parts] for number, name in enumerate(names)}
    for file in files:
        torch.save({name: tensors[name] for name in names if where[name] == file}, folder / file)
    if parts > 1:
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


@pytest.mark.parametrize("parts", [1, 2])
def test_the_tower_inside_blip2_is_the_same(released: Released, converted: Path, tmp_path: Path, parts: int) -> None:
    """But for its last norm, which the checkpoint's projector has never seen."""
    blip2 = blip2_folder(released, converted, tmp_path / "blip2", parts)
    manifest = released.convert(tmp_path, vision=blip2)["base"]
    assert_same_tensors(weights_of(tmp_path / "base"), weights_of(converted / "base"))
    assert "ln_vision.weight" in manifest["sources"]["blip2"]["unused"]
    released.convert(tmp_path / "alone", vision=blip2, checkpoints=[], adapter_out=None)
    norm = weights_of(tmp_path / "alone" / "base")["model.vision_tower.post_layernorm.weight"]
    assert torch.equal(norm, torch.full([40], 2.0)), "where no checkpoint says otherwise, the tower's own stays"


def test_language_models_in_parts_of_either_kind_are_read(own: Released, converted: Path, tmp_path: Path) -> None:
    LlamaForCausalLM.from_pretrained(own.llm).save_pretrained(own.llm, max_shard_size="50KB")
    (own.llm / "model.safetensors").unlink()
    assert len(list(own.llm.glob("*.safetensors"))) > 2
    own.convert(tmp_path / "safetensors")
    where = {}
    for number, path in enumerate(sorted(own.llm.glob("*.safetensors"))):
        tensors = (
            load_file(path) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6)}
            if number == 0
            else load_file(path)
        )
        torch.save(tensors, own.llm / f"part{number}.bin")
        where |= dict.fromkeys(tensors, f"part{number}.bin")
        path.unlink()
    (own.llm / "model.safetensors.index.json").unlink()
    (own.llm / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    manifest = own.convert(tmp_path / "bin")["base"]
    assert manifest["sources"]["llama"]["dropped"] == {
        "computed from the configuration": ["model.layers.0.self_attn.rotary_emb.inv_freq"]
    }
    for kind in ("safetensors", "bin"):
        assert_same_tensors(weights_of(tmp_path / kind / "base"), weights_of(converted / "base"))


# ----------------------------------------------------------------------------------------------- what is reported


def test_everything_that_is_not_used_is_listed(own: Released, tmp_path: Path) -> None:
    change(own.stage2, lambda state: state | {"query_tokens": torch.ones(2), "opt_proj.weight": torch.ones(2, 2)})
    sources = own.convert(tmp_path)["base"]["sources"]
    assert list(sources) == ["eva_vit_g.pth", "llama", "minigptv2.pth", "stage2.pth"]
    dropped = sources["eva_vit_g.pth"]["dropped"]
    assert dropped["not part of the released model"] == ["head.weight", "norm.weight"]
    assert len(dropped["behind the tower's 3 blocks"]) == 13
    assert all(name.startswith("blocks.3.") for name in dropped["behind the tower's 3 blocks"])
    assert sources["stage2.pth"]["dropped"] == {
        "computed from the configuration": [f"{LLAMA}model.layers.{{0-1}}.self_attn.rotary_emb.inv_freq"]
    }
    assert sources["stage2.pth"]["unused"] == ["opt_proj.weight", "query_tokens"]
    assert sources["minigptv2.pth"]["used"] == 10
    replaced = sources["minigptv2.pth"]["replaced"]
    assert len(replaced) == 6, "four LoRA tensors of both layers, and the projector's two"
    assert f"{LLAMA}model.layers.{{0-1}}.self_attn.q_proj.lora_A.default.weight" in replaced
    assert set(own.convert(tmp_path / "again")["base"]["fresh"]) == {
        "model.vision_tower.post_layernorm.weight",
        "model.vision_tower.post_layernorm.bias",
    }


def test_lora_is_listed_as_unused_where_no_adapter_is_asked_for(released: Released, tmp_path: Path) -> None:
    sources = released.convert(tmp_path, adapter_out=None)["base"]["sources"]
    assert len(sources["stage2.pth"]["unused"]) == 4
    assert all(".lora_" in name for name in sources["stage2.pth"]["unused"])


def test_checkpoints_of_the_same_name_are_told_apart(own: Released, tmp_path: Path) -> None:
    (own.folder / "2").mkdir()
    os.replace(own.stage2, own.folder / "2" / "minigptv2.pth")
    sources = own.convert(tmp_path, checkpoints=[own.minigpt, own.folder / "2" / "minigptv2.pth"])["base"]["sources"]
    assert list(sources)[2:] == ["minigptv2.pth", "minigptv2.pth (4)"]


def test_the_manifest_has_the_hash_of_every_file(released: Released, converted: Path) -> None:
    for folder in ("base", "adapter"):
        manifest = manifest_of(converted / folder)
        files = {path.name: sha256(path.read_bytes()).hexdigest() for path in (converted / folder).iterdir()}
        del files["manifest.json"]
        assert manifest["files"] == files
        for source, path in (("eva_vit_g.pth", released.eva), ("stage2.pth", released.stage2)):
            assert manifest["sources"][source]["files"] == {path.name: sha256(path.read_bytes()).hexdigest()}
        assert str(released.folder) not in json.dumps(manifest), "names, not places"
