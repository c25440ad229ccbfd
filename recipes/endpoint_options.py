# SPDX-License-Identifier: Apache-2.0
"""Options of the commands that ask a model behind an endpoint: the same words and limits in each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

KEY_VARIABLE = "OPENAI_API_KEY"

LedgerFile = Annotated[Path | None, typer.Option(help="Where replies are kept; by default beside --out.")]
KeyVariable = Annotated[str, typer.Option(help="Environment variable that holds the key.")]
Concurrency = Annotated[int, typer.Option(min=1, help="Requests at once.")]
PerMinute = Annotated[float | None, typer.Option(min=0.1, help="Requests a minute, at most.")]
InputPrice = Annotated[float, typer.Option(min=0, help="For a million tokens in.")]
OutputPrice = Annotated[float, typer.Option(min=0, help="For a million tokens out.")]
MaxCost = Annotated[float | None, typer.Option(min=0, help="Refuse to spend more.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what it would cost.")]
