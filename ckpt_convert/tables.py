"""Renames and transforms official parameters by a table.

A row is (source key, target path, transform). :func:`expand` fills in the fields in braces,
once for every layer. Every key of a source must be consumed by a row or be in the converter's list
of ignored keys.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from ckpt_convert.formats import SourceFile
from styleclip_jax.errors import InputError
from styleclip_jax.io.checkpoints import build

_MAX_LISTED = 8


class Row(NamedTuple):
    """One row of a table; several ``source`` keys, separated by spaces, make one target."""

    source: str
    target: str
    transform: Callable[..., np.ndarray]

    @property
    def sources(self) -> list[str]:
        """The source keys."""
        return self.source.split()


Table = Sequence[Row]
# Patterns of keys that are not converted, with a condition on their arrays or None.
Ignored = Mapping[str, Callable[[np.ndarray], bool] | None]


class Conversion(NamedTuple):
    """A converted model, its tokenizer files, and notes for the user."""

    model: Any
    tokenizer_files: Mapping[str, bytes] = {}
    notes: Sequence[str] = ()


def unchanged(x: np.ndarray) -> np.ndarray:
    """The identity."""
    return x


def linear_kernel(x: np.ndarray) -> np.ndarray:
    """(out, in) -> (in, out)."""
    return np.transpose(x, (1, 0))


def conv_kernel(x: np.ndarray) -> np.ndarray:
    """(out, in, height, width) -> (height, width, in, out)."""
    return np.transpose(x, (2, 3, 1, 0))


def expand(rows: Iterable[tuple], **names: object) -> list[Row]:
    """Fills in the fields in braces of table rows."""
    return [Row(source.format(**names), target.format(**names), f) for source, target, f in rows]


def dimension(source: SourceFile, key: str, axis: int, default: int) -> int:
    """The length of an axis; ``default`` if the key is missing, which a table reports later."""
    shape = source.tensors[key].shape if key in source.tensors else ()
    return shape[axis] if -len(shape) <= axis < len(shape) else default


def count(source: SourceFile, prefix: str) -> int:
    """One more than the highest number after ``prefix`` in a key."""
    pattern = re.compile(re.escape(prefix) + r"(\d{1,3})\b")
    matches = (pattern.match(key) for key in source.tensors)
    return max((int(match[1]) + 1 for match in matches if match), default=0)


def describe(source: SourceFile) -> str:
    """Describes the contents of a file that is not the expected model."""
    keys = list(source.tensors)
    more = ", ..." if len(keys) > 3 else ""
    return f"it contains {', '.join(map(repr, keys[:3]))}{more}" if keys else "it has no tensors"


def apply_table(
    source: SourceFile,
    table: Table,
    ignored: Ignored,
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, np.ndarray]:
    """Renames and transforms a source's tensors.

    Args:
        source: The file.
        table: One row for every path in ``shapes``.
        ignored: Keys without a row.
        shapes: Shapes of the model's parameters.

    Returns:
        An array for every path in ``shapes``, in the source's precision.

    Raises:
        InputError: Keys are missing, unexpected or misshapen; the message lists them.
    """
    tensors = source.tensors
    consumed = {key for row in table for key in row.sources}
    missing = [key for row in table for key in row.sources if key not in tensors]
    unexpected = [key for key in tensors if key not in consumed and not _is_ignored(key, ignored)]
    misshapen, arrays = [], {}
    for row in table:
        if any(key not in tensors for key in row.sources):
            continue
        inputs = [tensors[key] for key in row.sources]
        expected = shapes[row.target]
        try:
            arrays[row.target] = row.transform(*inputs)
            fits = arrays[row.target].shape == expected
        except (ValueError, IndexError):
            fits = False
        if not fits:
            found = " ".join(str(x.shape) for x in inputs)
            misshapen.append(f"{row.source} {found} for {row.target} {expected}")
    problems = [
        _listing(keys, what)
        for keys, what in (
            (missing, "missing"),
            (unexpected, "unexpected"),
            (misshapen, "of the wrong shape"),
        )
        if keys
    ]
    if problems:
        raise InputError(f"{source.name} does not match the model: {'; '.join(problems)}")
    for pattern, check in ignored.items():
        for key in tensors:
            if check and re.fullmatch(pattern, key) and not check(tensors[key]):
                raise InputError(f"{source.name}: {key} has an unsupported value")
    return arrays


def fill(
    model_class: Callable[..., nnx.Module],
    config: Any,
    source: SourceFile,
    table: Table,
    ignored: Ignored,
) -> nnx.Module:
    """A float32 model of an architecture with a source's parameters; see :func:`apply_table`."""

    def arrays(abstract: dict[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
        shapes = {path: a.shape for path, a in abstract.items()}
        found = apply_table(source, table, ignored, shapes)
        return {path: found[path].astype(a.dtype) for path, a in abstract.items()}

    return build(model_class, config, arrays)


def _is_ignored(key: str, ignored: Ignored) -> bool:
    return any(re.fullmatch(pattern, key) for pattern in ignored)


def _listing(keys: Sequence[str], what: str) -> str:
    listed = ", ".join(keys[:_MAX_LISTED])
    rest = f" and {len(keys) - _MAX_LISTED} more" if len(keys) > _MAX_LISTED else ""
    return f"{len(keys)} {'key' if len(keys) == 1 else 'keys'} {what} ({listed}{rest})"
