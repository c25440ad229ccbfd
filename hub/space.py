# SPDX-License-Identifier: Apache-2.0
"""Writes the files of a Space for one adapter, at one commit: card, page and requirements.

The page says what the adapter is and where it lies, and runs no model.
"""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from string import Template

from pefomed_recipes.errors import ConfigError
from pefomed_recipes.staging import whole_folder

TEMPLATES = ("README.md", "app.py", "requirements.txt")


def write_space(out: Path, adapter: str, revision: str, title: str) -> None:
    """Write a folder that `pefomed publish --type space` takes; it appears when it is whole.

    Raises:
        ConfigError: the adapter is no Hub id, the revision no commit, or `out` is not empty.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", adapter):
        raise ConfigError(f"--adapter {adapter}: expected user/name as on the Hub")
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ConfigError(
            f"--revision {revision}: expected the adapter's commit, 40 digits, so that the page keeps to it"
        )
    if not re.fullmatch(r"[\w .,()&+-]{1,60}", title):
        raise ConfigError(f"--title {title!r}: expected up to 60 letters, digits and plain punctuation")
    try:
        with whole_folder(out) as staged:
            for name in TEMPLATES:
                template = Template(
                    (files(__package__) / "cards" / "space" / f"{name}.in").read_text(encoding="utf-8")
                )
                text = template.substitute(adapter=adapter, revision=revision, title=title)
                (staged / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{out}: cannot write there ({error.strerror}); give a new folder") from None
