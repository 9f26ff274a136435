"""Photos as the input of scripts: flags, alignment, inversion, results, and pasting back."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Array, Float
from PIL import Image, ImageOps
from tqdm import tqdm

from styleclip_jax.errors import InputError
from styleclip_jax.faces import FaceTransform, align_face, find_faces, paste_back
from styleclip_jax.io.checkpoints import load_arcface, load_clip, load_encoder, load_lpips
from styleclip_jax.io.files import expand_user, parse_json
from styleclip_jax.io.images import from_pil, read_image
from styleclip_jax.io.latents import load_latents, save_latents
from styleclip_jax.io.photos import find_images, read_photo, upright_rgb, write_photo
from styleclip_jax.latents import Latents
from styleclip_jax.losses import Perceptual
from styleclip_jax.methods.inversion import (
    AVATARS_INVERT_CONFIG,
    Inversion,
    InvertConfig,
    check_encoder,
    invert,
)
from styleclip_jax.models import E4E, ArcFace, Generator
from styleclip_jax.runs import command_line
from styleclip_jax.runs.results import image_name, write_images
from styleclip_jax.sharding import spread

FLAGS = flags.FLAGS
BATCH_SIZE = 4
# Steps where no encoder says where to start.
_STEPS_WITHOUT_ENCODER = 500
_REFINEMENT = ("refine_steps", "refine_learning_rate", "latent_lambda")
# In the results of invert.py: the tuned generator, and what the images are.
TUNED, METRICS = "generator", "metrics.json"

# The flags count as those of the script that calls define_flags.
flags.disclaim_key_flags()


class Face(NamedTuple):
    """One image to edit.

    Attributes:
        path: The photo's file.
        photo: The photo as it is stored.
        transform: Pastes the face back; None where the photo was aligned already.
    """

    path: Path
    photo: Image.Image
    transform: FaceTransform | None


class Photos(NamedTuple):
    """Images to edit.

    Attributes:
        faces: Where each comes from.
        originals: The photos in white squares, to look at, in [-1, 1].
        aligned: The aligned faces, likewise.
        failures: How many files could not be used.
    """

    faces: list[Face]
    originals: Float[np.ndarray, "count size size 3"]
    aligned: Float[np.ndarray, "count size size 3"]
    failures: int


class Networks(NamedTuple):
    """What an inversion uses beside the generator."""

    encoder: E4E | None
    perceptual: Perceptual | None
    arcface: ArcFace | None


# A run-time type checker would stand between the script and its flags.
@no_type_check
def define_flags() -> None:
    """Defines the flags of photos and of their inversion."""
    defaults: Any = InvertConfig()
    avatars = command_line.differences(AVATARS_INVERT_CONFIG, defaults)
    flags.DEFINE_multi_string(
        "image",
        None,
        "A photo, a directory of photos or a glob such as 'photos/*.jpg'. Repeat the flag for"
        " several.",
    )
    flags.DEFINE_bool(
        "align",
        True,
        "Find the faces and align them as FFHQ does. --align=false: the images are aligned already."
        " Default for the avatars that come with the package: false.",
    )
    flags.DEFINE_enum(
        "faces", "largest", ["largest", "all"], "Which faces of a photo: the largest one or all."
    )
    flags.DEFINE_string(
        "encoder",
        None,
        "The network that finds the latents of a photo: the directory that python -m ckpt_convert"
        " e4e wrote. Default: for the avatars one that comes with the package; with --generator"
        " none, and optimization starts from the mean image.",
    )
    flags.DEFINE_string(
        "lpips",
        None,
        "The network that tells how different two images look: the directory that python -m"
        " ckpt_convert lpips wrote. Default: the CLIP of --clip in its place, if there is one.",
    )
    flags.DEFINE_integer(
        "refine_steps",
        defaults.steps,
        "Steps that bring the encoder's answer closer to the photo; 0: none. Default without an"
        f" encoder: {_STEPS_WITHOUT_ENCODER}.",
        lower_bound=0,
    )
    flags.DEFINE_float(
        "refine_learning_rate",
        defaults.learning_rate,
        "Size of these steps. Default for the avatars:"
        f" {avatars.get('learning_rate', defaults.learning_rate)}.",
    )
    flags.DEFINE_float(
        "latent_lambda",
        defaults.latent_lambda,
        "How much these steps are held to the encoder's answer: larger values make better edits,"
        " smaller ones a better likeness. Default for the avatars:"
        f" {avatars.get('latent_lambda', defaults.latent_lambda)}.",
    )


@no_type_check
def define_edit_flags() -> None:
    """Defines the flags of scripts that edit photos, beside those of `define_flags`."""
    flags.DEFINE_string(
        "inversion",
        None,
        "In place of --image: the results of invert.py, whose photos are edited, with the generator"
        " that --tune has made, if any.",
    )
    flags.DEFINE_bool("paste_back", False, "Also put the edited faces back into their photos.")
    flags.DEFINE_enum(
        "blend",
        "face",
        ["face", "crop"],
        "With --paste_back: change the photo only where the edit changed the face, or in the whole"
        " crop.",
    )


def check_flags() -> None:
    """Sets the avatars' defaults; raises InputError where flags contradict each other."""
    names = ["align", "faces", "encoder", "lpips", *_REFINEMENT]
    edits = "inversion" in FLAGS
    given = [f"--{name}" for name in names if FLAGS[name].present]
    if given and not FLAGS.image:
        raise InputError(f"{', '.join(given)}: go with --image, which is not given")
    if edits and FLAGS.inversion and FLAGS.image:
        raise InputError("--image and --inversion both give photos; leave out one or the other")
    if edits and FLAGS.latents and (FLAGS.image or FLAGS.inversion):
        raise InputError("--latents and photos both give the images to edit; leave out one")
    if edits and FLAGS.paste_back and not (FLAGS.image or FLAGS.inversion):
        raise InputError("--paste_back goes with --image or --inversion; neither is given")
    if edits and FLAGS["blend"].present and not FLAGS.paste_back:
        raise InputError("--blend goes with --paste_back, which is not given")
    if not FLAGS.generator:
        FLAGS.set_default("align", False)
        FLAGS.set_default("refine_learning_rate", AVATARS_INVERT_CONFIG.learning_rate)
        FLAGS.set_default("latent_lambda", AVATARS_INVERT_CONFIG.latent_lambda)
    elif not FLAGS.encoder:
        FLAGS.set_default("refine_steps", _STEPS_WITHOUT_ENCODER)
    if FLAGS["faces"].present and not FLAGS.align:
        raise InputError("--faces has no effect with --align=false; leave out --faces")
    if edits and FLAGS.image and FLAGS.paste_back and not FLAGS.align:
        raise InputError(
            "--paste_back has no effect with --align=false: the edited image is the whole photo"
        )


