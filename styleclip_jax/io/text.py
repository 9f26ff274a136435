"""CLIP's tokenizer, and features of texts."""

import html
import json
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

import ftfy
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float, Int

from styleclip_jax.errors import InputError
from styleclip_jax.io.checkpoints import AVATARS, CONFIG_FILE, TOKENIZER, to_path, verify
from styleclip_jax.io.files import parse_json
from styleclip_jax.models.clip import CLIP, CLIPConfig

# Templates contain the article.
_ARTICLE = re.compile(r"^(an?|the)\s+", re.IGNORECASE)
_START, _END = "<|startoftext|>", "<|endoftext|>"
# All words that a small CLIP was trained on, one per line, in the tokenizer's directory.
WORDS_FILE = "words.txt"
_PUNCTUATION = ".,;:!?\"'()"


class Tokenizer:
    """CLIP's byte-pair tokenizer (``transformers.CLIPTokenizer``) with a fixed context length.

    Args:
        vocab: Token ids by token; the end-of-text token has the highest id.
        merges: Byte-pair merges, most frequent first, each two tokens separated by a space.
        context_length: Tokens per text, including the start and end tokens.
        words: All words in the texts that the CLIP was trained on. None: unknown, as for general
            CLIPs.
    """

    def __init__(
        self,
        vocab: dict[str, int],
        merges: Sequence[str],
        context_length: int,
        words: Iterable[str] | None = None,
    ):
        pairs: Any = [tuple(merge.split()) for merge in merges]
        self._tokenizer = _import_tokenizer()(vocab=vocab, merges=pairs)
        self._vocab, self._merges = vocab, merges
        self._words = None if words is None else frozenset(words)
        self.context_length = context_length

    @property
    def files(self) -> dict[str, bytes]:
        """Contents by name of the tokenizer's files, as ``save_model`` takes them."""
        merges = "".join(f"{merge}\n" for merge in ("#version: 0.2", *self._merges))
        files = {"vocab.json": json.dumps(self._vocab).encode(), "merges.txt": merges.encode()}
        if self._words is not None:
            files[WORDS_FILE] = format_words(self._words)
        return files

    def unknown_words(self, texts: str | Sequence[str]) -> list[str]:
        """Words that the CLIP was not trained on; empty if its training words are unknown."""
        texts = [texts] if isinstance(texts, str) else texts
        if self._words is None:
            return []
        words = dict.fromkeys(word for text in texts for word in words_of(text))
        return [word for word in words if word not in self._words]

    def __call__(self, texts: str | Sequence[str]) -> Int[np.ndarray, "batch context"]:
        """Encodes one or several texts like OpenAI's ``clip.tokenize``: start, tokens, end, zeros.

        Raises:
            InputError: A text is empty or longer than the context.
        """
        texts = [texts] if isinstance(texts, str) else texts
        tokens = np.zeros((len(texts), self.context_length), np.int32)
        for row, text in zip(tokens, texts, strict=True):
            ids = self._ids(text)
            if len(ids) == 2:
                raise InputError("the text is empty; describe what the image should show")
            if len(ids) > self.context_length:
                raise InputError(
                    f"the text has {len(ids) - 2} tokens, expected at most"
                    f" {self.context_length - 2}; shorten {text!r}"
                )
            row[: len(ids)] = ids
        return tokens

    def fits(self, text: str) -> bool:
        """Whether a text is short enough for the context."""
        return len(self._ids(text)) <= self.context_length

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer(_clean(text))["input_ids"]


def _import_tokenizer() -> Any:
    # Slow to import, and only needed for texts. Tokenizers do not need PyTorch, but transformers
    # warns if it is missing.
    silent = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    before = os.environ.get(silent)
    os.environ[silent] = "1"
    try:
        from transformers import CLIPTokenizer
    finally:
        if before is None:
            del os.environ[silent]
        else:
            os.environ[silent] = before
    return CLIPTokenizer


