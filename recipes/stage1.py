# SPDX-License-Identifier: Apache-2.0
"""Stage 1: fine-tune on captions. `accelerate launch recipes/stage1.py --config NAME [--key value ...]`."""

from __future__ import annotations

import sys

from pefomed_recipes.errors import one_line_errors


def main(arguments: list[str]) -> None:
    """Train stage 1 with the settings of a config file and the command line."""
    with one_line_errors():
        from pefomed_recipes.training.stages import STAGE1_DEFAULTS
        from pefomed_recipes.training.stages import main as train

        record = train(arguments, STAGE1_DEFAULTS, "Stage 1 of PeFoMed: captions.")
        if record:  # a dry run has none
            print(
                f"stage 1: {record['steps']} steps in {record['seconds']:.0f} s, validation loss "
                f"{record['validation_loss_before']:.3f} -> {record['validation_loss_after']:.3f}",
                file=sys.stderr,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
