# SPDX-License-Identifier: Apache-2.0
"""Processor of PeFoMed: task identifiers, image tokens and one chat template, safe against text that users type."""

import os

from transformers import ProcessorMixin

IMAGE_TOKEN = "<ImageHere>"
TASK_IDENTIFIERS = ("caption", "vqa", "report", "refer", "grounding", "identify", "detection")


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


class PeFoMedProcessor(ProcessorMixin):
    r"""
    Wraps an image processor and a tokenizer, and writes the paper's prompt:
    `<s>[INST] <Img>` + image tokens + `</Img> [task] instruction [/INST]` + answer + `</s>`.

    Text that a user types can never become an image token or end the turn: control tokens in it are encoded as plain
    text, and the turn's markers `[INST]`, `[/INST]` are broken up.

    Args:
        image_processor ([`PeFoMedImageProcessor`]): the image processor.
        tokenizer (`PreTrainedTokenizerFast`): the language model's tokenizer. `<ImageHere>` is added to it when
            missing, behind the vocabulary: the language model's embedding matrix keeps its size.
        chat_template (`str`, *optional*): defaults to the project's one template.
        image_seq_length (`int`, defaults to 256): image tokens of one image, [`PeFoMedConfig.image_seq_length`].

    Example:

    ```python
    >>> content = [{"type": "image", "image": image}, {"type": "text", "text": "Is there a mass?"}]
    >>> conversation = [{"role": "user", "content": content}]
    >>> inputs = processor.apply_chat_template(
    ...     conversation, task="vqa", tokenize=True, return_dict=True, return_tensors="pt"
    ... )
    ```
    """

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, image_seq_length=256, **kwargs):
        if tokenizer is not None and IMAGE_TOKEN not in tokenizer.get_vocab():
            tokenizer.add_special_tokens(
                {"additional_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False
            )
        self.image_token = IMAGE_TOKEN
        self.image_token_id = None if tokenizer is None else tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self.image_seq_length = image_seq_length
        super().__init__(image_processor, tokenizer, chat_template=chat_template or default_chat_template(), **kwargs)

    def replace_image_token(self, image_inputs, image_idx, **kwargs):
        """Return the placeholder repeated once per image token; called by `ProcessorMixin.__call__` for each image."""
        return self.image_token * self.image_seq_length

    def apply_chat_template(self, conversation, *args, **kwargs):
        """As `ProcessorMixin.apply_chat_template`, but control tokens in the conversation's text are always encoded as
        text when tokenising. `task="vqa"` writes the task identifier before the instruction.

        Raises:
            ValueError: text holds a control token and an assistant mask is asked for, which transformers cannot
                combine with encoding it as text.
        """
        if kwargs.get("tokenize") and not kwargs.get("return_assistant_tokens_mask"):
            kwargs.setdefault("sanitize_control_tokens", True)
        elif kwargs.get("tokenize"):
            text = str(conversation)
            found = [token for token in self.tokenizer.all_special_tokens if token in text]
            if found:
                raise ValueError(f"The text holds the control token {found[0]}, which cannot be masked for training.")
        return super().apply_chat_template(conversation, *args, **kwargs)

    def encode_prompt(self, instruction, task, num_images=1):
        """Return the token ids of one prompt (all before the answer), with every image expanded to its image tokens.

        The same ids as `apply_chat_template(..., tokenize=True)` gives for the same conversation, without touching the
        pixels: packed rows encode an image once and its questions many times.

        Args:
            instruction (`str`): text after the task identifier.
            task (`str`): one of `caption`, `vqa`, `report`, `refer`, `grounding`, `identify`, `detection`.
            num_images (`int`, defaults to 1): images before the instruction.

        Returns:
            `list[int]`
        """
        content = [{"type": "image"}] * num_images + [{"type": "text", "text": instruction}]
        ids = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=self.chat_template,
            task=task,
            sanitize_control_tokens=True,
            return_dict=False,
        )
        repeat = {self.image_token_id: self.image_seq_length}
        return [token for token in ids for _ in range(repeat.get(token, 1))]

    def encode_answer(self, answer):
        """Return the token ids of one answer and the end token, to be put behind a prompt; `list[int]`."""
        ids = self.tokenizer.encode(" " + answer, add_special_tokens=False, split_special_tokens=True)
        return ids + [self.tokenizer.eos_token_id]


__all__ = ["PeFoMedProcessor"]
