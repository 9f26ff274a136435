import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from styleclip_jax.app.batching import SIZES, Batcher


def entry(number):
    return np.full((1, 2), number, np.float32)


def test_everybody_gets_the_answer_to_their_own_request():
    batcher = Batcher(lambda batch: 10 * batch[:, 0])
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda i: float(batcher(entry(i))), range(60)))
    assert answers == [10.0 * i for i in range(60)]


def test_requests_that_wait_at_the_same_time_share_a_batch_of_a_compiled_size():
    sizes, gate, begun = [], threading.Event(), threading.Event()

    def run(batch):
        sizes.append(len(batch))
        begun.set()
        assert gate.wait(30)
        return batch[:, 0]

    batcher = Batcher(run)
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(batcher, entry(0))]
        assert begun.wait(30)
        answers += [pool.submit(batcher, entry(i)) for i in (1, 2, 3)]
        while batcher._requests.qsize() < 3:
            pass
        gate.set()
        assert [float(answer.result(30)) for answer in answers] == [0, 1, 2, 3]
    assert sizes == [1, 4]
    assert set(sizes) <= set(SIZES)


def test_requests_of_other_shapes_make_batches_of_their_own():
    batcher = Batcher(lambda batch: batch.sum(1))
    with ThreadPoolExecutor(8) as pool:
        shapes = [(1, 2), (1, 3)] * 8
        answers = list(pool.map(lambda shape: float(batcher(np.ones(shape, np.float32))), shapes))
    assert answers == [2.0, 3.0] * 8


def test_a_failure_goes_to_those_who_asked_and_the_next_request_works():
    def run(batch):
        if batch[0, 0] == 7:
            raise ValueError("seven")
        return batch[:, 0]

    batcher = Batcher(run)
    with pytest.raises(ValueError, match="seven"):
        batcher(entry(7))
    assert float(batcher(entry(8))) == 8
