"""Training a mapper for any text on pairs of images, on every device of every host.

DeltaEdit (Lyu et al., arXiv 2303.06285, section 3.2); the official files are ``scripts/train.py``
and ``datasets/train_dataset.py``. Training uses no text: the mapper learns to predict the change of
styles between two images from the direction between their CLIP features.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt32

from styleclip_jax.errors import InputError, check_choices
from styleclip_jax.latents import Latents, to_styles
from styleclip_jax.losses import Preprocess, image_features
from styleclip_jax.methods.mapper_training import (
    MapperState,
    Metrics,
    OptimizerName,
    pmapped_evaluation,
    pmapped_train_step,
)
from styleclip_jax.models.clip import CLIP
from styleclip_jax.models.delta_mapper import DeltaMapper
from styleclip_jax.models.stylegan2 import Generator
from styleclip_jax.sharding import DEVICES, host_share, replicate, shard


@dataclasses.dataclass(frozen=True)
class DeltaTrainConfig:
    """Settings of the training; the defaults are the official ones.

    Attributes:
        optimizer: ``"adam"`` or ``"ranger"``.
        learning_rate: The optimizer's learning rate.
        l2_lambda: Weight of the mean squared error of the predicted change of styles.
        cosine_lambda: Weight of 1 - cosine of the predicted and the true change.
        direction_noise: Length of a random vector that is added to the direction of an image pair,
            which is then scaled to unit length again. Text directions differ from image directions;
            noise makes the mapper robust to the difference. The official code adds none.
    """

    optimizer: OptimizerName = "adam"
    learning_rate: float = 0.5
    l2_lambda: float = 1.0
    cosine_lambda: float = 1.0
    direction_noise: float = 0.0

    def __post_init__(self) -> None:
        check_choices(self, optimizer=OptimizerName)
        for field in ("learning_rate", "l2_lambda", "cosine_lambda", "direction_noise"):
            if not getattr(self, field) >= 0:
                raise InputError(f"{field} is {getattr(self, field)}, expected at least 0")


class SeenStyles(NamedTuple):
    """Images as styles and CLIP features.

    Attributes:
        styles: StyleSpace coordinates.
        features: CLIP's unit features of the images.
    """

    styles: tuple[Float[Array | np.ndarray, "images _"], ...]
    features: Float[Array | np.ndarray, "images embed"]


class Pairs(NamedTuple):
    """A batch of image pairs."""

    source: SeenStyles
    target: SeenStyles


def see_styles(
    generator: Generator,
    clip: CLIP,
    latents: Latents,
    batch_size: int,
    preprocess: Preprocess = "styleclip",
    on_batch: Callable[[int], object] = lambda _: None,
) -> SeenStyles:
    """Synthesizes images on all devices of all hosts, and encodes them with CLIP.

    Args:
        generator: Synthesizes the images.
        clip: Encodes the images.
        latents: W+ or StyleSpace, the same on all hosts.
        batch_size: Images per batch, over all devices.
        preprocess: See :func:`styleclip_jax.losses.clip_pixels`.
        on_batch: Called with the number of new images after every batch.

    Returns:
        All images, in host memory on every host.

    Raises:
        InputError: The batch size is not divisible by the number of devices.
    """
    see = _pmapped_see(preprocess)
    models, latents = replicate((generator, clip)), jax.device_get(latents)
    size = len(jax.tree.leaves(latents)[0])
    empty = functools.partial(np.empty, dtype=np.float32)
    found = SeenStyles(
        tuple(empty((size, width)) for width in generator.config.style_dims),
        empty((size, clip.config.embed_dim)),
    )
    for start in range(0, size, batch_size):
        # The last image fills the last batch.
        rows = host_share(np.minimum(np.arange(start, start + batch_size), size - 1))
        batch = jax.tree.map(lambda x, rows=rows: x[rows], latents)
        rows, seen = jax.device_get(see(models, shard((rows, batch))))
        for whole, part in zip(jax.tree.leaves(found), jax.tree.leaves(seen), strict=True):
            whole[rows] = part
        on_batch(min(batch_size, size - start))
    return found


@functools.cache
def _pmapped_see(preprocess: Preprocess) -> Callable:
    """The program of :func:`see_styles`; a training runs it for two sets of images."""

    @functools.partial(jax.pmap, axis_name=DEVICES, in_axes=(None, 0), out_axes=None)
    def see(models: tuple[Generator, CLIP], batch: Any):
        generator, clip = models
        rows, latents = batch
        styles = to_styles(generator, latents)
        seen = SeenStyles(styles, image_features(clip, generator.synthesize(styles), preprocess))
        # With their rows, because the order of devices may differ from that of hosts.
        return jax.tree.map(lambda x: jax.lax.all_gather(x, DEVICES, tiled=True), (rows, seen))

    return see


def choose_partners(
    rows: Int[np.ndarray, " batch"], size: int, reach: int, seed: int, step: int
) -> Int[np.ndarray, " batch"]:
    """Chooses a partner for every image of a batch; a pure function of its arguments.

    Args:
        rows: Rows of the global batch's images.
        size: Number of images.
        reach: Largest distance in rows to a partner, which is never the image itself. 0: any other
            image, as in the official code.
        seed: Seed of the choice.
        step: Training step; every step chooses other partners.
    """
    rng = np.random.default_rng((seed, step, 1))
    furthest = min(reach or size - 1, size - 1)
    offsets = rng.integers(1, furthest + 1, len(rows)) * rng.choice([-1, 1], len(rows))
    return (rows + offsets) % size


def make_pairs(
    images: SeenStyles, rows: Int[np.ndarray, " batch"], partners: Int[np.ndarray, " batch"]
) -> Pairs:
    """Makes pairs of images from their rows."""
    source, target = (jax.tree.map(lambda x, i=i: x[i], images) for i in (rows, partners))
    return Pairs(source, target)


def pair_directions(pairs: Pairs) -> Float[Array, "batch embed"]:
    """Unit directions from images to their partners in CLIP's embedding space."""
    return _unit(jnp.asarray(pairs.target.features) - jnp.asarray(pairs.source.features))


