"""Our networks with the weights that the official ones had in a run of a golden file."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import seeded

from ckpt_convert.formats import SourceFile


@functools.cache
def official(golden: str, name: str, convert: Callable[[SourceFile], Any]) -> Any:
    """The network ``name`` of the golden file ``golden``, made by a converter."""
    weights = seeded.load(golden).weights(name)
    if name == "generator":
        weights["latent_avg"] = np.zeros(512, np.float32)
    return convert(SourceFile(name, "pytorch", weights, {}, {})).model
