"""Makes stylegan2.npz: both official StyleGAN2 generators on seeded weights.

Usage, with checkouts of orpatashnik/StyleCLIP and NVlabs/stylegan2-ada-pytorch:

    python tests/golden/make_stylegan2.py --styleclip=PATH --nvidia=PATH
"""

import importlib

import numpy as np
import official
import seeded
import torch
from absl import app, flags

_STYLECLIP = flags.DEFINE_string("styleclip", None, "Checkout of StyleCLIP.", required=True)
_NVIDIA = flags.DEFINE_string("nvidia", None, "Checkout of stylegan2-ada-pytorch.", required=True)

SEED = 1
TRUNCATION = 0.7
# Name: resolution, mapping depth, channel base and maximum.
ROSINALITY = {"rosinality_32": (32, 8, 32768, 512), "rosinality_64": (64, 8, 1024, 32)}
# The same, the widths of z and w, and the clamp of activations. 256 is NVIDIA's; only the small
# clamp has an effect.
NVIDIA = {
    "nvidia_64": (64, 2, 1024, 32, 48, 64, 256),
    "nvidia_clamped": (32, 8, 512, 32, 64, 64, 1.5),
    "nvidia_unclamped": (32, 3, 512, 16, 32, 32, None),
}


def main(_: list[str]) -> None:
    """Writes the file."""
    official.prepare(_STYLECLIP.value, _NVIDIA.value)
    weights, inputs, configs, outputs = {}, {}, {}, {}

    def give(name: str, *shape: int) -> torch.Tensor:
        inputs[name] = shape
        return torch.from_numpy(seeded.seeded_tensor(name, shape, SEED))

    rosinality = importlib.import_module("models.stylegan2.model").Generator
    for name, (resolution, depth, channel_base, channel_max) in ROSINALITY.items():
        full = channel_max == 512
        kind = rosinality if full else official.narrow(rosinality, channel_base, channel_max)
        generator = kind(resolution, 512, depth).eval()
        weights[name] = official.fill(generator, SEED)
        configs[name] = {
            "resolution": resolution,
            "z_dim": 512,
            "w_dim": 512,
            "mapping_layers": depth,
            "channel_base": channel_base,
            "channel_max": channel_max,
        }
        w_plus = give(f"{name}.w_plus", 2, generator.n_latent, 512)
        z = give(f"{name}.z", 2, 512)
        mean = give(f"{name}.latent_avg", 1, 512)
        fixed = {"randomize_noise": False, "return_latents": True}
        image, _, styles = generator([w_plus], input_is_latent=True, **fixed)
        outputs[f"{name}.image"] = image
        for i, style in enumerate(styles):
            outputs[f"{name}.style_{i}"] = style.flatten(1)
        given = [
            give(f"{name}.style_{i}", 2, style.shape[2]).view_as(style)
            for i, style in enumerate(styles)
        ]
        image, _, _ = generator([given], input_is_stylespace=True, **fixed)
        outputs[f"{name}.image_from_styles"] = image
        image, latent, _ = generator([z], truncation=1, **fixed)
        outputs[f"{name}.w_from_z"] = latent[:, 0]
        image, latent, _ = generator([z], truncation=TRUNCATION, truncation_latent=mean, **fixed)
        outputs[f"{name}.truncated_w_from_z"] = latent[:, 0]
        outputs[f"{name}.truncated_image_from_z"] = image

    nvidia = importlib.import_module("training.networks").Generator
    for name, (resolution, depth, base, channel_max, z_dim, w_dim, clamp) in NVIDIA.items():
        arguments = {
            "z_dim": z_dim,
            "c_dim": 0,
            "w_dim": w_dim,
            "img_resolution": resolution,
            "img_channels": 3,
            "mapping_kwargs": {"num_layers": depth},
            "synthesis_kwargs": {
                "channel_base": base,
                "channel_max": channel_max,
                "conv_clamp": clamp,
                "num_fp16_res": 2,
            },
        }
        generator = nvidia(**arguments).eval()
        weights[name] = official.fill(generator, SEED)
        configs[name] = {
            "resolution": resolution,
            "z_dim": z_dim,
            "w_dim": w_dim,
            "mapping_layers": depth,
            "channel_base": base,
            "channel_max": channel_max,
            "conv_clamp": clamp,
        }
        z = give(f"{name}.z", 2, z_dim)
        w_plus = give(f"{name}.w_plus", 2, generator.num_ws, w_dim)
        fixed = {"noise_mode": "const", "force_fp32": True}
        outputs[f"{name}.image"] = generator.synthesis(w_plus, **fixed)
        outputs[f"{name}.w_from_z"] = generator.mapping(z, None)[:, 0]
        outputs[f"{name}.truncated_w_from_z"] = generator.mapping(
            z, None, truncation_psi=TRUNCATION
        )[:, 0]
        outputs[f"{name}.truncated_image_from_z"] = generator(
            z, None, truncation_psi=TRUNCATION, **fixed
        )

    settings = {
        "seed": SEED,
        "weights": weights,
        "inputs": inputs,
        "configs": configs,
        "truncation": TRUNCATION,
        "versions": official.VERSIONS,
    }
    arrays = {name: np.asarray(value.detach()) for name, value in outputs.items()}
    seeded.save("stylegan2", settings, arrays)


if __name__ == "__main__":
    app.run(main)
