# SPDX-License-Identifier: Apache-2.0
"""Predictions of any vision model behind an OpenAI-compatible endpoint, asked as the local model is.

Replies are paid for once: they are kept in a ledger, and `out` is made from it. What is sent of an image is its
picture alone, written anew: no name, no tag of the file.
"""

from __future__ import annotations

import base64
import hashlib
import io
import logging
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ..chat_api import ChatRequest, Endpoint, Messages, ask_all, estimate, is_in_house, refuse_broken_text
from ..data.images import burned_in_risk, load_image
from ..data.instructions import VqaInstruction, render_instruction
from ..errors import ConfigError, PeFoMedError
from ..ledger import Ledger, Reply, fingerprint, refuse_unwritable
from ..records import Prediction, Sample, is_credentialed, read_records, write_records
from .controls import BLANK, MIRRORED, SHUFFLED, control_in_records, images_of_others, mirrored

logger = logging.getLogger(__name__)

SYSTEM_PROMPTS = {
    "vqa": "You answer questions about medical images. Reply with the answer alone, in as few words as will do and in "
    "the language of the question. Begin with yes or no where that is the answer, and choose one answer even if you "
    "are not sure.",
    "caption": "You write captions of medical images. Reply with the caption alone: one or two plain sentences, "
    "without a heading.",
    "report": "You write reports of medical images as a radiologist would. Reply with the text of the report alone: "
    "plain sentences on what is present and absent, without headings, lists, placeholders or advice.",
    "refer": "You locate what is asked for in a medical image. Reply with one box and nothing else, written as "
    "{<x1><y1><x2><y2>}: its left, top, right and bottom edge as whole numbers from 0 to 100, in percent of the "
    "image's width and height, measured from the top left corner.",
}
# Twice what the local model may say: other tokenizers cut words into more pieces.
MAX_TOKENS = {"vqa": 64, "refer": 64, "caption": 256, "report": 600}
LONGEST_SIDE = 1024
BLANK_PICTURE = ((448, 448), (128, 128, 128))
READERS = 4
PICTURES_AT_HAND = 16  # encoded ones, for the other questions about them


def predict_with_api(
    endpoint: Endpoint,
    ledger: Ledger,
    samples: Sequence[Sample],
    out: Path,
    *,
    control: str = "",
    instruction: VqaInstruction = "short_answer",
    longest_side: int = LONGEST_SIDE,
    max_cost: float | None = None,
    dry_run: bool = False,
) -> Path | None:
    """Ask an endpoint about every sample and write `out`, one [`Prediction`] a line in the samples' order.

    Questions that are the same to the pixel are asked once, at temperature 0. Where requests stay without a reply,
    what is there goes to `out.partial` instead, and a second call asks for the rest only. A finished `out` is left as
    it is.

    Args:
        control: "" or one of `CONTROLS`.
        instruction: wording of VQA questions.
        longest_side: pictures are scaled down to so many pixels; smaller ones are sent as they are.
        max_cost: see [`ask_all`].
        dry_run: only say on stderr what it would cost, and return nothing.

    Raises:
        PeFoMedError: no samples; an image that cannot be read, or whose file says that it may show text, which must
            not leave the house; credentialed samples and an endpoint outside of the house; requests without a reply;
            the cost is above `max_cost`; or `out` holds predictions of something else.
        ConfigError: an unknown control, or an endpoint without address or model.
    """
    control = control_in_records(control)
    if not endpoint.url or not endpoint.model:
        raise ConfigError("name the endpoint and its model: --api https://HOST/v1 --model NAME")
    if not samples:
        raise PeFoMedError("There is nothing to predict: found 0 samples.")
    if not is_in_house(endpoint.url):
        _refuse_to_send(samples, endpoint.url)
    for sample in samples:
        refuse_broken_text(sample.id, (sample.id, sample.instruction, *sample.answers))
    refuse_unwritable(out)
    asked = [_messages(sample, instruction, longest_side) for sample in samples]
    who = {"control": control, "model": endpoint.model}
    owns = [{**who, "prompt_sha256": fingerprint({"messages": messages})} for messages in asked]
    if out.is_file():
        _check_finished(read_records(out, Prediction), samples, owns)
        return out

    pictures = _Pictures(control, longest_side)
    shown = images_of_others(samples) if control == SHUFFLED else {}
    paths = [shown.get(tuple(sample.image_paths), tuple(sample.image_paths)) for sample in samples]
    pictures.look_at(path for each in paths for path in each)
    requests = [
        ChatRequest(pictures.named(messages, each), MAX_TOKENS[sample.task])
        for sample, messages, each in zip(samples, asked, paths, strict=True)
    ]
    print(estimate(requests, endpoint, ledger), file=sys.stderr)
    if dry_run:
        return None
    failures = ask_all(requests, endpoint, ledger, max_cost=max_cost, complete=pictures.put_in)

    keys = [request.key(endpoint) for request in requests]
    answered = [
        Prediction.of(sample, ledger[key].text.strip(), **own)
        for sample, key, own in zip(samples, keys, owns, strict=True)
        if key not in failures
    ]
    _warn_of_odd_replies([ledger[key] for key in keys if key not in failures])
    partial = out.with_name(out.name + ".partial")
    if failures:
        write_records(partial, answered)
        reasons = Counter(failures[key] for key in keys if key in failures)
        raise PeFoMedError(
            f"{len(samples) - len(answered):,} of {len(samples):,} samples have no answer "
            f"({', '.join(f'{reason}: {count:,}' for reason, count in reasons.most_common())}); run the same command "
            f"again, which asks for these only. The others are in {partial}"
        )
    write_records(out, answered)
    partial.unlink(missing_ok=True)
    return out


