# SPDX-License-Identifier: Apache-2.0
"""`pefomed bench` at the tiny size: the same code as at the real ones, with every check of exactness."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from pefomed_recipes.benchmarks import commands, pipeline
from pefomed_recipes.benchmarks.generation import check_equal
from pefomed_recipes.benchmarks.memory import measure_loss, peak_bytes
from pefomed_recipes.benchmarks.presets import find_preset
from pefomed_recipes.benchmarks.timing import interleaved, speedup, summary
from pefomed_recipes.benchmarks.training import differences, measure_steps
from pefomed_recipes.cli import app
from pefomed_recipes.errors import ConfigError, PeFoMedError

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of the command that measures everything, at the tiny size."""
    path = tmp_path_factory.mktemp("bench") / "result.json"
    threads = torch.get_num_threads()
    outcome = CliRunner().invoke(app, ["bench", "train", "--preset", "tiny", "--json", str(path)])
    torch.set_num_threads(threads)
    assert outcome.exit_code == 0, outcome.output
    result = json.loads(path.read_text(encoding="utf-8"))
    assert result["preset"]["name"] in outcome.stdout
    return result


def test_one_command_measures_all_that_a_gpu_is_asked(trained: dict[str, Any]) -> None:
    steps = trained["steps"]["vqa_rad"]
    assert steps["speedups"].keys() >= {"packed", "packed and cached", "alone: packing", "alone: feature cache"}
    assert steps["matrix_flops_per_second"] > 0
    packed, plain = (steps["ways"][way]["flops_per_question"] for way in ("packed", "reference, batch 8"))
    assert 0 < packed < plain
    assert 0 < steps["tower_share_of_a_plain_step"] < 1
    assert trained["loop"]["speedups"].keys() == {"packed", "packed and cached"}
    assert trained["generation"]["vqa_rad"]["ways"].keys() >= {"reference", "stock", "prefix once and cached"}
    assert trained["cards_measured"].keys() == trained["cards"]["computed"].keys()
    assert trained["environment"]["packages"]["torch"]
    assert "code_commit" in trained


def test_all_ways_are_compared_on_equal_losses_gradients_and_answers(trained: dict[str, Any]) -> None:
    exactness = trained["steps"]["vqa_rad"]["exactness"]
    for way in ("packed_vs_reference", "cached_vs_reference"):
        assert max(exactness[way]["loss"], exactness[way]["worst_gradient"]) <= 5e-6
        assert exactness[way]["tensors"] > 5
    for checked in trained["generation"]["vqa_rad"]["exactness"].values():
        assert checked["differing"] == 0
        assert checked["distinct"] > 1


def test_a_difference_stops_the_benchmark_before_anything_is_timed() -> None:
    gradients = {"weight": torch.ones(3, dtype=torch.float64)}
    first = {"loss": 2.0, "gradients": gradients}
    with pytest.raises(PeFoMedError, match="loss by 5.0e-05"):
        differences(first, {"loss": 2.0001, "gradients": gradients})
    with pytest.raises(PeFoMedError, match="gradients by 1.0e-01"):
        differences(first, {"loss": 2.0, "gradients": {"weight": gradients["weight"] * 1.1}})
    with pytest.raises(PeFoMedError, match="1 of 2 answers differ"):
        check_equal({"a": "yes", "b": "no"}, {"a": "yes", "b": "yes"})


def test_settings_of_smaller_cards_take_less_memory(trained: dict[str, Any]) -> None:
    computed, measured = trained["cards"]["computed"], trained["cards_measured"]
    for gib, card in computed.items():
        assert card["gib"] < int(gib.split()[0])
        assert card["full_finetuning_gib"] > 3 * card["gib"]
    assert computed["12 GB"]["quantization"] == "nf4"
    assert computed["24 GB"]["gradient_checkpointing"]
    assert not computed["141 GB"]["gradient_checkpointing"]
    assert measured["24 GB"]["gib"] < measured["141 GB"]["gib"]


def test_the_loss_at_labelled_positions_takes_a_twentieth_of_the_memory() -> None:
    found = measure_loss(rows=2, row_tokens=150)
    assert found["ratio"] >= 20
    assert found["loss_difference"] < 1e-6


def test_memory_of_a_step_is_measured_beside_full_fine_tuning() -> None:
    found = commands.memory(find_preset("tiny"), 1, False)
    step = found["step"]["mib"]
    assert step["full fine-tuning"]["peak"] > step["reference, batch 8"]["peak"] > step["packed"]["peak"]


def test_peaks_are_those_of_what_lives_at_the_same_time() -> None:
    def work() -> None:
        for _ in range(3):
            torch.zeros(1 << 18)  # a MiB each, one after another

    assert 2**20 <= peak_bytes(work) < 1.5 * 2**20


def test_decoding_and_packing_are_measured_and_grow_linearly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "FILES", {"JPEG": (64, "jpg"), "PNG": (64, "png")})
    found = pipeline.measure_collating(find_preset("tiny"), 1)
    assert all(row["speedups"].keys() == {"packed", "packed and cached"} for row in found.values())
    small, large = pipeline.measure_growth(find_preset("tiny"), (100, 400))
    assert large["tokens"] == pytest.approx(4 * small["tokens"], rel=0.02)


def test_ways_are_run_in_turn_with_one_warm_up() -> None:
    order: list[str] = []
    seconds = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2)
    assert order == ["a", "b"] * 3
    assert [len(values) for values in seconds.values()] == [2, 2]
    rows = summary({"plain": [3.0, 1.0, 2.0], "ours": [0.5, 0.5, 0.5]}, 10)
    assert rows["plain"] == {"ms_per_question": 200.0, "least": 100.0, "most": 300.0, "rounds": 3}
    assert speedup(rows, "plain", "ours") == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["train", "--preset", "smol136"], "did you mean smol135"),
        (["all", "--preset", "tiny"], "leave --preset and --json out"),
        *([] if torch.cuda.is_available() else [(["train", "--preset", "paper"], "needs a GPU")]),
    ],
)
def test_mistakes_end_in_one_line(options: list[str], message: str) -> None:
    outcome = CliRunner().invoke(app, ["bench", *options])
    assert outcome.exit_code == 2
    assert message in outcome.stderr
    with pytest.raises(ConfigError):
        find_preset("none")


def test_tricks_alone_are_left_out_where_they_would_take_long() -> None:
    steps = measure_steps(find_preset("tiny"), 1, alone=False)["vqa_rad"]
    assert steps["speedups"].keys() == {"packed", "packed and cached"}
