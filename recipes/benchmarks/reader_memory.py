# SPDX-License-Identifier: Apache-2.0
"""Measure the peak memory and time of streaming ten thousand and a million generated rows through the readers.

    python -m pefomed_recipes.benchmarks.reader_memory

Each form is read in a process of its own, once for each number of rows. Peak memory is that of the whole process, with
Python and the imported modules; what counts is how little it grows. Linux only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .measuring import RESULTS

ROWS = (10_000, 1_000_000)
FORMS = ("csv", "jsonl", "imagefolder", "mimic_diff_vqa")
COLUMNS = ("image", "question", "answer", "answer_type", "question_type", "id", "patient_id")


def write_rows(form: str, root: Path, count: int) -> None:
    """Write `count` invented rows in one of the forms; their images are not needed for reading."""
    rows = (
        (
            *(f"images/{n // 10}.png", f"Is finding {n} seen, or not?", "yes" if n % 2 else "no"),
            *("CLOSED", "PRES", f"id{n}", f"p{n // 40}"),
        )
        for n in range(count)
    )
    names = {
        "csv": "train.csv",
        "jsonl": "train.jsonl",
        "imagefolder": "train/metadata.csv",
        "mimic_diff_vqa": "mimic_pair_questions.csv",
    }
    path = root / names[form]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as out:
        out.writelines(line + "\n" for line in _lines(form, rows))


def _lines(form: str, rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    if form == "jsonl":
        yield from (json.dumps(dict(zip(COLUMNS, row, strict=True))) for row in rows)
    elif form == "mimic_diff_vqa":
        yield "study_id,subject_id,ref_id,question_type,question,answer,split"
        studies = itertools.count(50_000_000)
        yield from (f'{next(studies)},10000032,50000001,presence,"{row[1]}",{row[2]},train' for row in rows)
    else:
        yield ",".join(COLUMNS).replace("image", "file_name" if form == "imagefolder" else "image", 1)
        yield from (",".join(f'"{cell}"' for cell in row) for row in rows)


def stream_all(form: str, root: Path) -> dict[str, Any]:
    """Stream every sample of a folder; return rows, CPU seconds, and this process's memory before and at its peak."""
    from ..data.datasets_index import stream_samples

    before, started = memory_mib("VmRSS"), time.process_time()
    count = sum(1 for _ in stream_samples(form, root, "train"))
    return {
        "rows": count,
        "cpu_seconds": round(time.process_time() - started, 1),
        "before_mib": before,
        "peak_mib": memory_mib("VmHWM"),
    }


def memory_mib(name: str) -> float:
    """Return a line of this process's /proc status, such as VmRSS, in MiB."""
    # not getrusage: its peak includes the process that started this one
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"{name}:\s*(\d+) kB", status)
    assert found is not None
    return round(int(found[1]) / 1024, 1)


def measure(form: str, count: int) -> dict[str, Any]:
    """Generate rows in a temporary folder and stream them in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        write_rows(form, Path(folder), count)
        command = [sys.executable, "-m", "pefomed_recipes.benchmarks.reader_memory", "--form", form, "--root", folder]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Measure every form with both numbers of rows and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", choices=FORMS, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.form:
        print(json.dumps(stream_all(arguments.form, arguments.root)))
        return
    from ..training.provenance import code_commit, environment, write_json

    commit = code_commit()
    forms = {form: [measure(form, count) for count in ROWS] for form in FORMS}
    result = {"forms": forms, "code_commit": commit, "environment": environment()}
    write_json(RESULTS / "reader_memory.json", result)
    print(json.dumps(forms, indent=2))


if __name__ == "__main__":
    main()
