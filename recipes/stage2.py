# SPDX-License-Identifier: Apache-2.0
"""Stage 2: fine-tune on answers, reports or boxes. `accelerate launch recipes/stage2.py --config NAME`."""

from __future__ import annotations

import sys

from pefomed_recipes.errors import one_line_errors


def main(arguments: list[str]) -> None:
    """Train stage 2 with the settings of a config file and the command line."""
    with one_line_errors():
        from pefomed_recipes.training.stages import STAGE2_DEFAULTS
        from pefomed_recipes.training.stages import main as train

        record = train(arguments, STAGE2_DEFAULTS, "Stage 2 of PeFoMed: answers (vqa), reports or boxes (refer).")
        if record:  # a dry run has none
            print(
                f"stage 2: {record['steps']} steps in {record['seconds']:.0f} s, validation loss "
                f"{record['validation_loss_before']:.3f} -> {record['validation_loss_after']:.3f}",
                file=sys.stderr,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
