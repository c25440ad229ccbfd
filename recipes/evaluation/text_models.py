# SPDX-License-Identifier: Apache-2.0
"""Metrics that need a model of language, computed in a process of their own: RadEval's clinical ones, and BERTScore.

RadEval needs torchvision and much else, so it lives in an environment of its own; either way no torch comes in here.
The texts go through pipes, and what a library writes is deleted with the folder it runs in.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, did_you_mean
from ..records import Prediction
from .corpus_rows import Number, mean_number
from .intervals import ClusterBootstrap

SCRIPT = Path(__file__).with_name("text_models_apart.py")
# RadEval's metrics that run on this machine. Each downloads its weights from the Hub once, but for bleu and rouge.
CLINICAL_METRICS = (
    "bertscore bleu f1chexbert f1radbert_ct green radcliq radeval_bertscore radgraph radgraph_radcliq ratescore rouge "
    "srrbert temporal"
).split()
DEFAULT_CLINICAL_METRICS = ("radgraph", "f1chexbert", "radcliq")
_ASKS_OTHERS = ("crimson", "mammo_green", "radfact_ct")
NO_ITEM_VALUES = "no interval: RadEval gives one value for all reports together"
NOT_FINITE = "RadEval gave no finite value"

# Of each number: its signature, and what each system scores.
Found = dict[str, tuple[str, dict[str, Number]]]


def clinical_numbers(
    python: str | os.PathLike[str],
    metrics: Sequence[str],
    systems: Mapping[str, Sequence[Prediction]],
    bootstrap: ClusterBootstrap,
) -> tuple[Found, dict[str, str]]:
    """Return RadEval's numbers by name, and the reasons of the metrics that could not be computed.

    Names are `radeval_` and RadEval's own key. All are 0..1 and higher is better, but for `radeval_radcliq_v1`, where
    lower is better and an average pair of reports has 0; each against an item's first reference. The numbers of
    RadGraph, GREEN, RaTEScore, RadCliQ, BERTScore and ROUGE are means over reports, as `agg:mean` in their signature
    says; those of CheXbert, SRR-BERT and BLEU are of all reports together, and have no interval.

    Args:
        python: the interpreter of an environment in which `radeval` is installed.
        metrics: of `CLINICAL_METRICS`; none means RadGraph, CheXbert and RadCliQ.

    Raises:
        ConfigError: `python` is no program, or a metric is unknown or would send reports to other machines.

    Source: RadEval (Delbrouck et al. 2025).
    Differs: RadCliQ is the mean of its values, where RadEval prints one over the mean, which is not stable.
    """
    for name in metrics:
        if name in _ASKS_OTHERS:
            raise ConfigError(f"clinical metric {name!r} sends the reports to an API; expected one that runs here")
        if name not in CLINICAL_METRICS:
            hint = did_you_mean(name, CLINICAL_METRICS)
            raise ConfigError(f"clinical metric {name!r}{hint}; expected one of {', '.join(CLINICAL_METRICS)}")
    chosen = list(dict.fromkeys(metrics or DEFAULT_CLINICAL_METRICS))
    return _run(python, {"library": "radeval", "metrics": chosen}, systems, bootstrap)


def bert_score_numbers(
    model: str, systems: Mapping[str, Sequence[Prediction]], bootstrap: ClusterBootstrap
) -> tuple[Found, dict[str, str]]:
    """Return BERTScore's F1 (`bertscore_f1`), the mean over items, at most 1, higher is better; or the reason.

    Each word piece is matched with the most similar one of the other text by the cosine of an encoder's vectors; F1 is
    of the mean similarities both ways, against the reference where it is highest. A blank prediction has 0. Numbers of
    two encoders or layers cannot be compared, and `effusion` is close to `no effusion`.

    Args:
        model: the folder of an encoder, whose last layer is taken, or the name of one that bert-score knows, with the
            layer that agreed best with people.

    Source: Zhang et al. 2020, by bert-score (the extra `[bertscore]`).
    """
    settings = {"library": "bert-score", "model": os.path.abspath(model) if os.path.isdir(model) else model}
    return _run(sys.executable, settings, systems, bootstrap)


def _run(
    python: str | os.PathLike[str],
    settings: dict[str, Any],
    systems: Mapping[str, Sequence[Prediction]],
    bootstrap: ClusterBootstrap,
) -> tuple[Found, dict[str, str]]:
    requests = [settings] + [
        {"system": name, "hypothesis": item.prediction, "references": item.answers}
        for name, items in systems.items()
        for item in items
    ]
    text = "".join(json.dumps(request) + "\n" for request in requests)
    command = [os.path.abspath(python), "-P", os.fspath(SCRIPT)]  # not with this folder first on its path
    try:
        # What the libraries print is dropped, and so are the files that some write: both may repeat the texts.
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                command,
                input=text.encode(),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                check=False,
            )
    except OSError as error:
        raise ConfigError(f"{python}: {error.strerror or error}; expected a Python's program file") from None
    found: Found = {}
    reasons: dict[str, str] = {}
    for line in done.stdout.decode("utf-8", errors="replace").splitlines(keepends=True):
        if not line.endswith("\n"):
            break  # the process was killed while it wrote
        answer = json.loads(line)
        if "error" in answer:
            reasons[answer["metric"]] = answer["error"]
            continue
        numbers = found.setdefault(answer["name"], (answer["signature"], {}))[1]
        numbers[answer["system"]] = _number(answer, bootstrap)
    if done.returncode:
        reasons["the process"] = f"ended with {done.returncode} before it was done"
    return found, reasons


def _number(answer: Mapping[str, Any], bootstrap: ClusterBootstrap) -> Number:
    if "corpus" in answer:
        return Number(answer["corpus"], reason=NO_ITEM_VALUES if answer["corpus"] is not None else NOT_FINITE)
    if None in answer["items"]:
        return Number(None, reason=NOT_FINITE)
    return mean_number(answer["items"], bootstrap)
