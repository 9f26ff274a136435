import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeded
import torch
import transformers
from flax import nnx

from ckpt_convert import clip as clip_conversion
from ckpt_convert.formats import SourceFile
from styleclip_jax.io.checkpoints import abstract_model, build, flatten
from styleclip_jax.models.clip import CLIP, CLIPConfig

pytestmark = pytest.mark.usefixtures("strict_dtypes")
GOLDEN = seeded.load("clip")
CONFIGURATIONS = sorted(GOLDEN.settings["configs"])

encode_image = jax.jit(CLIP.encode_image)
encode_text = jax.jit(CLIP.encode_text)
normalize = jax.jit(nnx.LayerNorm.__call__)


@functools.cache
def official_clip(name):
    """Our CLIP with the weights that OpenAI's had."""
    source = SourceFile(name, "pytorch", GOLDEN.weights(name), {}, {})
    model = clip_conversion.convert(source).model
    assert model.config == CLIPConfig(**GOLDEN.settings["configs"][name])
    return model


def golden_pixels(name):
    return jnp.asarray(GOLDEN.input(f"images.{name}").transpose(0, 2, 3, 1))


def assert_close(ours, reference, tolerance=1e-4):
    assert np.abs(np.asarray(ours) - reference).max() <= tolerance * np.abs(reference).max()


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_image_features_are_openais(name):
    features = encode_image(official_clip(name), golden_pixels(name))
    assert_close(features, GOLDEN[f"{name}.image_features"])


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_text_features_are_openais(name):
    tokens = jnp.asarray(GOLDEN.settings["tokens"][name])
    assert_close(encode_text(official_clip(name), tokens), GOLDEN[f"{name}.text_features"])


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_logits_are_openais(name):
    model = official_clip(name)
    images = encode_image(model, golden_pixels(name))
    texts = encode_text(model, jnp.asarray(GOLDEN.settings["tokens"][name]))
    images, texts = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts))
    logits = np.exp(model.logit_scale[...]) * images @ texts.T
    assert_close(logits, GOLDEN[f"{name}.logits_per_image"])


def test_layers_are_normalized_exactly_however_far_their_mean_is_from_zero(clip):
    norms = [module for _, module in nnx.iter_modules(clip) if isinstance(module, nnx.LayerNorm)]
    assert len(norms) == 3 + 2 * 2
    for norm in norms:
        width = norm.num_features
        x = np.random.default_rng(0).normal(1000, 1, (4, width)).astype(np.float32)
        exact = x.astype(np.float64)
        exact = (exact - exact.mean(1, keepdims=True)) / np.sqrt(exact.var(1, keepdims=True) + 1e-5)
        assert norm.scale is not None and norm.bias is not None
        scale, bias = (np.asarray(parameter[...]) for parameter in (norm.scale, norm.bias))
        ours = (np.asarray(normalize(norm, x)) - bias) / scale
        np.testing.assert_allclose(ours, exact, atol=1e-3)


def test_features_and_logits_are_those_of_hugging_faces_clip():
    torch.manual_seed(0)
    shared = {"num_hidden_layers": 2, "projection_dim": 24}
    reference = transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config=shared
            | {
                "hidden_size": 32,
                "intermediate_size": 128,
                "num_attention_heads": 4,
                "vocab_size": 100,
                "max_position_embeddings": 12,
                "bos_token_id": 98,
                "eos_token_id": 99,
            },
            vision_config=shared
            | {
                "hidden_size": 48,
                "intermediate_size": 192,
                "num_attention_heads": 3,
                "image_size": 32,
                "patch_size": 8,
            },
            projection_dim=24,
        )
    ).eval()
    for parameter in reference.parameters():
        # Fresh biases are zero and fresh weights so small that errors would hide.
        torch.nn.init.normal_(parameter, std=0.2)
    weights = {name: value.numpy() for name, value in reference.state_dict().items()}
    source = SourceFile("reference", "safetensors", weights, {}, reference.config.to_dict())
    model = clip_conversion.convert(source).model

    tokens = np.zeros((2, 12), np.int64)
    tokens[0, :3], tokens[1, :7] = [98, 5, 99], [98, 4, 3, 2, 1, 7, 99]
    pixels = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        expected = reference(
            input_ids=torch.tensor(tokens),
            pixel_values=torch.tensor(pixels.transpose(0, 3, 1, 2)),
        )
    features = (
        encode_image(model, jnp.asarray(pixels)),
        encode_text(model, jnp.asarray(tokens)),
    )
    images, texts = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in features)
    assert_close(images, expected.image_embeds.numpy())
    assert_close(texts, expected.text_embeds.numpy())
    logits = np.exp(model.logit_scale[...]) * images @ texts.T
    assert_close(logits, expected.logits_per_image.numpy())


def test_bfloat16_features_are_close_and_returned_in_float32():
    name = CONFIGURATIONS[0]
    model = official_clip(name)
    low = build(CLIP, model.config, lambda _: flatten(model), jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):  # Flax computes layer norms in float32.
        features = np.asarray(encode_image(low, golden_pixels(name)))
    assert features.dtype == np.float32
    expected = GOLDEN[f"{name}.image_features"]
    cosine = np.sum(features * expected, 1) / (
        np.linalg.norm(features, axis=1) * np.linalg.norm(expected, axis=1)
    )
    assert (cosine > 0.999).all() and not np.allclose(features, expected, rtol=1e-5)


def test_tokens_after_the_end_of_text_do_not_matter(clip):
    tokens = np.zeros((2, 20), np.int32)
    tokens[:, :3] = [188, 5, 189]
    tokens[1, 3:] = 7
    one, other = np.asarray(encode_text(clip, jnp.asarray(tokens)))
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    ("preset", "image_size", "parameters"),
    [
        (CLIPConfig.vit_b32, 224, 151_277_313),
        (CLIPConfig.vit_b16, 224, 149_620_737),
        (CLIPConfig.vit_l14_336, 336, 427_944_193),
    ],
)
def test_presets_have_as_many_parameters_as_the_published_models(preset, image_size, parameters):
    config = preset()
    assert config.image_size == image_size
    state = nnx.state(abstract_model(CLIP, config))
    assert sum(array.size for array in jax.tree.leaves(state)) == parameters


def test_an_image_size_that_patches_do_not_fill_is_refused():
    with pytest.raises(ValueError, match=r"30.*16"):
        CLIPConfig(image_size=30, patch_size=16)


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_a_number_of_heads_that_does_not_divide_the_width_is_refused(tower):
    with pytest.raises(ValueError, match=r"5 attention heads.*64"):
        CLIPConfig(**{f"{tower}_width": 64, f"{tower}_heads": 5})


def test_a_size_of_zero_is_refused():
    with pytest.raises(ValueError, match="patch_size is 0"):
        CLIPConfig(patch_size=0)


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_a_depth_that_no_memory_holds_is_refused(tower):
    with pytest.raises(ValueError, match=f"{tower}_layers is 1000000000"):
        CLIPConfig(**{f"{tower}_layers": 10**9})
