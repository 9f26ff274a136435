import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from styleclip_jax.errors import InputError
from styleclip_jax.io.photos import (
    find_images,
    read_photo,
    replace_pixels,
    upright_rgb,
    write_photo,
)

BOX = (5, 6, 20, 30)
RED = (200, 30, 60)


def random_photo(mode: str) -> Image.Image:
    rng = np.random.default_rng(0)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 2**16, (40, 60)).astype(np.uint16))
    pixels = rng.integers(0, 256, (40, 60, 4))
    pixels[..., 3] = rng.choice([0, 240, 255], (40, 60))
    photo = Image.fromarray(pixels.astype(np.uint8))
    photo = photo.convert("RGB") if mode == "CMYK" else photo
    return photo.quantize() if mode == "P" else photo.convert(mode)


def exif(orientation: int = 1) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    tags[0x010F] = "camera"
    tags.get_ifd(0x8825)[1] = "N"  # A GPS position, in its own directory.
    return tags


def edit(photo: Image.Image) -> Image.Image:
    """The photo with a red spot of 42 pixels."""
    region = upright_rgb(photo).crop(BOX)
    region.paste(RED, (3, 4, 9, 11))
    return replace_pixels(photo, region, BOX)


def outside_spot(image: Image.Image) -> np.ndarray:
    pixels = np.array(image)
    pixels[10:17, 8:14] = 0
    return pixels


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_edited_upright_and_stored_as_they_were(tmp_path, orientation):
    # Red is at the top left of the upright photo, in whatever orientation it is stored.
    upright = Image.new("RGB", (60, 40), "blue")
    upright.paste("red", (0, 0, 20, 10))
    path = tmp_path / "photo.png"
    turn = {
        1: lambda image: image,
        2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
        4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
        6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
        7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
        8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    turn(upright).save(path, exif=exif(orientation))
    photo = read_photo(path)
    assert photo.size == ((60, 40) if orientation < 5 else (40, 60))
    np.testing.assert_array_equal(upright_rgb(photo), upright)

    upright.paste("lime", (30, 5, 50, 25))
    result = replace_pixels(photo, upright, (0, 0, 60, 40))
    assert result.size == photo.size
    np.testing.assert_array_equal(result, turn(upright))
    again = read_photo(write_photo(tmp_path / "result", result))
    assert again.info["exif"] == photo.info["exif"]
    np.testing.assert_array_equal(upright_rgb(again), upright)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "CMYK", "I;16"])
def test_an_edit_keeps_the_mode_and_all_bits_outside(tmp_path, mode):
    photo = random_photo(mode)
    photo.save(tmp_path / "photo.tif")
    photo = read_photo(tmp_path / "photo.tif")
    original = photo.copy()
    path = write_photo(tmp_path / "result", edit(photo))
    result = read_photo(path)
    assert path.suffix == (".tif" if mode == "CMYK" else ".png")
    assert (result.mode, result.size) == (mode, photo.size)
    np.testing.assert_array_equal(photo, original)
    np.testing.assert_array_equal(outside_spot(result), outside_spot(photo))
    shown = np.asarray(upright_rgb(result))[10:17, 8:14].astype(int)
    if mode.endswith("A"):
        np.testing.assert_array_equal(np.asarray(result)[..., -1], np.asarray(photo)[..., -1])
        visible = np.asarray(photo)[10:17, 8:14, -1] > 0
        assert (shown[~visible] == 255).all()
        shown = shown[visible]
    expected = RED if mode in ("RGB", "RGBA", "CMYK") else 84
    np.testing.assert_allclose(shown, np.broadcast_to(expected, shown.shape), atol=1)


@pytest.mark.parametrize(("mode", "becomes"), [("P", "RGBA"), ("1", "L")])
def test_palettes_and_single_bits_become_full_colors_and_look_the_same_outside(mode, becomes):
    photo = random_photo(mode)
    result = edit(photo)
    assert result.mode == becomes
    np.testing.assert_array_equal(
        outside_spot(upright_rgb(result)), outside_spot(upright_rgb(photo))
    )


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
def test_exif_and_icc_profile_are_kept(tmp_path, ending):
    path = tmp_path / f"photo.{ending}"
    random_photo("RGB").save(path, exif=exif().tobytes(), icc_profile=b"a profile")
    result = read_photo(write_photo(tmp_path / "result", edit(read_photo(path))))
    tags = result.getexif()
    assert tags[0x010F] == "camera" and tags.get_ifd(0x8825)[1] == "N"
    assert result.info["icc_profile"] == b"a profile"


