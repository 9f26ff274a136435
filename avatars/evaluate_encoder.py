"""Evaluates the avatars encoder: `python -m avatars.evaluate_encoder --data D --classifier C ...`.

Inverts rendered avatars of a test set, with and without refinement, and compares the classifier's
labels of the originals and the reconstructions. With `--edits`, also edits reconstructions and
generated faces with the same texts. With `--tune`, also draws an eye patch on avatars and tunes the
generator for each. Writes `metrics.json` and sheets; `others.png` shows avatars with options
that are not in the training data.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image, ImageDraw

from avatars import classifier as attribute_classifier
from avatars.attributes import LABELS, sample
from avatars.captions import prompts
from avatars.classifier import Classifier
from avatars.dataset import render
from avatars.scores import edit_score, read_labels
from styleclip_jax.avatars import AVATARS_CONFIG, AVATARS_INVERT_CONFIG, AVATARS_NEUTRAL
from styleclip_jax.io.checkpoints import load_clip, load_encoder, load_generator
from styleclip_jax.io.images import from_uint8, sheet, write_image
from styleclip_jax.io.text import encode_texts, load_tokenizer
from styleclip_jax.latents import sample_latents, synthesize
from styleclip_jax.methods.inversion import InvertConfig, invert, reconstruction_errors
from styleclip_jax.methods.linear_start import latent_directions, sample_features
from styleclip_jax.methods.optimization import edit_latents
from styleclip_jax.methods.tuning import TuneConfig, tune_generator
from styleclip_jax.models import CLIP, E4E, Generator
from styleclip_jax.runs.command_line import config_from_flags, run

FLAGS = flags.FLAGS

BATCH_SIZE = 16
SHEET_ROWS = 12
# The edits of --edits.
EDITS = (
    ("glasses", "sunglasses"),
    ("facial_hair", "beard"),
    ("hair_color", "purple"),
    ("hair", "long"),
    ("mouth", "sad"),
)
# The batch size of edits, and the generated faces.
EDIT_BATCH, SEED, TRUNCATION = 16, 1_000_000, 0.7
# The eye patch of --tune: ellipse and strap, relative to the image's side.
PATCH, STRAP = (0.32, 0.39, 0.46, 0.54), (0.275, 0.52, 0.725, 0.34)
# Options of the style that `avatars.attributes` does not have, one avatar each.
OTHER_OPTIONS: tuple[dict[str, Any], ...] = (
    {"topVariant": "bigHair", "topProbability": 100, "hairColor": "#a55728"},
    {"topVariant": "bob", "topProbability": 100, "hairColor": "#f59797"},
    {"topVariant": "curly", "topProbability": 100, "hairColor": "#2c1b18"},
    {"topVariant": "frida", "topProbability": 100, "hairColor": "#4a312c"},
    {"topVariant": "shavedSides", "topProbability": 100, "hairColor": "#d6b370"},
    {"topVariant": "winterHat1", "topProbability": 100, "hatColor": "#ff5c5c"},
    {"accessoriesVariant": "eyepatch", "accessoriesProbability": 100},
    {"accessoriesVariant": "round", "accessoriesProbability": 100},
    {"facialHairVariant": "beardMajestic", "facialHairProbability": 100},
    {"clothesVariant": "graphicShirt", "clothesGraphicVariant": "pizza"},
    {"clothesVariant": "collarAndSweater", "clothesColor": "#a7ffc4"},
    {"eyesVariant": "squint", "mouthVariant": "eating", "eyebrowsVariant": "angryNatural"},
)


def invert_all(
    generator: Generator,
    encoder: E4E,
    clip: CLIP,
    avatars: Float[np.ndarray, "count size size 3"],
    config: InvertConfig,
) -> tuple[Float[np.ndarray, "count layers width"], Any, Float[np.ndarray, " count"]]:
    """Latents, images and PSNR of rendered avatars, in batches of one size.

    The last batch is filled up, so that programs are compiled only once.
    """
    count, parts = len(avatars), []
    for start in range(0, count, BATCH_SIZE):
        rows = np.arange(start, start + BATCH_SIZE) % count
        inversion = invert(generator, jnp.asarray(avatars[rows]), encoder, config, perceptual=clip)
        parts.append((inversion.latents, inversion.images, inversion.errors["psnr"]))
        print(f"{config.steps} steps: {min(start + BATCH_SIZE, count)}/{count}", flush=True)
    latents, images, psnr = (np.concatenate(arrays)[:count] for arrays in zip(*parts, strict=True))
    return latents, images, psnr


def other_avatars(size: int) -> UInt8[np.ndarray, "count size size 3"]:
    """Avatars with OTHER_OPTIONS; their other attributes are sampled as in training."""
    attributes = sample(len(OTHER_OPTIONS), seed=7)
    # Hats and glasses would hide some of them.
    for name in ("headwear", "glasses", "facial_hair"):
        attributes[:, [*LABELS].index(name)] = 0
    pairs = zip(attributes, OTHER_OPTIONS, strict=True)
    return np.stack([render(row, size, options) for row, options in pairs])


def with_eye_patch(avatar: UInt8[np.ndarray, "size size 3"]) -> UInt8[np.ndarray, "size size 3"]:
    """Draws a black eye patch, which no training image has, over an avatar's eye."""
    size, finer = len(avatar), 4
    mask = Image.new("L", (finer * size, finer * size))
    draw = ImageDraw.Draw(mask)
    draw.ellipse([finer * size * x for x in PATCH], fill=255)
    draw.line([finer * size * x for x in STRAP], fill=255, width=finer * size // 64)
    image = Image.fromarray(avatar)
    image.paste("black", mask=mask.resize(image.size, Image.Resampling.LANCZOS))
    return np.asarray(image)


def tune_all(
    generator: Generator,
    encoder: E4E,
    clip: CLIP,
    avatars: UInt8[np.ndarray, "count size size 3"],
    config: InvertConfig,
) -> tuple[dict[str, dict[str, float]], list[np.ndarray], list[str]]:
    """Inverts avatars with an eye patch, and tunes the generator for each of them.

    Returns:
        The mean errors before and after tuning, of the image and of the pixels of the patch; the
        columns of a sheet; and their labels.
    """
    patched = np.stack([with_eye_patch(avatar) for avatar in avatars])
    where = (patched != avatars).any(-1)
    images = from_uint8(patched)
    latents, inverted, _ = invert_all(generator, encoder, clip, images, config)
    # CLIP's distances have another scale than those that stop a tuning with LPIPS.
    settings = TuneConfig(stop_distance=0.0)
    tuned = []
    for i in range(len(images)):
        one = slice(i, i + 1)
        given = jnp.asarray(latents[one]), jnp.asarray(images[one])
        result = tune_generator(generator, *given, clip, settings)
        tuned.append(np.asarray(jax.jit(synthesize)(result.generator, given[0]))[0])
        print(f"tuned {i + 1}/{len(images)}", flush=True)
    found = {"inverted": inverted, "tuned": np.stack(tuned)}
    metrics = {}
    for name, reconstructed in found.items():
        errors = reconstruction_errors(jnp.asarray(reconstructed), jnp.asarray(images))
        metrics[name] = {key: float(value.mean()) for key, value in errors.items()}
        of_patch = np.square(np.clip(reconstructed, -1, 1) - images)[where].mean()
        metrics[name]["mse_of_patch"] = float(of_patch)
    columns = [from_uint8(avatars), images, *found.values()]
    return metrics, columns, ["original", "with an eye patch", *found]


def edit_all(
    generator: Generator, clip: CLIP, latents: Float[Array | np.ndarray, "count layers width"]
) -> dict[str, np.ndarray]:
    """Images after every edit of EDITS by text, with the settings of optimize.py."""
    tokenizer = load_tokenizer()
    neutral = encode_texts(clip, tokenizer, [AVATARS_NEUTRAL])
    config = AVATARS_CONFIG
    # Once for all texts.
    samples = sample_features(
        generator, clip, config.start_samples, resolution=config.guide_resolution
    )
    images = {}
    for slot, value in EDITS:
        text = prompts(slot, value)[0]
        features = encode_texts(clip, tokenizer, [text])
        direction = latent_directions(samples, features, neutral)
        parts = [
            edit_latents(
                generator,
                clip,
                jnp.asarray(latents[start : start + EDIT_BATCH]),
                features,
                config,
                neutral_features=neutral,
                directions=direction,
            ).images
            for start in range(0, len(latents), EDIT_BATCH)
        ]
        images[text] = np.concatenate(parts)
        print(text, flush=True)
    return images


def score_edits(
    classifier: Classifier,
    before: Int[np.ndarray, "count slots"],
    edited: Mapping[str, np.ndarray],
) -> dict[str, dict[str, float]]:
    """Scores of :func:`edit_all` by text, and their mean."""
    # At once, because the classifier fills up its batches.
    labels = read_labels(classifier, np.concatenate([*edited.values()]))
    scores = {
        text: edit_score(before, after, slot, value)
        for (slot, value), text, after in zip(
            EDITS, edited, np.split(labels, len(edited)), strict=True
        )
    }
    names = next(iter(scores.values()))
    mean = {name: float(np.mean([score[name] for score in scores.values()])) for name in names}
    return {**scores, "mean": mean}


def agreement(
    labels: Int[np.ndarray, "count slots"], others: Int[np.ndarray, "count slots"]
) -> dict[str, float]:
    """Share of images with equal labels, for every slot, on average and in all slots."""
    same = labels == others
    shares = {slot: float(same[:, i].mean()) for i, slot in enumerate(LABELS)}
    return {**shares, "mean": float(same.mean()), "all": float(same.all(1).mean())}


def main(_: Sequence[str]) -> None:
    """Evaluates the encoder and writes the results."""
    out = pathlib.Path(FLAGS.out)
    generator, clip = load_generator(FLAGS.generator), load_clip()
    encoder = load_encoder(FLAGS.encoder)
    classifier = attribute_classifier.load(FLAGS.classifier)
    with np.load(FLAGS.data) as data:
        rendered = data["images"][: FLAGS.count - FLAGS.count % BATCH_SIZE]
        without_glasses = data["attributes"][: len(rendered), [*LABELS].index("glasses")] == 0
    avatars = from_uint8(rendered)
    others = from_uint8(other_avatars(avatars.shape[1]))
    wanted = read_labels(classifier, avatars)
    columns, other_columns, names = [avatars[:SHEET_ROWS]], [others], ["original"]
    metrics: dict[str, Any] = {}
    config = config_from_flags(InvertConfig)
    latents, images = np.zeros(0), avatars
    for steps in dict.fromkeys((0, config.steps)):
        settings = InvertConfig(**{**vars(config), "steps": steps})
        latents, images, psnr = invert_all(generator, encoder, clip, avatars, settings)
        name = f"{steps} steps" if steps else "encoder"
        metrics[name] = agreement(wanted, read_labels(classifier, images))
        metrics[name]["psnr"] = float(psnr.mean())
        columns.append(images[:SHEET_ROWS])
        other_columns.append(invert_all(generator, encoder, clip, others, settings)[1])
        names.append(name)
        print(name, json.dumps(metrics[name], indent=2), flush=True)
    write_image(out / "inversions.png", sheet(columns, names))
    write_image(out / "others.png", sheet(other_columns, names))
    if FLAGS.tune:
        chosen = rendered[without_glasses][: FLAGS.tune]
        metrics["tuning"], shown, labels = tune_all(generator, encoder, clip, chosen, config)
        write_image(out / "tuned.png", sheet(shown, labels))
        print(json.dumps(metrics["tuning"], indent=2), flush=True)
    if FLAGS.edits:
        count = FLAGS.edits
        generated = sample_latents(generator, count, SEED, TRUNCATION)
        together = edit_all(generator, clip, np.concatenate([latents[:count], generated]))
        edited, edited_generated = (
            {text: found[rows] for text, found in together.items()}
            for rows in (slice(count), slice(count, None))
        )
        before = read_labels(classifier, jax.jit(synthesize)(generator, generated))
        # Compared with the rendered image, so that losses of the inversion count too.
        found = {
            "inverted": score_edits(classifier, wanted[:count], edited),
            "generated": score_edits(classifier, before, edited_generated),
        }
        of_inverted, of_generated = (score["mean"]["whole"] for score in found.values())
        # Undefined if no edit of a generated face is right.
        ratio = of_inverted / of_generated if of_generated else None
        metrics["edits"] = {**found, "ratio": ratio}
        shown = [avatars[:count], images[:count], *edited.values()]
        rows = [column[:SHEET_ROWS] for column in shown]
        write_image(out / "edits.png", sheet(rows, ["original", names[-1], *edited]))
        print(json.dumps(metrics["edits"], indent=2), flush=True)
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")


if __name__ == "__main__":
    flags.DEFINE_string("data", None, "Rendered avatars for testing.", required=True)
    flags.DEFINE_string("classifier", None, "Weights of the attribute classifier.", required=True)
    flags.DEFINE_string("out", None, "Directory for metrics and sheets.", required=True)
    flags.DEFINE_string("generator", None, "Generator; default: the one in the package.")
    flags.DEFINE_string("encoder", None, "Encoder; default: the one in the package.")
    flags.DEFINE_integer("count", 512, "Number of avatars.", lower_bound=BATCH_SIZE)
    flags.DEFINE_integer(
        "edits",
        0,
        "Number of inverted avatars, at most --count, and of generated faces to edit by texts.",
        lower_bound=0,
    )
    flags.DEFINE_integer(
        "tune",
        0,
        "Number of avatars with a drawn eye patch to tune the generator for.",
        lower_bound=0,
    )
    for name in (
        "learning_rate",
        "pixel_lambda",
        "perceptual_lambda",
        "id_lambda",
        "latent_lambda",
    ):
        flags.DEFINE_float(
            name, getattr(AVATARS_INVERT_CONFIG, name), f"Setting of the inversion: {name}."
        )
    flags.DEFINE_integer("steps", AVATARS_INVERT_CONFIG.steps, "Refinement steps.")
    flags.DEFINE_integer("guide_resolution", None, "Compare images at this resolution.")
    run(main)
