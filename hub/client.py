# SPDX-License-Identifier: Apache-2.0
"""Talking to the Hub: what is tried again, and one sentence for each way in which it refuses.

No sentence repeats the token, whatever the server answers.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from huggingface_hub import HfApi, constants, get_session, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils.tqdm import disable_progress_bars

from pefomed_recipes.errors import PeFoMedError

T = TypeVar("T")
WAITS_SECONDS = (1.0, 2.0, 4.0, 8.0)
LONGEST_WAIT_SECONDS = 120.0
TIMEOUT_SECONDS = 120.0
AGAIN = "run the same command again, it goes on where it stopped"
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that can write"


def hub_api() -> HfApi:
    """Return the client, which takes the address and the token from the environment as all Hub tools do."""
    hub_logging.set_verbosity_error()  # its warnings name addresses; `retrying` says what matters
    if not sys.stderr.isatty():
        disable_progress_bars()
    return HfApi(library_name="pefomed")


def say(text: str) -> None:
    """Write a line of progress to stderr."""
    print(without_token(text), file=sys.stderr, flush=True)


def without_token(text: str) -> str:
    """Return the text with this user's token blotted out."""
    token = get_token()
    return text.replace(token, "hf_***") if token else text


def is_passing(error: BaseException) -> bool:
    """Whether an error may be gone at the next try: no connection, too many requests, a server in trouble."""
    status = status_of(error)
    if status is not None:
        return status in (408, 429) or status >= 500
    if isinstance(error, OfflineModeIsEnabled | LocalTokenNotFoundError | FileNotFoundError | PermissionError):
        return False
    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        return is_passing(error.__cause__)
    kinds = [f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__]
    # hf_xet tells of its connection in RuntimeErrors
    return "httpx2.TransportError" in kinds or isinstance(error, ConnectionError | TimeoutError | RuntimeError)


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that an error tells of."""
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def retrying(what: str, action: Callable[[], T]) -> T:
    """Return what `action` returns, after up to five tries; it must be harmless to do twice.

    Args:
        what: is being done, as in "cannot WHAT".

    Raises:
        PeFoMedError: one sentence on why it failed.
    """
    for wait in (*WAITS_SECONDS, None):
        try:
            get_session().timeout = TIMEOUT_SECONDS  # by default it would wait for ever
            return action()
        except Exception as error:
            if wait is None or not is_passing(error):
                with explained(what):
                    raise
            status = status_of(error)
            seconds = min(max(wait, _retry_after(error)), LONGEST_WAIT_SECONDS)
            reason = f"the Hub answered {status}" if status else "the connection failed"
            say(f"cannot {what}: {reason}; trying again in {seconds:.0f} s")
            time.sleep(seconds)
    raise AssertionError("the last try raises")


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn what the client raises in this block into one sentence."""
    try:
        yield
    except PeFoMedError:
        raise
    except (HfHubHTTPError, HFValidationError, OSError, RuntimeError, ValueError) as error:
        raise PeFoMedError(explain(error, what)) from None
    except Exception as error:
        if not is_passing(error):
            raise
        raise PeFoMedError(explain(error, what)) from None


def explain(error: BaseException, what: str) -> str:
    """Return one sentence: what could not be done, why, what to do."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return without_token(f"cannot {what}: {_reason(error)}")


def _reason(error: BaseException) -> str:
    status, said = status_of(error), _server_message(error)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the Hub may not be asked; unset it"
    if isinstance(error, LocalTokenNotFoundError):
        return f"there is no token; {LOG_IN}"
    if isinstance(error, HFValidationError):
        return f"{' '.join(str(error).split())}"
    if isinstance(error, GatedRepoError):
        return f"it is gated and you have not been let in{said}; ask on its page, or log in as one who may"
    if isinstance(error, RevisionNotFoundError):
        return f"there is no such revision{said}"
    if isinstance(error, RepositoryNotFoundError):
        seen = "" if get_token() else " without a token"
        return f"it does not exist, or you may not see it{seen} ({status}); check the name, or {LOG_IN}"
    if status == 401:
        return f"the Hub does not accept the token (401: expired, revoked or mistyped); {LOG_IN}"
    if status == 402:
        return f"the Hub asks for a paid plan (402){said}; take one, or another kind of hardware or visibility"
    if status == 403:
        return f"the token may not do this (403){said}; use one with the right to write there"
    if status == 404:
        return f"the Hub does not know it (404){said}"
    if status == 429:
        return f"the Hub takes no more requests for now (429); wait, then {AGAIN}"
    if status is not None and status >= 500:
        return f"the Hub is in trouble (it answered {status}); wait, then {AGAIN}"
    if status is not None:
        return f"the Hub refused ({status}){said}"
    if is_passing(error):
        return f"no connection to {constants.ENDPOINT} ({type(error).__name__}); check the network, then {AGAIN}"
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _server_message(error: BaseException) -> str:
    message = getattr(error, "server_message", None)
    return f": {' '.join(str(message).split())[:200]}" if message else ""


def _retry_after(error: BaseException) -> float:
    header = error.response.headers.get("retry-after", "") if isinstance(error, HfHubHTTPError) else ""
    return float(header) if header.isdigit() else 0.0
