# SPDX-License-Identifier: Apache-2.0
"""Nothing phones home: with every opt-out of the tests' own environment removed, no connection is even tried."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

RunPython = Callable[..., CompletedProcess[str]]

OPT_OUTS = (
    "DISABLE_TELEMETRY",
    "DO_NOT_TRACK",
    "GRADIO_ANALYTICS_ENABLED",
    "HF_HUB_DISABLE_TELEMETRY",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "VLLM_NO_USAGE_STATS",
)
# A ping goes out from a thread of its own: give it the time to be refused and logged.
PING = """
import os, time
from huggingface_hub.utils import send_telemetry
send_telemetry("pefomed", library_name="pefomed")
for _ in range({tenths}):
    time.sleep(0.1)
    if os.path.exists(os.environ["PEFOMED_TEST_NETWORK_LOG"]):
        break
"""


@pytest.fixture
def attempts(tmp_path: Path, run_python: RunPython) -> Callable[..., list[str]]:
    """`attempts(*arguments)` runs Python to its success and returns the connections that it tried."""
    log = tmp_path / "network.log"

    def run(*arguments: str, **environment: str) -> list[str]:
        process = run_python(*arguments, without=OPT_OUTS, env={"PEFOMED_TEST_NETWORK_LOG": str(log), **environment})
        assert process.returncode == 0, process.stderr
        return log.read_text(encoding="utf-8").splitlines() if log.exists() else []

    return run


def test_the_guard_sees_a_ping_that_the_sender_swallows(attempts: Callable[..., list[str]]) -> None:
    tried = attempts("-c", PING.format(tenths=600))
    assert tried
    assert all(line.startswith(("getaddrinfo", "connect")) for line in tried)


@pytest.mark.parametrize(
    "imports",
    ["import pefomed_recipes, huggingface_hub", "import huggingface_hub.constants, pefomed_recipes"],
    ids=["package-first", "package-last"],
)
def test_importing_the_recipes_silences_the_hub_library(attempts: Callable[..., list[str]], imports: str) -> None:
    assert attempts("-c", imports + PING.format(tenths=10)) == []


def test_an_explicit_choice_of_the_user_stands(attempts: Callable[..., list[str]]) -> None:
    tried = attempts(
        "-c", "import pefomed_recipes" + PING.format(tenths=600), HF_HUB_DISABLE_TELEMETRY="0", DO_NOT_TRACK="0"
    )
    assert tried


def test_help_connects_to_nothing(attempts: Callable[..., list[str]]) -> None:
    assert (
        attempts("-c", "import sys; sys.argv = ['pefomed', '--help']; from pefomed_recipes.cli import main; main()")
        == []
    )


@pytest.mark.integration
def test_scoring_connects_to_nothing(
    attempts: Callable[..., list[str]], repo: Path, tiny_predictions: Path, tmp_path: Path
) -> None:
    assert attempts(str(repo / "recipes" / "score.py"), str(tiny_predictions), "--out", "results.json") == []
    assert (tmp_path / "results.json").is_file()


@pytest.mark.integration
def test_loading_the_model_and_training_packages_connects_to_nothing(attempts: Callable[..., list[str]]) -> None:
    assert attempts("-c", "import modeling_pefomed") == []
    assert attempts("-c", "import modeling_pefomed, trl, pefomed_recipes.training.stages") == []
