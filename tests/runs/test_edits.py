"""How images are split into batches."""

import types

import jax
import numpy as np
import pytest

from styleclip_jax.runs import edits


@pytest.fixture
def split(monkeypatch):
    """Batches of every host, each with one device."""

    def split(size: int, hosts: int, batch_size: int | None, **options) -> list[list[edits.Batch]]:
        flags = types.SimpleNamespace(batch_size=batch_size, set_default=lambda *_: None)
        monkeypatch.setattr(edits, "FLAGS", flags)
        monkeypatch.setattr(jax, "device_count", lambda: hosts)
        monkeypatch.setattr(jax, "local_device_count", lambda: 1)
        monkeypatch.setattr(jax, "process_count", lambda: hosts)
        batches = []
        for host in range(hosts):
            monkeypatch.setattr(jax, "process_index", lambda host=host: host)
            batches.append(edits.make_batches(size, 32, **options))
        return batches

    return split


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_images_with_generators_of_their_own_are_batches_of_one(split, hosts):
    batches = split(3, hosts, None, alone=True)
    numbers = [n for of_host in batches for batch in of_host for n in batch.numbers]
    assert sorted(numbers) == [0, 1, 2]
    assert all(batches)
    for batch in (batch for of_host in batches for batch in of_host):
        assert set(batch.indices) == {batch.first} and batch.first < 3


@pytest.mark.parametrize(("size", "hosts", "batch_size"), [(7, 2, 4), (1, 4, 8), (5, 3, 3)])
def test_every_image_is_in_one_batch_and_every_host_has_one(split, size, hosts, batch_size):
    batches = split(size, hosts, batch_size)
    numbers = [n for of_host in batches for batch in of_host for n in batch.numbers]
    assert sorted(numbers) == list(range(size))
    assert all(batches)
    shapes = {batch.indices.shape for of_host in batches for batch in of_host}
    assert len(shapes) == 1
    assert all(np.max(batch.indices) < size for of_host in batches for batch in of_host)
