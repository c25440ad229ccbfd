# SPDX-License-Identifier: Apache-2.0
"""What cannot be converted is refused in one line, nothing in it is run, and no folder is left behind."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer, LlamaTokenizer

from modeling_pefomed.convert_hf_weights_to_pefomed import to_reference
from modeling_pefomed.weight_files_pefomed import ConversionError, compare_safetensors, write_safetensors

from .released import LLAMA, Released, as_released, change
from .tiny import build_tokenizer

pytestmark = pytest.mark.integration


class Exploit:
    """Unpickled without care, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def with_code(own: Released) -> str:
    torch.save(as_released({"llama_proj.weight": torch.ones(2)}, hook=Exploit(own.folder / "ran")), own.stage2)
    return "found a call of (posix|os).mkdir, expected tensors only; nothing of it was run"


def with_code_in_older_form(own: Released) -> str:
    torch.save({"model": Exploit(own.folder / "ran")}, own.stage2, _use_new_zipfile_serialization=False)
    return "found a call of (posix|os).mkdir"


def cut_off(own: Released) -> str:
    own.eva.write_bytes(own.eva.read_bytes()[:-5000])
    return r"eva_vit_g.pth: found the first [\d,]+ bytes of a checkpoint, but its end is missing"


def damaged(own: Released) -> str:
    content = bytearray(own.eva.read_bytes())
    content[60:600] = bytes(540)
    own.eva.write_bytes(content)
    return "eva_vit_g.pth: found no readable checkpoint"


def a_web_page(own: Released) -> str:
    own.stage2.write_text("<html>404</html>")
    return "stage2.pth: found no readable checkpoint"


def empty(own: Released) -> str:
    own.stage2.write_bytes(b"")
    return "stage2.pth: found no readable checkpoint"


def without_tensors(own: Released) -> str:
    torch.save({"model": {"epoch": 3}}, own.stage2)
    return "found a dict without tensors"


def missing_file(own: Released) -> str:
    own.eva.unlink()
    return "there is no such file; expected eva_vit_g.pth"


def missing_checkpoint(own: Released) -> str:
    own.stage2.unlink()
    return "stage2.pth: there is no such file"


def language_model_cut_off(own: Released) -> str:
    path = own.llm / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return "found no whole safetensors file"


def language_model_without_a_part(own: Released) -> str:
    (own.llm / "model.safetensors").unlink()
    (own.llm / "model.safetensors.index.json").write_text('{"weight_map": {"lm_head.weight": "part-2.safetensors"}}')
    return "names part-2.safetensors, which is missing"


def language_model_without_weights(own: Released) -> str:
    (own.llm / "model.safetensors").unlink()
    return "llama: found no weights, expected one of model.safetensors"


def a_resnet(own: Released) -> str:
    torch.save({"conv1.weight": torch.ones(2), "layer1.0.conv1.weight": torch.ones(2)}, own.eva)
    return "found 2 tensors such as conv1.weight, none of PeFoMed's"


def a_vit_with_gated_mlp(own: Released) -> str:
    change(own.eva, lambda state: state | {"blocks.0.mlp.w12.weight": torch.ones(2, 2)})
    return "found blocks.0.mlp.w12.weight, which PeFoMed has no place for and which must not be ignored"


def a_llava_checkpoint(own: Released) -> str:
    torch.save({"model.mm_projector.0.weight": torch.ones(2, 2)}, own.stage2)
    return "none of PeFoMed's; expected weights of EVA-CLIP ViT-g"


def a_dora_checkpoint(own: Released) -> str:
    name = f"{LLAMA}model.layers.0.self_attn.q_proj.lora_magnitude_vector"
    change(own.stage2, lambda state: state | {name: torch.ones(48)})
    return "lora_magnitude_vector, which PeFoMed has no place for"


def lora_is_missing(own: Released) -> str:
    own.minigpt.unlink()
    shutil.copy(own.stage2, own.minigpt)
    for path in (own.minigpt, own.stage2):
        change(path, lambda state: {k: v for k, v in state.items() if not ("v_proj" in k and "lora_B" in k)})
    return r"2 of 10 tensors are missing: .*layers.\{0-1\}.self_attn.v_proj.lora_B.default.weight"


