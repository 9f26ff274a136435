"""The installed commands, such as ``styleclip-optimize``.

This module imports nothing large, so that an interrupt while the libraries are imported also prints
a single line.
"""

import importlib
import sys
from typing import NoReturn


def _start(module: str) -> NoReturn:
    try:
        start = importlib.import_module(module).start
    except KeyboardInterrupt:
        raise SystemExit("error: interrupted") from None
    sys.exit(start())


def optimize() -> NoReturn:
    """``styleclip-optimize``."""
    _start("styleclip_jax.scripts.optimize")


def train_mapper() -> NoReturn:
    """``styleclip-train-mapper``."""
    _start("styleclip_jax.scripts.train_mapper")


def apply_mapper() -> NoReturn:
    """``styleclip-apply-mapper``."""
    _start("styleclip_jax.scripts.apply_mapper")


def invert() -> NoReturn:
    """``styleclip-invert``."""
    _start("styleclip_jax.scripts.invert")


def directions() -> NoReturn:
    """``styleclip-directions``."""
    _start("styleclip_jax.scripts.directions")


def make_directions() -> NoReturn:
    """``styleclip-make-directions``."""
    _start("styleclip_jax.scripts.make_directions")


def app() -> NoReturn:
    """``styleclip-app``."""
    _start("styleclip_jax.scripts.app")


def convert() -> NoReturn:
    """``styleclip-convert``."""
    _start("ckpt_convert.__main__")
