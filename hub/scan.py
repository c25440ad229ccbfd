# SPDX-License-Identifier: Apache-2.0
"""Looks through a folder for what must not be published: secrets, places of a machine, patients, pickles.

A finding names the file and the line, and never repeats what stands there.
"""

from __future__ import annotations

import fnmatch
import json
import re
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from huggingface_hub import get_token

from .manifest import MANIFEST

# Every file that may travel; what matches nothing does not.
ALLOWED = {
    "model": (
        *("README.md", "LICENSE*", "NOTICE*", "*.md", MANIFEST, "*.safetensors", "*.json", "*.jinja", "*_pefomed.py"),
        *("tokenizer.model", "merges.txt", "vocab.txt", ".eval_results/*.yaml"),
    ),
    "dataset": ("README.md", "LICENSE*"),
    "space": ("README.md", "LICENSE*", "*.md", "*.py", "*.txt", "*.css", "*.json", "*.jinja", "examples/*.png"),
}
# These would match, and hold optimizer state, folders of a machine or rows of data.
REFUSED = {
    "trainer_state.json": "the state of a training run",
    "run.json": "a run's record, with the folders that it read",
    "training_args*": "training arguments, with the folders that they name",
    "optimizer*": "optimizer state",
    "scheduler*": "scheduler state",
    "rng_state*": "random number state",
    "predictions*": "answers to single samples",
    "*.jsonl": "rows of data",
    "*.csv": "rows of data",
    "*.parquet": "rows of data",
    "*.tmp*": "a half-written file",
}
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz")
SECRETS = {
    "a Hugging Face token": r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}",
    "an API key": r"\bsk-[A-Za-z0-9_-]{20,}|\bAIza[0-9A-Za-z_-]{35}|\bxox[abprs]-[0-9A-Za-z-]{10,}",
    "a GitHub token": r"\bgh[pousr]_[A-Za-z0-9]{36}|\bgithub_pat_[A-Za-z0-9_]{22,}",
    "an AWS key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a web token": r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.",
    "a password in an address": r"\b[a-z][a-z0-9+.-]*://[^/\s:@\"']+:[^/\s@\"']+@",
}
_ROOTS = (
    "home|Users|Volumes|root|mnt|media|data|datasets|scratch|storage|projects|tmp|var|opt|workspace|work|srv|private|"
    "gpfs|lustre|nfs|net|kaggle|content/drive"
)
PLACES = {
    "a folder of a machine": rf"(?<![\w.:/\\-])/(?:{_ROOTS})/[\w.@-]+",
    "a folder of a Windows machine": r"\b[A-Za-z]:(?:\\\\?|/)(?:Users|Documents|data|home|temp)(?:\\\\?|/)[\w.-]",
    "a file address": r"\bfile://",
    "a user on a machine": r"\b[\w.-]+@[\w-]+(?:\.[\w-]+)*:[~/]",
}
PATIENTS = {
    # DICOM's form of a person's name
    "a patient's name": r"\b[A-Za-z][A-Za-z'-]+\^[A-Za-z][A-Za-z'-]+",
    "a DICOM tag of a patient": r"\bPatient(?:'s )?(?:Name|ID|BirthDate|Address)\b\W{1,4}\w",
}
# Inside tokenizers is every short word that there is: single words are not looked for there.
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "merges.txt", "vocab.txt", "vocab.json")
MAX_TEXT_BYTES = 64 * 2**20
LONG_HOST_NAME = 8
# What a PNG needs to be drawn. The other chunks hold text, times and cameras, which nobody sees in the picture.
PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"sBIT", b"bKGD", b"IDAT", b"IEND")


def scan_folder(folder: Path, type_: str = "model", forbidden: Path | None = None) -> list[str]:
    """Return what must not be published, one line each, in the order of the files.

    Args:
        type_: of the repository, which decides what files may travel.
        forbidden: a text file with one name or number a line that must occur nowhere, in whatever letter case.
    """
    words = _forbidden_words(forbidden)
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found.append(f"{name}: a link, which can lead anywhere; put the file itself there")
        elif path.is_file():
            problem = _refused_name(name, path, type_)
            found += [f"{name}: {problem}"] if problem else [f"{name}{each}" for each in _look_inside(path, words)]
    return found


