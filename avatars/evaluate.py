"""Evaluates generator and CLIP: `python -m avatars.evaluate --data D --classifier C --out O`.

Writes `metrics.json` and sheets of images. The classifier of `avatars.classifier`, trained
separately on other rendered images, predicts the attributes of images. `evaluate.py` at the root of
the repository evaluates edits.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from jaxtyping import Float, Int
from PIL import Image

from avatars import classifier as attribute_classifier
from avatars.attributes import LABELS, SLOTS, observe
from avatars.captions import prompts
from avatars.scores import read_labels, shows
from avatars.texts import EDITS
from styleclip_jax.avatars import (
    AVATARS_GENERATE_CONFIG,
    AVATARS_GENERATE_SAMPLES,
    AVATARS_NEUTRAL,
)
from styleclip_jax.io import images as image_files
from styleclip_jax.io.checkpoints import load_clip, load_generator
from styleclip_jax.io.text import Tokenizer, encode_texts, load_tokenizer
from styleclip_jax.latents import all_layers, sample_latents
from styleclip_jax.losses import clip_pixels
from styleclip_jax.methods.linear_start import latent_directions, sample_features
from styleclip_jax.methods.optimization import best_fits, edit_latents
from styleclip_jax.models import CLIP, Generator
from styleclip_jax.runs.command_line import run

FLAGS = flags.FLAGS

SEED = 1_000_000


def zero_shot_accuracy(
    clip: CLIP,
    tokenizer: Tokenizer,
    images: Float[np.ndarray, "count size size 3"],
    labels: Int[np.ndarray, "count slots"],
) -> dict[str, float]:
    """Share of images whose best matching texts are those of the right value, for every slot."""
    encode = jax.jit(lambda clip, x: clip.encode_image(clip_pixels(x, clip.config.image_size)))
    features = np.concatenate(
        [np.asarray(encode(clip, images[i : i + 500])) for i in range(0, len(images), 500)]
    )
    accuracies = {}
    for column, (slot, values) in enumerate(SLOTS.items()):
        texts = []
        for value in values:
            encoded = np.asarray(encode_texts(clip, tokenizer, prompts(slot, value)))
            texts.append((encoded / np.linalg.norm(encoded, axis=-1, keepdims=True)).mean(0))
        texts = np.stack(texts)
        best = (features @ (texts / np.linalg.norm(texts, axis=-1, keepdims=True)).T).argmax(-1)
        visible = labels[:, column] < len(values)
        accuracies[slot] = float((best == labels[:, column])[visible].mean())
    return accuracies


def histograms(labels: Int[np.ndarray, "count slots"]) -> dict[str, dict[str, float]]:
    """Share of every label, for every slot."""
    return {
        slot: {value: float((labels[:, i] == j).mean()) for j, value in enumerate(values)}
        for i, (slot, values) in enumerate(LABELS.items())
    }


def generate(generator: Generator, count: int, truncation: float) -> np.ndarray:
    """Random images, in batches of one compiled shape."""
    synthesize = jax.jit(lambda generator, w_plus: generator(w_plus))
    batches = [
        np.asarray(synthesize(generator, sample_latents(generator, 100, SEED + i, truncation)))
        for i in range(-(-count // 100))
    ]
    return np.concatenate(batches)[:count]


def grid(images: Float[np.ndarray, "count size size 3"], columns: int) -> Image.Image:
    """A grid of images."""
    count, size = images.shape[:2]
    images = np.pad(images, ((0, -count % columns), (0, 0), (0, 0), (0, 0)), constant_values=1)
    rows = images.reshape(-1, columns, size, size, 3).swapaxes(1, 2)
    return image_files.to_pil(rows.reshape(-1, columns * size, 3))


def main(_: Sequence[str]) -> None:
    """Measures generator and CLIP and writes the results."""
    out = pathlib.Path(FLAGS.out)
    generator, clip = load_generator(FLAGS.generator), load_clip(FLAGS.clip)
    tokenizer = load_tokenizer(FLAGS.clip)
    classifier = attribute_classifier.load(FLAGS.classifier)
    data = np.load(FLAGS.data)
    images, labels = image_files.from_uint8(data["images"]), observe(data["attributes"])
    metrics: dict[str, Any] = {
        "classifier_accuracy": attribute_classifier.accuracies(
            classifier, data["images"], data["attributes"]
        )
    }

    metrics["zero_shot"] = zero_shot_accuracy(clip, tokenizer, images, labels)
    metrics["zero_shot_mean"] = float(np.mean(list(metrics["zero_shot"].values())))

    generated = generate(generator, FLAGS.samples, 1.0)
    made, real = histograms(read_labels(classifier, generated)), histograms(labels)
    metrics["histogram_generated"], metrics["histogram_data"] = made, real
    metrics["histogram_largest_difference"] = max(
        abs(made[slot][value] - real[slot][value]) for slot in made for value in made[slot]
    )
    features = attribute_classifier.features(classifier, images)
    half = len(features) // 2
    distance = attribute_classifier.frechet_distance
    generated_features = attribute_classifier.features(classifier, np.clip(generated, -1, 1))
    metrics["frechet_generated"] = distance(generated_features, features[:half])
    metrics["frechet_halves_of_data"] = distance(features[half:], features[:half])
    image_files.write_image(out / "samples.png", grid(generate(generator, 64, 0.7), 8))

    # As optimize.py does with --mode=generate --truncation=1.
    text_features = encode_texts(clip, tokenizer, [edit.wordings[0] for edit in EDITS])
    neutral = encode_texts(clip, tokenizer, [AVATARS_NEUTRAL])
    config = AVATARS_GENERATE_CONFIG
    samples = sample_features(
        generator,
        clip,
        AVATARS_GENERATE_SAMPLES,
        SEED,
        1.0,
        config.guide_resolution,
        config.preprocess,
    )
    directions = latent_directions(samples, text_features, neutral)
    best = samples.latents[best_fits(samples, text_features, config, neutral)]
    start = all_layers(generator, best[:, None])
    result = edit_latents(
        generator,
        clip,
        start,
        text_features,
        config,
        neutral_features=neutral,
        directions=directions,
    )
    images = np.asarray(result.images)
    read = read_labels(classifier, images)
    metrics["generated_from_text"] = {
        edit.wordings[0]: bool(shows(read[i : i + 1], edit.slot, edit.value)[0])
        for i, edit in enumerate(EDITS)
    }
    image_files.write_image(out / "generated_from_text.png", grid(images, 8))
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(json.dumps({k: v for k, v in metrics.items() if not isinstance(v, dict)}, indent=2))


if __name__ == "__main__":
    flags.DEFINE_string("data", None, "Rendered images for testing.", required=True)
    flags.DEFINE_string("classifier", None, "Weights of the attribute classifier.", required=True)
    flags.DEFINE_string("out", None, "Directory for metrics and sheets.", required=True)
    flags.DEFINE_string("generator", None, "Generator; default: the one in the package.")
    flags.DEFINE_string("clip", None, "CLIP; default: the one in the package.")
    flags.DEFINE_integer("samples", 5000, "Generated images for histograms and Fréchet distance.")
    run(main)
