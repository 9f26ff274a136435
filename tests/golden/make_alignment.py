"""Makes alignment.npz: faces found and cropped by the official code of e4e and of FFHQ.

Usage, with checkouts of omertov/encoder4editing and NVlabs/ffhq-dataset:

    python tests/golden/make_alignment.py --e4e=PATH --ffhq=PATH
"""

import contextlib
import importlib
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import official
import photographs
import seeded
from absl import app, flags
from PIL import Image

from styleclip_jax import faces

_E4E = flags.DEFINE_string("e4e", None, "Checkout of encoder4editing.", required=True)
_FFHQ = flags.DEFINE_string("ffhq", None, "Checkout of ffhq-dataset.", required=True)

# Name: photograph, size of the crop; FFHQ's transform is four times larger, as is the original.
# The second one shrinks the photograph first.
FFHQ = {
    "ffhq_128": ("hopper", 128),
    "ffhq_64": ("hopper", 64),
    "ffhq_padded": ("astronaut_cut", 128),
}


def main(_: list[str]) -> None:
    """Writes the file."""
    official.prepare(_E4E.value, _FFHQ.value)
    # Pillow 10 has renamed it.
    Image.ANTIALIAS = Image.Resampling.LANCZOS  # pyright: ignore[reportAttributeAccessIssue]
    e4e: Any = importlib.import_module("utils.alignment")
    ffhq: Any = importlib.import_module("download_ffhq")
    _, predictor, _ = faces._dlib_models()
    arrays = {}
    with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stdout(sys.stderr):
        for name in ("hopper", "astronaut_cut"):
            file = f"{directory}/{name}.png"
            photographs.photo(name).save(file)
            arrays[f"landmarks.{name}"] = e4e.get_landmark(file, predictor)
        arrays["e4e_256"] = np.asarray(e4e.align_face(f"{directory}/hopper.png", predictor))
        for name, (photograph, size) in FFHQ.items():
            wild = {
                "face_landmarks": arrays[f"landmarks.{photograph}"],
                "file_path": f"{photograph}.png",
            }
            with contextlib.chdir(_FFHQ.value):
                ffhq.recreate_aligned_images(
                    {"0": {"in_the_wild": wild}}, directory, f"{directory}/{name}", size, 4 * size
                )
            (crop,) = Path(directory, name).rglob("*.png")
            arrays[name] = np.asarray(Image.open(crop))
    versions = {name: metadata.version(name) for name in ("dlib-bin", "numpy", "pillow", "scipy")}
    seeded.save("alignment", {"ffhq": FFHQ, "versions": versions}, arrays)


if __name__ == "__main__":
    app.run(main)