def _refused_name(name: str, path: Path, type_: str) -> str:
    own = path.name
    for pattern, what in REFUSED.items():
        if fnmatch.fnmatch(own, pattern):
            return f"{what}, which is never published"
    with path.open("rb") as file:
        start = file.read(4)
    if own.endswith(PICKLES) or re.match(rb"\x80[\x02-\x05]|PK\x03\x04", start):
        return "a pickle or an archive, which can run code where it is loaded; export writes safetensors"
    if not any(fnmatch.fnmatch(name, pattern) for pattern in ALLOWED[type_]):
        return f"not among the files that a {type_} on the Hub needs"
    return ""


def _look_inside(path: Path, words: Sequence[str]) -> Iterator[str]:
    """Yield `:LINE: what` for each finding in a file."""
    if path.suffix == ".png":
        if problem := _hidden_in_png(path.read_bytes()):
            yield f": {problem}"
        return
    try:
        text = _safetensors_header(path) if path.suffix == ".safetensors" else _text(path)
        resolved = _resolved(text) if path.suffix == ".json" else ""
    except (OSError, ValueError) as error:
        yield f": cannot be read ({error})"
        return
    found = list(_matches(text, path.name in VOCABULARIES, words))
    for what, line in found:
        yield f":{line}: {what}"
    hidden = {what for what, _ in _matches(resolved, path.name in VOCABULARIES, words)}
    for what in sorted(hidden - {what for what, _ in found}):
        yield f": {what}, in escapes of JSON"


def _matches(text: str, is_vocabulary: bool, words: Sequence[str]) -> Iterator[tuple[str, int]]:
    for what, pattern in (SECRETS | PLACES | PATIENTS).items():
        for match in re.finditer(pattern, text):
            yield what, text.count("\n", 0, match.start()) + 1
    for what, word in (*_own_names(), *_named(words)):
        if is_vocabulary and word.isalpha():
            continue
        if found := re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE):
            yield what, text.count("\n", 0, found.start()) + 1


def _named(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    return ((f"line {number} of the forbidden words", word) for number, word in enumerate(words, start=1) if word)


def _own_names() -> Iterator[tuple[str, str]]:
    """Yield what is known of this user and machine, and how it reads."""
    token, home, host = get_token(), str(Path.home()), socket.gethostname()
    if token:
        yield "your token", token
    if len(Path(home).parts) > 2:
        yield "your home folder", home
    if len(host) >= LONG_HOST_NAME:
        yield "this machine's name", host


def _forbidden_words(path: Path | None) -> list[str]:
    if path is None:
        return []
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]


def _safetensors_header(path: Path) -> str:
    """Return the header of a safetensors file, which is all the text in it.

    Raises:
        ValueError: the file is no whole safetensors file.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_TEXT_BYTES:
            raise ValueError("its header is too long for a safetensors file")
        header = json.loads(file.read(length))
    end = max((row["data_offsets"][1] for name, row in header.items() if name != "__metadata__"), default=0)
    if path.stat().st_size != 8 + length + end:
        raise ValueError("it is cut short or has something behind its tensors")
    return json.dumps(header, ensure_ascii=False)


def _hidden_in_png(content: bytes) -> str:
    """Return what is wrong with a picture: it is none, or holds more than pixels."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "it is no PNG picture"
    place, kind = 8, b""
    while kind != b"IEND" and place + 12 <= len(content):
        length, kind = int.from_bytes(content[place : place + 4]), content[place + 4 : place + 8]
        if kind not in PNG_CHUNKS:
            return (
                f"a part {kind.decode('ascii', 'replace')} beside its pixels, which can name people; save it without"
            )
        place += length + 12
    return "" if kind == b"IEND" and place == len(content) else "it is cut short or has something behind its pixels"


def _text(path: Path) -> str:
    """Return a text file's content.

    Raises:
        ValueError: it is no text, or too long.
    """
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise ValueError("too long for a text")
    content = path.read_bytes()
    if b"\0" in content and path.suffix != ".model":
        raise ValueError("it is no text")
    return content.decode("utf-8", errors="replace")


def _resolved(text: str) -> str:
    """Return JSON with its escapes resolved, or nothing where it has none.

    Raises:
        ValueError: it is malformed.
    """
    return json.dumps(json.loads(text), ensure_ascii=False).replace("\\\\", "\\") if "\\" in text else ""
