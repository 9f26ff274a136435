"""Trains the avatars CLIP: `python -m avatars.train_clip --data train.npz --out DIR`.

Contrastive training as in CLIP (arXiv 2103.00020, section 2.3), with one difference: we know which
pictures of a batch a caption fits, so the target of a caption is spread over all of them instead of
calling the others wrong. A linear classifier of the attributes on the image features helps the
image tower along and is thrown away.

What the judge of an optimization must withstand is part of the training: pictures are shifted,
zoomed, blurred, made noisy, and their contrast changes (which covers both ways to preprocess,
`losses.clip_pixels`). `--data` may be given several times, for pictures from the generator too
(`avatars.generated`).

With `--generator` half of every batch is drawn by the generator from latents that have been moved
towards a text about one attribute, like in an optimization (adversarial training, Madry et al.,
arXiv 1706.06083, in W+). What that attribute then looks like is left open; all others must be
recognized as before. A CLIP that is not trained so rewards blends of colours and shapes that no
text asks for: the less a picture shows of everything else, the better it fits.

The attack says what must not be rewarded, and a second part what must: on the straight way in W+
from a picture to the same picture with what the text asks for, the similarity shall rise evenly,
and by enough. A CLIP that only tells finished drawings apart is flat where an optimization begins,
and descends there into whatever else is near; and small things, such as eyes, it hardly weighs.

Checkpointed every few minutes; the same command resumes.
"""

import json
import pathlib
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from absl import flags
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key
from tokenizers import Tokenizer as TokenizerModel
from tokenizers import models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from avatars.attributes import LABELS, NAMES, SLOTS, implied, index, observe, sample, with_value
from avatars.captions import caption, describe, prompts
from avatars.generated import disturbed_latents
from avatars.training import learning_rate_schedule, train
from styleclip_jax import checkpoints
from styleclip_jax.command_line import run
from styleclip_jax.latents import draw
from styleclip_jax.losses import clip_loss
from styleclip_jax.models import Generator
from styleclip_jax.models.clip import CLIP, CLIPConfig
from styleclip_jax.text import Tokenizer

FLAGS = flags.FLAGS

CONTEXT_LENGTH = 40
# A larger scale lets the loss fall with ever smaller differences of the cosine, which is what an
# edit has to move.
MAX_LOGIT_SCALE = 20.0
CARDINALITIES = tuple(len(values) for values in LABELS.values())
# How far the latents of a picture are moved at most; from value to value of an attribute it is
# sqrt(2 layers) times its LATENT_SCALES, in the layers that matter.
RADIUS = 2.0
ATTACK_STEPS = 3
# Ways per step, three pictures each; the least rise of the cosine; the weight of squared errors.
WAYS = 16
RISE = 0.25
WAY_WEIGHT = 20.0
# In place of a label that an attack has left open.
UNKNOWN = -1


def train_tokenizer(num_captions: int = 50_000, merges: int = 1500) -> dict[str, bytes]:
    """A CLIP tokenizer whose merges are learned from captions: `vocab.json` and `merges.txt`.

    As in OpenAI's vocabulary, every byte is a token, alone and at the end of a word, so no text is
    unknown; the end-of-text token has the highest id.
    """
    generator = np.random.default_rng(0)
    texts = [caption(labels, generator) for labels in observe(sample(num_captions, seed=2))]
    reference = CLIPTokenizer().backend_tokenizer
    model = TokenizerModel(models.BPE(end_of_word_suffix="</w>"))
    model.normalizer, model.pre_tokenizer = reference.normalizer, reference.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=len(alphabet) + merges,
            initial_alphabet=alphabet,
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    learned = json.loads(model.to_str())["model"]["merges"]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *map("".join, learned)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    lines = ["#version: 0.2", *(" ".join(pair) for pair in learned)]
    return {
        "vocab.json": json.dumps(vocab, ensure_ascii=False).encode(),
        "merges.txt": "\n".join(lines).encode() + b"\n",
    }


def clip_config(vocab_size: int) -> CLIPConfig:
    """The architecture of the avatars CLIP, about 2.7 million parameters.

    Large patches make few tokens, which is what a step costs on a CPU.
    """
    return CLIPConfig(
        image_size=64,
        patch_size=16,
        vision_width=192,
        vision_layers=4,
        vision_heads=6,
        text_width=128,
        text_layers=2,
        text_heads=4,
        embed_dim=128,
        context_length=CONTEXT_LENGTH,
        vocab_size=vocab_size,
    )


