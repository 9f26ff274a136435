"""The models and edits of the page, shared by all users."""

import collections
import contextlib
import dataclasses
import functools
import io
import json
import queue
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from PIL import Image

from styleclip_jax.app import recipes
from styleclip_jax.app.batching import SIZES, Batcher
from styleclip_jax.app.photos import Photo, Pixels, finished, read_upload
from styleclip_jax.app.recipes import Instant, Mapped, Optimized, Recipe, Using
from styleclip_jax.avatars import (
    AVATARS_CONFIG,
    AVATARS_DIRECTIONS,
    AVATARS_INVERT_CONFIG,
    AVATARS_NEUTRAL,
)
from styleclip_jax.errors import InputError
from styleclip_jax.io.checkpoints import (
    load_clip,
    load_directions,
    load_encoder,
    load_generator,
    load_mapper,
)
from styleclip_jax.io.images import from_uint8, to_uint8
from styleclip_jax.io.latents import latents_ending, write_latents
from styleclip_jax.io.templates import IMAGENET_TEMPLATES
from styleclip_jax.io.text import encode_texts, load_tokenizer
from styleclip_jax.latents import Latents, sample_latents, synthesize, to_styles
from styleclip_jax.methods.delta_editing import edit_with_delta_mapper, move_styles
from styleclip_jax.methods.directions import (
    DirectionDefaults,
    NoChannelError,
    automatic_threshold,
    best_strengths,
    check_fingerprints,
    edit_with_direction,
    move_latents,
    text_direction,
)
from styleclip_jax.methods.inversion import check_encoder, invert
from styleclip_jax.methods.linear_start import latent_directions, sample_features
from styleclip_jax.methods.mapper_editing import apply_mapper
from styleclip_jax.methods.optimization import (
    EditResult,
    OptimizeConfig,
    edit_latents,
)
from styleclip_jax.methods.relevance import with_scales
from styleclip_jax.models import E4E, DeltaMapper
from styleclip_jax.runs.command_line import differences
from styleclip_jax.runs.objective_flags import NEUTRAL

TRUNCATION = 0.7
# Strengths of a filmstrip, in parts of the largest.
FILM = (-0.5, 0.0, 0.25, 0.5, 0.75, 1.0)

# Fewer steps than invert.py takes: somebody is waiting.
_INVERSION = dataclasses.replace(AVATARS_INVERT_CONFIG, steps=40)
_CACHED_TEXTS = 256
_ANY_TEXT = "a person with a hat"
# Seconds between images of a running optimization, and until an unread one counts as abandoned.
_FRAME_EVERY, _ABANDONED = 0.4, 20.0