def generator_path() -> str | Path | None:
    """Where the generator is: that of ``--generator``, or the tuned one of ``--inversion``."""
    tuned = expand_user(FLAGS.inversion) / TUNED if FLAGS.inversion else None
    return tuned if tuned and tuned.exists() else FLAGS.generator


def load_networks(generator: Generator) -> Networks:
    """Loads the networks that the flags name.

    Raises:
        InputError: One cannot be loaded, or the encoder is for another generator.
    """
    encoder = perceptual = arcface = None
    if FLAGS.encoder or not FLAGS.generator:
        encoder = load_encoder(FLAGS.encoder, FLAGS.dtype)
        check_encoder(generator, encoder)
    clip = FLAGS["clip"].value if "clip" in FLAGS else None
    if isinstance(clip, list):
        # Of several CLIPs, the first one.
        clip = clip[0] if clip else None
    if FLAGS.lpips:
        perceptual = load_lpips(FLAGS.lpips, FLAGS.dtype)
    elif clip or not FLAGS.generator:
        perceptual = load_clip(clip, FLAGS.dtype)
    else:
        print("note: without --lpips only pixels are compared; give --lpips too", file=sys.stderr)
    if "arcface" in FLAGS and FLAGS.arcface:
        arcface = load_arcface(FLAGS.arcface, FLAGS.dtype)
    return Networks(encoder, perceptual, arcface)