def augment(
    images: Float[Array, "batch size size 3"], key: Key[Array, ""]
) -> Float[Array, "batch size size 3"]:
    """Mirrors, zooms, shifts, blurs, adds noise, and changes contrast and brightness."""
    batch, size = images.shape[:2]
    keys = iter(jax.random.split(key, 8))

    def uniform(low, high, *shape):
        return jax.random.uniform(next(keys), (batch, *shape), minval=low, maxval=high)

    mirrored = uniform(0, 1, 1, 1, 1) < 0.5
    images = jnp.where(mirrored, images[:, :, ::-1], images)
    zoom, shift = uniform(0.88, 1.15), uniform(-5, 5, 2)
    # Bilinear interpolation is a matrix per axis; positions outside repeat the border.
    centre = (size - 1) / 2
    source = (jnp.arange(size) - centre)[None, None] / zoom[:, None, None] + centre
    source = jnp.clip(source + shift[..., None], 0, size - 1)
    weights = jnp.maximum(1 - jnp.abs(source[..., None] - jnp.arange(size)), 0)
    images = jnp.einsum("bjh,bhwc->bjwc", weights[:, 0], images)
    images = jnp.einsum("bkw,bjwc->bjkc", weights[:, 1], images)
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    rows = (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4
    blurred = (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 4
    images = images + uniform(0, 1, 1, 1, 1) * (blurred - images)
    noise = jax.random.normal(next(keys), images.shape)
    images = images + uniform(0, 0.15, 1, 1, 1) * noise
    return images * uniform(0.8, 2.0, 1, 1, 1) + uniform(-0.15, 0.25, 1, 1, 1)


def cross_entropy(logits: Array, targets: Array) -> Array:
    """Mean cross entropy with targets that sum to one along the last axis."""
    return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1))


def contrastive_loss(
    clip: CLIP, pixels: Array, tokens: Array, fits: Float[Array, "captions pictures"]
) -> tuple[Array, Array]:
    """CLIP's symmetric loss with several right answers; also the unit image features."""
    unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    pictures, texts = unit(clip.encode_image(pixels)), unit(clip.encode_text(tokens))
    scale = jnp.minimum(jnp.exp(clip.logit_scale[...]), MAX_LOGIT_SCALE)
    logits = jnp.where(jnp.isnan(fits), -1e4, scale * texts @ pictures.T)
    fits = jnp.nan_to_num(fits)
    by_caption = cross_entropy(logits, fits / fits.sum(1, keepdims=True))
    by_picture = cross_entropy(logits.T, (fits / fits.sum(0, keepdims=True)).T)
    return (by_caption + by_picture) / 2, pictures


def attribute_loss(
    heads: nnx.Linear, features: Array, labels: Int[Array, "batch slots"]
) -> Float[Array, ""]:
    """Mean cross entropy over the slots of a linear classifier on the image features."""
    losses, start = [], 0
    logits = MAX_LOGIT_SCALE * heads(features)
    for i, count in enumerate(CARDINALITIES):
        one_hot = jax.nn.one_hot(labels[:, i], count)
        losses.append(cross_entropy(logits[:, start : start + count], one_hot))
        start += count
    return jnp.stack(losses).mean()


def attack(
    clip: CLIP,
    generator: Generator,
    attributes: Int[Array, "batch slots"],
    tokens: Int[Array, "batch context"],
    key: Key[Array, ""],
) -> Float[Array, "batch 64 64 3"]:
    """Pictures of attributes whose latents went some way towards texts."""
    latent_key, radius_key = jax.random.split(key)
    latents = disturbed_latents(attributes, latent_key)
    texts = clip.encode_text(tokens)
    radius = jax.random.uniform(radius_key, (len(latents), 1, 1), minval=0.3, maxval=RADIUS)

    def loss(latents):
        return clip_loss(clip, draw(generator, latents), texts).sum()

    for _ in range(ATTACK_STEPS):
        gradient = jax.grad(loss)(latents)
        norm = jnp.linalg.norm(gradient, axis=(1, 2), keepdims=True)
        latents -= radius / ATTACK_STEPS * gradient / (norm + 1e-12)
    return draw(generator, latents)


