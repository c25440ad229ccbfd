# SPDX-License-Identifier: Apache-2.0
"""A dry run says what would run, by the run's own parts, and leaves nothing behind."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from pefomed_recipes.errors import PeFoMedError
from pefomed_recipes.training import stages
from pefomed_recipes.training.arguments import configs_folder, find_config, read_config

pytestmark = pytest.mark.integration

PACKAGED = sorted(str(path.relative_to(configs_folder()).with_suffix("")) for path in configs_folder().rglob("*.yaml"))
DEFAULTS = {"task": "caption", "output_dir": "runs/x", "config": "stage1/phantoms"}


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a dry run, which must stay empty."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def described(capsys: pytest.CaptureFixture[str], *options: str) -> list[str]:
    """The lines that a dry run writes to stderr."""
    assert stages.main(["--dry_run", *options], DEFAULTS, "test") == {}
    output = capsys.readouterr()
    assert output.out == ""
    lines = output.err.splitlines()
    return lines[next(number for number, line in enumerate(lines) if line.startswith("dry run")) :]


@pytest.mark.parametrize("name", PACKAGED)
def test_every_packaged_config_runs_dry_without_data_and_base(
    name: str, empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = described(capsys, f"--config={name}")
    settings = read_config(find_config(name))
    assert f"dry run of {settings['task']} on {settings['dataset']}" in lines[0]
    assert "data: no folder is given; name it with --data_root" in lines
    assert any(line.startswith(f"steps: {settings['max_steps']:,}, each of") for line in lines)
    assert list(empty_folder.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("stage1/paper", "1e-06 at first, 9.99e-06 at most, 1.86e-06 at last"),
        ("stage2/vqa_rad", "1e-06 at first, 9.99e-06 at most, 1.01e-06 at last"),
        ("stage2/iu_xray", "1e-06 at first, 2.97e-05 at most, 1.29e-05 at last"),
    ],
)
def test_learning_rates_are_those_of_the_run(
    name: str, rates: str, empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert described(capsys, f"--config={name}")[-1] == f"learning rate: {rates}"


def test_with_data_and_base_it_counts_what_the_run_then_records(
    run: Any, stage2: tuple[Path, dict[str, Any]], empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = run.options(Path("runs/dry"), "--task=vqa", f"--adapter={stage2[0]}", "--max_length=1024")
    lines = described(capsys, *options)
    record = stage2[1]
    for split in ("train", "validation"):
        assert f"{split}: {record['data'][split]['samples']:,} samples" in lines
        assert f"{split}: {record['rows'][split]:,} rows, template paper" in lines
    assert f"trained parameters: {record['trainable_parameters']:,}" in lines
    assert "steps: 4, each of 2 rows on every process" in lines
    assert list(empty_folder.iterdir()) == []


def test_steps_follow_from_the_rows_where_epochs_are_given(
    run: Any, empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = described(capsys, *run.options(Path("x"), "--task=caption", "--max_steps=-1", "--num_train_epochs=3"))
    assert "train: 8 rows, template paper" in lines
    assert "steps: 12, each of 2 rows on every process" in lines


def test_every_set_of_a_mixture_is_counted(
    run: Any, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        shutil.copytree(tiny_data, tmp_path / "sets" / name)
    options = [*run.options(tmp_path / "out", "--task=caption"), f"--data_root={tmp_path / 'sets'}"]
    lines = described(capsys, *options, '--mixture={"one": 60, "two": 20}')
    assert "train: 16 samples (one 8, two 8)" in lines
    assert "validation: 6 samples (one 3, two 3)" in lines
    assert "validation: 6 rows, template paper" in lines
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--data_root=nowhere"], "nowhere: no such folder"),
        (
            ["--data_root=nowhere", '--mixture={"roco": 1, "medicat": 2}'],
            "nowhere: the mixture's folders roco, medicat are missing",
        ),
        (["--base=nowhere"], "nowhere: cannot load a PeFoMed base model"),
    ],
)
def test_what_is_missing_is_named_in_one_line(empty_folder: Path, options: list[str], named: str) -> None:
    with pytest.raises(PeFoMedError, match=named) as refused:
        stages.main(["--dry_run", *options], DEFAULTS, "test")
    assert "\n" not in str(refused.value)
    assert list(empty_folder.iterdir()) == []
