# SPDX-License-Identifier: Apache-2.0
"""Run RadEval in an environment of its own on 100 phantom reports, beside our metrics of the same texts.

    python -m venv RADEVAL && RADEVAL/bin/pip install torch==2.13.0 radeval
    python -m pefomed_recipes.benchmarks.clinical_metrics RADEVAL/bin/python

BLEU and ROUGE need no download, so they prove the way there and back wherever it runs; the clinical metrics take the
same way. Every third report is repeated word for word; the others are those of other patients.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ..data.phantom_texts import report
from ..data.phantom_truth import draw_phantom
from ..evaluation.scoring import score
from ..evaluation.text_rows import TextModels
from ..records import Prediction, write_records
from .measuring import RESULTS

REPORTS = 100
METRICS = ("bleu", "rouge")
SHOWN = ("bleu_4", "rouge_l_f1")


def write_reports(path: Path) -> None:
    """Write predictions whose quality is known."""
    texts = [report(draw_phantom(seed)) for seed in range(REPORTS)]
    said = [text if at % 3 == 0 else texts[(at * 7 + 3) % REPORTS] for at, text in enumerate(texts)]
    write_records(
        path,
        [
            Prediction(id=str(at), task="report", instruction="Describe it.", answers=[text], prediction=other)
            for at, (text, other) in enumerate(zip(texts, said, strict=True))
        ],
    )


def main() -> None:
    """Score the reports and write the result file."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        predictions = Path(folder) / "reports.jsonl"
        write_reports(predictions)
        results = score(predictions, text_models=TextModels(None, sys.argv[1], METRICS))
    listed = [sys.argv[1], "-c", "import importlib.metadata as m; print(m.version('radeval'), m.version('torch'))"]
    radeval, torch = subprocess.run(listed, check=True, capture_output=True, text=True).stdout.split()
    result: dict[str, Any] = {
        "reports": REPORTS,
        "environment_apart": {"radeval": radeval, "torch": torch},
        "rows": [
            {"metric": row.metric, "value": row.score.value, "signature": row.signature}
            for row in results.rows
            if row.slice == "overall" and (row.metric.startswith("radeval") or row.metric in SHOWN)
        ],
    }
    print(json.dumps(result, indent=2))
    from ..training.provenance import code_commit, environment, write_json

    write_json(
        RESULTS / "clinical_metrics.json", result | {"code_commit": code_commit(), "environment": environment()}
    )


if __name__ == "__main__":
    main()
