"""Trains the avatars CLIP: `python -m avatars.train_clip --data train.npz --out DIR`.

Contrastive training as in CLIP (arXiv 2103.00020, section 2.3), with one difference: all images of
a batch that a caption fits are known, so the target of a caption is spread over them. An
auxiliary linear classifier predicts the attributes from the features of both towers and is
discarded after the training.

Augmentation makes the CLIP robust for guiding an optimization: images are shifted, zoomed, blurred
and made noisy, and their contrast changes (which covers both kinds of preprocessing,
`losses.clip_pixels`).

With `--generator` and `--annotator`, half of every batch are images of running edits
(`avatars.running_edits`), so that the CLIP is right about images that its own gradient leads to.
The features also learn the geometry that `losses.direction_loss` relies on: from an image to the
same image with the attribute of a text, they move along the direction of the text, by a certain
amount; to the same image with another change, they do not move along it.

With `--lock_images`, only the text tower is trained, on images and triples without edits: it learns
other words for attributes that the image tower already distinguishes (locked-image tuning, arXiv
2111.07991). With `--distractors`, it also learns to ignore words that describe no attribute.

The training is checkpointed every few minutes. Run the same command again to resume it; running
edits start over.
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

from avatars.attributes import LABELS, NAMES, observe, sample, with_other_values
from avatars.captions import (
    LANGUAGES,
    Meaning,
    caption,
    choose_language,
    describe,
    fits,
    neutral,
    truths,
)
from avatars.classifier import load as load_classifier
from avatars.distractors import Distractors
from avatars.perturbation import perturbed_latents
from avatars.running_edits import RunningEdits, choose_targets
from avatars.train_generator import halved
from avatars.training import learning_rate_schedule, train
from styleclip_jax.io import checkpoints
from styleclip_jax.io.text import WORDS_FILE, Tokenizer, format_words, words_of
from styleclip_jax.latents import synthesize
from styleclip_jax.losses import image_features, unit
from styleclip_jax.models import Generator
from styleclip_jax.models.clip import CLIP, CLIPConfig
from styleclip_jax.runs.command_line import run

FLAGS = flags.FLAGS

CONTEXT_LENGTH = 40
# With a larger scale, ever smaller differences of the cosine minimize the loss, but edits need
# large ones.
MAX_LOGIT_SCALE = 20.0
CARDINALITIES = tuple(len(values) for values in LABELS.values())
# Triples per step; the required move of the features along the direction of the text; the weights
# of the squared missing move and of squared unwanted moves.
TRIPLES = 16
RISE = 0.4
RISE_WEIGHT, STILL_WEIGHT = 20.0, 20.0
# Share of neutral captions, whose features are the origins of directions.
NEUTRAL_SHARE = 0.04


def train_tokenizer(num_captions: int = 30_000, merges: int = 3000) -> dict[str, bytes]:
    """Trains a CLIP tokenizer on captions; also returns the words of these captions.

    There are `num_captions` captions per language, so that both get a share of the merges. As in
    OpenAI's vocabulary, every byte is a token, alone and at the end of a word, so every text can be
    encoded; the end-of-text token has the highest id.
    """
    rng = np.random.default_rng(0)
    texts = [
        caption(labels, rng, language)
        for language in LANGUAGES
        for labels in observe(sample(num_captions, seed=2))
    ]
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
        WORDS_FILE: format_words({word for text in texts for word in words_of(text)}),
    }


def clip_config(vocab_size: int) -> CLIPConfig:
    """The architecture of the avatars CLIP, with about 2 million parameters.

    A patch has the size of an eye.
    """
    return CLIPConfig(
        image_size=64,
        patch_size=8,
        vision_width=160,
        vision_layers=4,
        vision_heads=5,
        text_width=128,
        text_layers=2,
        text_heads=4,
        embed_dim=128,
        context_length=CONTEXT_LENGTH,
        vocab_size=vocab_size,
    )


def carried_over(
    trained: CLIP, trained_vocab: dict[str, int], clip: CLIP, vocab: dict[str, int]
) -> CLIP:
    """Gives a trained CLIP another vocabulary; common tokens keep their embeddings.

    Args:
        trained: The trained CLIP.
        trained_vocab: Token ids of the trained CLIP by token.
        clip: An untrained CLIP of the same architecture, with the embeddings of new tokens.
        vocab: Token ids of the untrained CLIP by token.
    """
    both = [token for token in vocab if token in trained_vocab]
    old, new = (np.array([ids[token] for token in both]) for ids in (trained_vocab, vocab))
    known = trained.text.token_embedding.embedding[...][old]
    embedding = clip.text.token_embedding.embedding[...].at[new].set(known)
    graph, _ = nnx.split(clip)
    result = nnx.merge(graph, nnx.state(trained))
    result.text.token_embedding.embedding = nnx.Param(embedding)
    return result


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
    center = (size - 1) / 2
    source = (jnp.arange(size) - center)[None, None] / zoom[:, None, None] + center
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
    """Mean cross entropy with targets that sum to one, or are zero, along the last axis."""
    return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1))


def contrastive_loss(
    clip: CLIP, pixels: Array, tokens: Array, fits: Float[Array, "captions images"]
) -> tuple[Array, Array, Array]:
    """CLIP's symmetric loss with several positives; also returns the unit features.

    A caption that fits no image is only a negative.
    """
    images, texts = unit(clip.encode_image(pixels)), unit(clip.encode_text(tokens))
    scale = jnp.minimum(jnp.exp(clip.logit_scale[...]), MAX_LOGIT_SCALE)
    logits = jnp.where(jnp.isnan(fits), -1e4, scale * texts @ images.T)
    fits = jnp.nan_to_num(fits)
    by_caption = cross_entropy(logits, fits / jnp.maximum(fits.sum(1, keepdims=True), 1))
    by_image = cross_entropy(logits.T, (fits / fits.sum(0, keepdims=True)).T)
    return (by_caption + by_image) / 2, images, texts


def attribute_loss(
    heads: nnx.Linear, features: Array, labels: Int[Array, "batch slots"]
) -> Float[Array, ""]:
    """Mean cross entropy over the slots of a linear classifier on the image features."""
    targets = [jax.nn.one_hot(labels[:, i], count) for i, count in enumerate(CARDINALITIES)]
    return _slot_entropy(heads, features, targets)


def text_attribute_loss(
    heads: nnx.Linear, features: Array, truths: Float[Array, "texts slots labels"]
) -> Float[Array, ""]:
    """The same loss on text features; slots that a text does not mention have no target.

    All values that a text is true of are equally probable.
    """
    true = [jnp.nan_to_num(truths[:, i, :count]) for i, count in enumerate(CARDINALITIES)]
    return _slot_entropy(heads, features, [x / x.sum(-1, keepdims=True) for x in true])


def _slot_entropy(heads: nnx.Linear, features: Array, targets: list[Array]) -> Array:
    logits = jnp.split(MAX_LOGIT_SCALE * heads(features), np.cumsum(CARDINALITIES)[:-1], axis=-1)
    return jnp.stack([cross_entropy(x, y) for x, y in zip(logits, targets, strict=True)]).mean()


class Triples(NamedTuple):
    """Attributes of images, and of two changes of each image, only one of which a text describes.

    Attributes:
        before: Attributes of the images.
        after: The same with the attribute of the text.
        other: The same with another change.
        rises: Whether ``after`` fits the text but ``before`` does not.
        tokens: The texts.
        neutral_tokens: A neutral text.
    """

    before: Int[Array, "batch slots"]
    after: Int[Array, "batch slots"]
    other: Int[Array, "batch slots"]
    rises: Bool[Array, " batch"]
    tokens: Int[Array, "batch context"]
    neutral_tokens: Int[Array, "1 context"]


def choose_triples(
    tokenizer: Tokenizer,
    rng: np.random.Generator,
    ukrainian: float,
    distractors: Distractors | None = None,
) -> Triples:
    """Chooses TRIPLES triples; a share of `ukrainian` of the texts are Ukrainian."""
    attributes = sample(TRIPLES, int(rng.integers(2**32)))
    targets = choose_targets(attributes, rng, ukrainian)
    other = change_elsewhere(attributes, targets.slots, rng)
    neutral_text = neutral(rng, choose_language(rng, ukrainian))
    texts = with_distractors(targets.texts, distractors, tokenizer, rng)
    tokens, neutral_tokens = tokenizer(texts), tokenizer([neutral_text])
    arrays = attributes, targets.wanted, other, targets.rises, tokens, neutral_tokens
    return Triples(*map(jnp.asarray, arrays))


def change_elsewhere(
    attributes: Int[np.ndarray, "batch slots"],
    slots: Int[np.ndarray, " batch"],
    rng: np.random.Generator,
) -> Int[np.ndarray, "batch slots"]:
    """Changes one attribute of each image, unless this changes the label in `slots`."""
    rows = np.arange(len(attributes))
    others = (slots + rng.integers(1, len(NAMES), len(rows))) % len(NAMES)
    changed = with_other_values(attributes, others, rng)
    touched = observe(changed)[rows, slots] != observe(attributes)[rows, slots]
    return np.where(touched[:, None], attributes, changed)


def triple_loss(
    clip: CLIP, generator: Generator, triples: Triples, key: Key[Array, ""]
) -> Float[Array, ""]:
    """Penalizes moving less than RISE along a text's direction, or along it after other changes."""
    kinds = (triples.before, triples.after, triples.other)
    latents = jnp.concatenate([perturbed_latents(attributes, key) for attributes in kinds])
    size = clip.config.image_size
    features = image_features(clip, synthesize(generator, latents, size))
    texts = unit(clip.encode_text(jnp.concatenate([triples.tokens, triples.neutral_tokens])))
    direction = unit(texts[:-1] - texts[-1])
    before, after, other = jnp.split(features, 3)
    rise = jnp.sum((after - before) * direction, axis=-1)
    missing = jnp.where(triples.rises, jnp.square(jax.nn.relu(RISE - rise)), 0).mean()
    moved = jnp.square(jnp.sum((other - before) * direction, axis=-1)).mean()
    return RISE_WEIGHT * missing + STILL_WEIGHT * moved


