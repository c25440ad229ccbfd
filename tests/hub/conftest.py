# SPDX-License-Identifier: Apache-2.0
"""What the tests of the Hub share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ..loopback_hub import LoopbackHub, loopback_hub
from .evidence import write_evidence, write_records_of_training
from .loopback import Pefomed, Worker, environment_of, pefomed_of, write_adapter


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    """A loopback Hub that stays at its address."""
    with loopback_hub(tmp_path_factory.mktemp("hub")) as running:
        yield running


@pytest.fixture(scope="module")
def worker(server: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A process for the commands of many tests."""
    home = tmp_path_factory.mktemp("home")
    running = Worker(environment_of(server, home), home)
    yield running
    running.process.stdin.close()
    running.process.wait(30)


@pytest.fixture
def hub(server: LoopbackHub, tmp_path: Path) -> LoopbackHub:
    """The loopback Hub without any repository, fault or log."""
    server.reset(tmp_path / "hub")
    return server


@pytest.fixture
def pefomed(hub: LoopbackHub, worker: Worker, tmp_path: Path) -> Pefomed:
    """The command against the loopback Hub."""
    return pefomed_of(hub, tmp_path, worker)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A folder that can be published."""
    return write_adapter(tmp_path / "adapter")


@pytest.fixture(scope="session")
def hub_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A composed base model. Read only."""
    from ..modeling.tiny import save_tiny_base

    folder = save_tiny_base(tmp_path_factory.mktemp("export") / "base")
    parts = {
        "vision_tower": {"id": "someone/tower", "licence": "mit"},
        "language_model": {"id": "someone/llama", "licence": "llama2"},
    }
    (folder / "compose.json").write_text(json.dumps(parts), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def trained(hub_base: Path) -> Path:
    """An adapter as training leaves it, beside files that must not travel, with its scores around it. Read only."""
    import torch

    from modeling_pefomed import PeFoMedForConditionalGeneration, PeFoMedProcessor
    from pefomed_recipes.models.bases import write_fingerprint
    from pefomed_recipes.training.adapters import add_adapter

    folder = hub_base.with_name("stage2")
    model = add_adapter(PeFoMedForConditionalGeneration.from_pretrained(hub_base), r=4, alpha=8, dropout=0.0)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    write_fingerprint(folder, model.base_fingerprint)
    PeFoMedProcessor.from_pretrained(hub_base).save_pretrained(folder)
    for name in ("optimizer.pt", "training_args.bin", "loss.jsonl", "notes.txt"):
        (folder / name).write_text("stays here", encoding="utf-8")
    write_records_of_training(folder)
    write_evidence(folder)
    return folder


@pytest.fixture(scope="session")
def exported(trained: Path) -> Path:
    """The adapter as it is staged. Read only."""
    from pefomed_hub.export import export

    folder = trained.with_name("exported")
    export(trained, folder, repo="ada/lung-adapter", base_id="ada/lung-base", licence="apache-2.0")
    return folder


@pytest.fixture
def export_here(tmp_path: Path) -> Callable[..., Path]:
    """`export_here(source, **options)` stages it and returns the folder."""
    from pefomed_hub.export import export

    def run(source: Path, **options: Any) -> Path:
        given = {"repo": "ada/lung-adapter", "base_id": "ada/lung-base", "licence": "apache-2.0"} | options
        export(source, tmp_path / "exported", **given)
        return tmp_path / "exported"

    return run
