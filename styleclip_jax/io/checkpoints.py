"""Checkpoint directories: ``config.json``, Orbax ``parameters/`` and, for CLIP, ``tokenizer/``.

``SHA256SUMS`` contains the checksums of all files. Paths may be local or on any file system that
Orbax supports, such as ``gs://``.
"""

import dataclasses
import hashlib
import importlib.resources
import json
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jax.typing import DTypeLike

from styleclip_jax.errors import InputError
from styleclip_jax.io.checksums import CHECKSUMS, verify_checksums, write_checksums
from styleclip_jax.io.files import expand_user, last_reason, parse_json, remove_unfinished
from styleclip_jax.models.arcface import ArcFace, ArcFaceConfig
from styleclip_jax.models.card import MapperCard
from styleclip_jax.models.clip import CLIP, CLIPConfig
from styleclip_jax.models.delta_mapper import DeltaMapper, DeltaMapperConfig
from styleclip_jax.models.directions import Directions, DirectionsConfig
from styleclip_jax.models.e4e import E4E, E4EConfig
from styleclip_jax.models.lpips import LPIPS, LPIPSConfig
from styleclip_jax.models.mapper import MAPPER_TYPES, Mapper, MapperConfig
from styleclip_jax.models.stylegan2 import Generator, GeneratorConfig

AVATARS = epath.Path(str(importlib.resources.files("styleclip_jax") / "pretrained" / "avatars"))

CONFIG_FILE = "config.json"
PARAMETERS = "parameters"
TOKENIZER = "tokenizer"
# In the experiment directory of train_mapper.py.
MAPPER = "mapper"
FLAGS_FILE = "config/flags.json"

AnyModule = TypeVar("AnyModule", bound=nnx.Module)

_MAPPERS = (*MAPPER_TYPES.values(), DeltaMapper)
_CONFIGS = {
    Generator: GeneratorConfig,
    CLIP: CLIPConfig,
    ArcFace: ArcFaceConfig,
    E4E: E4EConfig,
    LPIPS: LPIPSConfig,
    Directions: DirectionsConfig,
    DeltaMapper: DeltaMapperConfig,
} | dict.fromkeys(MAPPER_TYPES.values(), MapperConfig)


def flatten(model: nnx.Module) -> dict[str, jax.Array]:
    """The model's arrays by dotted path, for example ``synthesis.convs.3.kernel``."""
    return {
        ".".join(map(str, path)): variable[...]
        for path, variable in nnx.to_flat_state(nnx.state(model))
    }


def fingerprint(model: nnx.Module) -> str:
    """SHA-256 of a model's arrays, which identifies it regardless of the checkpoint's name.

    Cached for as long as the model has the same arrays.
    """
    arrays = jax.tree.leaves(model)
    key = tuple(map(id, arrays))
    if key not in _fingerprints:
        _fingerprints[key] = _compute_fingerprint(model)
        for array in arrays:
            # A new array may get the id of a deleted one.
            weakref.finalize(array, _fingerprints.pop, key, None).atexit = False
    return _fingerprints[key]


# Cached fingerprints by the ids of a model's arrays.
_fingerprints: dict[tuple[int, ...], str] = {}


