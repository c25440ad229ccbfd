# SPDX-License-Identifier: Apache-2.0
"""Processor of PeFoMed: task identifiers, image tokens and the prompt's three forms, safe against what users type."""

import os
import re

from transformers import ProcessorMixin

IMAGE_TOKEN = "<ImageHere>"
TASK_IDENTIFIERS = ("caption", "vqa", "report", "refer", "grounding", "identify", "detection")
TEMPLATES = ("paper", "released", "chat")
RELEASED_MAX_WORDS = 50


def default_chat_template():
    """Return the text of `chat_template.jinja`, which lies beside this file."""
    with open(os.path.join(os.path.dirname(__file__), "chat_template.jinja"), encoding="utf-8") as file:
        return file.read()


def shared_prefix_length(prompts):
    """Return how many leading tokens all prompts share, leaving each at least one token of its own.

    The token before an answer is never shared: its output predicts the answer's first token.

    Args:
        prompts (`list[list[int]]`): token ids, none empty.
    """
    shortest = min(len(prompt) for prompt in prompts) - 1
    for position in range(shortest):
        if any(prompt[position] != prompts[0][position] for prompt in prompts):
            return position
    return shortest


def clean_as_released(text):
    """Return `text` as the released code feeds it: lower-cased, `.!"()*#:;~` blanked, 50 words at most.

    Source: the text processor `blip_caption` of the released code.
    """
    text = re.sub(r"\s{2,}", " ", re.sub(r'[.!"()*#:;~]', " ", text.lower()))
    return " ".join(text.rstrip("\n").strip(" ").split(" ")[:RELEASED_MAX_WORDS])


