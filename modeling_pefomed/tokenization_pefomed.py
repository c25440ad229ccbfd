# SPDX-License-Identifier: Apache-2.0
"""Loads a language model's tokenizer so that it splits text as its SentencePiece model does."""

from transformers import AutoTokenizer
from transformers.tokenization_utils_base import generate_merges


def load_tokenizer(name, **kwargs):
    """As `AutoTokenizer.from_pretrained`, also where a folder holds LLaMA's `tokenizer.model` and no `tokenizer.json`.

    From a bare BPE model, transformers 5 derives the merges in the order of token ids. SentencePiece merges by score,
    and scores its pieces of spaces lowest, whatever their ids: double spaces come out differently.

    Args:
        name (`str` or `os.PathLike`): folder or Hub id.
    """
    tokenizer = AutoTokenizer.from_pretrained(name, **kwargs)
    model_file = tokenizer.init_kwargs.get("vocab_file") or ""
    if not model_file.endswith(".model") or not hasattr(tokenizer, "_merges"):
        return tokenizer
    # Only now: it needs the package sentencepiece, as reading the file just did.
    from transformers.tokenization_utils_sentencepiece import SentencePieceExtractor

    pieces = SentencePieceExtractor(model_file).sp
    vocab = {pieces.id_to_piece(index): index for index in range(len(pieces))}
    scores = {
        piece: pieces.get_score(index)
        for piece, index in vocab.items()
        if not (pieces.is_control(index) or pieces.is_unknown(index) or pieces.is_byte(index))
    }
    settings = {key: value for key, value in tokenizer.init_kwargs.items() if key not in ("vocab", "merges")}
    return type(tokenizer)(vocab=vocab, merges=generate_merges(vocab, scores), **settings)
