# SPDX-License-Identifier: Apache-2.0
"""Fits when to trust an adapter: `python recipes/calibrate.py VALIDATION_PREDICTIONS.jsonl --adapter DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pefomed_recipes.errors import one_line_errors


def calibrate(
    predictions: Annotated[Path, typer.Argument(help="The adapter's validation predictions, with p_yes.")],
    adapter: Annotated[Path, typer.Option(help="The adapter's folder; calibration.json goes into it.")],
    target_accuracy: Annotated[
        float, typer.Option(help="Answers at or above the abstention threshold are right this often.")
    ] = 0.95,
) -> None:
    """Fit temperature and abstention threshold for yes/no questions on validation predictions, never on test ones."""
    with one_line_errors():
        from pefomed_recipes.evaluation.calibration import FILE_NAME
        from pefomed_recipes.evaluation.calibration import calibrate as fit

        fitted = fit(predictions, adapter, target_accuracy)
        print(f"temperature {fitted.temperature:.3f}, {fitted.items:,} yes/no questions of the validation split")
        (ece, ece_after), (brier, brier_after) = fitted.ece, fitted.brier
        print(f"ECE {ece:.3f} -> {ece_after:.3f}, Brier score {brier:.3f} -> {brier_after:.3f}")
        if fitted.threshold is None:
            print(f"no abstention threshold: no confidence reaches an accuracy of {target_accuracy:.2f}")
        else:
            print(
                f"abstain below a confidence of {fitted.threshold:.3f}: {100 * (fitted.answered or 0):.1f} % answered,"
                f" {100 * (fitted.answered_accuracy or 0):.1f} % of these right"
            )
        typer.echo(f"wrote {adapter / FILE_NAME}", err=True)


if __name__ == "__main__":
    typer.run(calibrate)