class PeFoMedProcessor(ProcessorMixin):
    r"""
    Wraps an image processor and a tokenizer, and writes the prompt. Its forms (`template`):

    - `paper`: `<s>[INST] <Img>` + image tokens + `</Img> [task] instruction [/INST]` + answer + `</s>`.
    - `released`: as the released code runs. The instruction is lower-cased, stripped of punctuation and cut at 50
      words; for training, `<img>` and `</img>` are lower-cased as well and the answer is cleaned likewise; else the
      prompt has two begin tokens.
    - `chat`: the language model's own chat template, with image tokens and task identifier in the user's turn.

    In `paper` and `released`, the texts before, between and after images are tokenised one by one, each with the
    leading space that a SentencePiece tokenizer puts before a text, as the released code does.

    Text that a user types can never become an image token or end the turn: control tokens in it are encoded as plain
    text, and the turn's markers `[INST]`, `[/INST]` are broken up.

    Args:
        image_processor ([`PeFoMedImageProcessor`]): the image processor.
        tokenizer (`PreTrainedTokenizerFast`): the language model's tokenizer. `<ImageHere>` is added to it when
            missing, behind the vocabulary: the language model's embedding matrix keeps its size.
        chat_template (`str`, *optional*): defaults to the project's one template.
        image_seq_length (`int`, defaults to 256): image tokens of one image, [`PeFoMedConfig.image_seq_length`].
        template (`str`, defaults to `"paper"`): the prompt's form: `paper`, `released` or `chat`. It is saved, so that
            an adapter is asked as it was trained.
        language_model_template (`str`, *optional*): the language model's own chat template, for `chat`; by default
            the tokenizer's. It is saved, because a saved tokenizer carries the project's instead.

    Raises:
        ValueError: the form is unknown, or not the paper's with a `chat_template` of one's own, or `chat` where the
            language model has no chat template that fits.

    Example:

    ```python
    >>> content = [{"type": "image", "image": image}, {"type": "text", "text": "Is there a mass?"}]
    >>> conversation = [{"role": "user", "content": content}]
    >>> inputs = processor.apply_chat_template(
    ...     conversation, task="vqa", tokenize=True, return_dict=True, return_tensors="pt"
    ... )
    ```
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        chat_template=None,
        image_seq_length=256,
        template="paper",
        language_model_template=None,
        **kwargs,
    ):
        if tokenizer is not None and IMAGE_TOKEN not in tokenizer.get_vocab():
            tokenizer.add_special_tokens(
                {"additional_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False
            )
        self.image_token = IMAGE_TOKEN
        self.image_token_id = None if tokenizer is None else tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self.image_seq_length = image_seq_length
        own = getattr(tokenizer, "chat_template", None)
        if language_model_template is None and isinstance(own, str) and IMAGE_TOKEN not in own:
            language_model_template = own
        self.language_model_template = language_model_template
        super().__init__(image_processor, tokenizer, chat_template=chat_template or default_chat_template(), **kwargs)
        self.set_template(template)

    def set_template(self, template):
        """Choose the prompt's form from here on: `paper`, `released` or `chat`.

        Raises:
            ValueError: see the class.
        """
        if template not in TEMPLATES:
            raise ValueError(f"Unknown template {template!r}; expected one of {', '.join(TEMPLATES)}.")
        if template != "paper" and "answer_space" not in self.chat_template:
            raise ValueError(f"template {template!r} needs the project's chat_template; found another. Use 'paper'.")
        if template == "chat" and not self.language_model_template:
            raise ValueError("template 'chat' needs a chat template of the language model; found none. Use 'paper'.")
        self.template = template
        if self.tokenizer is None:
            return
        # A SentencePiece tokenizer puts a space before every text: before each segment, not only before the first.
        spaces = self.tokenizer.backend_tokenizer.pre_tokenizer
        if getattr(spaces, "prepend_scheme", "never") != "never":
            always = template != "chat" or getattr(self.tokenizer, "legacy", False)
            spaces.prepend_scheme = "always" if always else "first"
        # Some put one even before a text that starts with one; an answer is to have a single one.
        tokens = self.tokenizer.convert_ids_to_tokens(self.tokenizer.encode(" a", add_special_tokens=False))
        self.answer_space = "" if "".join(tokens).startswith("▁▁") else " "
        if template == "chat":
            self._before_answer, self._answer_end = self._find_chat_answer()

    def replace_image_token(self, image_inputs, image_idx, **kwargs):
        """Return the placeholder repeated once per image token; called by `ProcessorMixin.__call__` for each image."""
        return self.image_token * self.image_seq_length

    def apply_chat_template(self, conversation, chat_template=None, *args, training=False, **kwargs):
        """As `ProcessorMixin.apply_chat_template`, but control tokens in the conversation's text are always encoded as
        text when tokenising, and no token is added to what the template writes. `task="vqa"` writes the task
        identifier before the instruction; `training=True` gives the form in which the released code trains.

        Raises:
            ValueError: text holds a control token and an assistant mask is asked for, which transformers cannot
                combine with encoding it as text.
        """
        if chat_template is None and conversation:
            batched = not isinstance(conversation[0], dict)
            turns = conversation if batched else [conversation]
            if self.template == "released":
                turns = [self._clean(turn, kwargs.get("task"), training) for turn in turns]
            elif self.template == "chat" and not kwargs.get("continue_final_message"):
                kwargs.setdefault("add_generation_prompt", turns[0][-1]["role"] != "assistant")
            conversation = turns if batched else turns[0]
            chat_template = self._whole_template()
            kwargs |= self._variables(training)
        if kwargs.get("tokenize"):
            kwargs["processor_kwargs"] = {"add_special_tokens": False, **(kwargs.get("processor_kwargs") or {})}
        if kwargs.get("tokenize") and not kwargs.get("return_assistant_tokens_mask"):
            kwargs.setdefault("sanitize_control_tokens", True)
        elif kwargs.get("tokenize"):
            text = str(conversation)
            found = [token for token in self.tokenizer.all_special_tokens if token in text]
            if found:
                raise ValueError(f"The text holds the control token {found[0]}, which cannot be masked for training.")
        return super().apply_chat_template(conversation, chat_template, *args, **kwargs)

    def encode_prompt(self, instruction, task, num_images=1, training=False, expand_images=True):
        """Return the token ids of one prompt (all before the answer), with every image expanded to its image tokens.

        The same ids as `apply_chat_template(..., tokenize=True)` gives for the same conversation, without touching the
        pixels: packed rows encode an image once and its questions many times.

        Args:
            instruction (`str`): text after the task identifier.
            task (`str`): one of `caption`, `vqa`, `report`, `refer`, `grounding`, `identify`, `detection`.
            num_images (`int`, defaults to 1): images before the instruction.
            training (`bool`, defaults to `False`): the form to train on, which in `released` is another one.
            expand_images (`bool`, defaults to `True`): with `False`, one image token stands for each image, to be
                repeated `image_seq_length` times later.

        Returns:
            `list[int]`
        """
        content = [{"type": "image"}] * num_images + [{"type": "text", "text": instruction}]
        conversation = [{"role": "user", "content": content}]
        if self.template == "released":
            conversation = self._clean(conversation, task, training)
        ids = self.tokenizer.apply_chat_template(
            conversation,
            chat_template=self._whole_template(),
            task=task,
            sanitize_control_tokens=True,
            return_dict=False,
            add_generation_prompt=True,
            **self._variables(training),
        )
        if not expand_images:
            return ids
        repeat = {self.image_token_id: self.image_seq_length}
        return [token for token in ids for _ in range(repeat.get(token, 1))]

    def encode_answer(self, answer, training=False):
        """Return the token ids of one answer and the end token, to be put behind a prompt; `list[int]`.

        In `chat`, what the language model's template writes between the prompt and an answer comes first.
        """
        if self.template == "chat":
            text = self._before_answer.rstrip(" ")
            space = self._before_answer[len(text) :]
            return (
                self._encode_inside(text, split_special_tokens=False)
                + self._encode_inside(space + answer, split_special_tokens=True)
                + self._answer_end
            )
        if self.template == "released" and training:
            answer = clean_as_released(answer)
        text = self.answer_space + answer if answer else ""
        ids = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return ids + [self.tokenizer.eos_token_id]

    def _whole_template(self):
        """The text that renders: in `chat`, the language model's own template behind the project's."""
        return self.chat_template + (self.language_model_template if self.template == "chat" else "")

    def _variables(self, training):
        """What the project's template looks at; a chat template of one's own is given none of it."""
        if "answer_space" not in self.chat_template:
            return {}
        return {"template": self.template, "training": training, "answer_space": self.answer_space}

    def _clean(self, conversation, task, training):
        """The conversation with users' texts as the released code cleans them: together with the task identifier and,
        in training, with the image slots, which count as words."""
        cleaned = []
        for turn in conversation:
            content = turn["content"]
            if turn["role"] == "user":
                parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
                images = sum(part["type"] == "image" for part in parts) if training else 0
                before, after = "<img><imagehere></img> " * images + (f"[{task}] " if task else ""), " " * training
                content = [
                    {**part, "text": clean_as_released(before + part["text"] + after)[len(before) :]}
                    if part["type"] == "text"
                    else part
                    for part in parts
                ]
            cleaned.append({**turn, "content": content})
        return cleaned

    def _find_chat_answer(self):
        """What the language model's template writes before an answer, and the ids that end it, without what follows.

        Raises:
            ValueError: an answer does not stand where the template asks for one.
        """
        mark = "Answer"
        turns = [{"role": "user", "content": "Question"}, {"role": "assistant", "content": mark}]
        prompt, whole = (
            self.tokenizer.apply_chat_template(
                part,
                chat_template=self._whole_template(),
                tokenize=False,
                add_generation_prompt=len(part) == 1,
                **self._variables(False),
            )
            for part in (turns[:1], turns)
        )
        at = whole.rfind(mark)
        if at < len(prompt) or not whole.startswith(prompt):
            raise ValueError(
                "The language model's chat template writes an answer elsewhere than it asks for one. Use 'paper'."
            )
        end = self._encode_inside(whole[at + len(mark) :], split_special_tokens=False)
        control = [index for index, token in enumerate(end) if token in self.tokenizer.added_tokens_decoder]
        return whole[len(prompt) : at], end[: control[0] + 1] if control else [self.tokenizer.eos_token_id]

    def _encode_inside(self, text, split_special_tokens):
        """Token ids of a text that others stand before: without the space that some tokenizers put before a text."""
        if not text:
            return []
        options = {"add_special_tokens": False, "split_special_tokens": split_special_tokens}
        newline, ids = (self.tokenizer.encode(part, **options) for part in ("\n", "\n" + text))
        return ids[len(newline) :] if ids[: len(newline)] == newline else self.tokenizer.encode(text, **options)


__all__ = ["PeFoMedProcessor"]
