"""Photos as the input of scripts: flags, alignment, inversion, results, and pasting back."""

import functools
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

from styleclip_jax.avatars import AVATARS_INVERT_CONFIG
from styleclip_jax.errors import InputError
from styleclip_jax.faces import FaceTransform, NoFaceError, align_face, find_faces, paste_back
from styleclip_jax.io.checkpoints import (
    load_arcface,
    load_clip,
    load_encoder,
    load_generator,
    load_lpips,
)
from styleclip_jax.io.files import expand_user, parse_json
from styleclip_jax.io.images import from_pil, read_image
from styleclip_jax.io.latents import load_latents, save_latents
from styleclip_jax.io.photos import find_images, read_photo, upright_rgb, write_photo
from styleclip_jax.latents import Latents
from styleclip_jax.losses import Perceptual
from styleclip_jax.methods.inversion import (
    Inversion,
    InvertConfig,
    check_encoder,
    invert,
)
from styleclip_jax.models import E4E, ArcFace, Generator
from styleclip_jax.runs import command_line
from styleclip_jax.runs.results import METRICS_FILE, image_name, write_images
from styleclip_jax.sharding import equal_batches, replicate, spread

FLAGS = flags.FLAGS
BATCH_SIZE = 4
# Steps without an encoder.
_STEPS_WITHOUT_ENCODER = 500
_REFINEMENT = ("refine_steps", "refine_learning_rate", "latent_lambda")
# In the results of invert.py: the directory of the generators tuned for each photo.
_GENERATORS = "generators"

# --help lists the flags with those of the script that calls define_flags.
flags.disclaim_key_flags()


class Face(NamedTuple):
    """One image to edit.

    Attributes:
        path: The photo's file.
        photo: The photo as stored.
        transform: Position of the face, to paste it back. None: the photo was already aligned.
    """

    path: Path
    photo: Image.Image
    transform: FaceTransform | None


class Photos(NamedTuple):
    """Images to edit.

    Attributes:
        faces: The photo and position of each image.
        originals: The photos padded to white squares, in [-1, 1], for sheets.
        aligned: The aligned faces, in [-1, 1].
        failures: Number of files that could not be used.
    """

    faces: list[Face]
    originals: Float[np.ndarray, "count size size 3"]
    aligned: Float[np.ndarray, "count size size 3"]
    failures: int


class Networks(NamedTuple):
    """The networks of an inversion, except the generator."""

    encoder: E4E | None
    perceptual: Perceptual | None
    arcface: ArcFace | None


# absl finds the calling script in the stack, where a run-time type checker would be in between.
@no_type_check
def define_flags() -> None:
    """Defines the flags of photos and of their inversion."""
    defaults: Any = InvertConfig()
    flags.DEFINE_multi_string(
        "image",
        None,
        "A photo, a directory of photos or a glob such as 'photos/*.jpg'. Repeat the flag for"
        " several.",
    )
    flags.DEFINE_bool(
        "align",
        True,
        "Find faces and align them as in FFHQ. --align=false: the images are already aligned."
        " Default for the avatars: false.",
    )
    flags.DEFINE_enum(
        "faces", "largest", ["largest", "all"], "Faces of a photo to edit: the largest one or all."
    )
    flags.DEFINE_string(
        "encoder",
        None,
        "Encoder that finds the latents of a photo: a directory written by python -m ckpt_convert"
        " e4e. Default for the avatars: an encoder that ships with the package; otherwise none,"
        " so that optimization starts from the mean image.",
    )
    flags.DEFINE_string(
        "lpips",
        None,
        "Perceptual distance between images: a directory written by python -m ckpt_convert lpips."
        " Default: the CLIP that a script loads for its edits, or that of the avatars; otherwise"
        " only pixels are compared.",
    )
    flags.DEFINE_integer(
        "refine_steps",
        defaults.steps,
        "Optimization steps that refine the encoder's latents. 0: none. Default without an"
        f" encoder: {_STEPS_WITHOUT_ENCODER}.",
        lower_bound=0,
    )
    flags.DEFINE_float(
        "refine_learning_rate",
        defaults.learning_rate,
        "Step size of the refinement.",
    )
    flags.DEFINE_float(
        "latent_lambda",
        defaults.latent_lambda,
        "Weight of the distance to the encoder's latents: larger values give better edits, smaller"
        " values a better likeness.",
    )