def all_lora_is_missing(own: Released) -> str:
    for path in (own.minigpt, own.stage2):
        change(path, lambda state: {k: v for k, v in state.items() if "lora_" not in k})
    return r"8 of 10 tensors are missing"


def projector_is_missing(own: Released) -> str:
    for path in (own.minigpt, own.stage2):
        change(path, lambda state: {k: v for k, v in state.items() if "llama_proj" not in k})
    return r"2 of 10 tensors are missing: llama_proj.bias, llama_proj.weight"


def tower_is_not_whole(own: Released) -> str:
    change(own.eva, lambda state: {k: v for k, v in state.items() if k != "blocks.1.norm2.weight"})
    return r"missing: visual_encoder.blocks.1.norm2.weight"


def half_a_bias(own: Released) -> str:
    change(own.eva, lambda state: {k: v for k, v in state.items() if k != "blocks.1.attn.q_bias"})
    return "found only one of attn.q_bias and attn.v_bias"


def no_bias(own: Released) -> str:
    change(own.eva, lambda state: {k: v for k, v in state.items() if "_bias" not in k})
    return r"missing: visual_encoder.blocks.\{0-2\}.attn.qkv.bias"


def projector_of_a_wider_model(own: Released) -> str:
    change(own.stage2, lambda state: state | {"llama_proj.weight": torch.ones(64, 160)})
    return r"llama_proj.weight of stage2.pth is \(64, 160\), expected \(48, 160\)"


def lora_of_a_wider_model(own: Released) -> str:
    name = f"{LLAMA}model.layers.1.self_attn.q_proj.lora_A.default.weight"
    change(own.stage2, lambda state: state | {name: torch.ones(3, 64)})
    return r"lora_A.default.weight of stage2.pth is \(3, 64\), expected \(3, 48\)"


def lora_of_a_deeper_model(own: Released) -> str:
    change(own.stage2, lambda state: state | {k.replace(".1.", ".2."): v for k, v in state.items() if "lora" in k})
    return "4 LoRA tensors have no place in the base model"


def checkpoint_of_a_deeper_language_model(own: Released) -> str:
    change(own.stage2, lambda state: state | {f"{LLAMA}model.layers.5.input_layernorm.weight": torch.ones(48)})
    return "1 tensors have no place in a model of this configuration: llama_model.*layers.5.input_layernorm.weight"


def two_spellings(own: Released) -> str:
    change(own.stage2, lambda state: state | {name.replace(".default.", "."): t for name, t in state.items()})
    return "in two spellings"


def tokenizer_without(kind: str) -> Callable[[Released], str]:
    def edit(own: Released) -> str:
        tokenizer = build_tokenizer()
        setattr(tokenizer, f"{kind}_token", None)
        tokenizer.save_pretrained(own.llm)
        return f"this tokenizer cannot be used: it has no {kind} token"

    edit.__name__ = f"tokenizer_without_{kind}"
    return edit


def tokenizer_without_pieces(own: Released) -> str:
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "a": 4}
    LlamaTokenizer(vocab=vocabulary, merges=[]).save_pretrained(own.llm)
    return "this tokenizer cannot be used: it turns the prompt"


def no_tokenizer(own: Released) -> str:
    for path in own.llm.glob("tokenizer*"):
        path.unlink()
    return "llama: (this tokenizer cannot be used|found no configuration and tokenizer)"


def tokenizer_cut_off(own: Released) -> str:
    path = own.llm / "tokenizer.json"
    path.write_text(path.read_text()[:-100])
    return "found no configuration and tokenizer that transformers can open"


def tokenizer_of_a_larger_model(own: Released) -> str:
    tokenizer = AutoTokenizer.from_pretrained(own.llm)
    tokenizer.add_tokens(["anew"])
    tokenizer.save_pretrained(own.llm)
    return "its ids go up to 380, but the model has 380 embeddings"