def way_loss(
    clip: CLIP,
    generator: Generator,
    attributes: Int[Array, "batch slots"],
    wanted: Int[Array, "batch slots"],
    rises: Bool[Array, " batch"],
    tokens: Int[Array, "batch context"],
    key: Key[Array, ""],
) -> Float[Array, ""]:
    """How far the similarity to a text is from rising evenly, and by RISE, on the way to it."""
    latent_key, way_key = jax.random.split(key)
    start, end = (disturbed_latents(x, latent_key) for x in (attributes, wanted))
    t = jax.random.uniform(way_key, (len(start),), minval=0.05, maxval=0.95)
    between = start + t[:, None, None] * (end - start)
    pictures = draw(generator, jnp.concatenate([start, between, end]))
    texts = jnp.tile(clip.encode_text(tokens), (3, 1))
    first, middle, last = jnp.split(1 - clip_loss(clip, pictures, texts), 3)
    missing = jnp.where(rises, jax.nn.relu(RISE - (last - first)), 0)
    first, last = jax.lax.stop_gradient((first, last))
    uneven = middle - (first + t * (last - first))
    return jnp.mean(jnp.square(uneven) + jnp.square(missing))


class Targets(NamedTuple):
    """A text about one attribute for each picture; it may be right already.

    Attributes:
        texts: The texts.
        stays: The labels that must not change on the way there; the others are UNKNOWN.
        wanted: Attributes of pictures that fit the texts and are otherwise the same.
        rises: Where those fit and the pictures themselves do not.
    """

    texts: list[str]
    stays: Int[np.ndarray, "batch slots"]
    wanted: Int[np.ndarray, "batch slots"]
    rises: Bool[np.ndarray, " batch"]


def choose_targets(
    attributes: Int[np.ndarray, "batch slots"], generator: np.random.Generator
) -> Targets:
    """Chooses a text for each picture."""
    texts, stays, wanted = [], observe(attributes), attributes.copy()
    rises = np.zeros(len(attributes), bool)
    for i, row in enumerate(stays):
        slot = generator.choice(NAMES)
        value = generator.choice(list(SLOTS[slot]))
        position, label = NAMES.index(slot), index(slot, value)
        texts.append(generator.choice(prompts(slot, value)))
        wanted[i : i + 1] = with_value(attributes[i : i + 1], slot, value)
        if row[position] != label:
            rises[i] = observe(wanted[i : i + 1])[0, position] == label
            row[[NAMES.index(name) for name in (slot, *implied(slot, value))]] = UNKNOWN
    return Targets(texts, stays, wanted, rises)


@partial(jax.jit, static_argnames=("optimizer", "attribute_weight"), donate_argnames="state")
def clip_step(state, generator, batch, key, *, optimizer, attribute_weight):
    """One update of the CLIP and the auxiliary classifier."""
    networks, opt_state = state
    images, (attributes, wanted, rises, target_tokens), labels, tokens, fits = batch
    images = images.astype(jnp.float32) / 127.5 - 1
    attack_key, augment_key, way_key = jax.random.split(key, 3)
    if generator is not None:
        drawn = attack(networks[0], generator, attributes, target_tokens, attack_key)
        images = jnp.concatenate([images, drawn])
    pixels = augment(images, augment_key)

    def loss_fn(networks):
        clip, heads = networks
        loss, features = contrastive_loss(clip, pixels, tokens, fits)
        total = loss + attribute_weight * attribute_loss(heads, features, labels)
        if generator is not None:
            way = (x[:WAYS] for x in (attributes, wanted, rises, target_tokens))
            total += WAY_WEIGHT * way_loss(clip, generator, *way, way_key)
        return total, loss

    gradients, loss = jax.grad(loss_fn, has_aux=True)(networks)
    updates, opt_state = optimizer.update(gradients, opt_state, networks)
    return (optax.apply_updates(networks, updates), opt_state), loss


