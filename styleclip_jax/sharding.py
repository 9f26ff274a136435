"""Splits batches over devices and hosts."""

from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from styleclip_jax.errors import InputError

# The axis name of mapped programs.
DEVICES = "devices"
Tree = TypeVar("Tree")


def equal_batches(count: int, size: int) -> Int[np.ndarray, "batches batch"]:
    """Indices of batches of one size, so that they share a compiled program.

    Repeats of the last index fill the last batch.
    """
    size = min(count, size)
    return np.minimum(np.arange(-(-count // size) * size), count - 1).reshape(-1, size)


def host_share(indices: Int[np.ndarray, " batch"]) -> Int[np.ndarray, " share"]:
    """This host's part of a global batch.

    Raises:
        InputError: The batch is not divisible by the number of devices.
    """
    if len(indices) % jax.device_count():
        raise InputError(
            f"a batch of {len(indices)} is not divisible by {jax.device_count()} devices; use a"
            f" batch size of {-(-len(indices) // jax.device_count()) * jax.device_count()}"
        )
    return np.split(indices, jax.process_count())[jax.process_index()]


def replicate(tree: Tree) -> Tree:
    """Copies arrays to all local devices; arrays already there are not moved."""
    return jax.device_put(tree, _local_sharding(PartitionSpec()))


def shard(latents: Tree) -> Tree:
    """Splits the leading axis of arrays, on host or device, into (local devices, share of each).

    Raises:
        InputError: The batch is not divisible by the number of local devices.
    """
    devices = jax.local_device_count()

    def split(x: Any) -> Any:
        if len(x) % devices:
            raise InputError(
                f"a batch of {len(x)} latents is not divisible by {devices} local devices; use"
                " another batch size"
            )
        return x.reshape(devices, len(x) // devices, *x.shape[1:])

    # Explicit, because latents may be committed to one device.
    return jax.device_put(jax.tree.map(split, latents), _local_sharding(PartitionSpec(DEVICES)))


def spread(batch: Tree) -> Tree:
    """Shards the leading axis of arrays over the local devices if it is divisible by their number.

    The arrays keep their shapes; programs compiled for them run on all these devices.
    """
    if len(jax.tree.leaves(batch)[0]) % jax.local_device_count():
        return batch
    return jax.device_put(batch, _local_sharding(PartitionSpec(DEVICES)))


def _local_sharding(spec: PartitionSpec) -> NamedSharding:
    return NamedSharding(Mesh(np.array(jax.local_devices()), (DEVICES,)), spec)
