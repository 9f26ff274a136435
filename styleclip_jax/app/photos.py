"""Uploaded photos: read within limits, aligned, and put together again after an edit."""

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
    """An uploaded photo, and the face in it.

    Attributes:
        file: The photo's file, which takes less memory than its pixels.
        shown: The photo, to look at.
        aligned: The aligned face, as large as the generator's images.
        transform: Where it lies in the photo; None: the whole photo was taken as the face.
        reconstructed: What the generator makes of the face, without an edit.
    """

    file: bytes
    shown: Pixels
    aligned: Pixels
    transform: FaceTransform | None
    reconstructed: Pixels | None = None


def read_upload(path: str | os.PathLike[str], size: int, align: bool, most_pixels: int) -> Photo:
    """Reads an uploaded photo, and aligns the face in it.

    Args:
        path: The file.
        size: Height and width of the aligned face.
        align: Find the face; otherwise the photo is taken as it is.
        most_pixels: What a photo may have at most, before it is unpacked.

    Raises:
        NoFaceError: There is no face.
        InputError: The file is no image, damaged or too large.
    """
    path = Path(path)
    # What is not an image is for read_photo to tell.
    with contextlib.suppress(OSError, Image.DecompressionBombError), Image.open(path) as header:
        if header.width * header.height > most_pixels:
            raise InputError(
                f"the photo has {header.width} x {header.height} pixels, at most"
                f" {most_pixels / 1e6:.0f} million are allowed; shrink it first"
            )
    try:
        photo = read_photo(path)
    except InputError as error:
        # The visitor knows the file by its name alone.
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
    """An edited face back in its photo; the face alone where it was the whole photo."""
    if photo.transform is None or photo.reconstructed is None:
        return Image.fromarray(edited)
    original = upright_rgb(Image.open(io.BytesIO(photo.file)))
    return paste_back(
        original, from_uint8(edited), photo.transform, unedited=from_uint8(photo.reconstructed)
    )
