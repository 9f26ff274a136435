import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import seeded

from styleclip_jax.methods.ranger import ranger

pytestmark = pytest.mark.usefixtures("strict_dtypes")

GOLDEN = seeded.load("mapper")
SETTINGS = GOLDEN.settings["ranger"]


def run_ranger(start, gradients, learning_rate=0.5):
    """The parameters after every step."""
    optimizer = ranger(learning_rate)
    update = jax.jit(optimizer.update)
    parameters = jax.tree.map(jnp.asarray, start)
    state, history = optimizer.init(parameters), []
    for gradient in gradients:
        updates, state = update(jax.tree.map(jnp.asarray, gradient), state, parameters)
        parameters = optax.apply_updates(parameters, updates)
        history.append(parameters)
    return jax.tree.map(lambda *values: np.stack(values), *history)


@pytest.mark.parametrize("scale", sorted(SETTINGS["gradient_scales"]))
def test_updates_are_the_official_ones(scale):
    def inputs(name):
        # Official kernels are (out, in), ours (in, out).
        weight, bias = (GOLDEN.input(f"ranger.{scale}.{p}.{name}") for p in ("weight", "bias"))
        return {"kernel": np.swapaxes(weight, -1, -2), "bias": bias}

    start, gradients = inputs("start"), inputs("gradients")
    factor = np.float32(SETTINGS["gradient_scales"][scale])
    steps = [
        {name: factor * gradient[i] for name, gradient in gradients.items()}
        for i in range(SETTINGS["steps"])
    ]
    ours = run_ranger(start, steps, SETTINGS["learning_rate"])
    official = {
        "kernel": GOLDEN[f"ranger.{scale}.weight"].swapaxes(-1, -2),
        "bias": GOLDEN[f"ranger.{scale}.bias"],
    }
    for name, values in official.items():
        moved = np.abs(values - start[name]).max()
        assert np.abs(ours[name] - values).max() <= 1e-4 * moved + 1e-6


def test_a_long_run_follows_the_papers_formulas():
    rng = np.random.default_rng(0)
    start = rng.normal(size=(3, 4))
    gradients = rng.normal(size=(3000, 3, 4)) * 1e-2
    ours = run_ranger(start.astype(np.float32), gradients.astype(np.float32), learning_rate=0.01)

    b1, b2, eps, longest = 0.95, 0.999, 1e-5, 2 / (1 - 0.999) - 1
    x, slow, mean, square = start.copy(), start.copy(), 0.0, 0.0
    for t, gradient in enumerate(gradients, start=1):
        gradient = gradient - gradient.mean(axis=0)
        mean = b1 * mean + (1 - b1) * gradient
        square = b2 * square + (1 - b2) * gradient**2
        length = longest - 2 * t * b2**t / (1 - b2**t)
        direction = mean / (1 - b1**t)
        if length > 5:
            numerator = (length - 4) * (length - 2) * longest * (1 - b2**t)
            denominator = (longest - 4) * (longest - 2) * length
            direction *= np.sqrt(numerator / denominator) / (np.sqrt(square) + eps)
        x = x - 0.01 * direction
        if t % 6 == 0:
            slow = slow + 0.5 * (x - slow)
            x = slow.copy()
        if t in (1, 5, 6, 100, 3000):
            np.testing.assert_allclose(ours[t - 1], x, rtol=1e-3, atol=1e-4)