def _clean(text: str) -> str:
    """``basic_clean`` of OpenAI's ``clip/simple_tokenizer.py``: repairs and unescapes a text."""
    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation around them."""
    words = (word.strip(_PUNCTUATION) for word in _clean(text).lower().split())
    return [word for word in words if word]


def format_words(words: Iterable[str]) -> bytes:
    """The content of ``words.txt``."""
    return "".join(f"{word}\n" for word in sorted(words)).encode()


def load_tokenizer(path: epath.PathLike | None = None) -> Tokenizer:
    """Reads the tokenizer of a CLIP checkpoint directory. None: the avatars CLIP's.

    Returns:
        A function from texts to token ids (B, context_length), int32.

    Raises:
        InputError: The tokenizer is missing or damaged.
    """
    path = to_path(AVATARS / "clip" if path is None else path)
    folder = path / TOKENIZER
    try:
        config = CLIPConfig(**parse_json((path / CONFIG_FILE).read_text())["config"])
        verify(path, (CONFIG_FILE, TOKENIZER))
        vocab_file, merges_file = folder / "vocab.json", folder / "merges.txt"
        vocab, merges = parse_tokenizer(
            vocab_file.read_bytes(), merges_file.read_bytes(), config.vocab_size
        )
        words_file = folder / WORDS_FILE
        words = words_file.read_bytes().decode().split() if words_file.exists() else None
    except InputError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{path} has no tokenizer (vocab.json and merges.txt in {TOKENIZER}/); convert the"
            " CLIP again with --tokenizer"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"the tokenizer in {folder} is damaged or does not match the CLIP; convert the CLIP"
            " again with --tokenizer"
        ) from None
    return Tokenizer(vocab, merges, config.context_length, words)


def parse_tokenizer(
    vocab: bytes, merges: bytes, vocab_size: int
) -> tuple[dict[str, int], list[str]]:
    """Parses the contents of ``vocab.json`` and ``merges.txt``.

    Returns:
        Token ids by token, and the merges, for :class:`Tokenizer`.

    Raises:
        ValueError: The tokens do not match a CLIP with ``vocab_size`` tokens, the end-of-text token
            is not the last one, or merges contain unknown tokens.
    """
    ids = parse_json(vocab)
    if not isinstance(ids, dict):
        raise ValueError("the vocabulary is not a JSON object")
    "".join(ids).encode()  # JSON may contain lone surrogates, which cannot be encoded.
    lines = merges.decode().split("\n")
    lines = [line for line in lines if line and not line.startswith("#version")]
    pairs = [line.split() for line in lines]
    if not (
        all(type(i) is int and 0 <= i < vocab_size for i in ids.values())
        and _START in ids
        and ids.get(_END) == max(ids.values())
        and all(len(p) == 2 and {*p, "".join(p)} <= ids.keys() for p in pairs)
    ):
        raise ValueError(f"the tokens do not match a CLIP with {vocab_size} tokens")
    return ids, lines


def encode_texts(
    clip: CLIP, tokenizer: Tokenizer, texts: Sequence[str], templates: Sequence[str] = ()
) -> Float[Array, "batch embed"]:
    """CLIP features of texts.

    Args:
        clip: The CLIP.
        tokenizer: The tokenizer of the CLIP.
        texts: The texts.
        templates: Sentences with "{}" as a placeholder for the text without its article. The
            features are the mean of the unit features over all sentences. Empty: the text itself.

    Returns:
        (B, embed_dim); of unit length only with templates.
    """
    encode = jax.jit(CLIP.encode_text)
    if not templates:
        return encode(clip, jnp.asarray(tokenizer(texts)))

    def mean(text: str) -> Array:
        noun = _ARTICLE.sub("", text)
        features = encode(clip, jnp.asarray(tokenizer([x.format(noun) for x in templates])))
        features /= jnp.linalg.norm(features, axis=-1, keepdims=True)
        features = features.mean(axis=0)
        return features / jnp.linalg.norm(features)

    return jnp.stack([mean(text) for text in texts])