class _Pictures:
    """What is shown of each file: looked at once for its fingerprint, and read again when it is sent, so that a large
    set need not lie in memory."""

    def __init__(self, control: str, longest_side: int) -> None:
        self.control, self.longest_side = control, longest_side
        self.names: dict[str, str] = {}  # by path; a name is the fingerprint of the pixels
        self.paths: dict[str, str] = {}  # by name
        self.data_url = lru_cache(PICTURES_AT_HAND)(self._data_url)

    def look_at(self, paths: Iterable[str]) -> None:
        """Read every image once.

        Raises:
            ImageError: one cannot be read.
        """
        distinct = list(dict.fromkeys(paths))
        bar = {"total": len(distinct), "desc": "images", "disable": not sys.stderr.isatty()}
        with ThreadPoolExecutor(READERS) as pool:
            self.names = dict(zip(distinct, tqdm(pool.map(self._name, distinct), **bar), strict=True))
        self.paths = {name: path for path, name in self.names.items()}

    def named(self, messages: Messages, paths: Sequence[str]) -> Messages:
        """Return the messages with the fingerprints of the pictures that belong there."""
        return _with_urls(messages, iter([self.names[path] for path in paths]))

    def put_in(self, messages: Messages) -> Messages:
        """Return the messages with the pictures themselves in place of their fingerprints."""
        names = [part["image_url"]["url"] for part in messages[-1]["content"] if part["type"] == "image_url"]
        return _with_urls(messages, iter([self.data_url(name) for name in names]))

    def _picture(self, path: str) -> Image.Image:
        if self.control == BLANK:
            return Image.new("RGB", *BLANK_PICTURE)
        image = load_image(path)
        image.thumbnail((self.longest_side, self.longest_side), Image.Resampling.BICUBIC)
        return mirrored(image) if self.control == MIRRORED else image

    def _name(self, path: str) -> str:
        image = self._picture(path)
        return "sha256:" + hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()

    def _data_url(self, name: str) -> str:
        """Return the picture as PNG, which keeps every pixel."""
        stream = io.BytesIO()
        self._picture(self.paths[name]).save(stream, format="PNG")
        return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _messages(sample: Sample, instruction: VqaInstruction, longest_side: int) -> Messages:
    """Return the chat that asks about a sample, with a blank place for each picture."""
    picture = {"type": "image_url", "image_url": {"url": f"at most {longest_side} px"}}
    text = render_instruction(sample, training=False, instruction=instruction)
    return [
        {"role": "system", "content": SYSTEM_PROMPTS[sample.task]},
        {"role": "user", "content": [*[picture] * len(sample.image_paths), {"type": "text", "text": text}]},
    ]


def _with_urls(messages: Messages, urls: Iterator[str]) -> Messages:
    content = [
        {**part, "image_url": {"url": next(urls)}} if part["type"] == "image_url" else part
        for part in messages[-1]["content"]
    ]
    return [*messages[:-1], {**messages[-1], "content": content}]


def _refuse_to_send(samples: Sequence[Sample], url: str) -> None:
    """Refuse what must not go to somebody else's server.

    Raises:
        PeFoMedError: samples are credentialed, or their images may show a patient's name.
    """
    way_out = "ask a model on this machine or in your own network"
    bound = [sample for sample in samples if is_credentialed(sample)]
    if bound:
        raise PeFoMedError(
            f"{len(bound):,} of {len(samples):,} samples come from credentialed data ({bound[0].source}), whose use "
            f"agreement forbids sending them to others; {url} is outside of this house: {way_out}"
        )
    risky = [path for path in dict.fromkeys(p for s in samples for p in s.image_paths) if burned_in_risk(path)]
    if risky:
        raise PeFoMedError(
            f"{len(risky):,} images may show text, such as a patient's name ({Path(risky[0]).name} says so, or is of "
            f"a kind that mostly does); {url} is outside of this house: export them as PNG without it, or {way_out}"
        )


def _warn_of_odd_replies(replies: Sequence[Reply]) -> None:
    cut = sum(reply.finish_reason == "length" for reply in replies)
    empty = sum(not reply.text.strip() for reply in replies)
    if cut or empty:
        logger.warning("of %d answers, %d were cut off at their longest and %d are empty", len(replies), cut, empty)


def _check_finished(
    predictions: Sequence[Prediction], samples: Sequence[Sample], owns: Sequence[dict[str, str]]
) -> None:
    """Check that a finished file is by the same model about the same samples.

    Raises:
        PeFoMedError: it is not.
    """
    found = [(p.id, p.control, p.model, p.adapter, p.prompt_sha256) for p in predictions]
    if found != [(s.id, o["control"], o["model"], "", o["prompt_sha256"]) for s, o in zip(samples, owns, strict=True)]:
        raise PeFoMedError(
            "The output file holds predictions of another model or data set, or to other prompts; name another file "
            "or delete it."
        )
