import numpy as np
import pytest
from PIL import Image, ImageSequence

from styleclip_jax.errors import InputError
from styleclip_jax.io import images


def random_image(height=48, width=64):
    return np.random.default_rng(0).uniform(-1, 1, (height, width, 3)).astype(np.float32)


def test_bytes_and_floats_convert_without_loss():
    values = np.arange(256, dtype=np.uint8).reshape(1, 256, 1).repeat(3, axis=2)
    floats = images.from_uint8(values)
    assert floats.min() == -1 and floats.max() == 1 and floats.dtype == np.float32
    np.testing.assert_array_equal(images.to_uint8(floats), values)


def test_values_beyond_the_range_are_clipped_and_nan_is_gray():
    values = np.array([[[-7.0, 7.0, np.nan]]], np.float32)
    np.testing.assert_array_equal(images.to_uint8(values), [[[0, 255, 128]]])


def test_a_png_is_read_back_exactly(tmp_path):
    image = images.from_uint8(images.to_uint8(random_image()))
    images.write_image(tmp_path / "new" / "image.png", image)
    np.testing.assert_allclose(images.read_image(tmp_path / "new" / "image.png"), image, atol=1e-6)


def test_a_jpeg_is_read_back_nearly(tmp_path):
    image = np.full((48, 64, 3), 0.25, np.float32)
    images.write_image(tmp_path / "image.jpg", image)
    np.testing.assert_allclose(images.read_image(tmp_path / "image.jpg"), image, atol=0.05)


def test_photos_are_turned_upright(tmp_path):
    image = images.to_pil(random_image(48, 64))
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: rotated by 90 degrees.
    image.save(tmp_path / "photo.png", exif=exif)
    assert images.read_image(tmp_path / "photo.png").shape == (64, 48, 3)


def test_transparent_and_gray_images_become_rgb(tmp_path):
    for mode in ("RGBA", "L", "P"):
        Image.new(mode, (8, 8)).save(tmp_path / f"{mode}.png")
        assert images.read_image(tmp_path / f"{mode}.png").shape == (8, 8, 3)


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.95])
def test_truncated_images_are_refused(tmp_path, kept):
    path = tmp_path / "image.png"
    images.write_image(path, random_image())
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(InputError, match=r"image\.png cannot be read"):
        images.read_image(path)


def test_a_file_that_is_not_an_image_is_refused(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(InputError, match=r"text\.png cannot be read"):
        images.read_image(tmp_path / "text.png")
    with pytest.raises(InputError, match=r"no file .*nowhere\.png"):
        images.read_image(tmp_path / "nowhere.png")
    with pytest.raises(InputError, match="is a directory"):
        images.read_image(tmp_path)


def test_an_unknown_suffix_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"'\.bmp', expected one of \.png"):
        images.write_image(tmp_path / "image.bmp", random_image())
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "image.png"
    images.write_image(path, random_image())
    before = path.read_bytes()

    def crash(self, file, *_, **__):
        file.write(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr(Image.Image, "save", crash)
    with pytest.raises(OSError, match="disk"):
        images.write_image(path, random_image())
    assert [p.name for p in tmp_path.iterdir()] == ["image.png"]
    assert path.read_bytes() == before


def test_resizing_preserves_colors():
    batch = np.stack([np.full((64, 64, 3), value, np.float32) for value in (-0.5, 0.75)])
    for size in (16, 100):
        resized = images.resize(images.jax.numpy.asarray(batch), size)
        assert resized.shape == (2, size, size, 3)
        np.testing.assert_allclose(
            resized, batch[:, :1, :1].repeat(size, 1).repeat(size, 2), atol=1e-5
        )


def color(value, size):
    return np.full((2, size, size, 3), value, np.float32)


@pytest.mark.parametrize(("size", "shown"), [(16, 256), (64, 256), (300, 300), (1024, 512)])
def test_sheets_show_images_at_a_visible_size(size, shown):
    sheet = images.before_after_sheet(color(-1, size), color(1, size), "a hat")
    pixels = np.asarray(sheet)
    black = (pixels == 0).all(axis=2)
    # A row of the first image, and the caption's letters above are thinner than an image.
    assert black.sum(axis=1).max() == shown
    assert sheet.width > 2 * shown and sheet.height > 2 * shown


def test_sheets_have_a_column_for_every_label_in_order():
    columns = [color(value, 256) for value in (-1, 0, 1)]
    pixels = np.asarray(images.sheet(columns, ["none", "half", "full"]))
    row = pixels[pixels.shape[0] // 2 + 60, :, 0].astype(int)
    middle = [row[12 + 268 * i + 128] for i in range(3)]
    assert middle == [0, 128, 255]


def test_captions_are_written_and_long_ones_wrapped():
    columns = [color(1, 64)] * 2
    plain = images.sheet(columns, ["", ""])
    short = images.sheet(columns, ["before", "a hat"])
    long = images.sheet(columns, ["before", "a person with a hat and " * 3])
    assert np.asarray(plain).min() == 255 and np.asarray(short).min() < 100
    assert plain.height == short.height < long.height


def test_gifs_are_animated(tmp_path):
    frames = [np.full((32, 32, 3), value, np.float32) for value in (-1, 0, 1)]
    images.write_gif(tmp_path / "steps.gif", frames)
    with Image.open(tmp_path / "steps.gif") as gif:
        assert len(list(ImageSequence.Iterator(gif))) == 3
        assert gif.info["loop"] == 0
        gif.seek(2)
        assert gif.info["duration"] == 1000
        assert np.asarray(gif.convert("RGB")).min() > 250
