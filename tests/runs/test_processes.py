import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from styleclip_jax.errors import InputError
from styleclip_jax.runs import processes as distributed

ALONE = """
import jax
from styleclip_jax.runs import processes as distributed
distributed.initialize(None, None, None)
print(jax.process_count())
"""


@pytest.fixture
def joined(monkeypatch) -> list[dict]:
    """Records the arguments with which JAX joins processes, without joining."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **options: calls.append(options))
    return calls


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_NTASKS": "1"},
        {"OMPI_COMM_WORLD_SIZE": "1", "SLURM_NTASKS": "4"},
    ],
)
def test_the_only_task_of_a_launcher_joins_nothing(joined, monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    distributed.initialize(None, None, None)
    assert not joined


def test_mpirun_in_a_slurm_job_of_one_task_joins(joined, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    distributed.initialize(None, None, None)
    assert len(joined) == 1


def test_a_process_that_is_told_its_number_keeps_all_its_devices(joined):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    distributed.initialize(f"127.0.0.1:{port}", 1, 0)
    assert joined[0]["cluster_detection_method"] == "deactivate"


def test_a_process_in_a_kubernetes_pod_runs_alone_without_a_warning():
    done = subprocess.run(
        [sys.executable, "-c", ALONE],
        env=os.environ | {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("Number of processes must be defined."),
        Exception("Service host/port is not set."),
    ],
)
def test_a_cluster_that_jax_cannot_join_is_an_input_error(monkeypatch, error):
    def fail(**_):
        raise error

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(InputError, match=r"cannot join .*--coordinator_address"):
        distributed.initialize(None, None, None)


def test_what_fails_on_one_process_fails_on_all(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda _: np.array([0, 0, 1], bool))
    with pytest.raises(InputError, match="process 2 of 3 failed"), distributed.together():
        pass
    with pytest.raises(InputError, match="mine"), distributed.together():
        raise InputError("mine")
