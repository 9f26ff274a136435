import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeded
import torch
import torch.nn.functional as F

from ckpt_convert import arcface as arcface_conversion
from ckpt_convert import clip as clip_conversion
from ckpt_convert.formats import SourceFile
from styleclip_jax.losses import (
    CLIP_MEAN,
    CLIP_STD,
    adaptive_pool_matrix,
    area_matrix,
    clip_loss,
    clip_pixels,
    direction_loss,
    id_loss,
    identity_features,
    keep_loss,
    similarity_loss,
)
from styleclip_jax.models import ArcFace, ArcFaceConfig

pytestmark = pytest.mark.usefixtures("strict_dtypes")
GOLDEN = seeded.load("clip")
IDENTITY = seeded.load("mapper")


def random_images(*shape):
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


@pytest.fixture(scope="module")
def official_clip():
    weights = GOLDEN.weights("patch_32")
    return clip_conversion.convert(SourceFile("clip", "pytorch", weights, {}, {})).model


@pytest.fixture(scope="module")
def official_arcface():
    weights = IDENTITY.weights("arcface")
    return arcface_conversion.convert(SourceFile("arcface", "pytorch", weights, {}, {})).model


@pytest.fixture(scope="module")
def arcface(random_model):
    """A face recognition network of a single block."""
    return random_model(ArcFace, ArcFaceConfig(stem_width=16, stages=((16, 1),)), seed=3)


