# SPDX-License-Identifier: Apache-2.0
"""Calibration of closed questions: how far p(yes | yes or no) can be trusted, and when to abstain.

A temperature and an abstention threshold are fitted on validation predictions only, and stored with the adapter as
`calibration.json`: confidence = max(p, 1 - p) with p = sigmoid(logit(p_yes) / temperature); a question whose
confidence is below the threshold is better left to a human. At a probability of exactly 0.5 the answer is yes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..answers import YES_NO, normalize_answer
from ..errors import ConfigError, PeFoMedError
from ..records import Prediction
from .intervals import ClusterBootstrap, Floats, ItemScores
from .predictions import read_predictions
from .results import Calibration, CalibrationBin, Score, write_text
from .rows import ONE_CLUSTER, clusters_of
from .slices import answer_kind

SCHEMA = "pefomed-calibration/1"
FILE_NAME = "calibration.json"
BINS = 10  # of equal width, over the confidences 0.5..1
FEWEST = 30  # validation questions that a temperature may be fitted on
_CLIPPED = 1e-6  # probabilities of exactly 0 or 1 have no logit
_LOG_TEMPERATURES = (float(np.log(0.05)), float(np.log(20)))


@dataclass
class FittedCalibration:
    """What `calibration.json` holds; `threshold` is null where no confidence reached the target accuracy.

    `answered` is the share of the validation questions at or above the threshold, `answered_accuracy` theirs. ECE and
    Brier score are those of the validation questions before and after, fitted on themselves and so too good.
    """

    temperature: float
    threshold: float | None
    target_accuracy: float
    answered: float | None
    answered_accuracy: float | None
    items: int
    ece: tuple[float, float]
    brier: tuple[float, float]
    adapter: str
    predictions_sha256: str
    schema: str = SCHEMA


def with_p_yes(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Return the closed questions whose first reference is yes or no and that have a `p_yes`."""
    return [
        item
        for item in predictions
        if item.p_yes is not None and answer_kind(item) == "closed" and normalize_answer(item.answers[0]) in YES_NO
    ]


def tempered(p_yes: Floats, temperature: float) -> Floats:
    """Return sigmoid(logit(p) / temperature), 0..1; a temperature above 1 makes less sure."""
    clipped = np.clip(p_yes, _CLIPPED, 1 - _CLIPPED)
    return np.asarray(1 / (1 + ((1 - clipped) / clipped) ** (1 / temperature)))


def _truth(items: Sequence[Prediction]) -> tuple[Floats, Floats]:
    """Return p_yes and 1 where the reference is yes: (items,) each."""
    p_yes = np.asarray([item.p_yes for item in items], dtype=np.float64)
    return p_yes, np.asarray([normalize_answer(item.answers[0]) == "yes" for item in items], dtype=np.float64)


def measure_calibration(
    predictions: Sequence[Prediction], temperature: float = 1.0, threshold: float | None = None
) -> Calibration | None:
    """Return the calibration of the questions of [`with_p_yes`], `None` where there are none.

    - ECE, 0..1, lower is better: the mean over items of |accuracy - mean confidence| of the item's bin, 10 bins of
      equal width over 0.5..1, empty ones left out. Source: Guo et al. 2017.
    - Brier score, 0..1, lower is better: the mean of (p - y)^2, y = 1 where the reference is yes.
    - Risk-coverage curve: of the most confident items, the share that is wrong; equal confidences come together.
      `aurc`, 0..1, lower is better: the mean over items of the risk at their coverage.

    Intervals resample whole images and recompute each number.
    """
    items = with_p_yes(predictions)
    if not items:
        return None
    p_yes, is_yes = _truth(items)
    p = tempered(p_yes, temperature)
    confidence, right = np.maximum(p, 1 - p), ((p >= 0.5) == (is_yes == 1)).astype(np.float64)
    bootstrap = ClusterBootstrap(clusters_of(items))

    places = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    in_bin = [(places == at).astype(np.float64) for at in range(BINS)]
    gaps = [(right - confidence) * chosen for chosen in in_bin]
    ece = float(np.abs([gap.sum() for gap in gaps]).sum() / len(items))
    drawn = bootstrap.sums([*gaps, np.ones(len(items))]) if bootstrap.clusters > 1 else np.ones((1, BINS + 1))
    ece_interval = bootstrap.percentiles(np.abs(drawn[:, :-1]).sum(axis=1) / drawn[:, -1])
    squared = ItemScores.of(list((p - is_yes) ** 2))
    reason = "" if bootstrap.clusters > 1 else ONE_CLUSTER

    counts, risk = risk_coverage(confidence, right)
    answered = confidence >= (threshold or 0)
    return Calibration(
        items=len(items),
        temperature=temperature,
        ece=Score(ece, cluster_interval=ece_interval, reason=reason),
        brier=Score(float(squared.numerators.mean()), cluster_interval=bootstrap.interval(squared), reason=reason),
        aurc=float((risk * np.diff(np.r_[0, counts])).sum() / len(items)),
        bins=[
            CalibrationBin(int(chosen.sum()), float(confidence[chosen > 0].mean()), float(right[chosen > 0].mean()))
            for chosen in in_bin
            if chosen.any()
        ],
        coverage=(counts / len(items)).tolist(),
        risk=risk.tolist(),
        threshold=threshold,
        answered=float(answered.mean()) if threshold is not None else None,
        answered_accuracy=float(right[answered].mean()) if threshold is not None and answered.any() else None,
    )