def make_delta_train_step(
    config: DeltaTrainConfig, *, key: PRNGKeyArray | None = None
) -> Callable[[MapperState, Pairs], tuple[MapperState, Metrics]]:
    """A training step that is ``jax.pmap``ped over all devices of all hosts.

    Args:
        config: The settings.
        key: Key of the directions' noise. None: ``jax.random.key(0)``.

    Returns:
        ``step(state, pairs) -> (state, metrics)``. ``pairs`` is this host's share of the global
        batch; ``state``, from :func:`styleclip_jax.init_mapper_state`, is donated. ``metrics`` are
        means over the global batch: ``loss``, the unweighted ``l2_loss`` and ``cosine_loss``, and
        ``gradient_norm`` and ``parameter_norm``. The step raises InputError if the batch size is
        not divisible by the number of devices or the batch does not fit the mapper.
    """
    key = jax.random.key(0) if key is None else key
    # JAX replicates plain numbers on several hosts, but not typed keys.
    words = replicate(jax.random.key_data(key))
    step = _step_program(config, jax.random.key_impl(key))
    return lambda state, pairs: step(state, words, shard(pairs))


@functools.lru_cache(maxsize=8)
def _step_program(config: DeltaTrainConfig, key_implementation: Any) -> Callable:
    def loss(mapper: Any, words: UInt32[Array, " words"], pairs: Pairs, step: Array) -> Any:
        key = jax.random.wrap_key_data(words, impl=key_implementation)
        key = jax.random.fold_in(jax.random.fold_in(key, step), jax.lax.axis_index(DEVICES))
        return _loss(mapper, pairs, config, key)

    return pmapped_train_step(loss, config)


def make_delta_evaluation(config: DeltaTrainConfig) -> Callable[[Any, Pairs], Metrics]:
    """Returns a function that computes the losses of a mapper without noise, on all devices."""
    evaluate = _evaluation_program(dataclasses.replace(config, direction_noise=0.0))
    return lambda mapper, pairs: evaluate(mapper, None, shard(pairs))


@functools.lru_cache(maxsize=8)
def _evaluation_program(config: DeltaTrainConfig) -> Callable:
    def loss(mapper: Any, _: None, pairs: Pairs) -> Any:
        return _loss(mapper, pairs, config, None)

    return pmapped_evaluation(loss)


def _loss(
    mapper: DeltaMapper, pairs: Pairs, config: DeltaTrainConfig, key: PRNGKeyArray | None
) -> tuple[Float[Array, ""], Metrics]:
    """Mean losses over the images of a device, with equal weights of all changed channels."""
    source, target = pairs
    direction = pair_directions(pairs)
    if config.direction_noise:
        assert key is not None
        noise = _unit(jax.random.normal(key, direction.shape))
        direction = _unit(direction + config.direction_noise * noise)
    styles, features = jax.tree.map(jnp.asarray, tuple(source))
    residuals = mapper(styles, features, direction)
    # Official data files hold only the styles that the mapper changes.
    residual, change = (
        jnp.concatenate([of_entry[i] for i in mapper.config.changed], axis=-1)
        for of_entry in (residuals, jax.tree.map(jnp.subtract, target.styles, styles))
    )
    l2 = jnp.mean(jnp.square(residual - change))
    # torch.nn.CosineSimilarity.
    lengths = jnp.linalg.norm(residual, axis=-1) * jnp.linalg.norm(change, axis=-1)
    cosine = jnp.mean(1 - jnp.sum(residual * change, axis=-1) / jnp.maximum(lengths, 1e-8))
    loss = config.l2_lambda * l2 + config.cosine_lambda * cosine
    return loss, {"loss": loss, "l2_loss": l2, "cosine_loss": cosine}


def _unit(x: Float[Array, "batch embed"]) -> Float[Array, "batch embed"]:
    """Scales rows to unit length; rows shorter than 1e-5 stay short, as in the official code."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-5)
