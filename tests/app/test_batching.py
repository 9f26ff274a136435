import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from styleclip_jax.app.batching import SIZES, Batcher


def entry(number):
    return np.full((1, 2), number, np.float32)


def test_every_caller_gets_its_own_result():
    batcher = Batcher(lambda batch: 10 * batch[:, 0])
    with ThreadPoolExecutor(20) as pool:
        results = list(pool.map(lambda i: float(batcher(entry(i))), range(60)))
    assert results == [10.0 * i for i in range(60)]


def test_waiting_requests_share_a_batch_of_a_compiled_size():
    sizes, gate, begun = [], threading.Event(), threading.Event()

    def run(batch):
        sizes.append(len(batch))
        begun.set()
        assert gate.wait(30)
        return batch[:, 0]

    batcher = Batcher(run)
    with ThreadPoolExecutor(4) as pool:
        results = [pool.submit(batcher, entry(0))]
        assert begun.wait(30)
        results += [pool.submit(batcher, entry(i)) for i in (1, 2, 3)]
        while batcher._requests.qsize() < 3:
            pass
        gate.set()
        assert [float(result.result(30)) for result in results] == [0, 1, 2, 3]
    assert sizes == [1, 4]
    assert set(sizes) <= set(SIZES)


def test_an_exception_reaches_the_caller_and_the_next_request_works():
    def run(batch):
        if batch[0, 0] == 7:
            raise ValueError("seven")
        return batch[:, 0]

    batcher = Batcher(run)
    with pytest.raises(ValueError, match="seven"):
        batcher(entry(7))
    assert float(batcher(entry(8))) == 8