def risk_coverage(confidence: Floats, right: Floats) -> tuple[Floats, Floats]:
    """Return, for each distinct confidence from the highest down, how many items have at least it, and their risk."""
    order = np.argsort(-confidence, kind="stable")
    wrong, last_of_tie = np.cumsum(1 - right[order]), np.r_[np.diff(confidence[order]) != 0, True]
    counts = np.arange(1, len(order) + 1, dtype=np.float64)[last_of_tie]
    return counts, wrong[last_of_tie] / counts


def fit_temperature(items: Sequence[Prediction]) -> float:
    """Return the temperature (0.05..20) under which the questions' references are most likely."""
    from scipy.optimize import minimize_scalar

    p_yes, is_yes = _truth(items)

    def surprise(log_temperature: float) -> float:
        p = np.clip(tempered(p_yes, float(np.exp(log_temperature))), 1e-12, 1 - 1e-12)
        return -float(np.mean(is_yes * np.log(p) + (1 - is_yes) * np.log(1 - p)))

    return float(np.exp(minimize_scalar(surprise, bounds=_LOG_TEMPERATURES, method="bounded").x))


def fit_threshold(items: Sequence[Prediction], temperature: float, target_accuracy: float) -> float | None:
    """Return the lowest confidence at or above which the answers reach the accuracy; `None` where none does."""
    p_yes, is_yes = _truth(items)
    p = tempered(p_yes, temperature)
    confidence, right = np.maximum(p, 1 - p), ((p >= 0.5) == (is_yes == 1)).astype(np.float64)
    _, risk = risk_coverage(confidence, right)
    reaching = np.flatnonzero(1 - risk >= target_accuracy)
    return float(np.unique(confidence)[::-1][reaching[-1]]) if len(reaching) else None


def calibrate(
    predictions: str | os.PathLike[str], adapter: str | os.PathLike[str], target_accuracy: float = 0.95
) -> FittedCalibration:
    """Fit on validation predictions of an adapter and write `calibration.json` into its folder.

    Raises:
        PeFoMedError: the predictions are of another split, another adapter or a control, or have too few closed
            questions with a `p_yes`; nothing is written then.
        ConfigError: the target accuracy is not within 0.5..1.
    """
    if not 0.5 <= target_accuracy <= 1:
        raise ConfigError(f"target accuracy {target_accuracy}: expected 0.5..1")
    path, folder = Path(predictions), Path(adapter)
    read = read_predictions(path)
    if read[0].split != "validation":
        found = f"predictions of the {read[0].split} split" if read[0].split else "predictions that name no split"
        raise PeFoMedError(
            f"{path}: found {found}, expected validation; make them with predict --split validation --probabilities"
        )
    if read[0].control:
        raise PeFoMedError(f"{path}: made under the control {read[0].control}; expected the model's own answers")
    digest = adapter_digest(folder)
    others = sorted({item.adapter or "no adapter" for item in read if not item.adapter.endswith(f"@{digest}")})
    if others:
        raise PeFoMedError(f"{path}: made by {', '.join(others)}, expected the adapter in {folder} (@{digest})")
    items = with_p_yes(read)
    if len(items) < FEWEST:
        raise PeFoMedError(
            f"{path}: found {len(items)} yes/no questions with p_yes, expected at least {FEWEST}; p_yes comes "
            "with predict --probabilities"
        )
    temperature = fit_temperature(items)
    threshold = fit_threshold(items, temperature, target_accuracy)
    before, after = measure_calibration(items), measure_calibration(items, temperature, threshold)
    assert before is not None and after is not None
    fitted = FittedCalibration(
        temperature=temperature,
        threshold=threshold,
        target_accuracy=target_accuracy,
        answered=after.answered,
        answered_accuracy=after.answered_accuracy,
        items=len(items),
        ece=(before.ece.value or 0.0, after.ece.value or 0.0),
        brier=(before.brier.value or 0.0, after.brier.value or 0.0),
        adapter=read[0].adapter,
        predictions_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )
    write_text(folder / FILE_NAME, json.dumps(asdict(fitted), indent=2, ensure_ascii=False) + "\n")
    return fitted


def adapter_digest(folder: Path) -> str:
    """Return what predictions call the adapter in a folder by: the first digits of its weights' SHA-256.

    Raises:
        PeFoMedError: there is no adapter.
    """
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise PeFoMedError(f"{folder}: no adapter in it; expected {weights.name}")
    return hashlib.sha256(weights.read_bytes()).hexdigest()[:16]


def read_calibration(path: str | os.PathLike[str], predictions: Sequence[Prediction]) -> FittedCalibration:
    """Read `calibration.json` for the predictions of the adapter that it was fitted for.

    Raises:
        PeFoMedError: the file is missing, of another form, or fitted for another adapter.
    """
    path = Path(path)
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        fitted = FittedCalibration(**stored)
    except FileNotFoundError:
        raise PeFoMedError(f"{path}: no such file") from None
    except (ValueError, TypeError):
        raise PeFoMedError(f"{path}: no {FILE_NAME}; make it with pefomed calibrate") from None
    if fitted.schema != SCHEMA:
        raise PeFoMedError(f"{path}: schema {fitted.schema!r}, expected {SCHEMA!r}; calibrate again")
    wanted = fitted.adapter.rpartition("@")[2]
    if any(item.adapter.rpartition("@")[2] != wanted for item in predictions):
        raise PeFoMedError(f"{path}: fitted for the adapter {fitted.adapter}, the predictions are of another")
    return fitted
