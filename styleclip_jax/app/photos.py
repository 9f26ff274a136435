"""Uploaded photos: reading within limits, alignment, and pasting back after an edit."""

import contextlib
import dataclasses
import io
import os
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from styleclip_jax.errors import InputError
from styleclip_jax.faces import FaceTransform, align_face, paste_back
from styleclip_jax.io.images import from_uint8
from styleclip_jax.io.photos import read_photo, upright_rgb

Pixels = UInt8[np.ndarray, "_ _ 3"]

# A photo is shown at this size.
_SHOWN = 512


@dataclasses.dataclass(frozen=True, eq=False)
class Photo:
    """An uploaded photo and its face.

    Attributes:
        file: Content of the photo's file, which takes less memory than its pixels.
        shown: The photo, downscaled for display.
        aligned: The aligned face at the generator's resolution.
        transform: Position of the face in the photo. None: the whole photo is the face.
        reconstructed: The generator's reconstruction of the face.
    """

    file: bytes
    shown: Pixels
    aligned: Pixels
    transform: FaceTransform | None
    reconstructed: Pixels | None = None


def read_upload(path: str | os.PathLike[str], size: int, align: bool, most_pixels: int) -> Photo:
    """Reads an uploaded photo and aligns its face.

    Args:
        path: The file.
        size: Height and width of the aligned face.
        align: Whether to find and align the face; otherwise the whole photo is the face.
        most_pixels: Maximum number of pixels, checked before the photo is decompressed.

    Raises:
        NoFaceError: There is no face.
        InputError: The file is not an image, damaged or too large.
    """
    path = Path(path)
    # read_photo reports files that are not images.
    with contextlib.suppress(OSError, Image.DecompressionBombError), Image.open(path) as header:
        if header.width * header.height > most_pixels:
            raise InputError(
                f"the photo has {header.width} x {header.height} pixels, at most"
                f" {most_pixels / 1e6:.0f} million are allowed; shrink it first"
            )
    try:
        photo = read_photo(path)
    except InputError as error:
        # The user only knows the file's name.
        raise InputError(str(error).replace(str(path), path.name)) from None
    image = upright_rgb(photo)
    transform = None
    if align:
        crop, transform = align_face(image, size)
    else:
        crop = ImageOps.pad(image, (size, size), color="white")
    shown = ImageOps.contain(image, (_SHOWN, _SHOWN))
    return Photo(path.read_bytes(), np.asarray(shown), np.asarray(crop), transform)


def finished(photo: Photo, edited: Pixels) -> Image.Image:
    """Pastes an edited face back into its photo, unless the whole photo is the face."""
    if photo.transform is None or photo.reconstructed is None:
        return Image.fromarray(edited)
    original = upright_rgb(Image.open(io.BytesIO(photo.file)))
    return paste_back(
        original, from_uint8(edited), photo.transform, unedited=from_uint8(photo.reconstructed)
    )
