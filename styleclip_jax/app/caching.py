"""A cache for functions that several threads call."""

import collections
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class Cache:
    """Caches the results of a function; concurrent calls with equal arguments compute only once.

    Args:
        function: A function of one hashable argument.
        size: Maximum number of results; the least recently used one is dropped first.
    """

    def __init__(self, function: Callable[[Any], Any], size: int = 256):
        self._function = function
        self._size = size
        self._results: collections.OrderedDict[Any, Future] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, argument: Any) -> Any:
        """Returns the function's result.

        Raises:
            Exception: The function's exception, which is not cached.
        """
        with self._lock:
            future = self._results.get(argument)
            is_new = future is None
            if future is None:
                future = self._results[argument] = Future()
                if len(self._results) > self._size:
                    self._results.popitem(last=False)
            self._results.move_to_end(argument)
        if is_new:
            try:
                future.set_result(self._function(argument))
            except Exception as error:
                with self._lock:
                    self._results.pop(argument, None)
                future.set_exception(error)
        return future.result()
