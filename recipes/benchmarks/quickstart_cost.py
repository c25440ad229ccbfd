# SPDX-License-Identifier: Apache-2.0
"""Run the quickstart from nothing, measure its time and memory, and keep its result files under one name.

    python -m pefomed_recipes.benchmarks.quickstart_cost --name quickstart -- --out=runs/quickstart

Other names and options give the controls and the other tasks: `--name quickstart_random_tower` with `--random-tower`,
`--name quickstart_report` with `--task=report`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from ..devices import default_dtype
from ..training.provenance import code_commit, environment, write_json
from .measuring import RESULTS, measured

STAGES = ("stage1", "stage2")


def keep_results(run: Path, name: str, folder: Path = RESULTS) -> None:
    """Copy what a finished quickstart found out: its scores, its two run records, and stage 0's record if any."""
    shutil.copyfile(run / "results.json", folder / f"{name}--test.json")
    records = {stage: json.loads((run / stage / "run.json").read_text(encoding="utf-8")) for stage in STAGES}
    write_json(folder / f"{name}--training.json", records)
    if (run / "stage0" / "stage0.json").is_file():
        shutil.copyfile(run / "stage0" / "stage0.json", folder / f"{name}--stage0.json")


def main() -> None:
    """Measure one quickstart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="first part of the result files' names")
    parser.add_argument("options", nargs="*", help="options of `pefomed quickstart`, after --; --out is needed")
    arguments = parser.parse_args()
    outs = [option.partition("=")[2] for option in arguments.options if option.startswith("--out=")]
    if not outs:
        parser.error("name a new folder: -- --out=FOLDER")
    if Path(outs[-1]).exists():
        parser.error(f"{outs[-1]} exists: found what an earlier run left, expected a new folder to start from nothing")
    commit = code_commit()  # before the result files change the tree
    cost = measured([sys.executable, "-m", "pefomed_recipes.quickstart", *arguments.options])
    keep_results(Path(outs[-1]), arguments.name)
    cost |= {"dtype": str(default_dtype()), "code_commit": commit, "environment": environment()}
    write_json(RESULTS / f"{arguments.name}--cost.json", cost)
    print(json.dumps(cost, indent=2))


if __name__ == "__main__":
    main()