def no_configuration(own: Released) -> str:
    (own.llm / "config.json").unlink()
    return "found no configuration and tokenizer that transformers can open"


REFUSED = [
    with_code,
    with_code_in_older_form,
    cut_off,
    damaged,
    a_web_page,
    empty,
    without_tensors,
    missing_file,
    missing_checkpoint,
    language_model_cut_off,
    language_model_without_a_part,
    language_model_without_weights,
    a_resnet,
    a_vit_with_gated_mlp,
    a_llava_checkpoint,
    a_dora_checkpoint,
    lora_is_missing,
    all_lora_is_missing,
    projector_is_missing,
    tower_is_not_whole,
    half_a_bias,
    no_bias,
    projector_of_a_wider_model,
    lora_of_a_wider_model,
    lora_of_a_deeper_model,
    checkpoint_of_a_deeper_language_model,
    two_spellings,
    tokenizer_without("bos"),
    tokenizer_without("eos"),
    tokenizer_without_pieces,
    no_tokenizer,
    tokenizer_cut_off,
    tokenizer_of_a_larger_model,
    no_configuration,
]


@pytest.mark.parametrize("spoil", REFUSED)
def test_bad_input_is_refused_and_nothing_is_left(
    own: Released, tmp_path: Path, spoil: Callable[[Released], str]
) -> None:
    message = spoil(own)
    with pytest.raises(ConversionError, match=message) as caught:
        own.convert(tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert not (own.folder / "ran").exists(), "code in the file was run"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"llm": None}, "Expected either a language model"),
        ({"out": None, "adapter_out": None, "llm": None}, "Expected either a language model"),
        ({"out": None, "llm": None, "base": "base"}, "Expected either a language model"),
        ({"checkpoints": []}, "An adapter needs a MiniGPT-v2 or PeFoMed checkpoint"),
        ({"vision": None}, "Found no vision tower in llama, minigptv2.pth, stage2.pth"),
        ({"num_attention_heads": 7}, "7 heads must divide"),
        ({"image_size": 36}, "36 px must be a multiple"),
        ({"patch_group_size": 3}, "patch_group_size is 3, but it must divide the 16 patch tokens"),
        ({"vision": "nobody/nothing"}, "nobody/nothing"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    released: Released, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConversionError, match=message):
        released.convert(tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_over(released: Released, converted: Path, tmp_path: Path) -> None:
    shutil.copytree(converted / "base", tmp_path / "base")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(ConversionError, match="exists already"):
        released.convert(tmp_path)
    with pytest.raises(ConversionError, match="exists already"):
        to_reference(converted / "base", tmp_path / "base")
    with pytest.raises(ConversionError, match="named twice"):
        released.convert(tmp_path, out=tmp_path / "one", adapter_out=tmp_path / "one")
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_file_that_reads_back_differently_is_noticed(tmp_path: Path) -> None:
    tensors = {"one": torch.randn(3, 4), "two": torch.tensor([1.0, float("nan"), -0.0])}
    loaders = {name: lambda tensor=tensor: tensor for name, tensor in tensors.items()}
    path = tmp_path / "model.safetensors"
    write_safetensors(path, loaders)
    compare_safetensors(path, loaders)
    with safe_open(path, framework="pt") as weights:
        assert weights.metadata() == {"format": "pt"}
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConversionError, match="reads back differently: 1 tensors, such as two"):
        compare_safetensors(path, loaders)
    with pytest.raises(ConversionError, match="reads back differently"):
        compare_safetensors(path, loaders | {"three": loaders["one"]})


def test_an_interrupted_conversion_leaves_nothing(
    released: Released, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("modeling_pefomed.convert_pefomed_weights_to_hf._write_adapter", stop)
    with pytest.raises(KeyboardInterrupt):
        released.convert(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_noticed_before_writing(
    released: Released, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ConversionError, match="bytes are needed, but the disk has 1,000"):
        released.convert(tmp_path)
    assert list(tmp_path.iterdir()) == []
