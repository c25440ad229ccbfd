# SPDX-License-Identifier: Apache-2.0
"""Writes `data/report_values.json`: what pycocoevalcap 1.2 and Java give for the texts of `report_texts.py`.

Run by hand, with Java and `pip install -e '.[coco]'`, from the root: `python tests/evaluation/make_report_values.py`.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pycocoevalcap
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
from report_texts import TOKENIZER_CASES, report_pairs

from pefomed_recipes.evaluation.tokens import report_tokens

METEOR_ITEMS = 40
METEOR = "java -Duser.language=en -Duser.country=US -Xmx2G -jar meteor-1.5.jar - - -stdio -l en -norm".split()
Texts = dict[int, list[str]]


def coco_numbers(said: Texts, wanted: Texts) -> tuple[dict[str, float], list[float]]:
    """Return the numbers over the corpus, and ROUGE-L of each item."""
    bleus = Bleu(4).compute_score(wanted, said, verbose=0)[0]
    rouge, rouge_items = Rouge().compute_score(wanted, said)
    cider = Cider().compute_score(wanted, said)[0]
    corpus = {f"bleu_{order}": value for order, value in enumerate(bleus, start=1)}
    corpus |= {"rouge_l": float(rouge), "cider_d": float(cider)}
    return corpus, rouge_items.tolist()


def penn_treebank(texts: Texts) -> Texts:
    """Return the words of each text by the Java tokenizer, with blanks between them."""
    return PTBTokenizer().tokenize({at: [{"caption": text} for text in each] for at, each in texts.items()})


def ours(texts: Texts) -> Texts:
    """Return the words of each text by our tokenizer, with blanks between them."""
    return {at: [" ".join(report_tokens(text)) for text in each] for at, each in texts.items()}


def run_meteor(requests: Sequence[str]) -> list[str]:
    """Return what the METEOR program answers."""
    folder = Path(list(pycocoevalcap.__path__)[0]) / "meteor"
    text = "".join(request + "\n" for request in requests)
    return subprocess.run(METEOR, input=text, capture_output=True, text=True, check=True, cwd=folder).stdout.split(
        "\n"
    )


def main() -> None:
    """Compute everything and write the file."""
    predictions, references = report_pairs()
    said, wanted = {at: [text] for at, text in enumerate(predictions)}, dict(enumerate(references))
    corpus, items = coco_numbers(ours(said), ours(wanted))
    ptb_said, ptb_wanted = penn_treebank(said), penn_treebank(wanted)
    scored = [" ||| ".join(["SCORE", *ptb_wanted[at], ptb_said[at][0]]) for at in range(METEOR_ITEMS)]
    lines = run_meteor(scored)[:METEOR_ITEMS]
    meteor = [float(value) for value in run_meteor(["EVAL ||| " + " ||| ".join(lines)])[: METEOR_ITEMS + 1]]
    values = {
        "texts_sha256": hashlib.sha256(json.dumps([predictions, references]).encode()).hexdigest(),
        "our_words": corpus,
        "rouge_l_of_items": items,
        "java_words": coco_numbers(ptb_said, ptb_wanted)[0],
        "java_words_of_cases": [
            words for (words,) in penn_treebank({at: [t] for at, t in enumerate(TOKENIZER_CASES)}).values()
        ],
        "meteor_lines": lines,
        "meteor_items": meteor[:-1],
        "meteor": meteor[-1],
    }
    path = Path(__file__).parent / "data" / "report_values.json"
    path.write_text(json.dumps(values, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
