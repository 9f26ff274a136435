"""Uploaded photos: reads them within limits, aligns their faces, and pastes edited faces back."""

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

# Maximum width and height of the photo on the page.
_PREVIEW_SIZE = 512


@dataclasses.dataclass(frozen=True, eq=False)
class Photo:
    """An uploaded photo and its face.

    Attributes:
        file: Content of the photo's file, which takes less memory than its pixels.
        preview: The photo, downscaled for display.
        aligned: The aligned face at the generator's resolution.
        transform: Position of the face in the photo. None: the whole photo is the face.
        reconstructed: The generator's reconstruction of the face.
    """

    file: bytes
    preview: Pixels
    aligned: Pixels
    transform: FaceTransform | None
    reconstructed: Pixels | None = None


def read_upload(path: str | os.PathLike[str], size: int, align: bool, max_pixels: int) -> Photo:
    """Reads an uploaded photo and aligns its face.

    Args:
        path: The file.
        size: Height and width of the aligned face.
        align: Whether to find and align the face; otherwise the whole photo is the face.
        max_pixels: Maximum number of pixels, checked before the photo is decompressed.

    Raises:
        NoFaceError: No face was found in the photo.
        InputError: The file is not an image, is damaged, or is too large.
    """
    path = Path(path)
    # read_photo reports files that are not images.
    with contextlib.suppress(OSError, Image.DecompressionBombError), Image.open(path) as header:
        if header.width * header.height > max_pixels:
            raise InputError(
                f"the photo has {header.width} x {header.height} pixels, expected at most"
                f" {max_pixels / 1e6:.0f} million; downscale it first"
            )
    try:
        photo = read_photo(path)
    except InputError as error:
        # The user does not know the directory of uploads.
        raise InputError(str(error).replace(str(path), path.name)) from None
    image = upright_rgb(photo)
    transform = None
    if align:
        crop, transform = align_face(image, size)
    else:
        crop = ImageOps.pad(image, (size, size), color="white")
    preview = ImageOps.contain(image, (_PREVIEW_SIZE, _PREVIEW_SIZE))
    return Photo(path.read_bytes(), np.asarray(preview), np.asarray(crop), transform)


def paste_edited(photo: Photo, edited: Pixels) -> Image.Image:
    """Pastes an edited face back into its photo, unless the whole photo is the face."""
    if photo.transform is None or photo.reconstructed is None:
        return Image.fromarray(edited)
    original = upright_rgb(Image.open(io.BytesIO(photo.file)))
    return paste_back(
        original, from_uint8(edited), photo.transform, unedited=from_uint8(photo.reconstructed)
    )
