"""Evaluates the avatars encoder: `python -m avatars.evaluate_encoder --data D --classifier C ...`.

Inverts rendered avatars of a test set, with and without refinement, and compares the classifier's
labels of the originals and the reconstructions. Writes `metrics.json` and a sheet.
"""

import json
import pathlib
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Float, Int

from avatars import classifier as attribute_classifier
from avatars.attributes import LABELS
from avatars.scores import read_labels
from styleclip_jax.io.checkpoints import load_clip, load_encoder, load_generator
from styleclip_jax.io.images import from_uint8, sheet, write_image
from styleclip_jax.methods.inversion import AVATARS_INVERT_CONFIG, InvertConfig, invert
from styleclip_jax.models import CLIP, E4E, Generator
from styleclip_jax.runs.command_line import config_from_flags, run

FLAGS = flags.FLAGS

BATCH_SIZE = 32
SHEET_ROWS = 12


def invert_all(
    generator: Generator,
    encoder: E4E,
    clip: CLIP,
    drawings: Float[np.ndarray, "count size size 3"],
    config: InvertConfig,
) -> tuple[Float[np.ndarray, "count size size 3"], Float[np.ndarray, " count"]]:
    """Reconstructions of rendered avatars and their PSNR; BATCH_SIZE must divide their number."""
    images, psnr = [], []
    for start in range(0, len(drawings), BATCH_SIZE):
        batch = jnp.asarray(drawings[start : start + BATCH_SIZE])
        inversion = invert(generator, batch, encoder, config, perceptual=clip)
        images.append(np.asarray(inversion.images))
        psnr.append(np.asarray(inversion.errors["psnr"]))
        print(f"{config.steps} steps: {start + len(batch)}/{len(drawings)}", flush=True)
    return np.concatenate(images), np.concatenate(psnr)


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
        drawings = from_uint8(data["images"][: FLAGS.count - FLAGS.count % BATCH_SIZE])
    wanted = read_labels(classifier, drawings)
    columns, names, metrics = [drawings[:SHEET_ROWS]], ["drawing"], {}
    config = config_from_flags(InvertConfig)
    for steps in dict.fromkeys((0, config.steps)):
        settings = InvertConfig(**{**vars(config), "steps": steps})
        images, psnr = invert_all(generator, encoder, clip, drawings, settings)
        name = f"{steps} steps" if steps else "encoder"
        metrics[name] = agreement(wanted, read_labels(classifier, images))
        metrics[name]["psnr"] = float(psnr.mean())
        columns.append(images[:SHEET_ROWS])
        names.append(name)
        print(name, json.dumps(metrics[name], indent=2), flush=True)
    write_image(out / "inversions.png", sheet(columns, names))
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")


if __name__ == "__main__":
    flags.DEFINE_string("data", None, "Rendered avatars for testing.", required=True)
    flags.DEFINE_string("classifier", None, "Weights of the attribute classifier.", required=True)
    flags.DEFINE_string("out", None, "Directory for metrics and the sheet.", required=True)
    flags.DEFINE_string("generator", None, "Generator; default: the one in the package.")
    flags.DEFINE_string("encoder", None, "Encoder; default: the one in the package.")
    flags.DEFINE_integer("count", 512, "Number of avatars.", lower_bound=BATCH_SIZE)
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
