import importlib.util

import numpy as np
import photographs
import pytest
import seeded
from PIL import Image, ImageEnhance

from styleclip_jax import faces
from styleclip_jax.errors import InputError
from styleclip_jax.faces import FaceTransform, align_face, find_faces, paste_back


@pytest.fixture(scope="module")
def golden():
    return seeded.load("alignment")


@pytest.fixture(scope="module")
def landmarks(golden):
    names = ("hopper", "astronaut_cut")
    return {name: golden[f"landmarks.{name}"].astype(float) for name in names}


def face_in_square(size: float, x: float = 0, y: float = 0) -> np.ndarray:
    """Landmarks whose crop is the upright square of a size at (x, y)."""
    points = np.zeros((68, 2))
    points[36:42], points[42:48] = (-0.125, 0), (0.125, 0)
    points[48], points[54] = (-0.2, 0.2), (0.2, 0.2)
    return size * (points + np.array([0.5, 0.48])) + np.array([x - 0.5, y - 0.5])


def psnr(image: Image.Image, other: Image.Image, where: np.ndarray) -> float:
    difference = (np.asarray(image, float) - np.asarray(other, float))[where]
    return 10 * np.log10(255**2 / (difference**2).mean())


def pasted_area(photo: Image.Image, transform: FaceTransform) -> np.ndarray:
    black, white = Image.new("RGB", photo.size), Image.new("RGB", (64, 64), "white")
    return np.asarray(paste_back(black, white, transform).convert("L")) > 0


@pytest.mark.parametrize("name", ["hopper", "astronaut_cut"])
def test_landmarks_are_the_official_ones(name, landmarks):
    (face,) = find_faces(photographs.photo(name))
    np.testing.assert_array_equal(face, landmarks[name])


def test_the_crop_is_the_official_one_of_e4e(golden, landmarks):
    photo = photographs.photo("hopper")
    crop, _ = align_face(photo, 256, supersampling=1, landmarks=landmarks["hopper"])
    difference = np.abs(np.asarray(crop, float) - golden["e4e_256"])
    assert difference.mean() < 0.5 and difference.max() <= 8


@pytest.mark.parametrize("name", ["ffhq_128", "ffhq_64", "ffhq_padded"])
def test_the_crop_is_the_official_one_of_ffhq(name, golden, landmarks):
    photograph, size = golden.settings["ffhq"][name]
    crop, _ = align_face(photographs.photo(photograph), size, landmarks=landmarks[photograph])
    difference = np.abs(np.asarray(crop, float) - golden[name])
    assert difference.mean() < 0.5 and difference.max() <= 8


@pytest.mark.parametrize("name", ["hopper", "astronaut"])
def test_an_unedited_crop_gives_the_photo_back(name):
    photo = photographs.photo(name)
    crop, transform = align_face(photo)
    result = paste_back(photo, crop, transform)
    inside = pasted_area(photo, transform)
    assert psnr(result, photo, inside) >= 40
    np.testing.assert_array_equal(np.asarray(result)[~inside], np.asarray(photo)[~inside])
    assert np.sqrt(inside.sum()) == pytest.approx(transform.side, rel=0.03)


@pytest.mark.parametrize("size", [64, 65, 96])
def test_shrinking_moves_nothing(size):
    # The recipe first shrinks large faces by an integer: for 96 pixels, by 3.
    y, x = np.mgrid[:600, :601]
    waves = 127.5 + 60 * np.sin(x / 30) + 60 * np.cos(y / 40)
    photo = Image.fromarray(np.rint(waves).astype(np.uint8)).convert("RGB")
    crop, transform = align_face(photo, size, landmarks=face_in_square(400, 91, 80))
    result = paste_back(photo, crop, transform)
    assert psnr(result, photo, pasted_area(photo, transform)) >= 45


def test_the_quad_is_in_pixels_of_the_photo():
    photo = Image.new("RGB", (200, 100))
    _, transform = align_face(photo, 64, landmarks=face_in_square(50, 30, 20))
    np.testing.assert_allclose(transform.quad, [(30, 20), (30, 70), (80, 70), (80, 20)])
    assert transform.side == pytest.approx(50)


