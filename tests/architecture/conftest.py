# SPDX-License-Identifier: Apache-2.0
"""What the architecture tests share: where the rooms are and what lies in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pefomed_recipes.records import Prediction, write_records

ROOMS = {
    "modeling_pefomed": "modeling_pefomed",
    "demo": "pefomed_demo",
    "hub": "pefomed_hub",
    "recipes": "pefomed_recipes",
}


@pytest.fixture(scope="session")
def rooms() -> dict[str, str]:
    """Folder of each room -> name that it is imported by."""
    return ROOMS


@pytest.fixture(scope="session")
def room_files(repo: Path) -> list[Path]:
    """Every Python file of the rooms."""
    files = [path for room in ROOMS for path in sorted((repo / room).rglob("*.py"))]
    assert len(files) > len(ROOMS)
    return files


@pytest.fixture(scope="session")
def python_files(repo: Path, room_files: list[Path]) -> list[Path]:
    """Every Python file of the project, tests included."""
    return room_files + sorted((repo / "tests").rglob("*.py"))


@pytest.fixture
def tiny_predictions(tmp_path: Path) -> Path:
    """A prediction file of four questions about two images, two of them answered right."""
    rows = [("yes", "yes", "CLOSED"), ("no", "yes", "CLOSED"), ("axial", "axial", "OPEN"), ("liver", "lung", "OPEN")]
    path = tmp_path / "predictions.jsonl"
    write_records(
        path,
        [
            Prediction(
                id=f"q{number}",
                task="vqa",
                instruction="what is shown?",
                answers=[reference],
                prediction=answer,
                answer_type=answer_type,
                question_types=["PRES" if answer_type == "CLOSED" else "PLANE"],
                image_id=f"image{number % 2}",
            )
            for number, (reference, answer, answer_type) in enumerate(rows)
        ],
    )
    return path
