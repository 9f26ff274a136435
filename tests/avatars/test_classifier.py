import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from avatars.attributes import LABELS, observe, sample
from avatars.classifier import (
    BATCH,
    Classifier,
    PatchConvolution,
    accuracies,
    augment,
    features,
    frechet_distance,
    load,
    predict,
    probabilities,
    save,
    train,
)
from avatars.dataset import render


@pytest.fixture(scope="module")
def avatars() -> tuple[np.ndarray, np.ndarray]:
    attributes = sample(160, seed=11)
    return np.stack([render(row) for row in attributes]), attributes


def scaled(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float32) / 127.5 - 1


def test_patch_convolution_is_a_convolution_with_stride_two():
    layer = PatchConvolution(5, 7, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 8, 6, 5)), jnp.float32)
    expected = jax.lax.conv_general_dilated(
        x,
        layer.linear.kernel[...].reshape(3, 3, 5, 7),
        window_strides=(2, 2),
        padding=((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    ours = jax.jit(PatchConvolution.__call__)(layer, x)
    np.testing.assert_allclose(ours, np.maximum(expected, 0), atol=1e-5)


@pytest.mark.usefixtures("optimized")
def test_training_learns_what_avatars_look_like(avatars):
    images, attributes = avatars
    losses = []
    classifier = train(
        images,
        attributes,
        steps=100,
        batch_size=12,
        report=lambda step, loss: losses.append((step, loss)),
    )
    shares = accuracies(classifier, images, attributes)
    assert set(shares) == set(LABELS)
    for slot in ("hair", "headwear", "background", "skin"):
        labels = observe(attributes)[:, list(LABELS).index(slot)]
        assert shares[slot] > 0.2 + np.bincount(labels).max() / len(labels), slot
    [(step, loss)] = losses
    assert step == 100
    assert loss < sum(np.log(len(labels)) for labels in LABELS.values()) * 0.7


def test_predictions_and_features_do_not_depend_on_the_batch(avatars):
    images = scaled(avatars[0])
    assert len(images) % BATCH
    classifier = Classifier(rngs=nnx.Rngs(0))
    together = predict(classifier, images)
    assert {slot: labels.shape for slot, labels in together.items()} == dict.fromkeys(
        LABELS, (len(images),)
    )
    alone = predict(classifier, images[-1:])
    assert all(alone[slot][0] == together[slot][-1] for slot in LABELS)
    np.testing.assert_allclose(
        features(classifier, images[-1:])[0], features(classifier, images)[-1], atol=1e-5
    )


def test_a_saved_classifier_predicts_the_same(avatars, tmp_path):
    images = scaled(avatars[0][:8])
    classifier = Classifier(rngs=nnx.Rngs(3))
    save(tmp_path / "new" / "classifier.npz", classifier)
    loaded = load(tmp_path / "new" / "classifier.npz")
    for slot, expected in probabilities(classifier, images).items():
        np.testing.assert_allclose(probabilities(loaded, images)[slot], expected, atol=0.01)


def test_augmentation_changes_every_image_slightly(avatars):
    images = scaled(avatars[0][:16])
    jitted = jax.jit(augment)
    augmented = np.asarray(jitted(images, jax.random.key(0)))
    assert augmented.shape == images.shape
    np.testing.assert_array_equal(augmented, jitted(images, jax.random.key(0)))
    difference = np.abs(augmented - images).mean(axis=(1, 2, 3))
    assert 0.01 < difference.min()
    assert difference.max() < 0.4


def test_frechet_distance_matches_the_closed_form_of_gaussians():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(200_000, 3)) * (1.0, 2.0, 0.5)
    b = rng.normal(size=(200_000, 3)) * (2.0, 2.0, 1.5) + (0.0, 3.0, 0.0)
    assert frechet_distance(a, b) == pytest.approx(3.0**2 + 1.0 + 0.0 + 1.0, rel=0.02)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_correlated_features_follows_the_definition():
    rng = np.random.default_rng(1)
    a = rng.normal(size=(50, 4)) @ rng.normal(size=(4, 4))
    b = rng.normal(size=(60, 4)) @ rng.normal(size=(4, 4))
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    trace_root = np.sqrt(np.linalg.eigvals(covariance_a @ covariance_b).real).sum()
    expected = (
        np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2)
        + np.trace(covariance_a + covariance_b)
        - 2 * trace_root
    )
    assert frechet_distance(a, b) == pytest.approx(expected)
