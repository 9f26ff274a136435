"""Flags of scripts that run on several hosts."""

from typing import no_type_check

from absl import flags

from styleclip_jax.runs import command_line
from styleclip_jax.runs import processes as distributed

FLAGS = flags.FLAGS
NAMES = ("coordinator_address", "num_processes", "process_id", "join_timeout")

# --help lists the flags with those of the script that calls define_flags.
flags.disclaim_key_flags()


# absl finds the calling script in the stack, where a run-time type checker would be in between.
@no_type_check
def define_flags() -> None:
    """Defines the flags."""
    flags.DEFINE_string(
        "coordinator_address",
        None,
        "On several machines: host:port of the first one. Not needed on TPU pods and under SLURM.",
    )
    flags.DEFINE_integer(
        "num_processes", None, "On several machines: number of processes.", lower_bound=1
    )
    flags.DEFINE_integer(
        "process_id", None, "On several machines: number of this process, from 0.", lower_bound=0
    )
    flags.DEFINE_integer(
        "join_timeout", 300, "Seconds to wait for the other machines.", lower_bound=1
    )


def join() -> None:
    """Joins the processes given by the flags; see :func:`processes.initialize`.

    Raises:
        InputError: A process did not join, or JAX has no device.
    """
    distributed.initialize(
        FLAGS.coordinator_address, FLAGS.num_processes, FLAGS.process_id, FLAGS.join_timeout
    )
    command_line.check_devices()
