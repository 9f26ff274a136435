"""The flags of several hosts, which all scripts that run on several share."""

from typing import no_type_check

from absl import flags

from styleclip_jax.runs import command_line
from styleclip_jax.runs import processes as distributed

FLAGS = flags.FLAGS
NAMES = ("coordinator_address", "num_processes", "process_id", "join_timeout")

# The flags count as those of the script that calls define_flags.
flags.disclaim_key_flags()


# A run-time type checker would stand between the script and its flags.
@no_type_check
def define_flags() -> None:
    """Defines the flags."""
    flags.DEFINE_string(
        "coordinator_address",
        None,
        "On several machines: host:port of the first one. Not needed on TPU pods and under SLURM.",
    )
    flags.DEFINE_integer(
        "num_processes", None, "On several machines: how many there are.", lower_bound=1
    )
    flags.DEFINE_integer(
        "process_id", None, "On several machines: number of this one, from 0.", lower_bound=0
    )
    flags.DEFINE_integer(
        "join_timeout", 300, "Seconds to wait for the other machines.", lower_bound=1
    )


def join() -> None:
    """Joins the processes that the flags name; see :func:`processes.initialize`.

    Raises:
        InputError: They do not join, or JAX has no device.
    """
    distributed.initialize(
        FLAGS.coordinator_address, FLAGS.num_processes, FLAGS.process_id, FLAGS.join_timeout
    )
    command_line.check_devices()