def test_the_largest_face_comes_first_and_weak_detections_do_not_count():
    # dlib sees a second face, with a low score, in the astronaut's suit.
    (face,) = find_faces(photographs.photo("astronaut"))
    assert face[30, 1] < 200
    both = Image.new("RGB", (1024, 600))
    both.paste(photographs.photo("astronaut"), (0, 0))
    both.paste(photographs.photo("hopper"), (512, 0))
    first, second = find_faces(both)
    assert first[:, 0].min() > 512 > second[:, 0].max()


def test_faces_of_rotated_gray_and_16_bit_photos_are_found(landmarks):
    upright = photographs.photo("hopper")
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6
    turned.info["exif"] = turned.getexif().tobytes()
    gray = Image.fromarray(np.asarray(upright.convert("L")).astype(np.uint16) * 257)
    for photo in (turned, gray):
        (face,) = find_faces(photo)
        np.testing.assert_allclose(face, landmarks["hopper"], atol=8)


def test_faces_of_small_and_large_photos_are_found(landmarks):
    photo = photographs.photo("hopper")
    expected = align_face(photo, 16, landmarks=landmarks["hopper"]).transform.quad
    for scale in (0.1, 5):
        resized = photo.resize((round(512 * scale), round(600 * scale)))
        quad = align_face(resized, 16).transform.quad / scale
        np.testing.assert_allclose(quad, expected, atol=40 if scale < 1 else 5)


def test_photos_of_a_single_pixel_can_be_aligned():
    photo = Image.new("RGB", (1, 1), "red")
    crop, transform = align_face(photo, 16, landmarks=face_in_square(4, -1, -1))
    assert np.ptp(np.asarray(crop), axis=(0, 1)).max() <= 1
    assert paste_back(photo, crop, transform).size == (1, 1)


@pytest.mark.parametrize("width", [0, 1, 2, 3, 10, 40])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (10, 10), (1, 50), (300, 2)])
def test_tiny_faces_and_photos_are_pasted_or_refused(width, size):
    photo = Image.new("RGB", size, "red")
    for resolution in (1, 16, 32, 64):
        landmarks = face_in_square(width)
        if width < 2:
            with pytest.raises(InputError, match=f"{width:.1f} pixels wide, expected at least 2"):
                align_face(photo, resolution, landmarks=landmarks)
            continue
        crop, transform = align_face(photo, resolution, landmarks=landmarks)
        edited = Image.new("RGB", crop.size, "blue")
        assert paste_back(photo, edited, transform, unedited=crop).size == size


@pytest.mark.parametrize("position", [(-50, 0), (0, -50), (100, 0), (0, 80)])
def test_a_face_outside_the_photo_is_refused(position):
    photo = Image.new("RGB", (100, 80))
    with pytest.raises(InputError, match="is outside the photo of 100 x 80 pixels"):
        align_face(photo, 32, landmarks=face_in_square(50, *position))


def test_small_photos_are_searched_for_faces():
    for size in ((1, 1), (2, 3), (10, 10), (1, 300), (300, 1), (40, 40)):
        with pytest.raises(InputError, match="no face was found"):
            find_faces(Image.effect_noise(size, 50).convert("RGB"))


def test_another_detector_can_take_dlibs_place(monkeypatch):
    monkeypatch.setattr(faces, "dlib_landmarks", None)
    small, large = face_in_square(30), face_in_square(60)
    assert find_faces(Image.new("L", (99, 99)), lambda image: [small, large])[0] is large


def test_without_a_face_the_error_gives_advice():
    with pytest.raises(InputError, match=r"no face was found.*leave out the alignment"):
        align_face(Image.new("RGB", (300, 300), "gray"))


def test_without_dlib_the_extra_is_named(monkeypatch):
    faces._dlib_models.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"styleclip-jax\[photos\]"):
        find_faces(Image.new("RGB", (300, 300)))


