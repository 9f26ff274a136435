"""Files of images, latents and edits, which users can download."""

import io
import zipfile
from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from styleclip_jax.app.edits import Edit, Face, HostLatents
from styleclip_jax.app.photos import Pixels, paste_edited
from styleclip_jax.io.images import encode_image
from styleclip_jax.io.latents import latents_ending, write_latents


def png(face: Face) -> bytes:
    """Returns an image as a PNG file; the face of a photo is pasted back into the photo."""
    image = paste_edited(face.photo, face.pixels) if face.photo else Image.fromarray(face.pixels)
    return encode_image(image)


def animation(frames: Sequence[Pixels]) -> bytes:
    """Returns images as a GIF that loops forwards and backwards."""
    first, *others = (Image.fromarray(f) for f in [*frames, *frames[-2:0:-1]])
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=others, duration=250, loop=0)
    return buffer.getvalue()


def latents_file(latents: HostLatents) -> bytes:
    """Returns latents as an NPY or NPZ file."""
    buffer = io.BytesIO()
    write_latents(buffer, latents)
    return buffer.getvalue()


def start_name(edit: Edit) -> str:
    """Returns the name of the file with the latents before an edit."""
    return f"start{latents_ending(edit.start.latents)}"


def archive(edit: Edit, settings: str) -> bytes:
    """Returns a ZIP file of an edit's images, latents and settings.

    Args:
        edit: The edit.
        settings: Content of ``settings.json``.
    """
    before, after = edit.start.latents, edit.face.latents
    files = {
        "image.png": png(replace(edit.face, photo=None)),
        f"latents{latents_ending(after)}": latents_file(after),
        "before.png": png(replace(edit.start, photo=None)),
        start_name(edit): latents_file(before),
        "settings.json": settings.encode(),
    }
    if edit.face.photo and edit.face.photo.transform:
        files["photo.png"] = png(edit.face)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return buffer.getvalue()