def _compute_fingerprint(model: nnx.Module) -> str:
    digest = hashlib.sha256()
    # A model that a traced function closes over has values, but its arrays would be traced here.
    with jax.ensure_compile_time_eval():
        arrays = sorted(flatten(model).items())
    for name, array in arrays:
        digest.update(f"{name} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array, np.float32).data)
    return digest.hexdigest()


class _OneKey(nnx.Rngs):
    """Gives every initializer the same key.

    Counting keys would be most of the time of :func:`abstract_model`, 0.9 s of 1 s for a CLIP
    ViT-B/32, because flax's time per key grows with their number when it is traced.
    """

    def __init__(self):
        pass

    def params(self) -> jax.Array:
        return jax.random.key(0)


def abstract_model(
    model_class: Callable[..., AnyModule], config, dtype: DTypeLike = jnp.float32
) -> AnyModule:
    """A model with shapes and dtypes instead of arrays; see :func:`build`."""
    return nnx.eval_shape(lambda: model_class(config, rngs=_OneKey(), dtype=dtype))


def build(
    model_class: Callable[..., AnyModule],
    config,
    arrays: Callable[[dict[str, jax.ShapeDtypeStruct]], Mapping[str, Any]],
    dtype: DTypeLike = jnp.float32,
) -> AnyModule:
    """A model filled with given arrays, without running initializers.

    Args:
        model_class: For example ``Generator``.
        config: Its architecture.
        arrays: Maps shape and dtype of every array by dotted path to the arrays.
        dtype: Precision of the model's arithmetic.
    """
    graph, state = nnx.split(abstract_model(model_class, config, dtype))
    variables = {".".join(map(str, path)): v for path, v in nnx.to_flat_state(state)}
    filled = arrays({name: variable.get_value() for name, variable in variables.items()})
    for name, variable in variables.items():
        # jnp.asarray would compile a program for every shape.
        variable.set_value(jax.device_put(filled[name]))
    return nnx.merge(graph, state)


def save_model(
    path: epath.PathLike,
    model: Generator | CLIP | ArcFace | E4E | LPIPS | Mapper | DeltaMapper | Directions,
    tokenizer_files: Mapping[str, bytes] | None = None,
    dtype: DTypeLike | None = None,
) -> None:
    """Writes a model to a new directory, for :func:`load_generator` and its siblings.

    Checksums are written last, so an incomplete directory does not load; an error removes it. In a
    program of several processes, only one calls this.

    Args:
        path: The directory; must not exist.
        model: Any of this package's networks.
        tokenizer_files: Contents by name of the files of a CLIP's tokenizer,
            ``load_tokenizer(path).files``.
        dtype: Type of the stored parameters, for example ``float16``. None: unchanged.

    Raises:
        InputError: ``path`` exists, or ``dtype`` is not supported.
        OSError: The directory cannot be written, for example to a full disk.
    """
    path = to_path(path)
    if dtype is not None:
        _check_dtype(dtype, ("float32", "bfloat16", "float16"))
    if path.exists():
        raise InputError(f"{path} already exists; choose another directory or remove it first")
    arrays = {
        name: np.asarray(array if dtype is None else array.astype(dtype))
        for name, array in flatten(model).items()
    }
    path.mkdir(parents=True)
    try:
        with _checkpointer() as checkpointer:
            checkpointer.save(absolute(path / PARAMETERS), arrays)
        for name, content in (tokenizer_files or {}).items():
            (path / TOKENIZER).mkdir(exist_ok=True)
            (path / TOKENIZER / name).write_bytes(content)
        described = {"model": type(model).__name__, "config": dataclasses.asdict(model.config)}
        (path / CONFIG_FILE).write_text(json.dumps(described, indent=2) + "\n")
        write_checksums(path)
    except (OSError, ValueError) as error:
        remove_unfinished(path)
        raise OSError(f"{path} cannot be written ({last_reason(error)})") from error


def load_generator(path: epath.PathLike | None = None, dtype: DTypeLike = jnp.float32) -> Generator:
    """Reads a StyleGAN2 generator.

    Args:
        path: A directory written by :func:`save_model` or by ``python -m ckpt_convert stylegan2``.
            None: the avatars generator that ships with the package.
        dtype: Precision of the convolutions, float32 or bfloat16.

    Raises:
        InputError: The checkpoint does not exist, is damaged or holds another kind of model; or
            ``dtype`` is not supported.
    """
    return _load(AVATARS / "generator" if path is None else path, (Generator,), dtype)


def load_clip(path: epath.PathLike | None = None, dtype: DTypeLike = jnp.float32) -> CLIP:
    """Reads a CLIP; see :func:`load_generator`. None: the avatars CLIP."""
    return _load(AVATARS / "clip" if path is None else path, (CLIP,), dtype)


def load_arcface(path: epath.PathLike, dtype: DTypeLike = jnp.float32) -> ArcFace:
    """Reads an ArcFace IR-SE50; see :func:`load_generator`."""
    return _load(path, (ArcFace,), dtype)


def load_encoder(path: epath.PathLike | None = None, dtype: DTypeLike = jnp.float32) -> E4E:
    """Reads an e4e encoder; see :func:`load_generator`. None: the avatars encoder."""
    return _load(AVATARS / "encoder" if path is None else path, (E4E,), dtype)


def load_lpips(path: epath.PathLike, dtype: DTypeLike = jnp.float32) -> LPIPS:
    """Reads an LPIPS with VGG16; see :func:`load_generator`."""
    return _load(path, (LPIPS,), dtype)


def load_mapper(path: epath.PathLike, dtype: DTypeLike = jnp.float32) -> Mapper | DeltaMapper:
    """Reads a latent mapper of any type.

    Args:
        path: A directory written by :func:`save_model`, by ``python -m ckpt_convert mapper`` or by
            ``train_mapper.py``, or the name of a mapper that ships with the package.
        dtype: As for :func:`load_generator`; a mapper always computes in float32.

    Raises:
        InputError: The mapper does not exist, is damaged or is another kind of model.
    """
    return _load(_find_mapper(to_path(path)), _MAPPERS, dtype)


def pretrained_mappers() -> list[str]:
    """Names of the mappers that ship with the package, for :func:`load_mapper`."""
    directory = AVATARS / "mappers"
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


def load_directions(path: epath.PathLike | None = None) -> Directions:
    """Reads the directions of a generator.

    Args:
        path: A directory written by :func:`save_model`, by ``make_directions.py`` or by ``python -m
            ckpt_convert directions``. None: the avatars' directions.

    Raises:
        InputError: The directions do not exist, are damaged or are another kind of model.
    """
    return _load(AVATARS / "directions" if path is None else path, (Directions,), jnp.float32)


def _find_mapper(path: epath.Path) -> epath.Path:
    if (path / MAPPER / CONFIG_FILE).exists():
        return path / MAPPER
    if (path / FLAGS_FILE).exists():
        raise InputError(f"the run {path} has no mapper yet; wait for its first validation")
    names = pretrained_mappers()
    if str(path) in names and not (path / CONFIG_FILE).exists():
        return AVATARS / "mappers" / path
    if path.exists():
        return path
    raise InputError(
        f"there is no mapper {path}, expected a directory written by train_mapper.py or python -m"
        f" ckpt_convert mapper, or one of the names {', '.join(names) or '(none)'}"
    )


def _load(path: epath.PathLike, expected: tuple[type, ...], dtype: DTypeLike) -> Any:
    path = to_path(path)
    _check_dtype(dtype, ("float32", "bfloat16"))
    model_class, fields = _read_config(path, expected)
    # Before Orbax reads them: it detects only some damage, and reports it on many lines.
    verify(path)

    def restore(abstract: dict[str, jax.ShapeDtypeStruct]) -> dict[str, np.ndarray]:
        # NumPy arrays stay on the host and are not committed to a device, so that a program moves a
        # model to the device of its other arguments.
        try:
            with _checkpointer() as checkpointer:
                _check_shapes(path, checkpointer, abstract)
                target = {name: np.empty(a.shape, a.dtype) for name, a in abstract.items()}
                return checkpointer.restore(absolute(path / PARAMETERS), target)
        except InputError:
            raise
        except Exception as error:  # Tensorstore raises many types for damaged files.
            raise InputError(
                f"the parameters in {path} cannot be read: {_first_line(error)}"
            ) from error

    try:
        # Mappers of older versions have no card.
        if model_class in _MAPPERS and "card" in fields:
            fields["card"] = MapperCard(**fields["card"])
        return build(model_class, _CONFIGS[model_class](**fields), restore, dtype)
    except InputError:
        raise
    except (TypeError, ValueError, ArithmeticError) as error:
        raise InputError(
            f"{path / CONFIG_FILE} does not describe a {model_class.__name__}: {_first_line(error)}"
        ) from error


def _check_dtype(dtype: DTypeLike, allowed: Sequence[str]) -> None:
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = dtype
    if name not in allowed:
        raise InputError(f"dtype is {name}, expected {' or '.join(allowed)}")


def _check_shapes(
    path: epath.Path,
    checkpointer: Any,
    expected: Mapping[str, jax.ShapeDtypeStruct],
) -> None:
    metadata = checkpointer.metadata(absolute(path / PARAMETERS)).item_metadata
    stored = {name: array.shape for name, array in (metadata or {}).items()}
    wrong = [name for name, array in expected.items() if stored.get(name) != array.shape]
    if wrong:
        name = wrong[0]
        raise InputError(
            f"the parameters in {path} cannot be read: {len(wrong)} shapes do not match"
            f" {CONFIG_FILE}, such as {name}, which is {stored.get(name)}, expected"
            f" {expected[name].shape}"
        )


def _read_config(
    path: epath.Path, expected: tuple[type, ...]
) -> tuple[Callable[..., nnx.Module], Any]:
    """A checkpoint's class and its configuration."""
    classes = {model.__name__: model for model in expected}
    try:
        described = parse_json((path / CONFIG_FILE).read_text())
        name, fields = described["model"], described["config"]
    except FileNotFoundError:
        found = f"has no {CONFIG_FILE}" if path.exists() else "does not exist"
        raise InputError(
            f"{path} is not a checkpoint directory: it {found}; convert official PyTorch files with"
            " python -m ckpt_convert first"
        ) from None
    except NotADirectoryError:
        raise InputError(
            f"{path} is a file, expected a checkpoint directory; convert official PyTorch files"
            " with python -m ckpt_convert first"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path / CONFIG_FILE} is damaged: it does not describe a model") from None
    if name not in list(classes):
        raise InputError(f"{path} holds a {name}, expected a {' or '.join(classes)}")
    return classes[name], fields


def verify(path: epath.Path, below: Sequence[str] = ("",)) -> None:
    """Compares a checkpoint's files with their checksums; see :func:`verify_checksums`.

    Raises:
        InputError: A file is damaged or missing, or the checkpoint is incomplete.
    """
    try:
        verify_checksums(path, below)
    except InputError as error:
        raise InputError(
            f"{path} cannot be read: {error}; copy or convert the checkpoint again"
        ) from None
    except FileNotFoundError:
        # Older checkpoints contain file sizes instead of checksums.
        if "sizes" not in parse_json((path / CONFIG_FILE).read_text()):
            raise InputError(
                f"{path} cannot be read: {CHECKSUMS} is missing; copy or convert the checkpoint"
                " again"
            ) from None


def _checkpointer() -> Any:
    """An Orbax checkpointer for this process, which does not wait for other processes."""
    # Imported here, because importing Orbax gives the root logger a handler.
    import orbax.checkpoint as ocp

    process = jax.process_index()
    return ocp.StandardCheckpointer(
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=process,
            active_processes={process},
            barrier_sync_key_prefix=f"process_{process}",
        )
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def to_path(path: epath.PathLike) -> epath.Path:
    """The path, on any supported file system.

    Raises:
        InputError: The file system or user does not exist, or a package is not installed.
    """
    scheme, mark, _ = str(path).partition("://")
    try:
        path = epath.Path(path if mark else expand_user(path))
        if mark:
            path.exists()
    except KeyError:  # epath's for a scheme that it does not know, such as https.
        raise InputError(
            f"{path} is on an unsupported file system, expected a local or a gs:// path; download"
            " it first"
        ) from None
    except ImportError as error:
        package = {"gs": "styleclip-jax[gcs]", "s3": "etils[epath-s3]"}.get(scheme)
        advice = f"; run pip install '{package}'" if package else ""
        raise InputError(
            f"{path} needs a package for its file system ({_first_line(error)}){advice}"
        ) from None
    return path


def absolute(path: epath.Path) -> epath.Path:
    """The absolute path, as Orbax needs it; unchanged if it is a URL."""
    return path if "://" in str(path) else epath.Path(os.path.abspath(path))
