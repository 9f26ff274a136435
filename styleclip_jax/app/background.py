"""Runs optimizations in threads and reports their progress."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from styleclip_jax.app.edits import Edit, Face, Progress

# Minimum number of seconds between two reports.
_REPORT_EVERY = 0.4
# Number of seconds after which an unread report means that the user has left.
_ABANDONED_AFTER = 20.0

# Receives the number of a step, its losses and its latents.
OnProgress = Callable[[int, np.ndarray, Any], None]


class TooSlowError(Exception):
    """An optimization took longer than the limit, or nobody read its progress."""


class _Cancelled(Exception):
    """The user has cancelled the optimization."""


def run_in_background(
    optimize: Callable[[OnProgress], tuple[Edit, int]],
    synthesize: Callable[[Any], Face],
    steps: int,
    max_seconds: float,
) -> Iterator[Progress]:
    """Runs an optimization in a thread, which stops if the iterator is closed.

    Args:
        optimize: Calls its argument in every step; returns the edit and the number of steps.
        synthesize: Synthesizes the image of latents.
        steps: Maximum number of steps, for the estimate of the remaining time.
        max_seconds: Maximum duration.

    Yields:
        The progress after the first step and several times a second; the last one has the edit.

    Raises:
        TooSlowError: The optimization took longer than the limit, or nobody read its progress.
        Exception: The exception that ``optimize`` raised.
    """
    optimization = _Optimization(optimize, synthesize, steps, max_seconds)
    threading.Thread(target=optimization.run, daemon=True).start()
    try:
        while True:
            update = optimization.updates.get()
            if isinstance(update, BaseException):
                raise update
            yield update
            if update.edit:
                return
    finally:
        optimization.stop.set()


class _Optimization:
    """An optimization that puts its progress into a queue.

    Attributes:
        updates: The latest progress, or an exception.
        stop: Set to cancel the optimization.
    """

    def __init__(
        self,
        optimize: Callable[[OnProgress], tuple[Edit, int]],
        synthesize: Callable[[Any], Face],
        steps: int,
        max_seconds: float,
    ):
        self._optimize = optimize
        self._synthesize = synthesize
        self._steps = steps
        self._max_seconds = max_seconds
        self._losses: list[float] = []
        self._started = self._reported = 0.0
        # With a single entry, the optimization waits until its last image is read.
        self.updates: queue.Queue[Progress | BaseException] = queue.Queue(maxsize=1)
        self.stop = threading.Event()

    def run(self) -> None:
        """Runs the optimization; its last update is the result or an exception."""
        self._started = self._reported = time.monotonic()
        try:
            edit, taken = self._optimize(self._report)
            done = Progress(taken, tuple(self._losses), 0.0, edit.face, edit)
            self.updates.put(done, timeout=_ABANDONED_AFTER)
        except _Cancelled:
            return
        except queue.Full:
            # A user who comes back later gets the error.
            with contextlib.suppress(queue.Empty):
                self.updates.get_nowait()
            self.updates.put(TooSlowError())
        except Exception as error:
            with contextlib.suppress(queue.Full):
                self.updates.put(error, timeout=_ABANDONED_AFTER)

    def _report(self, step: int, losses: np.ndarray, latents: Any) -> None:
        now = time.monotonic()
        self._losses.append(float(losses[0]))
        if self.stop.is_set():
            raise _Cancelled
        if now - self._started > self._max_seconds:
            raise TooSlowError
        if step == 1 or now - self._reported > _REPORT_EVERY:
            left = (now - self._started) / step * (self._steps - step)
            face = self._synthesize(latents)
            update = Progress(step, tuple(self._losses), left, face)
            self.updates.put(update, timeout=_ABANDONED_AFTER)
            self._reported = now
