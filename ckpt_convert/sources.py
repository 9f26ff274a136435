"""Sources of official weights: files, addresses and known names."""

import hashlib
import logging
from pathlib import Path
from typing import NamedTuple

from ckpt_convert.downloads import download
from styleclip_jax.errors import InputError
from styleclip_jax.io.files import expand_user

CACHE = "~/.cache/styleclip_jax/weights"


class Weights(NamedTuple):
    """A published file, and its SHA-256 if the publisher states it."""

    address: str
    sha256: str | None = None


def _openai(sha256: str, name: str) -> Weights:
    """From ``_MODELS`` in ``clip/clip.py`` of openai/CLIP, whose addresses contain the SHA-256."""
    return Weights(f"https://openaipublic.azureedge.net/clip/models/{sha256}/{name}", sha256)


def _nvidia(name: str) -> Weights:
    """From the README of NVlabs/stylegan2-ada-pytorch, which states no checksums."""
    folder = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained"
    return Weights(f"{folder}/{name}.pkl")


KNOWN: dict[str, dict[str, Weights]] = {
    "stylegan2": {
        name: _nvidia(name) for name in ("ffhq", "metfaces", "afhqcat", "afhqdog", "afhqwild")
    },
    "clip": {
        "ViT-B/32": _openai(
            "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af", "ViT-B-32.pt"
        ),
        "ViT-B/16": _openai(
            "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f", "ViT-B-16.pt"
        ),
        "ViT-L/14": _openai(
            "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836", "ViT-L-14.pt"
        ),
        "ViT-L/14@336px": _openai(
            "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
            "ViT-L-14-336px.pt",
        ),
    },
}

# In the repository of openai/CLIP, at its newest commit; we computed the SHA-256.
VOCABULARY = Weights(
    "https://raw.githubusercontent.com/openai/CLIP/d05afc436d78f1c48dc0dbf8e5980a9d471f35f6/clip/"
    "bpe_simple_vocab_16e6.txt.gz",
    "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a",
)

# Hugging Face repositories, and their files: of the weights, the first that exist are read.
HUGGING_FACE = (
    "openai/clip-vit-base-patch32",
    "openai/clip-vit-base-patch16",
    "openai/clip-vit-large-patch14",
    "openai/clip-vit-large-patch14-336",
)
_CONFIGURATION = ("config.json", "vocab.json", "merges.txt", "tokenizer.json")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def known_names(command: str) -> list[str]:
    """Known names for a kind of model, for :func:`find`."""
    return [*KNOWN.get(command, {}), *(HUGGING_FACE if command == "clip" else ())]


def find(command: str, source: str, cache: str = CACHE) -> Path:
    """Finds the file or directory of a source, and downloads it if necessary.

    Args:
        command: The kind of model, for example ``"clip"``.
        source: A path, an ``https://`` address or a known name; an existing path prevails.
        cache: The directory for downloads.

    Raises:
        InputError: The source is none of these, or cannot be downloaded.
        OSError: The download cannot be written.
    """
    path = expand_user(source)
    if path.exists():
        return path
    if source.startswith(("http://", "https://")):
        return fetch(Weights(source), cache)
    if source in KNOWN.get(command, {}):
        return fetch(KNOWN[command][source], cache)
    if source in known_names(command):
        return _fetch_repository(source)
    names = ", ".join(known_names(command))
    raise InputError(
        f"{source} does not exist, expected a path"
        + (f", an https:// address or one of the names {names}" if names else " or an address")
    )


def default_tokenizer(command: str, source: str) -> Weights | None:
    """The tokenizer of a known model whose file does not contain one."""
    return VOCABULARY if command == "clip" and source in KNOWN["clip"] else None


def fetch(weights: Weights, cache: str = CACHE) -> Path:
    """The file in the cache; see :func:`download`."""
    address, sha256 = weights
    name = address.partition("?")[0].rpartition("/")[2]
    # Addresses may have the same last part.
    prefix = hashlib.sha256(address.encode()).hexdigest()[:16]
    path = expand_user(cache) / f"{prefix}-{name[-100:]}"
    download(address, path, sha256)
    return path


def _fetch_repository(name: str) -> Path:
    """The directory with a repository's files in Hugging Face's own cache."""
    # Slow to import, and only needed here.
    import huggingface_hub

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    for weights in _WEIGHTS:
        try:
            folder = huggingface_hub.snapshot_download(
                name, allow_patterns=[*_CONFIGURATION, weights]
            )
        except Exception as error:  # Several libraries raise their own types.
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise InputError(f"{name} cannot be downloaded from Hugging Face: {reason}") from error
        if (Path(folder) / weights).exists():
            return Path(folder)
    raise InputError(f"{name} has no {' or '.join(_WEIGHTS)} on Hugging Face")
