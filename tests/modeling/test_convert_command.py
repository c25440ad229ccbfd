# SPDX-License-Identifier: Apache-2.0
"""`pefomed convert` and the README's lines, as a user types them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pefomed_recipes.cli import app

from .released import LLAMA, Released, assert_same_tensors, weights_of

SIZES = ["--num-attention-heads=4", "--image-size=32", "--lora-alpha=6"]


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["convert", *map(str, arguments)])


def sources(released: Released) -> list[str]:
    paths = {"llm": released.llm, "vision": released.eva}
    checkpoints = [f"--checkpoint={path}" for path in (released.minigpt, released.stage2)]
    return [f"--{name}={path}" for name, path in paths.items()] + checkpoints


def test_the_command_converts_reports_and_converts_back(released: Released, tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    result = run(*sources(released), f"--out={base}", f"--adapter-out={adapter}", *SIZES)
    assert result.exit_code == 0, result.stderr
    assert "stage2.pth: 10 tensors used" in result.stdout
    dropped = f"{LLAMA}model.layers.{{0-1}}.self_attn.rotary_emb.inv_freq"
    assert f"  dropped, computed from the configuration: {dropped}" in result.stdout.splitlines()
    assert "  replaced by a later file: llama_proj.bias" in result.stdout.splitlines()
    assert (
        "model.vision_tower.post_layernorm.weight: starts at ones and zeros, as in the released code" in result.stdout
    )
    assert str(adapter) in result.stderr

    result = run(f"--base={base}", f"--adapter={adapter}", f"--to-reference={tmp_path / 'back'}")
    assert result.exit_code == 0, result.stderr
    assert_same_tensors(weights_of(tmp_path / "back" / "llm"), weights_of(released.llm))
    result = run(f"--base={base}", f"--checkpoint={released.stage2}", f"--adapter-out={tmp_path / 'again'}")
    assert result.exit_code == 0, result.stderr
    assert_same_tensors(weights_of(tmp_path / "again"), weights_of(adapter))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--base=nowhere", "--to-reference={out}"], "nowhere: found no PeFoMed base model"),
        (["--to-reference={out}"], "--to-reference needs --base"),
        (["--base=nowhere", "--to-reference={out}", "--out={out}"], "--to-reference needs --base"),
        (["--llm=nowhere/at-all", "--vision=missing.pth", "--out={out}"], "missing.pth: there is no such file"),
        ([], "Expected either a language model"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    out = tmp_path / "out"
    result = run(*(argument.format(out=out) for argument in arguments))
    assert result.exit_code == 1
    [line] = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert result.stdout == ""
    assert not out.exists()


def test_the_readmes_three_ways_of_loading_work(
    repo: Path, converted: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = (repo / "modeling_pefomed" / "README.md").read_text(encoding="utf-8")
    ways = re.findall(r"```python\n(.*?)```", readme.partition("## Loading")[2].partition("\n## ")[0], re.DOTALL)
    assert len(ways) == 3
    monkeypatch.chdir(converted)
    for way in ways:
        found: dict[str, Any] = {}
        exec(way, found)
        assert found["model"].get_input_embeddings().weight.shape == (380, 48)
    assert "trainable params: " in capsys.readouterr().out
