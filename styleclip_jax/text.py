"""Texts to tokens to features: CLIP's tokenizer and text tower."""

import html
import json
from collections.abc import Sequence
from typing import Any

import ftfy
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float, Int

from styleclip_jax.checkpoints import AVATARS, CONFIG_FILE, TOKENIZER, to_path
from styleclip_jax.errors import InputError
from styleclip_jax.models.clip import CLIP

_START, _END = "<|startoftext|>", "<|endoftext|>"


class Tokenizer:
    """CLIP's byte-pair tokenizer (``transformers.CLIPTokenizer``) with a fixed context length.

    Args:
        vocab: Token ids by token; the end-of-text token has the highest id.
        merges: Byte-pair merges, most frequent first, each two tokens separated by a space.
        context_length: Tokens of a text, start and end tokens included.
    """

    def __init__(self, vocab: dict[str, int], merges: Sequence[str], context_length: int):
        # Slow to import, and needed only where texts are read.
        from transformers import CLIPTokenizer

        pairs: Any = [tuple(merge.split()) for merge in merges]
        self._tokenizer = CLIPTokenizer(vocab=vocab, merges=pairs)
        self.context_length = context_length

    def __call__(self, texts: Sequence[str]) -> Int[np.ndarray, "batch context"]:
        """Encodes texts as OpenAI's ``clip.tokenize`` does: start, tokens, end, zeros.

        Raises:
            InputError: A text is empty or longer than the context.
        """
        tokens = np.zeros((len(texts), self.context_length), np.int32)
        for row, text in zip(tokens, texts, strict=True):
            ids = self._tokenizer(_clean(text))["input_ids"]
            if len(ids) == 2:
                raise InputError("the text is empty; describe the picture you want to see")
            if len(ids) > self.context_length:
                raise InputError(
                    f"the text has {len(ids) - 2} tokens, at most {self.context_length - 2} fit;"
                    f" shorten {text!r}"
                )
            row[: len(ids)] = ids
        return tokens


def _clean(text: str) -> str:
    """Mends and unescapes a text as OpenAI's ``clip/simple_tokenizer.py`` does, ``basic_clean``."""
    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


def load_tokenizer(path: epath.PathLike | None = None) -> Tokenizer:
    """Reads the tokenizer of a CLIP checkpoint directory. None: the avatars CLIP's.

    Returns:
        A function from texts to token ids (B, context_length), int32.

    Raises:
        InputError: The directory has no tokenizer, or a damaged one.
    """
    path = to_path(AVATARS / "clip" if path is None else path)
    folder = path / TOKENIZER
    try:
        config = json.loads((path / CONFIG_FILE).read_text())["config"]
        context_length, vocab_size = config["context_length"], config["vocab_size"]
        vocab = dict(json.loads((folder / "vocab.json").read_text("utf-8")))
        lines = (folder / "merges.txt").read_text("utf-8").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{path} has no tokenizer (vocab.json and merges.txt in {TOKENIZER}/); convert the"
            " CLIP again with --tokenizer"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"the tokenizer in {folder} is damaged") from None
    merges = [line for line in lines if line and not line.startswith("#version")]
    if not is_tokenizer(vocab, merges, vocab_size):
        raise InputError(f"the tokenizer in {folder} is damaged, or that of another CLIP")
    return Tokenizer(vocab, merges, context_length)


def is_tokenizer(vocab: dict[str, Any], merges: Sequence[str], vocab_size: int) -> bool:
    """Whether these are tokens of a CLIP, all in its vocabulary, the end of a text the last one."""
    ids = list(vocab.values())
    pairs = [merge.split() for merge in merges]
    return (
        all(type(i) is int and 0 <= i < vocab_size for i in ids)
        and _START in vocab
        and vocab.get(_END) == max(ids)
        and all(len(pair) == 2 and {*pair, "".join(pair)} <= vocab.keys() for pair in pairs)
    )


def encode_texts(
    clip: CLIP, tokenizer: Tokenizer, texts: Sequence[str]
) -> Float[Array, "batch embed"]:
    """CLIP features of texts, (B, embed_dim), not of unit length."""
    return jax.jit(CLIP.encode_text)(clip, jnp.asarray(tokenizer(texts)))