# Latents of one image.
HostLatents = Float[np.ndarray, "1 layers w_dim"] | tuple[Float[np.ndarray, "1 _"], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Face:
    """An image and its latents, and the uploaded photo, if any."""

    latents: HostLatents
    pixels: Pixels
    photo: Photo | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Edit:
    """An edited image and the recipe of the edit.

    Attributes:
        start: The image before the edit.
        recipe: The settings of the edit.
        face: The image after the edit.
        changed: Number of channels that an instant edit changed.
    """

    start: Face
    recipe: Recipe
    face: Face
    changed: int | None = None


class Progress(NamedTuple):
    """A running optimization.

    Attributes:
        step: Steps taken.
        losses: The loss of every step.
        seconds_left: An estimate.
        face: The image now.
        edit: The result, at the end.
    """

    step: int
    losses: tuple[float, ...]
    seconds_left: float
    face: Face
    edit: Edit | None = None


class _Moved(NamedTuple):
    """Edited latents, not synthesized yet: the complete recipe and the number of channels."""

    recipe: Instant
    latents: Latents | HostLatents
    changed: int


class TooSlowError(Exception):
    """A request took longer than the limit."""


class _Cancelled(Exception):
    """The user has cancelled the request."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of one request."""

    steps: int = 300
    text_length: int = 200
    keep_texts: int = 4
    seconds: float = 120.0
    upload_bytes: int = 10_000_000
    upload_pixels: int = 40_000_000


class Engine:
    """Models, loaded once, and the edits that the page offers.

    Args:
        generator: A checkpoint directory. None: the avatars.
        clip: A checkpoint directory. None: the avatars CLIP.
        mappers: Mappers by name: the directory, or the name of one that ships with the package. The
            first mapper for any text is used by instant edits.
        encoder: A checkpoint directory. None: uploads are disabled.
        directions: A checkpoint directory. None: the avatars' directions; with other models,
            instant edits with directions are disabled.
        limits: Limits of one request.
    """

    def __init__(
        self,
        generator: str | None,
        clip: str | None,
        mappers: dict[str, str],
        encoder: str | None = None,
        directions: str | None = None,
        limits: Limits = Limits(),
    ):
        self.paths = {"generator": generator, "clip": clip, "directions": directions}
        self.limits = limits
        self.neutral = NEUTRAL if generator else AVATARS_NEUTRAL
        self.config = AVATARS_CONFIG
        if generator:
            self.config = OptimizeConfig(guidance="direction", views=1, start_samples=512)
        self.generator = load_generator(generator)
        self.clip, self.tokenizer = load_clip(clip), load_tokenizer(clip)
        self.encoder_path = encoder
        self.directions = None
        self.direction_defaults = DirectionDefaults() if generator else AVATARS_DIRECTIONS
        if directions or not (generator or clip):
            self.directions = load_directions(directions)
            check_fingerprints(self.directions, self.generator, self.clip)
            if self.directions.scales is None:
                self.directions = with_scales(self.directions, self.generator)
        self.warm, self.closing = threading.Event(), threading.Event()
        self._templates = IMAGENET_TEMPLATES if clip else ()
        self.mapper_paths = mappers
        loaded = {name: load_mapper(path) for name, path in mappers.items()}
        self.mappers = {n: m for n, m in loaded.items() if not isinstance(m, DeltaMapper)}
        for_any_text = [(n, m) for n, m in loaded.items() if isinstance(m, DeltaMapper)]
        self._any_text_name, self.any_text = for_any_text[0] if for_any_text else ("", None)
        self._synthesize = jax.jit(synthesize)
        self._batcher = Batcher(lambda w: to_uint8(self._synthesize(self.generator, w)))
        self._features = Cache(self._encode)
        self._starts = Cache(self._start_direction)
        self._text_directions = Cache(self._text_direction)

    @property
    def instant_choices(self) -> tuple[Using, ...]:
        """What instant edits can use, the best first (avatars/REPORT.md)."""
        possible: dict[Using, Any] = {"any_text": self.any_text, "directions": self.directions}
        return tuple(using for using, model in possible.items() if model is not None)

    def channels(self, using: Using) -> int:
        """Number of channels that instant edits can change."""
        if using == "directions":
            return self.directions.config.channels if self.directions else 0
        config = self.any_text.config if self.any_text else None
        return sum(config.style_dims[i] for i in config.changed) if config else 0

    @functools.cached_property
    def encoder(self) -> E4E | None:
        """The encoder, loaded when it is used first.

        Raises:
            InputError: It cannot be read, or is for another generator.
        """
        if self.encoder_path is None:
            return None
        encoder = load_encoder(self.encoder_path)
        check_encoder(self.generator, encoder)
        return encoder

    def warm_up(self) -> None:
        """Compiles the programs of the first edit."""
        face = self.random_face(0)
        for using in self.instant_choices[:1]:
            self.instant(face, Instant(_ANY_TEXT, self.neutral, using=using))

    def warm_up_rest(self) -> None:
        """Compiles all other programs but those of uploads; sets ``warm`` at the end.

        Ends early once ``closing`` is set.
        """
        for compile_one in self._other_programs():
            if self.closing.is_set():
                return
            # A mapper may be for another generator; its users get the message.
            with contextlib.suppress(InputError):
                compile_one()
        self.warm.set()

    def _other_programs(self) -> Iterator[Callable[[], Any]]:
        face = self.random_face(0)
        for using in self.instant_choices:
            recipe = Instant(_ANY_TEXT, self.neutral, using=using)
            yield lambda recipe=recipe: self.exact(self.instant(face, recipe))
        for size in SIZES[1:]:
            latents = np.repeat(face.latents, size, axis=0)
            yield lambda latents=latents: self._synthesize(self.generator, latents)
        for name in self.mappers:
            yield lambda name=name: self.mapped(face, Mapped(name))
        optimized = Optimized(_ANY_TEXT, self.neutral, steps=self.config.steps)
        # One step is enough.
        yield lambda: next(self.optimize(face, optimized))

    def random_face(self, seed: int) -> Face:
        """A random image; the seed chooses it.

        Raises:
            InputError: The seed is out of range.
        """
        if not 0 <= seed < 2**32:
            raise InputError(f"the seed is {seed}, expected 0 to {2**32 - 1}")
        return self.face(np.asarray(sample_latents(self.generator, 1, seed, TRUNCATION)))

    def face(self, latents: HostLatents, photo: Photo | None = None) -> Face:
        """Synthesizes an image."""
        return Face(latents, self._batcher(latents), photo)

    def upload(self, path: str, align: bool) -> Face:
        """The generator's reconstruction of a photo.

        Raises:
            NoFaceError: There is no face in it.
            InputError: The file is not an image, or too large.
        """
        size = self.generator.config.resolution
        photo = read_upload(path, size, align, self.limits.upload_pixels)
        inversion = invert(
            self.generator,
            jnp.asarray(from_uint8(photo.aligned))[None],
            self.encoder,
            _INVERSION,
            perceptual=self.clip,
        )
        pixels = to_uint8(inversion.images[0])
        photo = dataclasses.replace(photo, reconstructed=pixels)
        return Face(jax.device_get(inversion.latents), pixels, photo)

    def instant(self, start: Face, recipe: Instant) -> Edit:
        """Edits with any text; the result's recipe has all automatic values.

        Raises:
            InputError: There are no directions or mapper, no channel reaches the threshold, or the
                threshold is negative.
        """
        if recipe.threshold is not None and recipe.threshold < 0:
            raise InputError(f"the threshold is {recipe.threshold}, expected at least 0")
        dt = self._text_directions((self.check_text(recipe.text), self.check_text(recipe.neutral)))
        before = _on_device(start.latents)
        # The image is synthesized in a batch with those of other users.
        if recipe.using == "any_text":
            recipe, latents, changed = self._move_with_mapper(before, dt, recipe)
        else:
            recipe, latents, changed = self._move_with_directions(before, dt, recipe)
        face = self.face(jax.device_get(latents), start.photo)
        return Edit(start, recipe, face, changed)

    def _move_with_mapper(self, before: Latents, dt: Array, recipe: Instant) -> _Moved:
        if self.any_text is None:
            raise InputError(
                "there is no mapper for any text for this generator; start with --mappers_dir"
            )
        models = self.generator, self.any_text, self.clip
        least = recipe.threshold or 0.0
        moved = jax.device_get(move_styles(*models, before, dt, recipe.strength, min_change=least))
        changed = moved.changed.item()
        if not changed:
            raise NoChannelError(least, moved.largest.item())
        strength = recipe.strength
        if strength is None:
            strength = moved.strengths.item()
        recipe = dataclasses.replace(recipe, strength=strength, threshold=least)
        return _Moved(recipe, moved.styles, changed)

    def _move_with_directions(self, before: Latents, dt: Array, recipe: Instant) -> _Moved:
        if not self.directions:
            raise InputError("there are no directions for this generator; start with --directions")
        threshold, strength = recipe.threshold, recipe.strength
        if threshold is None:
            threshold = self.direction_defaults.threshold
        if threshold is None:
            channels = self.direction_defaults.min_channels
            threshold = float(automatic_threshold(self.directions, dt, channels))
        if strength is None:
            best = best_strengths(self.generator, self.directions, self.clip, before, dt, threshold)
            strength = np.asarray(best).item()
        latents, changed = move_latents(
            self.generator, self.directions, before, dt, strength, threshold
        )
        recipe = dataclasses.replace(recipe, strength=strength, threshold=threshold)
        return _Moved(recipe, latents, int(changed))

    def mapped(self, start: Face, recipe: Mapped) -> Edit:
        """Edits with a mapper; the result's recipe has the strength.

        Raises:
            InputError: There is no such mapper.
        """
        if recipe.mapper not in self.mappers:
            raise InputError(
                f"there is no mapper {recipe.mapper!r}, expected one of {', '.join(self.mappers)}"
            )
        mapper, strength = self.mappers[recipe.mapper], recipe.strength
        if strength is None:
            strength = mapper.config.card.strength
        recipe = dataclasses.replace(recipe, strength=float(strength))
        images, latents = apply_mapper(self.generator, [mapper], start.latents, float(strength))
        face = Face(jax.device_get(latents), to_uint8(images[0]), start.photo)
        return Edit(start, recipe, face)

    def optimize(self, start: Face, recipe: Optimized) -> Iterator[Progress]:
        """Edits by gradient descent, which stops if the iterator is closed.

        Yields:
            The state after the first step and several times a second; the last one has the edit.

        Raises:
            InputError: The settings are beyond the limits.
            TooSlowError: It took longer than the limit.
        """
        self.check_text(recipe.text)
        if not 1 <= recipe.steps <= self.limits.steps:
            raise InputError(f"{recipe.steps} steps, expected 1 to {self.limits.steps}")
        if len(recipe.keep) > self.limits.keep_texts:
            raise InputError(f"at most {self.limits.keep_texts} texts can be kept")
        # One entry, so that the computation waits until its image is read.
        updates: queue.Queue[Progress | BaseException] = queue.Queue(maxsize=1)
        stop = threading.Event()
        threading.Thread(
            target=self._run_optimization, args=(start, recipe, updates, stop), daemon=True
        ).start()
        try:
            while True:
                update = updates.get()
                if isinstance(update, BaseException):
                    raise update
                yield update
                if update.edit:
                    return
        finally:
            stop.set()

    def _run_optimization(
        self, start: Face, recipe: Optimized, updates: queue.Queue, stop: threading.Event
    ) -> None:
        begun = shown = time.monotonic()
        losses: list[float] = []

        def report(step: int, loss: np.ndarray, latents: Any) -> None:
            nonlocal shown
            now = time.monotonic()
            losses.append(float(loss[0]))
            if stop.is_set():
                raise _Cancelled
            if now - begun > self.limits.seconds:
                raise TooSlowError
            if step == 1 or now - shown > _FRAME_EVERY:
                left = (now - begun) / step * (recipe.steps - step)
                face = self.face(jax.device_get(latents), start.photo)
                updates.put(Progress(step, tuple(losses), left, face), timeout=_ABANDONED)
                shown = time.monotonic()

        try:
            result = self.run_optimization(start, recipe, report)
            latents = jax.device_get(result.latents)
            face = Face(latents, to_uint8(result.images[0]), start.photo)
            edit = Edit(start, recipe, face)
            updates.put(
                Progress(int(np.max(result.steps)), tuple(losses), 0.0, face, edit),
                timeout=_ABANDONED,
            )
        except _Cancelled:
            return
        except queue.Full:
            # A user who comes back later gets the error.
            with contextlib.suppress(queue.Empty):
                updates.get_nowait()
            updates.put(TooSlowError())
        except Exception as error:
            with contextlib.suppress(queue.Full):
                updates.put(error, timeout=_ABANDONED)

    def run_optimization(
        self, start: Face, recipe: Optimized, report: Callable | None = None
    ) -> EditResult:
        """Runs the same computation as optimize.py."""
        texts = [recipe.text, recipe.neutral, *recipe.keep]
        features = [self._features(self.check_text(text)) for text in texts]
        direction = self._starts((recipe.text, recipe.neutral))
        return edit_latents(
            self.generator,
            (self.clip,),
            _on_device(start.latents),
            (features[0],),
            recipe.config(self._config(start)),
            neutral_features=(features[1],),
            keep_features=(jnp.concatenate(features[2:]),) if recipe.keep else None,
            directions=direction,
            key=jax.random.key(recipe.seed),
            on_progress=report,
            progress_every=1,
        )

    def _config(self, start: Face) -> OptimizeConfig:
        """The settings of optimizations, in the space of a face."""
        space = "stylespace" if isinstance(start.latents, tuple) else self.config.space
        return dataclasses.replace(self.config, space=space)

    def with_strength(self, edit: Edit, strength: float) -> Face:
        """Interpolates or extrapolates an edit: 0 is the start, 1 the edited face."""
        before, after = _on_device(edit.start.latents), _on_device(edit.face.latents)
        if isinstance(after, tuple):
            before = to_styles(self.generator, before)
        between = jax.tree.map(lambda x, y: x + strength * (y - x), before, after)
        return self.face(jax.device_get(between), edit.start.photo)

    def exact(self, edit: Edit) -> Edit:
        """The edit as the scripts compute it, not in a batch with those of other users."""
        recipe = edit.recipe
        if not isinstance(recipe, Instant):
            return edit
        assert recipe.strength is not None and recipe.threshold is not None
        dt = self._text_directions((recipe.text, recipe.neutral))
        before = _on_device(edit.start.latents)
        if recipe.using == "any_text":
            assert self.any_text
            images = edit_with_delta_mapper(
                self.generator,
                self.any_text,
                self.clip,
                before,
                dt,
                jnp.full(1, recipe.strength),
                min_change=recipe.threshold,
            ).images
        else:
            assert self.directions
            images = edit_with_direction(
                self.generator, self.directions, before, dt, recipe.strength, recipe.threshold
            ).images
        face = dataclasses.replace(edit.face, pixels=to_uint8(images[0]))
        return dataclasses.replace(edit, face=face)

    def archive(self, edit: Edit) -> bytes:
        """A ZIP file of the image, its latents, and everything a script needs to reproduce it."""
        edit = self.exact(edit)
        before, after = edit.start.latents, edit.face.latents
        files = {
            "image.png": png(dataclasses.replace(edit.face, photo=None)),
            f"latents{latents_ending(after)}": latents_file(after),
            "before.png": png(dataclasses.replace(edit.start, photo=None)),
            _start_name(edit): latents_file(before),
            "settings.json": self.settings(edit).encode(),
        }
        if edit.face.photo and edit.face.photo.transform:
            files["photo.png"] = png(edit.face)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return buffer.getvalue()

    def settings(self, edit: Edit) -> str:
        """The settings of an edit in JSON, for ``--settings`` of the script that they name."""
        recipe = edit.recipe
        flags = {name: path for name, path in self.paths.items() if path}
        values = recipe.flags()
        if recipe.script != "directions.py":
            flags.pop("directions", None)
        if isinstance(recipe, Instant) and recipe.using == "any_text":
            values["mapper"] = [self.mapper_paths[self._any_text_name]]
        elif isinstance(recipe, Mapped):
            flags.pop("clip", None)
            values["mapper"] = [self.mapper_paths[recipe.mapper]]
        elif isinstance(recipe, Optimized):
            flags |= differences(self._config(edit.start), OptimizeConfig())
        settings = {
            "script": recipe.script,
            "latents": _start_name(edit),
            "flags": flags | values,
        }
        return json.dumps(settings, indent=2)

    def check_text(self, text: str) -> str:
        """Returns a text without surrounding space.

        Raises:
            InputError: It is empty or too long.
        """
        text = text.strip()
        if not text:
            raise InputError("the text is empty; write what the picture should show")
        if len(text) > self.limits.text_length:
            raise InputError(
                f"the text has {len(text)} letters, at most {self.limits.text_length} are allowed"
            )
        return text

    @functools.cached_property
    def _samples(self) -> Any:
        return sample_features(
            self.generator,
            (self.clip,),
            self.config.start_samples,
            resolution=self.config.guide_resolution,
            preprocess=self.config.preprocess,
        )

    def _encode(self, text: str) -> Array:
        return encode_texts(self.clip, self.tokenizer, [text])

    def _start_direction(self, texts: tuple[str, str]) -> Float[Array, "1 w_dim"]:
        """The direction along which optimizations may start."""
        text, neutral = map(self._features, texts)
        return latent_directions(self._samples, (text,), (neutral,))

    def _text_direction(self, texts: tuple[str, str]) -> Array:
        """The direction of instant edits."""
        return text_direction(self.clip, self.tokenizer, *texts, self._templates)


def _on_device(latents: HostLatents) -> Latents:
    return jax.tree.map(jnp.asarray, latents)


def _start_name(edit: Edit) -> str:
    return recipes.START + latents_ending(edit.start.latents)


class Cache:
    """Caches the latest results of a function; concurrent equal calls compute only once.

    Args:
        function: A function of one hashable argument.
    """

    def __init__(self, function: Callable[[Any], Any]):
        self._function = function
        self._results: collections.OrderedDict[Any, Future] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, argument: Any) -> Any:
        """The function's result.

        Raises:
            Exception: The function's exception, which is not cached.
        """
        with self._lock:
            future = self._results.get(argument)
            mine = future is None
            if future is None:
                future = self._results[argument] = Future()
                if len(self._results) > _CACHED_TEXTS:
                    self._results.popitem(last=False)
            self._results.move_to_end(argument)
        if mine:
            try:
                future.set_result(self._function(argument))
            except Exception as error:
                with self._lock:
                    self._results.pop(argument, None)
                future.set_exception(error)
        return future.result()


def png(face: Face) -> bytes:
    """An image as a PNG file; the face of a photo is pasted back into the photo."""
    image = finished(face.photo, face.pixels) if face.photo else Image.fromarray(face.pixels)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def animation(frames: Sequence[Pixels]) -> bytes:
    """Images as a looping GIF, forwards and backwards."""
    first, *others = (Image.fromarray(f) for f in [*frames, *frames[-2:0:-1]])
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=others, duration=250, loop=0)
    return buffer.getvalue()


def latents_file(latents: HostLatents) -> bytes:
    """Latents as an NPY or NPZ file."""
    buffer = io.BytesIO()
    write_latents(buffer, latents)
    return buffer.getvalue()
