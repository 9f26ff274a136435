"""Distributes the edits over devices, and lets the running ones finish at a shutdown."""

import contextlib
import threading
from collections.abc import Iterator, Sequence

from styleclip_jax.app.engine import Engine


class ClosingError(Exception):
    """The service is shutting down and accepts no new edits."""


class RunningEdits:
    """Runs each edit on the least busy device; refuses new ones once the service is shutting down.

    Args:
        engines: One engine per device.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = engines
        self._counts = [0] * len(engines)
        self._changed = threading.Condition()
        self._closing = False

    @property
    def devices(self) -> int:
        """Number of devices."""
        return len(self._engines)

    @property
    def warm(self) -> bool:
        """Whether all programs are compiled for all devices."""
        return all(engine.warm.is_set() for engine in self._engines)

    @property
    def count(self) -> int:
        """Number of running edits."""
        return sum(self._counts)

    @contextlib.contextmanager
    def track(self) -> Iterator[Engine]:
        """Counts an edit while the context is active, and yields the engine that runs it.

        Raises:
            ClosingError: The service is shutting down.
        """
        with self._changed:
            if self._closing:
                raise ClosingError
            device = self._counts.index(min(self._counts))
            self._counts[device] += 1
        try:
            yield self._engines[device]
        finally:
            with self._changed:
                self._counts[device] -= 1
                self._changed.notify_all()

    def close(self, seconds: float) -> bool:
        """Refuses new edits and waits for the running ones.

        Args:
            seconds: Maximum time to wait.

        Returns:
            Whether all edits finished in time.
        """
        with self._changed:
            self._closing = True
            return self._changed.wait_for(lambda: not any(self._counts), seconds)
