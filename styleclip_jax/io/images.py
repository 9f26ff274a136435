"""Images: files, arrays in [-1, 1], and labeled sheets."""

import io
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from styleclip_jax.errors import InputError
from styleclip_jax.io.files import replace_file
from styleclip_jax.io.photos import read_photo, upright_rgb

AnyArray = Array | np.ndarray
AnyImage = Float[AnyArray, "height width 3"] | Image.Image

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}

# Sheets upscale small images and downscale large ones.
_LEAST_SIDE, _LARGEST_SIDE = 256, 512
_FONT_SIZE, _MARGIN = 18, 12


def to_uint8(images: Float[AnyArray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """[-1, 1] to 0..255, clipped and rounded; NaN becomes gray."""
    images = np.clip(np.nan_to_num(np.asarray(images)), -1, 1)
    return np.rint((images + 1) * 127.5).astype(np.uint8)


def from_uint8(images: UInt8[AnyArray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """0..255 to [-1, 1], float32."""
    return np.asarray(images, np.float32) / 127.5 - 1


def to_pil(image: Float[AnyArray, "height width 3"]) -> Image.Image:
    """An array in [-1, 1] as a Pillow image."""
    return Image.fromarray(to_uint8(image))


def from_pil(image: Image.Image) -> Float[np.ndarray, "height width 3"]:
    """A Pillow image as an array in [-1, 1]."""
    return from_uint8(np.asarray(image.convert("RGB")))


def read_image(path: str | os.PathLike[str]) -> Float[np.ndarray, "height width 3"]:
    """Reads an image file to an array in [-1, 1], upright, with transparent parts in white.

    Raises:
        InputError: See :func:`~styleclip_jax.io.photos.read_photo`.
    """
    return from_pil(upright_rgb(read_photo(path)))


def write_image(path: str | os.PathLike[str], image: AnyImage) -> None:
    """Atomically writes a ``.png`` or ``.jpg`` file.

    Args:
        path: The file; missing directories are created.
        image: An array in [-1, 1] or a Pillow image.

    Raises:
        InputError: The name has another suffix.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _FORMATS:
        raise InputError(f"{path} ends in {suffix!r}, expected one of {', '.join(_FORMATS)}")
    with replace_file(path) as file:
        file.write(encode_image(image, _FORMATS[suffix]))


def encode_image(image: AnyImage, file_format: str = "PNG") -> bytes:
    """Returns the content of a PNG or JPEG file of an array in [-1, 1] or a Pillow image."""
    image = image if isinstance(image, Image.Image) else to_pil(image)
    buffer = io.BytesIO()
    # PNG at level 3 takes a third of the time of Pillow's default for a fifth more bytes.
    image.save(buffer, file_format, quality=95, compress_level=3)
    return buffer.getvalue()


def write_gif(
    path: str | os.PathLike[str], frames: Sequence[AnyImage], seconds_per_frame: float = 0.1
) -> None:
    """Writes a looping animation that shows the last frame for a second."""
    first, *others = (f if isinstance(f, Image.Image) else to_pil(f) for f in frames)
    durations = [round(1000 * seconds_per_frame)] * len(others) + [1000]
    with replace_file(path) as file:
        first.save(file, "GIF", save_all=True, append_images=others, duration=durations, loop=0)


def resize(images: Float[Array, "batch _ _ 3"], size: int) -> Float[Array, "batch {size} {size} 3"]:
    """Resizes square images by cubic interpolation, with antialiasing when downscaling."""
    shape = (images.shape[0], size, size, 3)
    return jax.image.resize(images, shape, "cubic", antialias=True)


def sheet(
    columns: Sequence[Float[AnyArray, "rows height width 3"]], labels: Sequence[str]
) -> Image.Image:
    """A labeled sheet of images with a row per image and a column per state.

    Small images are upscaled to at least 256 pixels and large ones downscaled to at most 512.

    Args:
        columns: Batches of images in [-1, 1], all of one shape; for example before and after an
            edit, or edits of several strengths.
        labels: A label for every column.
    """
    rows, height, width = columns[0].shape[:3]
    longest = max(height, width)
    scale = min(max(longest, _LEAST_SIDE), _LARGEST_SIDE) / longest
    cell = (round(width * scale), round(height * scale))
    font = ImageFont.load_default(_FONT_SIZE)
    captions = [_wrap(label, font, cell[0]) for label in labels]
    top = 2 * _MARGIN + round(1.3 * _FONT_SIZE) * max(c.count("\n") + 1 for c in captions)
    step = (cell[0] + _MARGIN, cell[1] + _MARGIN)
    canvas = Image.new("RGB", (_MARGIN + len(columns) * step[0], top + rows * step[1]), "white")
    draw = ImageDraw.Draw(canvas)
    for i, (images, caption) in enumerate(zip(columns, captions, strict=True)):
        left = _MARGIN + i * step[0]
        draw.multiline_text((left, _MARGIN), caption, "black", font)
        for j, image in enumerate(np.asarray(images)):
            resized = to_pil(image).resize(cell, Image.Resampling.LANCZOS)
            canvas.paste(resized, (left, top + j * step[1]))
    return canvas


def before_after_sheet(
    before: Float[AnyArray, "rows height width 3"],
    after: Float[AnyArray, "rows height width 3"],
    label: str,
) -> Image.Image:
    """A :func:`sheet` of images before and after an edit, labeled with its text."""
    return sheet([before, after], ["before", label])


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)
