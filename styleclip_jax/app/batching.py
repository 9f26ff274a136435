"""Combines requests of several users into batches."""

import queue
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

# Each size is compiled; other batches are padded to the next size.
SIZES = (1, 2, 4, 8)


class Batcher:
    """Runs a batched function in one thread for requests with one entry each.

    A request runs immediately if the device is idle; requests that arrive in the meantime form the
    next batch.

    Args:
        run: Takes a pytree of arrays (B, ...), where B is one of ``SIZES``, and returns an array
            with B entries. The arrays of all requests have the same shapes, except for B.
    """

    def __init__(self, run: Callable[[Any], Any]):
        self._run = run
        self._requests: queue.SimpleQueue[tuple[Any, Future]] = queue.SimpleQueue()
        # Python waits for its thread at the exit; a daemon would abort it during a compilation.
        self._executor = ThreadPoolExecutor(1, "batcher")

    def __call__(self, entry: Any) -> Any:
        """Returns the result of one entry, a pytree of arrays (1, ...).

        Raises:
            Exception: The function's exception.
        """
        future: Future = Future()
        self._requests.put((entry, future))
        self._executor.submit(self._serve)
        return future.result()

    def _serve(self) -> None:
        """Runs the waiting requests; there are none if an earlier batch had room for them."""
        requests = []
        while len(requests) < SIZES[-1] and not self._requests.empty():
            requests.append(self._requests.get())
        if requests:
            self._run_batch(requests)

    def _run_batch(self, requests: Sequence[tuple[Any, Future]]) -> None:
        entries = [entry for entry, _ in requests]
        size = next(size for size in SIZES if size >= len(entries))
        entries += entries[-1:] * (size - len(entries))
        try:
            results = self._run(jax.tree.map(lambda *x: np.concatenate(x), *entries))
        except Exception as error:
            for _, future in requests:
                future.set_exception(error)
        else:
            for (_, future), result in zip(requests, results, strict=False):
                future.set_result(result)
