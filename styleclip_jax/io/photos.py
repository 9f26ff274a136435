"""Photos: reading any image file as upright RGB, and replacing pixels of the original."""

import glob
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from styleclip_jax.errors import InputError
from styleclip_jax.io.files import expand_user, replace_file, require_file

Box = tuple[int, int, int, int]

# Pillow's format by suffix. Only these formats are opened: some others start programs (EPS) or are
# not used for photos.
_FORMATS = {
    ".bmp": "BMP",
    ".gif": "GIF",
    ".jpeg": "JPEG",
    ".jpg": "JPEG",
    ".png": "PNG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
}

_ENDINGS = ", ".join(_FORMATS)

_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I")

_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")

# Transposes that turn a photo upright and back, by EXIF orientation.
_T = Image.Transpose
_UPRIGHT = {
    2: (_T.FLIP_LEFT_RIGHT, _T.FLIP_LEFT_RIGHT),
    3: (_T.ROTATE_180, _T.ROTATE_180),
    4: (_T.FLIP_TOP_BOTTOM, _T.FLIP_TOP_BOTTOM),
    5: (_T.TRANSPOSE, _T.TRANSPOSE),
    6: (_T.ROTATE_270, _T.ROTATE_90),
    7: (_T.TRANSVERSE, _T.TRANSVERSE),
    8: (_T.ROTATE_90, _T.ROTATE_270),
}

_DESCRIPTIVE_TAGS = (
    ExifTags.Base.ImageDescription,
    ExifTags.Base.Make,
    ExifTags.Base.Model,
    ExifTags.Base.Orientation,
    ExifTags.Base.Software,
    ExifTags.Base.DateTime,
    ExifTags.Base.Artist,
    ExifTags.Base.Copyright,
)