def test_rotated_tiff_files_are_read_upright(tmp_path):
    photo = random_photo("CMYK")
    photo.save(tmp_path / "photo.tif", exif=exif(6))
    expected = photo.transpose(Image.Transpose.ROTATE_270)
    np.testing.assert_array_equal(read_photo(tmp_path / "photo.tif"), expected)


def test_16_bits_are_scaled_and_not_cut_off():
    photo = Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16))
    np.testing.assert_array_equal(np.asarray(upright_rgb(photo))[0, :, 0], [0, 1, 128, 255])


def test_transparent_parts_are_white():
    photo = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    photo.putpixel((1, 0), (0, 0, 0, 255))
    np.testing.assert_array_equal(np.asarray(upright_rgb(photo))[0, :, 0], [255, 0])


def test_the_first_frame_of_an_animation_is_read(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    for ending in ("gif", "webp", "png"):
        path = tmp_path / f"animation.{ending}"
        frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
        assert upright_rgb(read_photo(path)).getpixel((4, 4)) == (255, 0, 0)


def test_damaged_exif_does_not_matter(tmp_path):
    photo = random_photo("RGB")
    photo.save(tmp_path / "photo.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert upright_rgb(read_photo(tmp_path / "photo.jpg")).size == photo.size


def test_a_decompression_bomb_is_refused(tmp_path):
    chunks = {b"IHDR": struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0), b"IDAT": b""}
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks.items():
        content += struct.pack(">I", len(data)) + name + data
        content += struct.pack(">I", zlib.crc32(name + data))
    (tmp_path / "bomb.png").write_bytes(content)
    with pytest.raises(InputError, match=r"bomb\.png is too large .*3600000000 pixels"):
        read_photo(tmp_path / "bomb.png")


def test_a_photo_above_half_of_the_limit_is_read_without_a_warning(tmp_path, monkeypatch):
    random_photo("RGB").save(tmp_path / "photo.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 60 - 1)
    assert read_photo(tmp_path / "photo.png").size == (60, 40)


def test_floats_and_other_files_are_refused(tmp_path):
    Image.new("F", (8, 8)).save(tmp_path / "floats.tif")
    with pytest.raises(InputError, match=r"floats\.tif has pixels of mode F"):
        read_photo(tmp_path / "floats.tif")
    # Pillow would start another program for PostScript.
    Image.new("RGB", (8, 8)).save(tmp_path / "script.eps")
    (tmp_path / "script.eps").rename(tmp_path / "script.png")
    with pytest.raises(InputError, match=r"script\.png cannot be read .*unknown format"):
        read_photo(tmp_path / "script.png")


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.JPG", "c.jpeg", ".hidden.png", "notes.txt", "inner/d.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "empty.png").mkdir()
    return tmp_path


def names(paths):
    return [path.name for path in paths]


def test_directories_and_globs_give_their_images_sorted_by_name(folder):
    assert names(find_images([folder])) == ["a.JPG", "b.png", "c.jpeg"]
    assert names(find_images([folder / "*.*"])) == ["a.JPG", "b.png", "c.jpeg"]
    assert names(find_images([folder / "**" / "*"])) == ["a.JPG", "b.png", "c.jpeg", "d.png"]


def test_files_keep_their_order_without_duplicates(folder):
    paths = [str(folder / "c.jpeg"), folder, folder / "inner" / "*", folder / "notes.txt"]
    assert names(find_images(paths)) == ["c.jpeg", "a.JPG", "b.png", "d.png", "notes.txt"]


def test_a_file_may_be_named_like_a_glob(folder):
    (folder / "me[1].png").touch()
    assert names(find_images([folder / "me[1].png"])) == ["me[1].png"]


def test_a_path_without_images_is_refused(folder):
    with pytest.raises(InputError, match=r"empty\.png has no images, .* \.png"):
        find_images([folder / "b.png", folder / "empty.png"])
    with pytest.raises(InputError, match=r"no image matches .*x\*\.png"):
        find_images([folder / "x*.png"])
    with pytest.raises(InputError, match=r"no file .*nowhere\.png"):
        find_images([folder / "nowhere.png"])
