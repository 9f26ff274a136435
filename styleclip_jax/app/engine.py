"""Models and edits of the page, shared by all users."""

import contextlib
import copy
import dataclasses
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from styleclip_jax.app import files
from styleclip_jax.app.background import OnProgress, run_in_background
from styleclip_jax.app.batching import SIZES, Batcher
from styleclip_jax.app.caching import Cache
from styleclip_jax.app.edits import Edit, Face, HostLatents, HostStyles, Progress
from styleclip_jax.app.photos import Photo, read_upload
from styleclip_jax.app.recipes import Instant, InstantMethod, Mapped, Optimized
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
from styleclip_jax.io.templates import IMAGENET_TEMPLATES
from styleclip_jax.io.text import encode_texts, load_tokenizer
from styleclip_jax.latents import Latents, sample_latents, synthesize, to_styles
from styleclip_jax.methods.delta_editing import (
    best_strengths_of_change,
    move_styles,
    predict_change,
)
from styleclip_jax.methods.directions import (
    DirectionDefaults,
    NoChannelError,
    automatic_threshold,
    best_strengths,
    check_fingerprints,
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

# Fewer steps than invert.py, because a user is waiting.
_INVERSION = dataclasses.replace(AVATARS_INVERT_CONFIG, steps=40)
_WARM_UP_TEXT = "a person with a hat"


class _Moved(NamedTuple):
    """Edited latents without an image.

    Attributes:
        recipe: The settings of the edit, including automatic values.
        latents: The edited latents.
        changed: Number of changed channels.
    """

    recipe: Instant
    latents: Latents | HostLatents
    changed: int


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of one request.

    Attributes:
        steps: Maximum number of steps of an optimization.
        text_length: Maximum number of characters of a text.
        keep_texts: Maximum number of texts to keep.
        seconds: Maximum duration of an optimization.
        upload_bytes: Maximum size of an uploaded file.
        upload_pixels: Maximum number of pixels of an uploaded photo.
    """

    steps: int = 300
    text_length: int = 200
    keep_texts: int = 4
    seconds: float = 120.0
    upload_bytes: int = 10_000_000
    upload_pixels: int = 40_000_000


class Engine:
    """Loads the models once and edits images with them.

    Args:
        generator: A checkpoint directory. None: the avatars' generator.
        clip: A checkpoint directory. None: the avatars' CLIP.
        mappers: For each mapper's name, its directory or the name of a mapper that ships with the
            package. Instant edits use the first mapper for any text.
        encoder: A checkpoint directory. None: uploads are disabled.
        directions: A checkpoint directory. None: the avatars' directions; with other models,
            instant edits with directions are disabled.
        limits: Limits of one request.

    Attributes:
        limits: Limits of one request.
        neutral: Default text for what an image shows before the edit.
        config: Default settings of optimizations.
        mappers: Mappers for one text, by name.
        any_text_mapper: The mapper for any text, if any.
        warm: Set once all programs are compiled.
        closing: Set it to end the compilations of :meth:`warm_up`.

    Raises:
        InputError: A checkpoint cannot be read, or the directions are for other models.
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
        self._templates = IMAGENET_TEMPLATES if clip else ()
        self.mapper_paths = mappers
        loaded = {name: load_mapper(path) for name, path in mappers.items()}
        self.mappers = {n: m for n, m in loaded.items() if not isinstance(m, DeltaMapper)}
        any_text = [(n, m) for n, m in loaded.items() if isinstance(m, DeltaMapper)]
        self._any_text_name, self.any_text_mapper = any_text[0] if any_text else ("", None)
        self._device: Any = None
        self._synthesize, self._to_styles = jax.jit(synthesize), jax.jit(to_styles)
        self._prepare()

    def _prepare(self) -> None:
        """Makes what belongs to one device."""
        self.warm, self.closing = threading.Event(), threading.Event()
        self._instant_compiled = threading.Event()
        self._instant_compiled.set()
        self._encoder: E4E | None = None
        self._batcher = Batcher(lambda w: to_uint8(self._synthesize(self.generator, w)))
        self._samples = Cache(self._sample)
        self._features = Cache(self._encode)
        self._starts = Cache(self._start_direction)
        self._text_directions = Cache(self._text_direction)

    def on(self, device: Any) -> "Engine":
        """Returns an engine that computes the same on another device.

        Args:
            device: One of ``jax.local_devices()``.
        """
        other = copy.copy(self)
        other._device = device
        for name in ("generator", "clip", "directions", "mappers", "any_text_mapper"):
            setattr(other, name, jax.device_put(getattr(self, name), device))
        other._prepare()
        return other

    @property
    def instant_methods(self) -> tuple[InstantMethod, ...]:
        """The available methods of instant edits, the best one first (avatars/REPORT.md)."""
        models: dict[InstantMethod, Any] = {
            "any_text": self.any_text_mapper,
            "directions": self.directions,
        }
        return tuple(method for method, model in models.items() if model is not None)

    def channels(self, using: InstantMethod) -> int:
        """Returns the number of channels that instant edits can change."""
        if using == "directions":
            return self.directions.config.channels if self.directions else 0
        config = self.any_text_mapper.config if self.any_text_mapper else None
        return sum(config.style_dims[i] for i in config.changed) if config else 0

    def load_encoder(self) -> E4E | None:
        """Returns the encoder, which the first call loads; None if uploads are disabled.

        Raises:
            InputError: The encoder cannot be read or is for another generator.
        """
        if self._encoder is None and self.encoder_path is not None:
            encoder = load_encoder(self.encoder_path)
            check_encoder(self.generator, encoder)
            self._encoder = jax.device_put(encoder, self._device)
        return self._encoder

    def warm_up(self) -> None:
        """Compiles all programs except those of uploads in a thread, then sets ``warm``.

        The thread ends early if ``closing`` is set. Instant edits wait for their own program rather
        than compile it a second time.
        """
        self._instant_compiled.clear()
        threading.Thread(target=self._compile_programs).start()

    def _compile_programs(self) -> None:
        for compile_one in self._programs():
            if not self.closing.is_set():
                # A mapper may be for another generator; users who choose it get the message.
                with contextlib.suppress(InputError):
                    compile_one()
            # The first program is that of instant edits.
            self._instant_compiled.set()
        if not self.closing.is_set():
            self.warm.set()

    def _programs(self) -> Iterator[Callable[[], Any]]:
        face = self.random_face(0)
        for using in self.instant_methods:
            recipe = Instant(_WARM_UP_TEXT, self.neutral, using=using)
            yield lambda recipe=recipe: self._instant(face, recipe)
        for size in SIZES[1:]:
            styles = jax.tree.map(lambda x, n=size: np.repeat(x, n, 0), self._styles(face.latents))
            yield lambda styles=styles: self._synthesize(self.generator, styles)
        for name in self.mappers:
            yield lambda name=name: self.mapped(face, Mapped(name))
        optimized = Optimized(_WARM_UP_TEXT, self.neutral, steps=self.config.steps)
        # The first step compiles the program.
        yield lambda: next(self.optimize(face, optimized))

    def random_latents(self, seed: int) -> HostLatents:
        """Samples the latents of a random image.

        Raises:
            InputError: The seed is out of range.
        """
        if not 0 <= seed < 2**32:
            raise InputError(f"the seed is {seed}, expected 0 to {2**32 - 1}")
        return np.asarray(sample_latents(self.generator, 1, seed, TRUNCATION))

    def random_face(self, seed: int) -> Face:
        """Synthesizes the image of :meth:`random_latents`."""
        return self.face(self.random_latents(seed))

    def face(self, latents: HostLatents, photo: Photo | None = None) -> Face:
        """Synthesizes the image of latents."""
        return Face(latents, self._batcher(self._styles(latents)), photo)

    def _styles(self, latents: HostLatents) -> HostStyles:
        """StyleSpace coordinates, so that both kinds of latents share programs and batches."""
        if isinstance(latents, tuple):
            return latents
        return jax.device_get(self._to_styles(self.generator, latents))

    def upload(self, path: str, align: bool) -> Face:
        """Inverts a photo and returns the generator's reconstruction of it.

        Args:
            path: The file.
            align: Whether to find and align the face; see :func:`photos.read_upload`.

        Raises:
            NoFaceError: No face was found in the photo.
            InputError: The file is not an image or is too large.
        """
        size = self.generator.config.resolution
        photo = read_upload(path, size, align, self.limits.upload_pixels)
        inversion = invert(
            self.generator,
            jnp.asarray(from_uint8(photo.aligned))[None],
            self.load_encoder(),
            _INVERSION,
            perceptual=self.clip,
        )
        pixels = to_uint8(inversion.images[0])
        photo = dataclasses.replace(photo, reconstructed=pixels)
        return Face(jax.device_get(inversion.latents), pixels, photo)

    def instant(self, start: Face, recipe: Instant) -> Edit:
        """Edits an image with any text; the result's recipe contains the automatic values.

        Raises:
            NoChannelError: No channel reaches the threshold.
            InputError: The directions or the mapper are missing, or the recipe is invalid.
        """
        if recipe.threshold is not None and recipe.threshold < 0:
            raise InputError(f"the threshold is {recipe.threshold}, expected at least 0")
        self._instant_compiled.wait()
        return self._instant(start, recipe)

    def _instant(self, start: Face, recipe: Instant) -> Edit:
        dt = self._text_directions((self.check_text(recipe.text), self.check_text(recipe.neutral)))
        move = self._move_with_mapper if recipe.using == "any_text" else self._move_with_directions
        recipe, latents, changed = move(start.latents, dt, recipe)
        # The batcher synthesizes the image together with those of other users.
        face = self.face(jax.device_get(latents), start.photo)
        return Edit(start, recipe, face, changed)

    def _move_with_mapper(self, before: HostLatents, dt: Array, recipe: Instant) -> _Moved:
        if self.any_text_mapper is None:
            raise InputError(
                "there is no mapper for any text for this generator; restart app.py with"
                " --mappers_dir"
            )
        threshold, strength = recipe.threshold or 0.0, recipe.strength
        models = self.generator, self.any_text_mapper, self.clip
        change = predict_change(*models, self._styles(before), dt, min_change=threshold)
        changed = change.changed.item()
        if not changed:
            raise NoChannelError(threshold, change.largest.item())
        if strength is None:
            strength = best_strengths_of_change(*models, change, dt).item()
        recipe = dataclasses.replace(recipe, strength=strength, threshold=threshold)
        return _Moved(recipe, move_styles(change, strength), changed)

    def _move_with_directions(self, before: HostLatents, dt: Array, recipe: Instant) -> _Moved:
        if not self.directions:
            raise InputError(
                "there are no directions for this generator; restart app.py with --directions"
            )
        latents = _on_device(before)
        threshold, strength = recipe.threshold, recipe.strength
        if threshold is None:
            threshold = self.direction_defaults.threshold
        if threshold is None:
            channels = self.direction_defaults.min_channels
            threshold = float(automatic_threshold(self.directions, dt, channels))
        if strength is None:
            best = best_strengths(
                self.generator, self.directions, self.clip, latents, dt, threshold
            )
            strength = np.asarray(best).item()
        moved, changed = move_latents(
            self.generator, self.directions, latents, dt, strength, threshold
        )
        recipe = dataclasses.replace(recipe, strength=strength, threshold=threshold)
        return _Moved(recipe, moved, int(changed))

    def mapped(self, start: Face, recipe: Mapped) -> Edit:
        """Edits an image with a trained mapper; the result's recipe contains the strength.

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
        """Edits an image by gradient descent, which stops if the iterator is closed.

        Yields:
            The progress after the first step and several times a second; the last one has the edit.

        Raises:
            InputError: The recipe is invalid or exceeds the limits.
            TooSlowError: The optimization took longer than the limit.
        """
        self.check_text(recipe.text)
        if not 1 <= recipe.steps <= self.limits.steps:
            raise InputError(
                f"the number of steps is {recipe.steps}, expected 1 to {self.limits.steps}"
            )
        if len(recipe.keep) > self.limits.keep_texts:
            raise InputError(
                f"there are {len(recipe.keep)} texts to keep, expected at most"
                f" {self.limits.keep_texts}"
            )

        def optimize(on_progress: OnProgress) -> tuple[Edit, int]:
            result = self._run_optimization(start, recipe, on_progress)
            face = Face(jax.device_get(result.latents), to_uint8(result.images[0]), start.photo)
            return Edit(start, recipe, face), int(np.max(result.steps))

        def synthesize_face(latents: Latents) -> Face:
            return self.face(jax.device_get(latents), start.photo)

        yield from run_in_background(optimize, synthesize_face, recipe.steps, self.limits.seconds)

    def _run_optimization(
        self, start: Face, recipe: Optimized, on_progress: OnProgress
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
            on_progress=on_progress,
            progress_every=1,
        )

    def _config(self, start: Face) -> OptimizeConfig:
        """The settings of optimizations in the space of an image's latents."""
        space = "stylespace" if isinstance(start.latents, tuple) else self.config.space
        return dataclasses.replace(self.config, space=space)

    def with_strength(self, edit: Edit, strength: float) -> Face:
        """Interpolates or extrapolates an edit: 0 is the image before, 1 the image after it."""
        before, after = edit.start.latents, edit.face.latents
        if isinstance(after, tuple):
            before = self._styles(before)
        between = jax.tree.map(lambda x, y: x + np.float32(strength) * (y - x), before, after)
        return self.face(between, edit.start.photo)

    def exact(self, edit: Edit) -> Edit:
        """Returns an edit whose image is computed as by the scripts, bit for bit.

        The images of instant edits are synthesized in batches, which changes their rounding.
        """
        if not isinstance(edit.recipe, Instant):
            return edit
        images = self._synthesize(self.generator, self._styles(edit.face.latents))
        face = dataclasses.replace(edit.face, pixels=to_uint8(images[0]))
        return dataclasses.replace(edit, face=face)

    def archive(self, edit: Edit) -> bytes:
        """Returns a ZIP file of the images, the latents and the settings of an edit."""
        edit = self.exact(edit)
        return files.archive(edit, self.settings(edit))

    def settings(self, edit: Edit) -> str:
        """Returns the settings of an edit as JSON.

        The script that they name reproduces the edit with ``--settings``.
        """
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
            "latents": files.start_name(edit),
            "flags": flags | values,
        }
        return json.dumps(settings, indent=2)

    def check_text(self, text: str) -> str:
        """Returns a text without surrounding spaces.

        Raises:
            InputError: The text is empty or too long.
        """
        text = text.strip()
        if not text:
            raise InputError("the text is empty; describe what the image should show")
        if len(text) > self.limits.text_length:
            raise InputError(
                f"the text has {len(text)} characters, expected at most"
                f" {self.limits.text_length}; shorten it"
            )
        return text

    def _sample(self, count: int) -> Any:
        """Random images from which the directions in W are found."""
        return sample_features(
            self.generator,
            (self.clip,),
            count,
            resolution=self.config.guide_resolution,
            preprocess=self.config.preprocess,
        )

    def _encode(self, text: str) -> Array:
        return encode_texts(self.clip, self.tokenizer, [text])

    def _start_direction(self, texts: tuple[str, str]) -> Float[Array, "1 w_dim"]:
        """The direction in W along which optimizations may start."""
        text, neutral = map(self._features, texts)
        samples = self._samples(self.config.start_samples)
        return latent_directions(samples, (text,), (neutral,))

    def _text_direction(self, texts: tuple[str, str]) -> Array:
        """The direction of instant edits in CLIP's embedding space."""
        return text_direction(self.clip, self.tokenizer, *texts, self._templates)


def _on_device(latents: HostLatents) -> Latents:
    return jax.tree.map(jnp.asarray, latents)
