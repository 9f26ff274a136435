"""Makes directions.npz: the official global directions on seeded weights.

Usage, with checkouts of orpatashnik/StyleCLIP and openai/CLIP:

    python tests/golden/make_directions.py --styleclip=PATH --clip=PATH
"""

import importlib
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import official
import seeded
import torch
from absl import app, flags

_STYLECLIP = flags.DEFINE_string("styleclip", None, "Checkout of StyleCLIP.", required=True)
_CLIP = flags.DEFINE_string("clip", None, "Checkout of openai/CLIP.", required=True)

SEED = 6
GENERATOR = {"resolution": 64, "channel_base": 512, "channel_max": 16}
IMAGES = 2
# Target, neutral, threshold, strength.
CASES = {
    "hair": ("person with purple hair", "person", 0.15, 4.1),
    "smile": ("smiling face", "face", 0.1, -6.0),
}


def load_official() -> tuple:
    """Imports global_torch, with stand-ins for the GUI and loader packages that it imports."""
    sys.path.insert(0, str(Path(_STYLECLIP.value) / "global_torch"))
    names = (
        "matplotlib",
        "matplotlib.pyplot",
        "click",
        "imageio",
        "dnnlib",
        "legacy",
        "visualizer",
    )
    names += ("torch_utils", "torch_utils.misc", "training", "training.networks")
    with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in names}):
        modules = [importlib.import_module(name) for name in ("StyleCLIP", "SingleChannel")]
        return (*modules, importlib.import_module("manipulate"))


def main(_: list[str]) -> None:
    """Writes the file."""
    official.prepare(_STYLECLIP.value, _CLIP.value)
    style_clip, single_channel, manipulate = load_official()
    narrow = official.narrow(
        importlib.import_module("models.stylegan2.model").Generator,
        GENERATOR["channel_base"],
        GENERATOR["channel_max"],
    )
    generator = narrow(GENERATOR["resolution"], 512, 8).eval()
    clip = official.clip_model(official.SMALL_CLIP)
    weights = {"generator": official.fill(generator, SEED), "clip": official.fill(clip, SEED)}
    inputs, outputs = {}, {}

    def give(name: str, *shape: int) -> np.ndarray:
        inputs[name] = shape
        return seeded.seeded_tensor(name, shape, SEED)

    w_plus = torch.from_numpy(give("w_plus", IMAGES, generator.n_latent, 512))
    fixed = {"randomize_noise": False, "return_latents": True}
    _, _, styles = generator([w_plus], input_is_latent=True, **fixed)

    manipulator = manipulate.Manipulator()
    convs = [i for i in range(len(styles)) if i % 3 != 1]
    manipulator.mindexs = convs
    manipulator.s_names = ["conv" if i in convs else "toRGB" for i in range(len(styles))]
    manipulator.num_images = IMAGES
    manipulator.dlatents = [style.flatten(1).numpy() for style in styles]
    widths = [entry.shape[1] for entry in manipulator.dlatents]
    manipulator.code_std = [abs(give(f"std_{i}", width)) for i, width in enumerate(widths)]
    features = give(
        "features", sum(widths[i] for i in convs), 3, 2, official.SMALL_CLIP["embed_dim"]
    )
    relevance = single_channel.GetFs(features)
    outputs["relevance"] = relevance

    texts = [text for case in CASES.values() for text in case[:2]]
    tokenize = importlib.import_module("clip").tokenize
    tokens = {
        text: tokenize([t.format(text) for t in style_clip.imagenet_templates]).tolist()
        for text in texts
    }
    with mock.patch.object(style_clip.clip, "tokenize", tokenize):
        for name, (target, neutral, threshold, strength) in CASES.items():
            dt = style_clip.GetDt([target, neutral], clip)
            outputs[f"{name}.dt"] = dt
            change, count = style_clip.GetBoundary(relevance, dt, manipulator, threshold)
            outputs[f"{name}.changed"] = np.array(count)
            manipulator.alpha = [strength]
            codes = manipulator.MSCode([x[:] for x in manipulator.dlatents], change)
            edited = [
                torch.from_numpy(code).float().view_as(style)
                for code, style in zip(codes, styles, strict=True)
            ]
            outputs[f"{name}.styles"] = np.concatenate([x.flatten(1).numpy() for x in edited], 1)
            outputs[f"{name}.image"] = generator([edited], input_is_stylespace=True, **fixed)[0]

    settings = {
        "seed": SEED,
        "weights": weights,
        "inputs": inputs,
        "generator": {"z_dim": 512, "w_dim": 512, "mapping_layers": 8, **GENERATOR},
        "clip": official.SMALL_CLIP,
        "cases": CASES,
        "tokens": tokens,
        "versions": official.VERSIONS,
    }
    seeded.save("directions", settings, {name: np.asarray(x) for name, x in outputs.items()})


if __name__ == "__main__":
    with torch.no_grad():
        app.run(main)
