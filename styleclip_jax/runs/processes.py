"""Programs of several processes on several hosts."""

import contextlib
import os
import socket
import time
import warnings
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from styleclip_jax.errors import InputError

# Number of tasks that a launcher started; mpirun may run inside a SLURM job.
_TASK_COUNTS = ("OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS")


def initialize(
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    timeout: float = 300.0,
) -> None:
    """Joins the processes of a program; call it before anything else of JAX.

    Without arguments, JAX finds the other processes on TPU pods and under SLURM or Open MPI;
    elsewhere there is one process. If a process does not join, ``jax.distributed.initialize``
    aborts the program without naming it. With arguments, a roll call on the coordinator's port
    comes first and names the missing processes.

    Args:
        coordinator_address: ``host:port`` of process 0, the same for all processes.
        num_processes: Number of processes.
        process_id: Number of this process, from 0.
        timeout: Seconds to wait for the others.

    Raises:
        InputError: The arguments are incomplete, or a process did not join in time.
    """
    if (coordinator_address, num_processes, process_id) == (None, None, None):
        _initialize_in_cluster(timeout)
        return
    if coordinator_address is None or num_processes is None or process_id is None:
        raise InputError(
            "--coordinator_address, --num_processes and --process_id are incomplete; give all three"
            " or none"
        )
    host, _, port = coordinator_address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError(
            f"--coordinator_address is {coordinator_address!r}, expected host:port, for example"
            " 10.0.0.1:1234, with a port of 1 to 65535"
        )
    if not 0 <= process_id < num_processes:
        raise InputError(f"--process_id is {process_id}, expected 0 to {num_processes - 1}")
    if process_id == 0:
        missing = _call_the_roll(int(port), num_processes, timeout)
    else:
        missing = _answer(host, int(port), process_id, timeout)
    if missing:
        raise InputError(
            f"process {missing} of {num_processes} did not join at {coordinator_address} within"
            f" {timeout:g} seconds; start all processes, numbered 0 to {num_processes - 1}"
        )
    jax.distributed.initialize(
        coordinator_address,
        num_processes,
        process_id,
        # Under SLURM or Open MPI, JAX would take one GPU for each process otherwise.
        cluster_detection_method="deactivate",
        initialization_timeout=int(timeout),
    )
    _connect_devices()


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Makes a block fail on all processes if it fails on one.

    The block must not wait for other processes.

    Raises:
        InputError: It failed on another process.
    """
    error = None
    try:
        yield
    except (InputError, OSError) as failure:
        error = failure
    if jax.process_count() > 1:
        failed = multihost_utils.process_allgather(np.array(error is not None))
        if error is None and failed.any():
            number = int(np.argmax(failed))
            raise InputError(f"process {number} of {len(failed)} failed; see its output")
    if error is not None:
        raise error


def from_first(number: int) -> int:
    """Returns the first process's number; all processes must call this."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def _connect_devices() -> None:
    """Connects all devices as soon as all hosts have joined.

    On CPUs the first collective operation connects them and times out after 30 seconds. Later,
    hosts would reach it at different times, because one may compile faster than another.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("joined")
        meet = jax.pmap(lambda x: jax.lax.psum(x, "devices"), axis_name="devices")
        jax.block_until_ready(meet(np.ones(jax.local_device_count(), np.float32)))


def _initialize_in_cluster(timeout: float) -> None:
    counts = [os.environ[name] for name in _TASK_COUNTS if name in os.environ]
    if counts[:1] == ["1"]:
        return
    # Most programs in a Kubernetes pod have one process.
    warnings.filterwarnings("ignore", "Kubernetes environment detected")
    try:
        jax.distributed.initialize(initialization_timeout=int(timeout))
    except Exception as error:  # Every kind of cluster raises its own types.
        # JAX's messages if there is no cluster, and if JAX is already in use, as in a notebook.
        alone = ("coordinator_address should be defined", "must be called before any JAX calls")
        if any(reason in str(error) for reason in alone):
            return
        raise InputError(
            f"JAX cannot join the processes of this cluster ({str(error).strip()}); give"
            " --coordinator_address, --num_processes and --process_id"
        ) from error
    _connect_devices()


def _call_the_roll(port: int, num_processes: int, timeout: float) -> str:
    """Collects the numbers of the other processes; sends the missing ones to all, returns them."""
    deadline = time.monotonic() + timeout
    joined: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("", port)))
        while len(joined) < num_processes - 1 and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            # Ignores other connections to the port.
            with contextlib.suppress(TimeoutError, ConnectionError, ValueError):
                connection = stack.enter_context(server.accept()[0])
                connection.settimeout(5)
                number = int(_read_line(connection))
                if 0 < number < num_processes:
                    joined[number] = connection
        missing = ", ".join(str(n) for n in range(1, num_processes) if n not in joined)
        for connection in joined.values():
            connection.sendall(f"{missing}\n".encode())
    return missing


def _answer(host: str, port: int, process_id: int, timeout: float) -> str:
    """Reports this process to process 0; returns the missing ones."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            connection = socket.create_connection((host, port), timeout=5)
        except OSError:
            time.sleep(0.2)
            continue
        with connection, contextlib.suppress(OSError):
            connection.sendall(f"{process_id}\n".encode())
            # Process 0 may have started later, with the same timeout.
            connection.settimeout(timeout + 5)
            line = _read_line(connection)
            if line.endswith("\n"):
                return line.strip()
    return "0"


def _read_line(connection: socket.socket) -> str:
    with connection.makefile() as file:
        return file.readline()