def load_data(paths: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Pictures and what can be seen on them, of all files together."""
    files = [np.load(path) for path in paths]
    labels = [f["labels"] if "labels" in f else observe(f["attributes"]) for f in files]
    return np.concatenate([f["images"] for f in files]), np.concatenate(labels)


def describe_batch(
    labels: Int[np.ndarray, "batch slots"], generator: np.random.Generator
) -> tuple[list[str], Float[np.ndarray, "captions pictures"]]:
    """One caption per picture, and which pictures of the batch each caption fits.

    1 where it fits, 0 where not, NaN where that depends on what is unknown.
    """
    described = [describe(row, generator) for row in labels]
    told = np.array([[name in slots for name in NAMES] for _, slots in described])[:, None]
    same, unknown = labels[:, None] == labels[None], labels[None] == UNKNOWN
    fits = (same | ~told).all(-1).astype(np.float32)
    fits[(same | unknown | ~told).all(-1) & (unknown & told).any(-1)] = np.nan
    return [text for text, _ in described], fits


def main(_: Sequence[str]) -> None:
    """Trains, and writes the CLIP with its tokenizer."""
    out = pathlib.Path(FLAGS.out).absolute()
    images, labels = load_data(FLAGS.data)
    if FLAGS.init:
        clip = checkpoints.load_clip(FLAGS.init)
        folder = pathlib.Path(FLAGS.init) / checkpoints.TOKENIZER
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
    else:
        files = train_tokenizer()
        config = clip_config(len(json.loads(files["vocab.json"])))
        clip = CLIP(config, rngs=nnx.Rngs(FLAGS.seed))
    merges = files["merges.txt"].decode().splitlines()[1:]
    tokenizer = Tokenizer(json.loads(files["vocab.json"]), merges, CONTEXT_LENGTH)

    heads = nnx.Linear(clip.config.embed_dim, sum(CARDINALITIES), rngs=nnx.Rngs(FLAGS.seed + 1))
    schedule = learning_rate_schedule(FLAGS.learning_rate, FLAGS.steps)
    decayed = lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)  # noqa: E731
    optimizer = optax.adamw(schedule, 0.9, 0.98, weight_decay=0.05, mask=decayed)
    key = jax.random.key(FLAGS.seed)
    painter = checkpoints.load_generator(FLAGS.generator) if FLAGS.generator else None
    attacked = FLAGS.batch_size // 2 if painter else 0

    def one_step(state, step):
        generator = np.random.default_rng([FLAGS.seed, step])
        picked = generator.integers(len(images), size=FLAGS.batch_size - attacked)
        attributes = sample(attacked, seed=[FLAGS.seed, step])
        targets = choose_targets(attributes, generator)
        shown = np.concatenate([labels[picked], targets.stays])
        texts, fits = describe_batch(shown, generator)
        target_tokens, tokens = np.split(tokenizer([*targets.texts, *texts]), [attacked])
        drawn = attributes, targets.wanted, targets.rises, target_tokens
        return clip_step(
            state,
            painter,
            (images[picked], drawn, shown, tokens, fits),
            jax.random.fold_in(key, step),
            optimizer=optimizer,
            attribute_weight=FLAGS.attribute_weight,
        )

    # Modules are pytrees, which optax's types do not say.
    networks: Any = (clip, heads)
    state = (networks, optimizer.init(networks))
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    with ocp.CheckpointManager(out / "training", options=options) as manager:
        clip = train(state, FLAGS.steps, one_step, manager, "clip")[0][0]
    # The scale that was trained with is the capped one.
    clip.logit_scale[...] = jnp.minimum(clip.logit_scale[...], np.log(MAX_LOGIT_SCALE))
    checkpoints.save_model(out / "clip", clip, files, dtype=jnp.float16)


if __name__ == "__main__":
    flags.DEFINE_multi_string("data", None, "Pictures and attributes (or labels) in .npz files.")
    flags.DEFINE_string("out", None, "Directory of checkpoints and of the finished CLIP.")
    flags.DEFINE_string(
        "init", None, "Start from this CLIP and its tokenizer instead of from scratch."
    )
    flags.DEFINE_string(
        "generator", None, "Draw half of every batch with this generator; see above."
    )
    flags.DEFINE_integer("steps", 4000, "Training steps.")
    flags.DEFINE_integer("batch_size", 128, "Pictures, and captions, per step.")
    flags.DEFINE_float("learning_rate", 1e-3, "Peak learning rate of AdamW.")
    flags.DEFINE_float("attribute_weight", 0.5, "Weight of the auxiliary classification loss.")
    flags.DEFINE_integer("seed", 0, "Seed of initial weights, batches, captions and augmentation.")
    flags.mark_flags_as_required(["data", "out"])
    run(main)
