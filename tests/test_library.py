"""The package as a program of somebody else sees it."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import styleclip_jax as sc
from styleclip_jax.io.checkpoints import flatten

# Importing JAX alone sets variables.
IMPORT = """
import logging, os, warnings
import jax, flax.nnx
before = dict(os.environ), list(logging.root.handlers), logging.root.level
import styleclip_jax
assert (dict(os.environ), logging.root.handlers, logging.root.level) == before
"""


def test_importing_the_package_logs_nothing_and_changes_no_variable():
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_exported_name_is_there_and_documented():
    for name in set(sc.__all__) - {"models", "__version__"}:
        assert getattr(sc, name).__doc__, name


@pytest.mark.parametrize(
    "optimizer",
    [optax.adam(1e-2), optax.adamw(1e-2, mask=sc.parameter_mask)],
    ids=["adam", "adamw"],
)
def test_an_optimizer_of_a_whole_model_moves_its_parameters_and_no_buffer(generator, optimizer):
    @jax.jit
    def step(generator, z):
        def loss(generator):
            return jnp.mean(jnp.square(generator(generator.map(z, truncation=0.5))))

        updates, _ = optimizer.update(
            jax.grad(loss)(generator), optimizer.init(generator), generator
        )
        return optax.apply_updates(generator, updates)

    z = jax.random.normal(jax.random.key(0), (2, generator.config.z_dim))
    before, after = flatten(generator), flatten(step(generator, z))
    still = {name for name in before if np.array_equal(before[name], after[name])}
    assert still == {name for name in before if name.endswith(("noise", "mean_w"))}