@pytest.mark.parametrize(("size", "clip_size"), [(32, 224), (64, 224), (256, 224), (64, 64)])
def test_clip_sees_the_image_upsampled_and_average_pooled(size, clip_size):
    images = random_images(2, size, size, 3)
    large = np.repeat(np.repeat(images, clip_size // 32, axis=1), clip_size // 32, axis=2)
    pooled = F.avg_pool2d(torch.tensor(large).permute(0, 3, 1, 2), size // 32)
    pixels = jax.jit(clip_pixels, static_argnums=1)(images, clip_size)
    np.testing.assert_allclose(pixels, pooled.permute(0, 2, 3, 1), atol=1e-5)


@pytest.mark.parametrize("size", [32, 64, 256, 1024])
def test_what_clip_sees_is_what_the_official_loss_shows_it(size):
    images = jnp.asarray(GOLDEN.input(f"images.{size}").transpose(0, 2, 3, 1))
    official = GOLDEN[f"resized.{size}"].transpose(0, 2, 3, 1)
    pixels = np.asarray(jax.jit(clip_pixels, static_argnums=1)(images, 224))
    np.testing.assert_allclose(pixels[:, ::13, ::13], official, atol=1e-5)


@pytest.mark.parametrize("size", [32, 64, 256, 1024])
def test_clip_loss_is_the_official_one(official_clip, size):
    text = jnp.asarray(GOLDEN.settings["tokens"]["patch_32"][-1:])
    features = jax.jit(type(official_clip).encode_text)(official_clip, text)
    images = jnp.asarray(GOLDEN.input(f"images.{size}").transpose(0, 2, 3, 1))
    # The official class returns 1 - logit / 100, with the scale of the logits seeded as 100.
    loss = jax.jit(clip_loss)(official_clip, images, features)
    np.testing.assert_allclose(loss, GOLDEN[f"clip_loss.{size}"], atol=1e-5)


def test_clip_loss_has_the_official_gradient(official_clip):
    text = jnp.asarray(GOLDEN.settings["tokens"]["patch_32"][-1:])
    features = jax.jit(type(official_clip).encode_text)(official_clip, text)
    images = jnp.asarray(GOLDEN.input("images.64").transpose(0, 2, 3, 1))
    gradient = jax.jit(jax.grad(lambda x: clip_loss(official_clip, x, features).sum()))(images)
    official = GOLDEN["clip_loss.64.gradient"].transpose(0, 2, 3, 1)
    assert np.abs(np.asarray(gradient) - official).max() <= 1e-4 * np.abs(official).max()


def test_resizing_is_exact_float32_on_accelerators():
    with jax.default_matmul_precision("default"):
        resize = jax.jit(clip_pixels, static_argnums=1)
        program = resize.lower(jnp.ones((1, 64, 64, 3)), 224).as_text()
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert len(products) == 2 and all("[HIGHEST, HIGHEST]" in line for line in products)


def test_preprocess_clip_also_normalizes(clip):
    images = jnp.asarray(random_images(1, 64, 64, 3))
    see = jax.jit(clip_pixels, static_argnums=(1, 2))
    plain, normalized = (np.asarray(see(images, 32, how)) for how in ("styleclip", "clip"))
    np.testing.assert_allclose(normalized, ((plain + 1) / 2 - CLIP_MEAN) / CLIP_STD, rtol=1e-6)
    assert plain.shape == (1, 32, 32, 3)


def test_clip_loss_takes_a_text_for_all_images_or_one_for_each(clip):
    images = jnp.asarray(random_images(3, 32, 32, 3))
    texts = jax.random.normal(jax.random.key(0), (3, 16))
    each = jax.jit(clip_loss)(clip, images, texts)
    assert each.shape == (3,)
    for i in range(3):
        one_for_all = jax.jit(clip_loss)(clip, images, texts[i : i + 1])
        np.testing.assert_allclose(one_for_all[i], each[i], atol=1e-5)


def test_clip_loss_ignores_the_length_of_the_text_features(clip):
    images = jnp.asarray(random_images(2, 32, 32, 3))
    texts = jax.random.normal(jax.random.key(0), (1, 16))
    one, other = (jax.jit(clip_loss)(clip, images, scale * texts) for scale in (1, 30))
    np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(("source", "target"), [(32, 256), (256, 112), (188, 112), (1024, 256)])
def test_pooling_for_the_identity_is_pytorchs_adaptive_pooling(source, target):
    row = random_images(source)
    expected = F.adaptive_avg_pool1d(torch.tensor(row)[None], target)[0]
    np.testing.assert_allclose(adaptive_pool_matrix(source, target) @ row, expected, atol=1e-5)


@pytest.mark.parametrize(("source", "target"), [(32, 224), (64, 224), (100, 7), (7, 100)])
def test_resizing_keeps_constant_images(source, target):
    np.testing.assert_allclose(area_matrix(source, target).sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("size", [64, 256, 512])
def test_identity_is_recognized_in_the_official_crop(arcface, size):
    images = random_images(2, size, size, 3)
    x = F.adaptive_avg_pool2d(torch.tensor(images).permute(0, 3, 1, 2), (256, 256))
    x = F.adaptive_avg_pool2d(x[:, :, 35:223, 32:220], (112, 112)).permute(0, 2, 3, 1)
    ours = jax.jit(identity_features)(arcface, jnp.asarray(images))
    np.testing.assert_allclose(ours, jax.jit(ArcFace.__call__)(arcface, x.numpy()), atol=1e-5)


def test_identity_loss_is_zero_for_the_same_image_and_not_for_another(arcface):
    images = jnp.asarray(random_images(2, 64, 64, 3))
    np.testing.assert_allclose(jax.jit(id_loss)(arcface, images, images), 0, atol=1e-5)
    assert (jax.jit(id_loss)(arcface, images, -images) > 1e-3).all()


def faces(when, size):
    return jnp.asarray(IDENTITY.input(f"images.{when}.{size}").transpose(0, 2, 3, 1))


def assert_relatively_close(ours, official):
    assert np.abs(np.asarray(ours) - official).max() <= 1e-4 * np.abs(official).max()


@pytest.mark.parametrize("size", [64, 256, 512])
def test_identity_and_its_loss_are_the_official_ones(official_arcface, size):
    before, after = faces("before", size), faces("after", size)
    features = jax.jit(identity_features)(official_arcface, after)
    assert_relatively_close(features, IDENTITY[f"id_loss.{size}.features"])
    # The official class returns the mean over the images.
    loss = jax.jit(id_loss)(official_arcface, after, before).mean()
    assert_relatively_close(loss, IDENTITY[f"id_loss.{size}"])


def test_identity_loss_has_the_official_gradient(official_arcface):
    @jax.jit
    def gradient(arcface, after, before):
        return jax.grad(lambda x: id_loss(arcface, x, before).mean())(after)

    ours = gradient(official_arcface, faces("after", 64), faces("before", 64))
    official = IDENTITY["id_loss.64.gradient"].transpose(0, 2, 3, 1)
    assert_relatively_close(ours[:, ::2, ::2], official)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture
def texts():
    """Features of a text, of a neutral text and of three texts to keep, of any length."""
    rng = np.random.default_rng(1)
    return [jnp.asarray(rng.normal(size=(n, 8)), jnp.float32) for n in (1, 1, 3)]


@pytest.fixture
def original():
    return jnp.asarray(np.random.default_rng(2).normal(size=(4, 8)), jnp.float32)


def text_direction(text, neutral):
    return unit(unit(np.asarray(text, float)) - unit(np.asarray(neutral, float)))[0]


def test_direction_loss_is_one_for_images_that_do_not_change(original, texts):
    text, neutral, _ = texts
    loss = direction_loss(original, 3 * original, text, neutral, 0.25)
    np.testing.assert_allclose(loss, 1, atol=1e-6)


def test_direction_loss_follows_its_formula(original, texts):
    text, neutral, _ = texts
    edited = jnp.asarray(np.random.default_rng(3).normal(size=(4, 8)), jnp.float32)
    t = text_direction(text, neutral)
    d = unit(np.asarray(edited, float)) - unit(np.asarray(original, float))
    orthogonal = d - (d @ t)[:, None] * t
    for weight in (0.0, 0.25):
        loss = direction_loss(edited, original, text, neutral, weight)
        expected = 1 - d @ t + weight * np.sum(orthogonal**2, axis=-1)
        np.testing.assert_allclose(loss, expected, atol=1e-5)


def test_a_change_along_the_direction_has_no_orthogonal_part(texts):
    text, neutral, _ = texts
    t = text_direction(text, neutral)
    # The mirror image at the plane across t differs from the original along t alone.
    original = unit(np.random.default_rng(4).normal(size=(4, 8)))
    edited = original - 2 * (original @ t)[:, None] * t
    after, before = (jnp.asarray(x, jnp.float32) for x in (edited, original))
    losses = [direction_loss(after, before, text, neutral, weight) for weight in (0.0, 100.0)]
    np.testing.assert_allclose(losses[0], losses[1], atol=1e-4)
    np.testing.assert_allclose(losses[0], 1 + 2 * original @ t, atol=1e-5)


def test_direction_loss_takes_a_weight_per_image(original, texts):
    text, neutral, _ = texts
    weights = jnp.array([0.0, 0.1, 0.2, 0.3])
    together = direction_loss(original[::-1], original, text, neutral, weights)
    each = [
        direction_loss(original[::-1], original, text, neutral, weight)[i]
        for i, weight in enumerate(weights)
    ]
    np.testing.assert_allclose(together, each, rtol=1e-6)


def test_keep_loss_is_the_mean_squared_change_of_the_anchors_clip_losses(original, texts):
    *_, anchors = texts
    edited = original[::-1]
    changes = [
        similarity_loss(edited, anchor[None]) - similarity_loss(original, anchor[None])
        for anchor in anchors
    ]
    expected = np.mean(np.square(changes), axis=0)
    np.testing.assert_allclose(keep_loss(edited, original, anchors), expected, rtol=1e-5)
    np.testing.assert_allclose(keep_loss(original, original, anchors), 0, atol=1e-6)
