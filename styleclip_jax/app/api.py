"""Typed functions of Gradio's HTTP API for the page's edits."""

import base64
import functools
import inspect
import json
import math
import tempfile
import typing
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal

import gradio as gr
import jax
from gradio.events import api

from styleclip_jax.app.actions import ClosingError
from styleclip_jax.app.engine import (
    Edit,
    Engine,
    Face,
    HostLatents,
    TooSlowError,
    latents_file,
    png,
)
from styleclip_jax.app.pictures import data_uri
from styleclip_jax.app.recipes import Instant, Mapped, Optimized, Using
from styleclip_jax.errors import InputError
from styleclip_jax.io.latents import load_latents

# Longer ones cannot be the latents of any generator.
_LONGEST_LATENTS = 1_000_000


def add_api(
    engine: Engine,
    admit: Callable[[], AbstractContextManager],
    edits: dict[str, Any],
    quick: dict[str, Any],
) -> None:
    """Adds the functions to the page that is being built.

    Args:
        engine: Computes the edits.
        admit: A context manager around every edit.
        edits: Queue of slow edits: ``concurrency_id`` and ``concurrency_limit``.
        quick: Queue of the other functions.
    """

    def start(seed: int, latents: str) -> Face:
        return engine.face(_read_latents(latents, engine)) if latents else engine.random_face(seed)

    def answer(make: Callable[[], Edit]) -> dict[str, Any]:
        try:
            with admit():
                edit = make()
        except (InputError, FloatingPointError) as error:
            raise gr.Error(str(error), print_exception=False) from error
        except ClosingError as error:
            raise gr.Error("the service is about to stop", print_exception=False) from error
        except TooSlowError as error:
            raise gr.Error("the edit took too long", print_exception=False) from error
        return _describe(edit.face) | {"settings": json.loads(engine.settings(edit))}

    def face(seed: int = 0) -> dict:
        """A random face: its image (PNG, as a data: URI) and its latents (.npy in base64)."""
        try:
            return _describe(engine.random_face(seed))
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def instant(
        text: str,
        seed: int = 0,
        strength: float | None = None,
        neutral: str = engine.neutral,
        latents: str = "",
        threshold: float | None = None,
        using: Using = engine.instant_choices[0] if engine.instant_choices else "any_text",
    ) -> dict:
        """Edits the face of a seed or of latents with any text: by a mapper, or by directions.

        Without a strength, CLIP chooses the best one for the face.
        """
        recipe = Instant(text, neutral, strength, threshold, using)
        return answer(lambda: engine.instant(start(seed, latents), recipe))

    def mapper(
        mapper: str, seed: int = 0, strength: float | None = None, latents: str = ""
    ) -> dict:
        """Edits with a trained mapper; ``mappers`` lists their names.

        Without a strength, it is that of the mapper's training.
        """
        return answer(lambda: engine.mapped(start(seed, latents), Mapped(mapper, strength)))

    def optimize(
        text: str,
        seed: int = 0,
        steps: int = 80,
        hold: float = 0.35,
        neutral: str = engine.neutral,
        keep: list[str] = [],  # noqa: B006 (Gradio reads the default from the signature.)
        latents: str = "",
    ) -> dict:
        """Edits by gradient descent."""
        recipe = Optimized(text, neutral, tuple(keep), steps, hold)

        def make() -> Edit:
            *_, last = engine.optimize(start(seed, latents), recipe)
            assert last.edit
            return last.edit

        return answer(make)

    def mappers() -> list[str]:
        """The names of the trained mappers."""
        return list(engine.mappers)

    for function, waiting in (
        (face, quick),
        (instant, quick),
        (mapper, quick),
        (optimize, edits),
        (mappers, quick),
    ):
        api(_checked(function), api_name=function.__name__, **waiting)


def _checked(function: Callable) -> Callable:
    """Makes a function check the types of its arguments, which Gradio does not."""
    signature, hints = inspect.signature(function), typing.get_type_hints(function)

    @functools.wraps(function)
    def checked(*values: Any) -> Any:
        for name, value in signature.bind(*values).arguments.items():
            if not _is_of(value, hints[name]):
                expected = getattr(hints[name], "__name__", str(hints[name]))
                message = f"{name} is {repr(value)[:50]}, expected {expected}"
                raise gr.Error(message, print_exception=False)
        return function(*values)

    return checked


def _is_of(value: Any, hint: Any) -> bool:
    if hint == (float | None):
        return value is None or _is_of(value, float)
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and math.isfinite(value)
    if typing.get_origin(hint) is Literal:
        return isinstance(value, str) and value in typing.get_args(hint)
    if hint == list[str]:
        return isinstance(value, list) and all(isinstance(text, str) for text in value)
    return isinstance(value, hint) and not isinstance(value, bool)


def _describe(face: Face) -> dict[str, Any]:
    return {
        "image": data_uri(png(face), "image/png"),
        "latents": base64.b64encode(latents_file(face.latents)).decode(),
    }


def _read_latents(text: str, engine: Engine) -> HostLatents:
    try:
        if len(text) > _LONGEST_LATENTS:
            raise ValueError
        content = base64.b64decode(text, validate=True)
    except ValueError:
        raise InputError("the latents are not a .npy or .npz file in base64") from None
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        try:
            latents = jax.device_get(load_latents(file.name, engine.generator))
        except InputError as error:
            # The user does not know the temporary file.
            raise InputError(str(error).replace(file.name, "the latents")) from None
    if len(jax.tree.leaves(latents)[0]) != 1:
        raise InputError("the latents are those of several images, expected one image")
    return latents
