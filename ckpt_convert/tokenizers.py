"""CLIP's tokenizer files ``vocab.json`` and ``merges.txt``, from Hugging Face or OpenAI."""

import gzip
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from styleclip_jax.errors import InputError
from styleclip_jax.io.files import parse_json, require_file
from styleclip_jax.io.text import parse_tokenizer

END_OF_TEXT = "<|endoftext|>"
SPECIAL_TOKENS = ("<|startoftext|>", END_OF_TEXT)
# A tokenizer.json of CLIP has 2 million.
_MAX_BYTES = 2**26


def read_tokenizer(path: str | os.PathLike[str], vocab_size: int) -> dict[str, bytes]:
    """Reads a tokenizer.

    Args:
        path: A Hugging Face directory or OpenAI's ``bpe_simple_vocab_16e6.txt.gz``.
        vocab_size: Number of tokens of the text tower.

    Returns:
        Contents by file name: ``vocab.json`` and ``merges.txt``.

    Raises:
        InputError: The tokenizer is missing or does not match the text tower.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist, expected a tokenizer")
    if path.is_dir():
        vocab, merges = _read_directory(path)
    else:
        require_file(path, "a tokenizer")
        vocab, merges = _read_openai(path, vocab_size)
    _check_size(vocab, vocab_size, path)
    try:
        files = {
            "vocab.json": json.dumps(vocab, ensure_ascii=False).encode(),
            "merges.txt": "\n".join(["#version: 0.2", *merges, ""]).encode(),
        }
        # Parses the files as on loading.
        parse_tokenizer(files["vocab.json"], files["merges.txt"], vocab_size)
    except ValueError:
        raise InputError(f"the tokenizer in {path} is damaged") from None
    return files


def has_tokenizer(directory: Path) -> bool:
    """Whether a Hugging Face directory contains a tokenizer."""
    return (directory / "vocab.json").is_file() or (directory / "tokenizer.json").is_file()


def _read_directory(path: Path) -> tuple[Any, list[str]]:
    try:
        if (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
            vocab = parse_json(_read(path / "vocab.json"))
            lines = _read(path / "merges.txt").split("\n")
            return vocab, [line for line in lines if line and not line.startswith("#version")]
        if (path / "tokenizer.json").is_file():
            model = parse_json(_read(path / "tokenizer.json"))["model"]
            merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
            return model["vocab"], merges
    except InputError:
        raise
    except (ValueError, KeyError, TypeError):
        raise InputError(f"the tokenizer in {path} is damaged") from None
    raise InputError(
        f"{path} has no tokenizer, expected vocab.json and merges.txt, or tokenizer.json"
    )


def _read_openai(path: Path, vocab_size: int) -> tuple[dict[str, int], list[str]]:
    """Builds the vocabulary like OpenAI's ``clip/simple_tokenizer.py``.

    Its order: a symbol per byte, the same symbols at the end of a word, the merges, two special
    tokens.
    """
    symbols = _byte_symbols()
    num_merges = vocab_size - 2 * len(symbols) - len(SPECIAL_TOKENS)
    try:
        lines = _read(path, gzip.open).split("\n")
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError):
        raise InputError(
            f"{path} is not a tokenizer or is damaged, expected a Hugging Face directory or "
            "OpenAI's bpe_simple_vocab_16e6.txt.gz"
        ) from None
    # The first line is the version; the file has many more merges than CLIP uses.
    merges = lines[1 : num_merges + 1]
    if len(merges) < num_merges or any(len(merge.split()) != 2 for merge in merges):
        raise InputError(f"{path} has {len(merges)} merges, expected {num_merges} of two symbols")
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols)]
    tokens += [merge.replace(" ", "") for merge in merges]
    return {token: i for i, token in enumerate([*tokens, *SPECIAL_TOKENS])}, merges


def _read(path: Path, opener: Callable[..., Any] = open) -> str:
    """The text of a file; raises InputError if it is larger than any tokenizer."""
    with opener(path, "rb") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise InputError(f"{path} is not a tokenizer: it has more than {_MAX_BYTES} bytes")
    return content.decode("utf-8")


def _byte_symbols() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in vocabulary order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(code) for code in [*printable, *range(256, 512 - len(printable))]]


def _check_size(vocab: Any, vocab_size: int, path: Path) -> None:
    ids = list(vocab.values()) if isinstance(vocab, dict) else []
    if not ids or not all(type(i) is int for i in ids):
        raise InputError(f"the tokenizer in {path} is damaged")
    # The text tower finds the end of a text by the highest id.
    if vocab.get(END_OF_TEXT) != max(ids) or max(ids) >= vocab_size:
        raise InputError(
            f"the tokenizer in {path} has {max(ids) + 1} tokens, ending in "
            f"{max(vocab, key=vocab.__getitem__)!r}, expected {vocab_size} for this CLIP, ending "
            f"in {END_OF_TEXT!r}"
        )
