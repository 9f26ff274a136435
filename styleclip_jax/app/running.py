"""Counts the running edits, so that the service can shut down without interrupting them."""

import contextlib
import threading
from collections.abc import Iterator


class ClosingError(Exception):
    """The service is shutting down and accepts no new edits."""


class RunningEdits:
    """Counts the running edits, and refuses new ones once the service is shutting down."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0
        self._closing = False

    @property
    def count(self) -> int:
        """Number of running edits."""
        return self._count

    @contextlib.contextmanager
    def track(self) -> Iterator[None]:
        """Counts an edit while the context is active.

        Raises:
            ClosingError: The service is shutting down.
        """
        with self._changed:
            if self._closing:
                raise ClosingError
            self._count += 1
        try:
            yield
        finally:
            with self._changed:
                self._count -= 1
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
            return self._changed.wait_for(lambda: not self._count, seconds)
