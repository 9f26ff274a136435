import numpy as np
import pytest
from PIL import Image

from styleclip_jax import InputError, faces
from styleclip_jax.app.photos import paste_edited, read_upload
from styleclip_jax.faces import NoFaceError


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.new("RGB", (40, 20), "navy").save(path)
    return path


def test_a_photo_of_only_a_face_is_padded_to_a_square(photo):
    read = read_upload(photo, 16, align=False, max_pixels=1000)
    assert read.aligned.shape == (16, 16, 3)
    assert (read.aligned[8, 8] == (0, 0, 128)).all()
    assert (read.aligned[0, 0] == 255).all()


def test_a_photo_with_too_many_pixels_is_refused_before_decompression(photo):
    with pytest.raises(InputError, match="40 x 20 pixels"):
        read_upload(photo, 16, align=False, max_pixels=799)


def test_a_photo_without_a_face_raises_an_error(photo, monkeypatch):
    monkeypatch.setattr(faces, "dlib_landmarks", lambda _: [])
    with pytest.raises(NoFaceError):
        read_upload(photo, 16, align=True, max_pixels=1000)


def test_an_edited_photo_of_only_a_face_is_the_edited_image(photo):
    read = read_upload(photo, 16, align=False, max_pixels=1000)
    edited = np.full((16, 16, 3), 7, np.uint8)
    assert (np.asarray(paste_edited(read, edited)) == 7).all()


def test_messages_name_the_file_without_its_directory(tmp_path):
    (tmp_path / "me.png").write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"^me\.png cannot be read as an image"):
        read_upload(tmp_path / "me.png", 16, align=False, max_pixels=1000)