def has_bars(networks: Networks) -> bool:
    """Whether images that are aligned already get black bars, as those of cars."""
    encoder = networks.encoder
    return encoder is not None and encoder.config.image_height < encoder.config.image_width


def read_photos(size: int, letterbox: bool = False) -> Photos:
    """Reads the photos of ``--image``, and aligns their faces.

    A file that cannot be used is reported on stderr, and the others are still read.

    Args:
        size: Height and width of the aligned faces.
        letterbox: Whether ``--align=false`` makes images square by black bars instead of by cutting
            off their ends, as for cars.

    Raises:
        InputError: No file can be used.
    """
    files = find_images(FLAGS.image)
    faces, aligned, failures = [], [], []
    for path in files:
        try:
            for face, crop in _read_faces(path, size, letterbox):
                faces.append(face)
                aligned.append(from_pil(crop))
        except InputError as error:
            message = str(error) if str(path) in str(error) else f"{path}: {error}"
            if len(files) == 1:
                raise InputError(message) from None
            print("error:", " ".join(message.split()), file=sys.stderr)
            failures.append(path)
    if not faces:
        raise InputError(f"none of the {len(files)} images can be used")
    originals = [_thumbnail(face.photo, size) for face in faces]
    return Photos(faces, np.stack(originals), np.stack(aligned), len(failures))


def _read_faces(path: Path, size: int, letterbox: bool) -> list[tuple[Face, Image.Image]]:
    photo = read_photo(path)
    if not FLAGS.align:
        image, square = upright_rgb(photo), (size, size)
        image = (
            ImageOps.pad(image, square, Image.Resampling.LANCZOS, "black")
            if letterbox
            else ImageOps.fit(image, square, Image.Resampling.LANCZOS)
        )
        return [(Face(path, photo, None), image)]
    found = find_faces(photo)
    if FLAGS.faces == "largest":
        found = found[:1]
    crops = [align_face(photo, size, landmarks=landmarks) for landmarks in found]
    return [(Face(path, photo, aligned.transform), aligned.crop) for aligned in crops]


def _thumbnail(photo: Image.Image, size: int) -> Float[np.ndarray, "{size} {size} 3"]:
    image = upright_rgb(photo)
    return from_pil(ImageOps.pad(image, (size, size), Image.Resampling.LANCZOS, "white"))


