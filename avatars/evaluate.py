"""Measures the avatars models: `python -m avatars.evaluate --data D --classifier C --out O`.

Writes `metrics.json` and sheets to look at. The judge of everything is the attribute classifier of
`avatars.classifier`, trained separately on rendered pictures; faces and pictures are unseen ones.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from jaxtyping import Bool, Float, Int
from PIL import Image

from avatars import classifier as attribute_classifier
from avatars.attributes import LABELS, NAMES, SLOTS, index, kept, observe
from avatars.captions import prompts
from styleclip_jax.io import images as image_files
from styleclip_jax.io.checkpoints import load_clip, load_generator
from styleclip_jax.io.text import Tokenizer, encode_texts, load_tokenizer
from styleclip_jax.latents import sample_latents
from styleclip_jax.losses import clip_pixels
from styleclip_jax.methods.optimization import (
    AVATARS_CONFIG,
    AVATARS_GENERATE_CONFIG,
    AVATARS_NEUTRAL,
    best_fits,
    edit_latents,
)
from styleclip_jax.models import CLIP, Generator
from styleclip_jax.runs.command_line import run

FLAGS = flags.FLAGS

SEED = 1_000_000

# What is asked for, and what the classifier must see afterwards.
EDITS = {
    "a person with sunglasses": ("glasses", "sunglasses"),
    "a person with glasses": ("glasses", "glasses"),
    "a person with a beard": ("facial_hair", "beard"),
    "a person with a moustache": ("facial_hair", "moustache"),
    "a person with purple hair": ("hair_color", "purple"),
    "a person with blond hair": ("hair_color", "blond"),
    "a person with long hair": ("hair", "long"),
    "a person with an afro": ("hair", "curly afro"),
    "a person wearing a hat": ("headwear", "hat"),
    "a person wearing a winter hat": ("headwear", "winter hat"),
    "a smiling person": ("mouth", "smiling"),
    "a person with closed eyes": ("eyes", "closed"),
    "a person wearing a hoodie": ("clothes", "hoodie"),
    "a person with red clothes": ("clothes_color", "red"),
}


def labels_of(
    classifier, images: Float[np.ndarray, "count 64 64 3"]
) -> Int[np.ndarray, "count slots"]:
    """What the classifier sees."""
    predicted = attribute_classifier.predict(classifier, np.clip(images, -1, 1))
    return np.stack([predicted[name] for name in NAMES], axis=-1).astype(np.int8)


def zero_shot_accuracy(
    clip: CLIP,
    tokenizer: Tokenizer,
    images: Float[np.ndarray, "count 64 64 3"],
    labels: Int[np.ndarray, "count slots"],
) -> dict[str, float]:
    """Share of pictures for which the texts of the right value fit best, slot by slot."""
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
    """Share of every label, slot by slot."""
    return {
        slot: {value: float((labels[:, i] == j).mean()) for j, value in enumerate(values)}
        for i, (slot, values) in enumerate(LABELS.items())
    }


def generate(generator: Generator, count: int, truncation: float) -> np.ndarray:
    """Random pictures, in batches of one compiled shape."""
    draw = jax.jit(lambda generator, w_plus: generator(w_plus))
    batches = [
        np.asarray(draw(generator, sample_latents(generator, 100, SEED + i, truncation)))
        for i in range(-(-count // 100))
    ]
    return np.concatenate(batches)[:count]


def shows(
    labels: Int[np.ndarray, "count slots"], slot: str, value: str
) -> Bool[np.ndarray, " count"]:
    """Which pictures show the value."""
    return labels[:, NAMES.index(slot)] == index(slot, value)


def edit_score(
    before: Int[np.ndarray, "count slots"],
    after: Int[np.ndarray, "count slots"],
    slot: str,
    value: str,
) -> dict[str, float]:
    """How well edits went.

    Returns:
        ``before``, ``target``: share of pictures that show the value before and after the edit;
        ``others``: share of the other visible labels that stayed.
    """
    keep = kept(before, slot, value)
    return {
        "before": float(shows(before, slot, value).mean()),
        "target": float(shows(after, slot, value).mean()),
        "others": float((before == after)[keep].mean()),
    }


def grid(images: Float[np.ndarray, "count 64 64 3"], columns: int) -> Image.Image:
    """Pictures side by side, row after row, enlarged twice."""
    count, size = images.shape[:2]
    rows = images.reshape(count // columns, columns, size, size, 3).swapaxes(1, 2)
    picture = image_files.to_pil(rows.reshape(-1, columns * size, 3))
    return picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST)


def main(_: Sequence[str]) -> None:
    """Measures everything and writes it down."""
    out = pathlib.Path(FLAGS.out)
    generator, clip = load_generator(FLAGS.generator), load_clip(FLAGS.clip)
    tokenizer = load_tokenizer(FLAGS.clip)
    classifier = attribute_classifier.load(FLAGS.classifier)
    data = np.load(FLAGS.data)
    pictures, labels = image_files.from_uint8(data["images"]), observe(data["attributes"])
    metrics: dict[str, Any] = {
        "classifier_accuracy": attribute_classifier.accuracies(
            classifier, data["images"], data["attributes"]
        )
    }

    metrics["zero_shot"] = zero_shot_accuracy(clip, tokenizer, pictures, labels)
    metrics["zero_shot_mean"] = float(np.mean(list(metrics["zero_shot"].values())))

    generated = generate(generator, FLAGS.samples, 1.0)
    made, real = histograms(labels_of(classifier, generated)), histograms(labels)
    metrics["histogram_generated"], metrics["histogram_data"] = made, real
    metrics["histogram_largest_difference"] = max(
        abs(made[slot][value] - real[slot][value]) for slot in made for value in made[slot]
    )
    features = attribute_classifier.features(classifier, pictures)
    half = len(features) // 2
    distance = attribute_classifier.frechet_distance
    generated_features = attribute_classifier.features(classifier, np.clip(generated, -1, 1))
    metrics["frechet_generated"] = distance(generated_features, features[:half])
    metrics["frechet_halves_of_data"] = distance(features[half:], features[:half])
    image_files.write_image(out / "samples.png", grid(generate(generator, 64, 0.7), 8))

    text_features = encode_texts(clip, tokenizer, list(EDITS))
    samples = sample_latents(generator, 64, SEED)
    start = samples[best_fits(generator, clip, samples, text_features)]
    result = edit_latents(generator, clip, start, text_features, AVATARS_GENERATE_CONFIG)
    seen = labels_of(classifier, np.asarray(result.images))
    metrics["generated_from_text"] = {
        text: bool(shows(seen[i : i + 1], slot, value))
        for i, (text, (slot, value)) in enumerate(EDITS.items())
    }
    image_files.write_image(out / "generated_from_text.png", grid(np.asarray(result.images), 7))

    config = dataclasses.replace(AVATARS_CONFIG, space=FLAGS.space)
    neutral = encode_texts(clip, tokenizer, [AVATARS_NEUTRAL])
    start = sample_latents(generator, FLAGS.faces, SEED - 1)
    before = np.asarray(jax.jit(lambda generator, w: generator(w))(generator, start))
    seen_before = labels_of(classifier, before)
    metrics["edits"], rows = {}, [before[:12]]
    for i, (text, (slot, value)) in enumerate(EDITS.items()):
        features = text_features[i : i + 1]
        result = edit_latents(generator, clip, start, features, config, neutral_features=neutral)
        edited = np.asarray(result.images)
        score = edit_score(seen_before, labels_of(classifier, edited), slot, value)
        metrics["edits"][text] = score
        rows.append(edited[:12])
        print(text, score, flush=True)
    for part in ("before", "target", "others"):
        metrics[f"edits_{part}"] = float(np.mean([s[part] for s in metrics["edits"].values()]))
    image_files.write_image(out / "edits.jpg", grid(np.concatenate(rows), 12))
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(json.dumps({k: v for k, v in metrics.items() if not isinstance(v, dict)}, indent=2))


if __name__ == "__main__":
    flags.DEFINE_string("data", None, "Rendered pictures that no training saw.", required=True)
    flags.DEFINE_string("classifier", None, "Weights of the attribute classifier.", required=True)
    flags.DEFINE_string("out", None, "Directory of metrics and sheets.", required=True)
    flags.DEFINE_string("generator", None, "Generator; default: the one in the package.")
    flags.DEFINE_string("clip", None, "CLIP; default: the one in the package.")
    flags.DEFINE_integer("samples", 5000, "Generated pictures for histograms and Fréchet distance.")
    flags.DEFINE_integer("faces", 64, "Random faces per edit.")
    flags.DEFINE_enum("space", "w_plus", ["w_plus", "stylespace"], "Space of the edits.")
    run(main)
