"""The page's edits as typed functions of Gradio's HTTP API."""

import base64
import functools
import inspect
import json
import math
import tempfile
import typing
from collections.abc import Callable
from typing import Any, Literal

import gradio as gr
import jax
import numpy as np
from gradio.events import api

from styleclip_jax.app.background import TooSlowError
from styleclip_jax.app.edits import Edit, Face, HostLatents
from styleclip_jax.app.engine import Engine
from styleclip_jax.app.files import latents_file, png
from styleclip_jax.app.fragments import data_uri
from styleclip_jax.app.recipes import Instant, InstantMethod, Mapped, Optimized
from styleclip_jax.app.running import ClosingError, RunningEdits
from styleclip_jax.errors import InputError
from styleclip_jax.io.latents import load_latents

# In characters of base64; the latents of every generator are smaller.
_MAX_LATENTS_LENGTH = 1_000_000


def add_api(
    engine: Engine, running: RunningEdits, slow: dict[str, Any], quick: dict[str, Any]
) -> None:
    """Adds the functions to the page that is being built.

    Args:
        engine: An engine, for its settings and for images without an edit.
        running: Runs the edits.
        slow: Queue of optimizations: ``concurrency_id`` and ``concurrency_limit``.
        quick: Queue of the other functions.
    """

    def start(seed: int, latents: str) -> Face:
        known = _read_latents(latents, engine) if latents else engine.random_latents(seed)
        # The response has no image before the edit, so it is not synthesized.
        return Face(known, np.empty((0, 0, 3), np.uint8))

    def respond(compute: Callable[[Engine], Edit]) -> dict[str, Any]:
        try:
            with running.track() as chosen:
                edit = compute(chosen)
        except (InputError, FloatingPointError) as error:
            raise gr.Error(str(error), print_exception=False) from error
        except ClosingError as error:
            message = "the service is shutting down; try again later"
            raise gr.Error(message, print_exception=False) from error
        except TooSlowError as error:
            limit = f"{engine.limits.seconds:g} seconds"
            message = f"the edit took longer than {limit} and was stopped; use fewer steps"
            raise gr.Error(message, print_exception=False) from error
        return _describe(edit.face) | {"settings": json.loads(engine.settings(edit))}

    def face(seed: int = 0) -> dict:
        """Returns a random image (PNG, as a data: URI) and its latents (.npy in base64)."""
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
        using: InstantMethod = engine.instant_methods[0] if engine.instant_methods else "any_text",
    ) -> dict:
        """Edits the image of a seed or of latents with any text, by a mapper or by directions.

        Without a strength, CLIP chooses the best one for the image.
        """
        recipe = Instant(text, neutral, strength, threshold, using)
        return respond(lambda chosen: chosen.instant(start(seed, latents), recipe))

    def mapper(
        mapper: str, seed: int = 0, strength: float | None = None, latents: str = ""
    ) -> dict:
        """Edits an image with a trained mapper; ``mappers`` lists the names.

        The default strength is the one that the mapper was trained with.
        """
        return respond(lambda chosen: chosen.mapped(start(seed, latents), Mapped(mapper, strength)))

    def optimize(
        text: str,
        seed: int = 0,
        steps: int = 80,
        hold: float = 0.35,
        neutral: str = engine.neutral,
        keep: list[str] = [],  # noqa: B006 (Gradio reads the default from the signature.)
        latents: str = "",
    ) -> dict:
        """Edits an image by gradient descent."""
        recipe = Optimized(text, neutral, tuple(keep), steps, hold)

        def compute(chosen: Engine) -> Edit:
            *_, last = chosen.optimize(start(seed, latents), recipe)
            assert last.edit
            return last.edit

        return respond(compute)

    def mappers() -> list[str]:
        """Returns the names of the trained mappers."""
        return list(engine.mappers)

    for function, waiting_queue in (
        (face, quick),
        (instant, quick),
        (mapper, quick),
        (optimize, slow),
        (mappers, quick),
    ):
        api(_checked(function), api_name=function.__name__, **waiting_queue)


def _checked(function: Callable) -> Callable:
    """Wraps a function to check the types of its arguments, which Gradio does not do."""
    signature, hints = inspect.signature(function), typing.get_type_hints(function)

    @functools.wraps(function)
    def checked(*values: Any) -> Any:
        for name, value in signature.bind(*values).arguments.items():
            if not _has_type(value, hints[name]):
                message = f"{name} is {repr(value)[:50]}, expected {_type_name(hints[name])}"
                raise gr.Error(message, print_exception=False)
        return function(*values)

    return checked


def _has_type(value: Any, hint: Any) -> bool:
    if hint == (float | None):
        return value is None or _has_type(value, float)
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and math.isfinite(value)
    if typing.get_origin(hint) is Literal:
        return isinstance(value, str) and value in typing.get_args(hint)
    if hint == list[str]:
        return isinstance(value, list) and all(isinstance(text, str) for text in value)
    return isinstance(value, hint) and not isinstance(value, bool)


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(typing.get_args(hint))}"
    return hint.__name__ if isinstance(hint, type) else str(hint)


def _describe(face: Face) -> dict[str, Any]:
    return {
        "image": data_uri(png(face), "image/png"),
        "latents": base64.b64encode(latents_file(face.latents)).decode(),
    }


def _read_latents(text: str, engine: Engine) -> HostLatents:
    try:
        if len(text) > _MAX_LATENTS_LENGTH:
            raise ValueError
        content = base64.b64decode(text, validate=True)
    except ValueError:
        raise InputError(
            "the latents cannot be decoded, expected a .npy or .npz file in base64 with at most"
            f" {_MAX_LATENTS_LENGTH} characters"
        ) from None
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        try:
            latents = jax.device_get(load_latents(file.name, engine.generator))
        except InputError as error:
            # The name of the temporary file means nothing to the user.
            raise InputError(str(error).replace(file.name, "the latents")) from None
    count = len(jax.tree.leaves(latents)[0])
    if count != 1:
        raise InputError(f"the latents are those of {count} images, expected one image")
    return latents