def invert_photos(
    generator: Generator,
    networks: Networks,
    aligned: Float[np.ndarray, "count size size 3"],
    config: InvertConfig,
    seed: int = 0,
) -> Inversion:
    """Inverts images in batches of one size, with a progress bar."""
    count = len(aligned)
    batch = min(count, BATCH_SIZE)
    # The last image fills what is left of the last batch.
    batches = np.minimum(np.arange(-(-count // batch) * batch), count - 1).reshape(-1, batch)
    parts = []
    total = len(batches) * config.steps
    # No bar where standard error is a file (disable=None).
    with tqdm(total=total, desc="inversion", unit="step", disable=None) as bar:
        for i, indices in enumerate(batches):
            parts.append(
                invert(
                    generator,
                    spread(jnp.asarray(aligned[indices])),
                    networks.encoder,
                    config,
                    perceptual=networks.perceptual,
                    arcface=networks.arcface,
                    key=jax.random.fold_in(jax.random.key(seed), i),
                    on_progress=lambda step, i=i: bar.update(i * config.steps + step - bar.n),
                )
            )

    def join(*arrays: Array) -> Array:
        return jnp.concatenate(arrays)[:count]

    first, *others = ((part.latents, part.images, part.errors, part.losses.T) for part in parts)
    latents, images, errors, losses = jax.tree.map(join, first, *others)
    return Inversion(latents, images, errors, losses.T)


def start_from_photos(generator: Generator) -> tuple[Photos, Inversion]:
    """Reads the photos of ``--image`` and inverts them, as the flags say."""
    networks = load_networks(generator)
    photos = read_photos(generator.config.resolution, has_bars(networks))
    config = InvertConfig(
        steps=FLAGS.refine_steps,
        learning_rate=FLAGS.refine_learning_rate,
        latent_lambda=FLAGS.latent_lambda,
    )
    return photos, invert_photos(generator, networks, photos.aligned, config, FLAGS.seed)


def photos_to_edit(
    generator: Generator, directory: Path
) -> tuple[Photos | None, Latents | None, dict[str, Any]]:
    """The photos of ``--image`` or ``--inversion``, if any, and their latents.

    Returns:
        The photos, their latents, and what metrics.json says about the inversion, whose images are
        written to ``directory``.
    """
    if FLAGS.inversion:
        return *read_inversion(generator), {}
    if not FLAGS.image:
        return None, None, {}
    photos, inversion = start_from_photos(generator)
    return photos, inversion.latents, {"images": write_inversion(directory, photos, inversion)}


def read_inversion(generator: Generator) -> tuple[Photos, Latents]:
    """Reads the photos of ``--inversion`` and their latents.

    Raises:
        InputError: It is no complete directory of invert.py, or its photos are gone.
    """
    directory = expand_user(FLAGS.inversion)
    try:
        images = parse_json((directory / METRICS).read_text())["images"]
        faces = [
            Face(
                Path(image["photo"]),
                read_photo(image["photo"]),
                None if image["quad"] is None else FaceTransform(np.array(image["quad"])),
            )
            for image in images
        ]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{directory} holds no results of invert.py") from None
    size = generator.config.resolution
    latents = load_latents(directory / "latents.npy", generator)
    aligned = [read_image(directory / "aligned" / image_name(i)) for i in range(len(faces))]
    originals = [_thumbnail(face.photo, size) for face in faces]
    return Photos(faces, np.stack(originals), np.stack(aligned), 0), latents


def write_inversion(directory: Path, photos: Photos, inversion: Inversion) -> list[dict[str, Any]]:
    """Writes aligned and reconstructed images and their latents; returns measurements per image."""
    if jax.process_index() == 0:
        write_images(directory / "aligned", photos.aligned)
        write_images(directory / "reconstructed", inversion.images)
        save_latents(directory / "latents.npy", inversion.latents)
    return [
        {
            "file": image_name(i),
            "photo": os.path.abspath(face.path),
            "quad": None if face.transform is None else face.transform.quad.tolist(),
        }
        | {name: float(values[i]) for name, values in inversion.errors.items()}
        for i, face in enumerate(photos.faces)
    ]


def paste_faces(directory: Path, faces: Sequence[Face], edited: Path, unedited: Path) -> None:
    """Writes the photos with all their edited faces, as ``--blend`` says.

    Args:
        directory: Where to.
        faces: The faces.
        edited: The directory of their images after the edit.
        unedited: That of their images before it.
    """
    results: dict[Path, Image.Image] = {}
    for i, face in enumerate(faces):
        if face.transform is None:
            raise InputError(
                f"--paste_back: {face.path} was not aligned, so the edited image is the whole photo"
            )
        results[face.path] = paste_back(
            results.get(face.path, face.photo),
            read_image(edited / image_name(i)),
            face.transform,
            unedited=read_image(unedited / image_name(i)) if FLAGS.blend == "face" else None,
        )
    for i, (path, photo) in enumerate(results.items()):
        write_photo(directory / f"{i:03}-{path.stem}", photo)


def exit_if_some_failed(photos: Photos | None) -> None:
    """Ends the script with exit code 1 where files could not be used."""
    if photos and photos.failures:
        sys.exit(1)
