"""Measures the mappers that ship: `python -m avatars.evaluate_mappers --classifier C --out O`.

Every mapper edits faces that no training saw; the judge is the attribute classifier of
`avatars.classifier`. Writes `mappers.json` and a sheet to look at. The time per image of a mapper
stands beside that of latent optimization at its default settings, in the same process.
"""

import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from avatars import classifier as attribute_classifier
from avatars.evaluate import edit_score, grid, labels_of
from styleclip_jax.io import images as image_files
from styleclip_jax.io.checkpoints import AVATARS, load_clip, load_generator, load_mapper
from styleclip_jax.io.text import encode_texts, load_tokenizer
from styleclip_jax.latents import draw, sample_latents
from styleclip_jax.methods.mapper_editing import apply_mapper
from styleclip_jax.methods.optimization import AVATARS_CONFIG, AVATARS_NEUTRAL, edit_latents
from styleclip_jax.runs.command_line import run

FLAGS = flags.FLAGS

# Of faces that no training of a mapper sees; the mappers that ship saw seeds 0 and 1.
SEED = 2_000_000
# Name: the text it was trained for, and what the classifier must see afterwards.
MAPPERS = {
    "purple_hair": ("a person with purple hair", "hair_color", "purple"),
    "afro": ("a person with an afro", "hair", "curly afro"),
    "sunglasses": ("a person with sunglasses", "glasses", "sunglasses"),
    "beard": ("a person with a beard", "facial_hair", "beard"),
    "surprised": ("a surprised person", "eyes", "surprised"),
    "hat": ("a person wearing a hat", "headwear", "hat"),
}
# For the time per image.
TIMED = 64


def seconds_per_image(edit: Callable[[], Any]) -> float:
    """Of the second of two edits of `TIMED` images; the first compiles."""
    edit()
    begun = time.perf_counter()
    jax.block_until_ready(edit())
    return (time.perf_counter() - begun) / TIMED


def main(_: Sequence[str]) -> None:
    """Measures every mapper and writes it down."""
    out = pathlib.Path(FLAGS.out)
    generator = load_generator()
    classifier = attribute_classifier.load(FLAGS.classifier)
    latents = sample_latents(generator, FLAGS.faces, SEED, truncation=0.7)
    before = np.asarray(jax.jit(draw)(generator, latents))
    seen = labels_of(classifier, before)
    metrics: dict[str, Any] = {}
    rows = [before[:12]]
    for name, (text, slot, value) in MAPPERS.items():
        mapper = load_mapper(pathlib.Path(FLAGS.mappers) / name)
        edited = np.asarray(apply_mapper(generator, mapper, latents)[0])
        metrics[name] = {"text": text}
        metrics[name] |= edit_score(seen, labels_of(classifier, edited), slot, value)
        rows.append(edited[:12])
        print(name, metrics[name], flush=True)
    image_files.write_image(out / "mappers.png", grid(np.concatenate(rows), 12))

    text, clip = MAPPERS["beard"][0], load_clip()
    features, neutral = encode_texts(clip, load_tokenizer(), [text, AVATARS_NEUTRAL])[:, None]
    timed, mapper = latents[:TIMED], load_mapper(pathlib.Path(FLAGS.mappers) / "beard")
    metrics["seconds_per_image"] = {
        "mapper": seconds_per_image(lambda: apply_mapper(generator, mapper, timed)[0]),
        "optimization": seconds_per_image(
            lambda: (
                edit_latents(
                    generator, clip, timed, features, AVATARS_CONFIG, neutral_features=neutral
                ).images
            )
        ),
    }
    (out / "mappers.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(json.dumps(metrics["seconds_per_image"], indent=2))


if __name__ == "__main__":
    flags.DEFINE_string("classifier", None, "Weights of the attribute classifier.", required=True)
    flags.DEFINE_string("out", None, "Directory of mappers.json and the sheet.", required=True)
    flags.DEFINE_string("mappers", str(AVATARS / "mappers"), "Directory of the mappers.")
    flags.DEFINE_integer("faces", 512, "Random faces per mapper.", lower_bound=TIMED)
    run(main)
