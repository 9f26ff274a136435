import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from avatars.training import train


def test_an_interrupted_training_resumes_to_the_same_result(tmp_path):
    def step(state, number):
        return {"w": state["w"] * 1.5 + number}, float(jnp.sum(state["w"]))

    def run(directory, steps):
        with ocp.CheckpointManager(tmp_path / directory) as manager:
            return train({"w": jnp.arange(3.0)}, steps, step, manager, "test")

    run("halves", 2)
    np.testing.assert_array_equal(run("halves", 4)["w"], run("whole", 4)["w"])
