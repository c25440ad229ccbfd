# SPDX-License-Identifier: Apache-2.0
"""What the COCO tools do in Java: the Penn Treebank tokenizer and METEOR 1.5. Optional: it needs Java and `[coco]`.

Texts go to Java through a pipe: no patient's text is written to disk, as pycocoevalcap's own classes do.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..errors import PeFoMedError
from .intervals import Floats
from .text_metrics import Values, Words

METEOR_JAR = "meteor/meteor-1.5.jar"
TOKENIZER_JAR = "tokenizer/stanford-corenlp-3.4.1.jar"
TOKENIZER = "ptb-corenlp-3.4.1"
METEOR = "meteor-1.5|lang:en|norm:yes|modules:exact,stem,synonym,paraphrase"
PUNCTUATION = frozenset(("'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;").split())
TIMEOUT_S = 1800
# Where the machine's language writes a comma in numbers, METEOR ends with an error.
_LANGUAGE = ("-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8")

# Parameters of METEOR 1.5 for English: of the four modules, and alpha, beta, gamma, delta.
# Source: Denkowski and Lavie 2014, and the output of the program itself.
_MODULE_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75


class JavaUnavailableError(PeFoMedError):
    """Java or pycocoevalcap's files are not there, or Java ended with an error; the text is the reason."""


def why_no_java() -> str:
    """Return "" where METEOR and the tokenizer can be run, else the reason."""
    try:
        _java_command(METEOR_JAR)
    except JavaUnavailableError as error:
        return str(error)
    return ""


def ptb_words(texts: Sequence[str]) -> list[list[str]]:
    """Return the words of each text by Stanford CoreNLP's tokenizer, in lower case and without punctuation.

    Raises:
        JavaUnavailableError: see [`why_no_java`].

    Source: pycocoevalcap's PTBTokenizer, whose list of punctuation misses the brackets' lower-case names.
    """
    java, jar = _java_command(TOKENIZER_JAR)
    options = ("-cp", jar, "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase")
    lines = _run_java([java, *_LANGUAGE, *options], [" ".join(text.split()) for text in texts])
    return [[word for word in line.split(" ") if word and word not in PUNCTUATION] for line in lines]


def meteor(hypotheses: Mapping[str, Sequence[Words]], references: Sequence[Sequence[Words]]) -> dict[str, Values]:
    """Return `meteor` of each system, 0..1, higher is better.

    Words match exactly, by stem, as synonyms or as paraphrases; matches, words and chunks are pooled over the corpus,
    against the reference that scores best for each item. An empty hypothesis matches nothing.

    Raises:
        JavaUnavailableError: see [`why_no_java`].

    Source: METEOR 1.5 (Denkowski and Lavie 2014): Java aligns, [`meteor_of_counts`] is its final formula.
    """
    java, jar = _java_command(METEOR_JAR)
    requests = [
        " ||| ".join(["SCORE", *(_plain(words) for words in item_references), _plain(hypothesis)])
        for system in hypotheses.values()
        for hypothesis, item_references in zip(system, references, strict=True)
    ]
    options = ("-Xmx2G", "-jar", jar, "-", "-", "-stdio", "-l", "en", "-norm")
    counts = meteor_counts(_run_java([java, *_LANGUAGE, *options], requests))
    return {
        name: _meteor_values(part) for name, part in zip(hypotheses, np.split(counts, len(hypotheses)), strict=True)
    }


def _meteor_values(counts: Floats) -> Values:
    return lambda weights: {"meteor": meteor_of_counts(weights @ counts)}


def meteor_counts(lines: Sequence[str]) -> Floats:
    """Return the statistics that the METEOR program prints for each item, ready to be summed: (items, 23).

    Columns: words of hypothesis and reference, function words of both, for each of four modules the matched content
    words of both and the matched function words of both, chunks, all matched words of both. Where all words of both
    match in one piece there is nothing to penalise, and the program adds no chunk.
    """
    counts = np.array([[float(number) for number in line.split()] for line in lines])
    in_one_piece = (counts[:, 20] == 1) & (counts[:, 21] == counts[:, 0]) & (counts[:, 22] == counts[:, 1])
    counts[in_one_piece, 20] = 0
    return counts


def meteor_of_counts(counts: Floats) -> Floats:
    """Return METEOR of summed statistics: (draws, 23) to (draws,)."""
    modules = counts[:, 4:20].reshape(-1, 4, 4)
    f_parts = []
    for at in (0, 1):  # precision from the hypotheses' words, recall from the references'
        matched = (_DELTA * modules[:, :, at] + (1 - _DELTA) * modules[:, :, at + 2]) @ _MODULE_WEIGHTS
        function_words = counts[:, 2 + at]
        length = _DELTA * (counts[:, at] - function_words) + (1 - _DELTA) * function_words
        f_parts.append(np.divide(matched, length, out=np.zeros_like(matched), where=length > 0))
    precision, recall = f_parts
    both = _ALPHA * precision + (1 - _ALPHA) * recall
    f_mean = np.divide(precision * recall, both, out=np.zeros_like(both), where=both > 0)
    pieces = np.divide(counts[:, 20], counts[:, 21:].mean(axis=1), out=np.zeros_like(both), where=both > 0)
    return f_mean * (1 - _GAMMA * pieces**_BETA)


def _plain(words: Words) -> str:
    return " ".join(words).replace("|||", "")


def _java_command(jar: str) -> tuple[str, str]:
    java = shutil.which("java")
    if java is None:
        raise JavaUnavailableError("java not found")
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise JavaUnavailableError("pycocoevalcap not found: pip install 'pefomed[coco]'")
    path = Path(next(iter(spec.submodule_search_locations))) / jar  # a package without __init__.py
    if not path.is_file():
        raise JavaUnavailableError(f"pycocoevalcap has no {jar}: install version 1.2")
    return java, str(path)


def _run_java(command: Sequence[str], lines: Sequence[str]) -> list[str]:
    """Return one line of output for each line of input."""
    text = "".join(line + "\n" for line in lines)
    try:
        done = subprocess.run(
            command, input=text.encode("utf-8", errors="replace"), capture_output=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise JavaUnavailableError(f"java was stopped after {TIMEOUT_S:,} s") from None
    printed = done.stdout.decode("utf-8", errors="replace").removesuffix("\n").split("\n")
    if done.returncode or len(printed) != len(lines):
        # What Java says may repeat the text it read.
        raise JavaUnavailableError(f"java ended with {done.returncode} after {len(printed)} of {len(lines)} lines")
    return printed