def find_images(patterns: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Expands files, directories and globs to image files.

    Args:
        patterns: Files, directories (all images directly in them) or globs such as
            ``photos/*.jpg``, where ``**`` matches any number of directories.

    Returns:
        The files in the order of the patterns, sorted by name for each pattern, without duplicates.

    Raises:
        InputError: A file does not exist, or a directory or glob has no images.
    """
    return list(dict.fromkeys(path for pattern in patterns for path in _expand(pattern)))


def _expand(pattern: str | os.PathLike[str]) -> list[Path]:
    path = expand_user(pattern)
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if _looks_like_image(file))
        if not found:
            raise InputError(
                f"the directory {path} has no images, expected files that end in {_ENDINGS}"
            )
        return found
    if path.exists() or not glob.has_magic(str(path)):
        require_file(path, "an image file, a directory or a glob")
        return [path]
    matches = map(Path, glob.iglob(str(path), recursive=True))
    found = sorted(file for file in matches if _looks_like_image(file))
    if not found:
        raise InputError(f"no image matches {path}, expected files that end in {_ENDINGS}")
    return found


def _looks_like_image(path: Path) -> bool:
    hidden = path.name.startswith(".")
    return not hidden and path.suffix.lower() in _FORMATS and path.is_file()


def read_photo(path: str | os.PathLike[str]) -> Image.Image:
    """Reads an image file as stored, with its mode, orientation, EXIF and ICC profile.

    Reads the first of several frames. Pillow reads 16-bit colors as 8-bit colors.

    Raises:
        InputError: The file does not exist, is not an image, is damaged, exceeds Pillow's limit of
            179 million pixels, or has a mode without a defined conversion to RGB.
    """
    path = expand_user(path)
    require_file(path, "an image file")
    try:
        with warnings.catch_warnings():
            # Pillow warns of damaged EXIF, and of more than half of its limit of pixels.
            warnings.simplefilter("ignore")
            # Given a file name, Pillow 13 misreads some rotated TIFF files.
            with path.open("rb") as file:
                photo = Image.open(file, formats=sorted(set(_FORMATS.values())))
                photo.load()
                _turns(photo)  # Keeps the EXIF that it reads.
    except Image.DecompressionBombError as error:
        raise InputError(f"{path} is too large ({error}); downscale it first") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many types for damaged files.
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else error
        raise InputError(
            f"{path} cannot be read as an image ({reason}), expected a complete file of type"
            f" {', '.join(sorted(set(_FORMATS.values())))}"
        ) from None
    if photo.mode not in _MODES and not photo.mode.startswith("I;16"):
        raise InputError(
            f"{path} has pixels of mode {photo.mode}, expected color or gray of 8 or 16 bits;"
            " convert it first"
        )
    return photo


def upright_rgb(photo: Image.Image) -> Image.Image:
    """A photo as it is displayed: upright by its EXIF orientation, opaque, in 8-bit RGB.

    Transparent parts become white. The ICC profile is not applied.

    Args:
        photo: From :func:`read_photo`; it is not modified.
    """
    upright, _ = _turns(photo)
    photo = photo if upright is None else photo.transpose(upright)
    if photo.mode.startswith("I"):
        gray = np.clip(np.asarray(photo), 0, 65535) / 257
        image = Image.fromarray(np.rint(gray).astype(np.uint8))
    elif photo.has_transparency_data:
        image = Image.new("RGBA", photo.size, "white")
        image.alpha_composite(photo.convert("RGBA"))
    else:
        image = photo
    image = image.convert("RGB")
    # The orientation has been applied; other metadata does not describe these pixels.
    image.info = {}
    return image


def replace_pixels(photo: Image.Image, region: Image.Image, box: Box) -> Image.Image:
    """Replaces a region of a photo with edited pixels.

    Pixels whose displayed color does not change keep their stored bits.

    Args:
        photo: From :func:`read_photo`; it is not modified.
        region: The edited pixels, in RGB.
        box: Left, upper, right and lower edge of the region in ``upright_rgb(photo)``.

    Returns:
        A photo with the same size, EXIF orientation, metadata and mode. Palettes, 1-bit images and
        transparent colors, which cannot store every color, become full color or gray.
    """
    before = np.asarray(upright_rgb(photo).crop(box))
    after = np.asarray(region)
    changed = (before != after).any(axis=2)
    upright, back = _turns(photo)
    result = _in_full_mode(photo)
    result = result.copy() if upright is None else result.transpose(upright)
    if result.mode.startswith("I"):
        pixels = np.array(result)
        left, upper, right, lower = box
        gray = np.asarray(region.convert("L"), pixels.dtype) * 257
        pixels[upper:lower, left:right][changed] = gray[changed]
        result = Image.fromarray(pixels)
    else:
        if "A" in result.mode:
            alpha = result.crop(box).getchannel("A")
            region, visible = _uncover(after, np.asarray(alpha))
            changed &= visible
            region = region.convert(result.mode)
            region.putalpha(alpha)
        result.paste(region.convert(result.mode), box, Image.fromarray(changed))
    result = result if back is None else result.transpose(back)
    result.info = _metadata(photo)
    return result


def write_photo(path: str | os.PathLike[str], photo: Image.Image) -> Path:
    """Atomically writes a photo without loss, with its EXIF and ICC profile.

    Args:
        path: The file without the suffix.
        photo: From :func:`replace_pixels`.

    Returns:
        The file: ``.png``, or ``.tif`` for modes such as CMYK that PNG does not support.
    """
    suffix, file_format = (".png", "PNG") if photo.mode in _PNG_MODES else (".tif", "TIFF")
    path = Path(path)
    path = path.with_name(path.name + suffix)
    options = {name: photo.info[name] for name in ("exif", "icc_profile") if name in photo.info}
    with replace_file(path) as file:
        photo.save(file, file_format, **options)
    return path


def _turns(photo: Image.Image) -> tuple[Image.Transpose | None, Image.Transpose | None]:
    """The transposes that turn a photo upright and back."""
    photo.load()  # Pillow turns TIFF files itself.
    try:
        orientation = photo.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # As in `read_photo`; other programs show such a photo without turning it.
        orientation = 1
    return _UPRIGHT.get(orientation, (None, None))


def _in_full_mode(photo: Image.Image) -> Image.Image:
    transparent = photo.has_transparency_data
    if photo.mode in ("P", "PA"):
        return photo.convert("RGBA" if transparent else "RGB")
    if photo.mode == "1":
        return photo.convert("L")
    if transparent and photo.mode in ("L", "RGB"):
        return photo.convert(photo.mode + "A")
    return photo


def _uncover(pixels: np.ndarray, alpha: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    """Colors that give these pixels with their alpha over white, and where they are visible."""
    visible = alpha > 0
    opacity = np.where(visible, alpha, 255)[..., None] / 255
    colors = np.clip(np.rint(255 - (255 - pixels.astype(np.float32)) / opacity), 0, 255)
    return Image.fromarray(colors.astype(np.uint8)), visible


def _metadata(photo: Image.Image) -> dict[Any, bytes]:
    """EXIF and ICC profile in the form that Pillow saves."""
    metadata = {name: photo.info[name] for name in ("exif", "icc_profile") if photo.info.get(name)}
    if "exif" not in metadata and (exif := _described(photo)):
        metadata["exif"] = exif.tobytes()
    return metadata


def _described(photo: Image.Image) -> Image.Exif:
    """The tags of a TIFF file, or of XMP, that describe the photo and not the layout of pixels."""
    kept = Image.Exif()
    try:
        exif = photo.getexif()
        kept.update({tag: exif[tag] for tag in _DESCRIPTIVE_TAGS if tag in exif})
        for directory in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            if values := exif.get_ifd(directory):
                kept.get_ifd(directory).update(values)
    except Exception:  # As in `read_photo`.
        return Image.Exif()
    return kept
