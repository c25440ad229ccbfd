# SPDX-License-Identifier: Apache-2.0
"""Commands to run next, or to get a report again: with the names of a run's files, and words in capitals for the rest.

They hold no folder: a page may be sent to people who must not learn where things lie.
"""

from __future__ import annotations

import shlex

from ..companions import BLANK, SHORT, SHUFFLED
from ..results import Results
from .inputs import ReportInputs, Training

WORDINGS = ("plain", "short_answer")  # of questions, that `pefomed predict` knows


class Commands:
    """The commands of one report, as they would be typed in the run's folder."""

    def __init__(self, inputs: ReportInputs) -> None:
        self.inputs = inputs
        self.results = inputs.results
        self.adapter = self.results.adapters[0].partition("@")[0] if self.results.adapters else "BASE"
        self.predictions = self._file("predictions", "predictions.jsonl")

    def _file(self, role: str, default: str = "") -> str:
        record = self.results.files.get(role)
        return shlex.quote(record.name) if record else default

    def all(self) -> list[str]:
        """Return all that leads to the report, in the order in which it is run."""
        controls = [role.removeprefix("control ") for role in self.results.files if role.startswith("control ")]
        found = [self.predict(), *map(self.control, controls), self.score()]
        found += [self.judge(shlex.quote(report.judge)) for report in self.inputs.judges]
        if self.inputs.agreements:
            names = dict.fromkeys(shlex.quote(record.name) for one in self.inputs.agreements for record in one.files)
            found.append(f"pefomed agree {' '.join(names)} --out agreement.json")
        return [*found, "pefomed report ."]

    def predict(self, remark: str = "", *options: str, model: str = "", out: str = "") -> str:
        """Return how the answers are made."""
        parts = ["pefomed predict", shlex.quote(model or self.adapter), *self._data("--data-root")]
        if self.results.task == "vqa" and not any("--instruction" in option for option in options):
            training = self.inputs.training
            parts += [f"--instruction {training.wording}"] if training and training.wording in WORDINGS else []
        command = " ".join([*parts, *options, f"--out {out or self.predictions}"])
        return f"{command}  # {remark}" if remark else command

    def _data(self, option: str) -> list[str]:
        training = self.inputs.training
        dataset = [f"--dataset {shlex.quote(training.dataset)}"] if training and training.dataset else []
        return [f"{option} DATA", *dataset, f"--task {self.results.task}"]

    def control(self, name: str) -> str:
        """Return how the answers under a control are made."""
        return self.predict("", f"--control {SHORT[name]}", out=f"predictions-{name}.jsonl")

    def short_answers(self) -> str:
        """Return how answers are asked for in the wording that asks for few words."""
        return self.predict("", "--instruction short_answer")

    def probabilities(self) -> str:
        """Return how p(yes) is asked for."""
        return self.predict("", "--probabilities")

    def score(self, results: Results | None = None) -> str:
        """Return how the results were made of their files."""
        results = results or self.results
        parts = ["pefomed score", self.predictions]
        given = [role.removeprefix("control ") for role in results.files if role.startswith("control ")]
        for name in dict.fromkeys([*given, BLANK, SHUFFLED]):
            parts.append(f"--control {SHORT[name]}={self._file(f'control {name}', f'predictions-{name}.jsonl')}")
        parts.append(f"--train {self._file('train', 'DATA/train.jsonl')}")
        parts += [f"--{role} {self._file(role)}" for role in ("validation", "slices") if role in results.files]
        parts += [f"--compat {protocol.name}" for protocol in results.historic]
        if results.calibration and results.calibration.threshold is not None:
            parts.append(f"--calibration {shlex.quote(self.adapter)}/calibration.json")
        return " ".join([*parts, f"--out {shlex.quote(self.inputs.results_name)}"])

    def judge(self, model: str = "MODEL") -> str:
        """Return how a judge is asked."""
        out = "verdicts-another.jsonl" if model == "ANOTHER" else "verdicts.jsonl"
        return f"pefomed judge {self.predictions} --url URL --model {model} --out {out}"

    def rate(self) -> str:
        """Return how people are asked."""
        return f"pefomed rate export {self.predictions} --rater R1 --limit 100 --out R1.csv"

    def doctor(self) -> str:
        """Return how the model is examined."""
        return " ".join(["pefomed doctor", shlex.quote(self.adapter), *self._data("--data")])

    def calibrate(self) -> str:
        """Return how temperature and threshold are fitted, on validation answers."""
        return (
            self.predict("", "--split validation", "--probabilities", out="validation.jsonl")
            + f" && pefomed calibrate validation.jsonl --adapter {shlex.quote(self.adapter)}"
        )

    def base(self, training: Training | None) -> str:
        """Return how the base answers the same items."""
        return self.predict("", model=(training.base if training else "") or "BASE", out="predictions-base.jsonl")

    def compare(self, base: Results) -> str:
        """Return how the model is held against its base, pair by pair."""
        record = base.files.get("predictions")
        other = shlex.quote(record.name) if record else "predictions-base.jsonl"
        return f"pefomed compare {self.predictions} {other}"

    def stage2(self) -> str:
        """Return how training goes on after stage 1."""
        training = self.inputs.training
        base = shlex.quote(training.base) if training and training.base else "BASE"
        return (
            f"pefomed stage2 --config CONFIG --base {base} --adapter {shlex.quote(self.adapter)} --output_dir stage2"
        )