@pytest.fixture
def pasted():
    """A gray photo, and where a crop of it lies."""
    photo = Image.new("RGB", (200, 160), (100, 100, 100))
    return photo, align_face(photo, 64, landmarks=face_in_square(80, 60, 40)).transform


def test_an_edited_crop_fades_out_without_a_seam(pasted):
    photo, transform = pasted
    result = np.asarray(paste_back(photo, Image.new("RGB", (64, 64), "white"), transform))
    row = result[80, :, 0].astype(int)
    assert (row[:60] == 100).all() and (row[140:] == 100).all() and (row[70:130] == 255).all()
    assert np.abs(np.diff(row)).max() < 50


def test_an_edited_crop_may_be_an_array_of_any_size(pasted):
    photo, transform = pasted
    for size in (32, 512):
        result = paste_back(photo, np.full((size, size, 3), -1, np.float32), transform)
        assert result.getpixel((100, 80)) == (0, 0, 0)


def test_pixels_that_the_edit_hardly_changed_are_those_of_the_photo(pasted):
    photo, transform = pasted
    # The reconstruction has slightly different colors; the edit changes one corner.
    unedited = Image.new("RGB", (256, 256), (120, 90, 100))
    edited = Image.new("RGB", (256, 256), (122, 91, 99))
    edited.paste("white", (64, 64, 128, 128))
    result = np.asarray(paste_back(photo, edited, transform, unedited=unedited))
    assert (result[63:77, 83:97] == 255).all()
    result = result.copy()
    result[57:83, 77:103] = 100
    assert (result == 100).all()


def test_a_face_at_the_edge_is_pasted_up_to_the_edge():
    photo = Image.new("RGB", (100, 100), (100, 100, 100))
    _, transform = align_face(photo, 64, landmarks=face_in_square(80, -20, 40))
    result = np.asarray(paste_back(photo, Image.new("RGB", (64, 64), "white"), transform))
    assert (result[60:, :50] == 255).all() and (result[:40] == 100).all()


def test_a_pasted_photo_keeps_mode_orientation_and_the_bits_outside():
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 2**16, (120, 100)).astype(np.uint16))
    tags = Image.Exif()
    tags[0x0112] = 6
    photo.info["exif"] = tags.tobytes()
    crop, transform = align_face(photo, 64, landmarks=face_in_square(50, 10, 20))
    result = paste_back(photo, Image.new("RGB", crop.size, "white"), transform)
    assert (result.mode, result.size) == (photo.mode, photo.size)
    assert result.info["exif"] == photo.info["exif"]
    # Columns 10 to 59 and rows 20 to 69, turned to the left.
    before, after = np.asarray(photo).copy(), np.asarray(result).copy()
    assert (after[80:90, 40:50] == 65535).all()
    before[60:110, 20:70] = after[60:110, 20:70] = 0
    np.testing.assert_array_equal(before, after)


def test_crops_that_do_not_fit_are_refused(pasted):
    photo, transform = pasted
    with pytest.raises(InputError, match="64 x 32 pixels, expected a square"):
        paste_back(photo, Image.new("RGB", (64, 32)), transform)
    with pytest.raises(InputError, match="64 pixels wide and the unedited one 32"):
        before, after = (Image.new("RGB", (size, size)) for size in (32, 64))
        paste_back(photo, after, transform, unedited=before)


def test_descriptors_distinguish_people_and_recognize_a_person_in_other_light():
    photo, other = map(photographs.photo, ("astronaut", "hopper"))
    descriptor = faces.face_descriptor(photo)
    brighter = faces.face_descriptor(ImageEnhance.Brightness(photo).enhance(1.3))
    assert descriptor is not None and brighter is not None
    assert np.linalg.norm(brighter - descriptor) < 0.3
    assert np.linalg.norm(faces.face_descriptor(other) - descriptor) > 0.6
    assert faces.face_descriptor(Image.new("RGB", (300, 300))) is None