@partial(
    jax.jit,
    static_argnames=("optimizer", "attribute_weight", "lock_images"),
    donate_argnames="state",
)
def clip_step(
    state, generator, batch, triples, key, *, optimizer, attribute_weight, lock_images=False
):
    """One update of the CLIP and the auxiliary classifier."""
    networks, opt_state = state
    images, labels, tokens, fits, told = batch
    augment_key, triple_key = jax.random.split(key)
    pixels = augment(images.astype(jnp.float32) / 127.5 - 1, augment_key)

    def loss_fn(networks):
        clip, heads = networks
        if lock_images:
            clip.vision = jax.tree.map(jax.lax.stop_gradient, clip.vision)
        loss, features, text_features = contrastive_loss(clip, pixels, tokens, fits)
        total = loss + attribute_weight * (
            attribute_loss(heads, features, labels)
            + text_attribute_loss(heads, text_features, told)
        )
        if generator is not None:
            total += triple_loss(clip, generator, triples, triple_key)
        return total, loss

    gradients, loss = jax.grad(loss_fn, has_aux=True)(networks)
    updates, opt_state = optimizer.update(gradients, opt_state, networks)
    if lock_images:
        # Removes the weight decay.
        updates[0].vision = jax.tree.map(jnp.zeros_like, updates[0].vision)
    return (optax.apply_updates(networks, updates), opt_state), loss


