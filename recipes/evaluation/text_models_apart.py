# SPDX-License-Identifier: Apache-2.0
"""Runs in a Python of its own that has RadEval or bert-score: reads texts as JSON lines, writes scores as JSON lines.

Standard library only, and nothing of this project: that Python need not have it. The first line on stdin holds the
settings (`{"library": "radeval", "metrics": [...]}` or `{"library": "bert-score", "model": ...}`), each further line
one text (`system`, `hypothesis`, `references`). Each line of the answer is one number of one system (`system`, `name`,
`signature`, and `items` or `corpus`), or says what could not be computed (`metric`, `error`).
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from typing import Any

Texts = Mapping[str, list[dict[str, Any]]]

# Whose number is the mean over reports. The others are given for all reports together, and so without an interval.
MEANS = ("bertscore green radcliq radeval_bertscore radgraph radgraph_radcliq ratescore rouge").split()


def radeval_numbers(metric: str, texts: Texts) -> Iterator[dict[str, Any]]:
    """Yield each number of one of RadEval's metrics, against the first reference, for each system."""
    from radeval import RadEval

    scorer = RadEval(metrics=[metric], per_sample=metric in MEANS, show_progress=False)
    signature = f"refs:first|agg:{'mean' if metric in MEANS else 'corpus'}|lib:radeval {version('radeval')}"
    for system, rows in texts.items():
        found = scorer(refs=[row["references"][0] for row in rows], hyps=[row["hypothesis"] for row in rows])
        for name, value in found.items():
            key, number = (
                ("items", [_finite(item) for item in value]) if metric in MEANS else ("corpus", _finite(value))
            )
            yield {"system": system, "name": f"radeval_{name}", key: number, "signature": signature}


def bert_score_numbers(model: str, texts: Texts) -> Iterator[dict[str, Any]]:
    """Yield the F1 of each text of each system against the reference where it is highest; 0 for a blank text."""
    from bert_score import BERTScorer
    from bert_score.utils import model2layers

    layers = model2layers.get(model) or _layers_of(model)
    scorer = BERTScorer(model_type=model, num_layers=layers, idf=False, rescale_with_baseline=False)
    signature = (
        f"encoder:{os.path.basename(model.rstrip('/'))}|layer:{layers}|idf:no|rescaled:no|refs:best|agg:mean|"
        f"lib:bert-score {version('bert-score')}, transformers {version('transformers')}"
    )
    for system, rows in texts.items():
        filled = [row for row in rows if row["hypothesis"].strip()]  # bert-score fails on an empty text
        scores: Iterator[float] = iter(())
        if filled:
            scored = scorer.score([row["hypothesis"] for row in filled], [row["references"] for row in filled])
            scores = iter(scored[2].tolist())
        items = [next(scores) if row["hypothesis"].strip() else 0.0 for row in rows]
        yield {"system": system, "name": "bertscore_f1", "items": items, "signature": signature}


def _layers_of(folder: str) -> int:
    """Return how many layers an encoder has, by the `config.json` in its folder."""
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    return int(config.get("num_hidden_layers") or config["n_layers"])


def main() -> None:
    """Answer what is asked on stdin; whatever the libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    lines = (json.loads(line) for line in sys.stdin.buffer)
    settings = next(lines)
    texts: dict[str, list[dict[str, Any]]] = {}
    for row in lines:
        texts.setdefault(row["system"], []).append(row)
    tasks: dict[str, Callable[[], Iterator[dict[str, Any]]]]
    if settings["library"] == "radeval":
        tasks = {name: lambda name=name: radeval_numbers(name, texts) for name in settings["metrics"]}  # type: ignore[misc]
    else:
        tasks = {"bertscore_f1": lambda: bert_score_numbers(settings["model"], texts)}
    for metric, task in tasks.items():
        try:
            for number in list(task()):  # all systems or none
                print(json.dumps(number), file=answers, flush=True)
        except Exception as error:  # each metric for itself: one that cannot be loaded leaves the others
            print(json.dumps({"metric": metric, "error": _what_failed(error)}), file=answers, flush=True)


def _finite(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _what_failed(error: Exception) -> str:
    """Return the kind of an error, and its text where that names files or packages; any other may repeat a report."""
    kind = type(error).__name__
    return f"{kind}: {str(error).splitlines()[0]}" if isinstance(error, ImportError | OSError) and str(error) else kind


if __name__ == "__main__":
    main()