@no_type_check
def define_edit_flags() -> None:
    """Defines further flags of scripts that edit photos."""
    flags.DEFINE_string(
        "inversion",
        None,
        "Results directory of invert.py, instead of --image: edits its photos, each with the"
        " generator tuned for it if there is one.",
    )
    flags.DEFINE_bool("paste_back", False, "Also paste the edited faces back into their photos.")
    flags.DEFINE_enum(
        "blend",
        "face",
        ["face", "crop"],
        "With --paste_back: replace only pixels that the edit changed, or the whole crop.",
    )


def check_flags() -> None:
    """Sets the avatars' defaults; raises InputError if flags contradict each other."""
    names = ["align", "faces", "encoder", "lpips", *_REFINEMENT]
    edits = "inversion" in FLAGS
    given = [f"--{name}" for name in names if FLAGS[name].present]
    if given and not FLAGS.image:
        raise InputError(f"{', '.join(given)} has no effect without --image; add --image")
    if edits and FLAGS.inversion and FLAGS.image:
        raise InputError("--image and --inversion are both given, expected one; remove the other")
    if edits and FLAGS.latents and (FLAGS.image or FLAGS.inversion):
        raise InputError("--latents and photos are both given, expected one; remove the other")
    if edits and FLAGS.paste_back and not (FLAGS.image or FLAGS.inversion):
        raise InputError("--paste_back has no effect without photos; add --image or --inversion")
    if edits and has_tuned_generators() and FLAGS["batch_size"].present:
        raise InputError(
            "--batch_size has no effect with photos that have their own tuned generators, which are"
            " edited one by one; remove --batch_size"
        )
    if edits and FLAGS["blend"].present and not FLAGS.paste_back:
        raise InputError("--blend has no effect without --paste_back; add --paste_back")
    if not FLAGS.generator:
        FLAGS.set_default("align", False)
        FLAGS.set_default("refine_learning_rate", AVATARS_INVERT_CONFIG.learning_rate)
        FLAGS.set_default("latent_lambda", AVATARS_INVERT_CONFIG.latent_lambda)
    elif not FLAGS.encoder:
        FLAGS.set_default("refine_steps", _STEPS_WITHOUT_ENCODER)
    if FLAGS["faces"].present and not FLAGS.align:
        raise InputError("--faces has no effect with --align=false; remove --faces")
    if edits and FLAGS.image and FLAGS.paste_back and not FLAGS.align:
        raise InputError(
            "--paste_back has no effect with --align=false, because the edited image is the whole"
            " photo; remove --paste_back"
        )


def has_tuned_generators() -> bool:
    """Whether each photo of ``--inversion`` has its own generator."""
    return bool(FLAGS.inversion) and (expand_user(FLAGS.inversion) / _GENERATORS).exists()


def tuned_path(number: int) -> str:
    """The path, in the results of invert.py, of the generator tuned for a photo."""
    return f"{_GENERATORS}/{number:03}"


def generator_of(number: int, generator: Generator) -> Generator:
    """The generator tuned for a photo of ``--inversion``, on all devices.

    Args:
        number: Number of the photo.
        generator: The generator of ``--generator``, which is returned if none was tuned.

    Raises:
        InputError: The photo's generator is missing or damaged.
    """
    if not has_tuned_generators():
        return generator
    return _load_tuned(expand_user(FLAGS.inversion) / tuned_path(number), FLAGS.dtype)