def load_data(paths: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Images at CLIP's input size and their labels, from all files."""
    images, labels = [], []
    for path in paths:
        with np.load(path) as file:
            labels.append(observe(file["attributes"]))
            halves = [
                np.asarray(halved(jnp.asarray(x))) for x in np.array_split(file["images"], 100)
            ]
            images.append(np.concatenate([x.round().astype(np.uint8) for x in halves]))
    return np.concatenate(images), np.concatenate(labels)


def describe_batch(
    labels: Int[np.ndarray, "batch slots"],
    tokenizer: Tokenizer,
    rng: np.random.Generator,
    ukrainian: float,
) -> tuple[list[str], list[Meaning]]:
    """One caption per image, a share of `ukrainian` of them Ukrainian, and their meanings."""
    described = []
    for row in labels:
        language = choose_language(rng, ukrainian)
        is_neutral = rng.random() < NEUTRAL_SHARE
        draw = partial(describe, row, rng, language)
        # One caption in thousands is too long.
        texts = iter(draw, None)
        described.append(
            (neutral(rng, language), {})
            if is_neutral
            else next(x for x in texts if tokenizer.fits(x[0]))
        )
    return [text for text, _ in described], [meaning for _, meaning in described]


def with_distractors(
    texts: list[str],
    distractors: Distractors | None,
    tokenizer: Tokenizer,
    rng: np.random.Generator,
) -> list[str]:
    """Adds distractors to English texts, unless they become too long for the context."""
    if distractors is None:
        return texts
    added = [distractors.add(text, rng) if text.isascii() else text for text in texts]
    return [new if tokenizer.fits(new) else old for old, new in zip(texts, added, strict=True)]


def main(_: Sequence[str]) -> None:
    """Trains the CLIP and writes it with its tokenizer."""
    out = pathlib.Path(FLAGS.out).absolute()
    images, labels = load_data(FLAGS.data)
    files = train_tokenizer()
    vocab, merges = json.loads(files["vocab.json"]), files["merges.txt"].decode().splitlines()[1:]
    tokenizer = Tokenizer(vocab, merges, CONTEXT_LENGTH)
    clip = CLIP(clip_config(len(vocab)), rngs=nnx.Rngs(FLAGS.seed))
    if FLAGS.init:
        init_vocab = pathlib.Path(FLAGS.init) / checkpoints.TOKENIZER / "vocab.json"
        clip = carried_over(
            checkpoints.load_clip(FLAGS.init), json.loads(init_vocab.read_text()), clip, vocab
        )

    heads = nnx.Linear(clip.config.embed_dim, sum(CARDINALITIES), rngs=nnx.Rngs(FLAGS.seed + 1))
    schedule = learning_rate_schedule(FLAGS.learning_rate, FLAGS.steps)
    decayed = lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)  # noqa: E731
    optimizer = optax.adamw(schedule, 0.9, 0.98, weight_decay=0.05, mask=decayed)
    key = jax.random.key(FLAGS.seed)
    distractors = (
        Distractors({*words_of(files[WORDS_FILE].decode())}) if FLAGS.distractors else None
    )
    synthesizer, edits, edited = None, None, 0
    if FLAGS.generator:
        synthesizer = checkpoints.load_generator(FLAGS.generator)
    if synthesizer is not None and not FLAGS.lock_images:
        edited = FLAGS.batch_size // 2
        annotator = load_classifier(FLAGS.annotator)
        edits = RunningEdits(synthesizer, annotator, tokenizer, edited, FLAGS.seed, FLAGS.ukrainian)

    def one_step(state, step):
        rng = np.random.default_rng([FLAGS.seed, step])
        picked = rng.integers(len(images), size=FLAGS.batch_size - edited)
        shown, shown_labels, triples = images[picked], labels[picked], None
        if edits:
            running = edits.advance(state[0][0], step)
            shown = np.concatenate([shown, running.images])
            shown_labels = np.concatenate([shown_labels, running.labels])
        if synthesizer is not None:
            triples = choose_triples(tokenizer, rng, FLAGS.ukrainian, distractors)
        texts, meanings = describe_batch(shown_labels, tokenizer, rng, FLAGS.ukrainian)
        told = truths(meanings)
        if edits:
            texts += running.targets.texts
            told = np.concatenate([told, running.targets.truths])
        texts = with_distractors(texts, distractors, tokenizer, rng)
        return clip_step(
            state,
            synthesizer,
            (shown, shown_labels, tokenizer(texts), fits(told, shown_labels), told),
            triples,
            jax.random.fold_in(key, step),
            optimizer=optimizer,
            attribute_weight=FLAGS.attribute_weight,
            lock_images=FLAGS.lock_images,
        )

    # Modules are pytrees, but optax's types do not accept them.
    networks: Any = (clip, heads)
    state = (networks, optimizer.init(networks))
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    with ocp.CheckpointManager(out / "training", options=options) as manager:
        clip = train(state, FLAGS.steps, one_step, manager, "clip")[0][0]
    # The training used the capped scale.
    clip.logit_scale[...] = jnp.minimum(clip.logit_scale[...], np.log(MAX_LOGIT_SCALE))
    checkpoints.save_model(out / "clip", clip, files, dtype=jnp.float16)


