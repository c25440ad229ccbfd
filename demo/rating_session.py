# SPDX-License-Identifier: Apache-2.0
"""A rating study behind the page: who is asked what, and the file of ratings. Needs no page and no torch.

There is no state to lose: the order of a rater's rows comes from seed and code, and what is done stands in the file.
"""

from __future__ import annotations

import json
import os
import threading
import time
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pefomed_recipes.errors import ConfigError, PeFoMedError
from pefomed_recipes.evaluation.raters import Key, highest_score, rating_key, read_ratings
from pefomed_recipes.evaluation.rating_sheets import BlindRow, draw_rows
from pefomed_recipes.records import Prediction, Rating, append_records

SHORTEST_SECONDS = 0.5  # the second half of a double click comes sooner, and nobody judges an answer so fast
LONGEST_COMMENT = 2000


class Refused(PeFoMedError):
    """A rating that does not count, with the reason in words for the rater."""


@dataclass(frozen=True)
class Progress:
    """Where a rater is: rows done of all rows, and the next row with its code; none at the end."""

    done: int
    total: int
    code: str = ""
    shown: BlindRow | None = None


class RatingBook:
    """A file of ratings that several pages may write to at once. Nothing is kept in memory but what was last read."""

    def __init__(self, path: str | os.PathLike[str], predictions: Sequence[Prediction] = ()):
        self.path = Path(path)
        if self.path.suffix != ".jsonl":
            raise ConfigError(f"ratings: found {path}, expected a file name that ends in .jsonl")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._predictions = predictions
        self._read: tuple[bytes, list[Rating]] = (b"", [])

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other pages from deciding on the same ratings meanwhile.

        The lock has a file of its own: [`append_records`] takes that of the ratings.
        """
        import fcntl

        with self.path.with_name(f".{self.path.name}.lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed
            yield

    def ratings(self) -> list[Rating]:
        """Return the ratings in the order in which they were made; a half line of a killed writer is none.

        Raises:
            PeFoMedError: the file is malformed, or is about other predictions.
        """
        content = self.path.read_bytes() if self.path.is_file() else b""
        before, found = self._read
        if content != before:
            whole = content.rpartition(b"\n")[0]
            found = read_ratings([self.path], self._predictions)[0] if whole.strip() else []
            self._read = (content, found)
        return found

    def retract(self, rating: Rating) -> None:
        """Take a rating back: its line becomes a blank one, which readers pass over. No other byte moves, so that
        writers beside this one are not disturbed."""
        import fcntl

        with self.path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            start = 0
            for line in file.read().splitlines(keepends=True):
                if (
                    line.endswith(b"\n")
                    and line.strip()
                    and rating_key(Rating(**json.loads(line))) == rating_key(rating)
                ):
                    file.seek(start)
                    file.write(b" " * (len(line) - 1))
                    file.flush()
                    os.fsync(file.fileno())
                    return
                start += len(line)


class RatingStudy:
    """Blinded answers for several raters, each with an order, hidden repeats and controls of their own.

    Args:
        raters: the codes that may rate.
        rubric, seed, limit: as in [`draw_rows`].

    Raises:
        ConfigError: there is no code, or one is unfit or occurs twice.
        PeFoMedError: the ratings that are there do not fit.
    """

    def __init__(
        self,
        predictions: Sequence[Prediction],
        book: RatingBook,
        raters: Sequence[str],
        *,
        rubric: str = "",
        seed: int = 0,
        limit: int | None = None,
    ):
        unfit = [code for code in raters if not code.replace("-", "").replace("_", "").isalnum()]
        if not raters or unfit or len(set(raters)) < len(raters):
            what = f"the code {unfit[0]!r}" if unfit else "no rater's code, or one twice"
            raise ConfigError(f"found {what}, expected codes of letters, digits, - and _, each once; never a name")
        self.book = book
        self.rows = {
            code: draw_rows(predictions, code, rubric=rubric, seed=seed, limit=limit) for code in dict.fromkeys(raters)
        }
        self._begun: dict[tuple[str, str], float] = {}
        self._lock = threading.Lock()
        book.ratings()

    def progress(self, rater: str, *, restart: bool = False) -> Progress:
        """Return a rater's next row; its time begins now if it was not shown before, or with `restart`.

        Raises:
            Refused: the code is unknown.
        """
        at = self._next(rater)
        if at.code:
            with self._lock:
                if restart:
                    self._begun.pop((rater, at.code), None)
                self._begun.setdefault((rater, at.code), time.monotonic())
        return at

    def rate(self, rater: str, code: str, score: int | None, comment: str = "") -> Rating:
        """Write what a rater says about the row that is shown to them; it is on disk when this returns.

        Args:
            code: of the row. Only the rater's next one counts; second clicks, old pages and forged events differ.
            score: 0 up to the top of the row's rubric, or null for "cannot judge".

        Raises:
            Refused: the rater or the score is unknown, the row is not the one that is shown, or it was shown only now.
        """
        with self.book.locked():
            at = self._next(rater)
            if at.shown is None or code != at.code:
                raise Refused("That answer is not the one that is shown now. Nothing was written.")
            row = at.shown.row
            top = highest_score(row.rubric)
            if score is not None and (type(score) is not int or not 0 <= score <= top):
                raise Refused(f"Expected a score from 0 to {top}. Nothing was written.")
            begun = self._begun.get((rater, code))  # none after a restart of the server
            seconds = None if begun is None else time.monotonic() - begun
            if seconds is not None and seconds < SHORTEST_SECONDS:
                raise Refused("This answer had only just appeared: the click was taken for a double one.")
            rating = Rating(
                row.item_id,
                row.system,
                rater,
                row.task,
                row.rubric,
                score,
                cannot_judge=score is None,
                comment=_clean(comment),
                seconds=None if seconds is None else round(seconds, 1),
                rated_at=datetime.now(UTC).isoformat(timespec="seconds"),
                repeat=row.repeat,
            )
            append_records(self.book.path, [rating])
        with self._lock:
            self._begun.pop((rater, code), None)
        return rating

    def undo(self, rater: str) -> Rating | None:
        """Take a rater's last rating back and return it; its row is the next one again. Null where there is none."""
        with self.book.locked():
            asked = self._keys(rater)
            mine = [rating for rating in self.book.ratings() if rating_key(rating) in asked]
            if not mine:
                return None
            self.book.retract(mine[-1])
        with self._lock:
            self._begun.pop((rater, asked[rating_key(mine[-1])]), None)
        return mine[-1]

    def _next(self, rater: str) -> Progress:
        done = {rating_key(rating) for rating in self.book.ratings() if rating.rater_id == rater}
        left = [code for key, code in self._keys(rater).items() if key not in done]
        rows = self.rows[rater]
        if not left:
            return Progress(len(rows), len(rows))
        return Progress(len(rows) - len(left), len(rows), left[0], rows[left[0]])

    def _keys(self, rater: str) -> dict[Key, str]:
        """Return the codes of a rater's rows by what only one rating may have, in the order to ask."""
        if rater not in self.rows:
            raise Refused("This code is not known. Please check it, or ask the person who runs the study.")
        rows = self.rows[rater].items()
        return {(r.row.item_id, r.row.system, rater, r.row.rubric, r.row.repeat): code for code, r in rows}


def _clean(comment: str) -> str:
    """Return a comment without what no file should hold: control characters and halves of characters."""
    kept = (c for c in comment[:LONGEST_COMMENT] if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs"))
    return "".join(kept).strip()