@functools.lru_cache(maxsize=1)
def _load_tuned(path: Path, dtype: str) -> Generator:
    return replicate(load_generator(path, dtype))


def load_networks(generator: Generator) -> Networks:
    """Loads the networks given by the flags to all devices.

    Raises:
        InputError: A network cannot be loaded, or the encoder is for another generator.
    """
    encoder = perceptual = arcface = None
    if FLAGS.encoder or not FLAGS.generator:
        encoder = load_encoder(FLAGS.encoder, FLAGS.dtype)
        check_encoder(generator, encoder)
    clip = FLAGS["clip"].value if "clip" in FLAGS else None
    if isinstance(clip, list):
        # The first of several CLIPs.
        clip = clip[0] if clip else None
    if FLAGS.lpips:
        perceptual = load_lpips(FLAGS.lpips, FLAGS.dtype)
    elif clip or not FLAGS.generator:
        perceptual = load_clip(clip, FLAGS.dtype)
    else:
        command_line.note("only pixels are compared; give --lpips for a better likeness")
    if "arcface" in FLAGS and FLAGS.arcface:
        arcface = load_arcface(FLAGS.arcface, FLAGS.dtype)
    return replicate(Networks(encoder, perceptual, arcface))


def has_bars(networks: Networks) -> bool:
    """Whether aligned images are padded with black bars, as for cars."""
    encoder = networks.encoder
    return encoder is not None and encoder.config.image_height < encoder.config.image_width


def read_photos(size: int, letterbox: bool = False) -> Photos:
    """Reads the photos of ``--image`` and aligns their faces.

    Files that cannot be used are reported on stderr; the others are still read.

    Args:
        size: Height and width of the aligned faces.
        letterbox: With ``--align=false``, pad images to squares with black bars instead of cropping
            them, as for cars.

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
            if isinstance(error, NoFaceError):
                message += " (--align=false)"
            if len(files) == 1:
                raise InputError(message) from None
            command_line.report(message)
            failures.append(path)
    if not faces:
        raise InputError(f"none of the {len(files)} images can be used; see the errors above")
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
    batches = equal_batches(count, BATCH_SIZE)
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


def start_from_photos(generator: Generator, networks: Networks) -> tuple[Photos, Inversion]:
    """Reads the photos of ``--image`` and inverts them."""
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
        The photos, their latents, and the entries for metrics.json of the inversion, whose images
        are written to ``directory``.
    """
    if FLAGS.inversion:
        return *read_inversion(generator), {}
    if not FLAGS.image:
        return None, None, {}
    photos, inversion = start_from_photos(generator, load_networks(generator))
    return photos, inversion.latents, {"images": write_inversion(directory, photos, inversion)}


def read_inversion(generator: Generator) -> tuple[Photos, Latents]:
    """Reads the photos of ``--inversion`` and their latents.

    Raises:
        InputError: The directory is not a complete result of invert.py, or photos are missing.
    """
    directory = expand_user(FLAGS.inversion)
    try:
        images = parse_json((directory / METRICS_FILE).read_text())["images"]
        faces = [
            Face(
                Path(image["photo"]),
                read_photo(image["photo"]),
                None if image["quad"] is None else FaceTransform(np.array(image["quad"])),
            )
            for image in images
        ]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{directory} has no results of invert.py, or their photos were moved; run invert.py"
            " again"
        ) from None
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
    """Writes the photos with all their edited faces, blended as given by ``--blend``.

    Args:
        directory: The directory for the photos.
        faces: The faces.
        edited: The directory of their images after the edit.
        unedited: The directory of their images before the edit.
    """
    results: dict[Path, Image.Image] = {}
    for i, face in enumerate(faces):
        if face.transform is None:
            raise InputError(
                f"--paste_back has no effect, because {face.path} was not aligned and the edited"
                " image is the whole photo; remove --paste_back"
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
    """Exits with code 1 if files could not be used."""
    if photos and photos.failures:
        sys.exit(1)