if __name__ == "__main__":
    flags.DEFINE_multi_string("data", None, "Images and attributes, written by avatars.dataset.")
    flags.DEFINE_string("out", None, "Directory for checkpoints and the final CLIP.")
    flags.DEFINE_string(
        "init",
        None,
        "Start from this CLIP instead of from scratch; tokens that it lacks are initialized.",
    )
    flags.DEFINE_string("generator", None, "Generator of the running edits and triples; see above.")
    flags.DEFINE_string("annotator", None, "Weights of a classifier that labels edited images.")
    flags.DEFINE_bool("lock_images", False, "Train the text tower only; see above.")
    flags.DEFINE_bool(
        "distractors", False, "Add words that describe no attribute to English texts."
    )
    flags.DEFINE_float("ukrainian", 0.2, "Share of Ukrainian texts.", lower_bound=0, upper_bound=1)
    flags.DEFINE_integer("steps", 4000, "Training steps.")
    flags.DEFINE_integer("batch_size", 128, "Images and captions per step.")
    flags.DEFINE_float("learning_rate", 1e-3, "Peak learning rate of AdamW.")
    flags.DEFINE_float("attribute_weight", 0.5, "Weight of the auxiliary classification loss.")
    flags.DEFINE_integer("seed", 0, "Seed of initial weights, batches, captions and augmentation.")
    flags.mark_flags_as_required(["data", "out"])
    run(main)
