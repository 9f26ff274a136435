"""Errors that scripts report in one line: mistakes of the user, and insufficient memory."""

# JAX's messages on devices and on CPUs.
_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory")


class InputError(ValueError):
    """Invalid input; the message says what is wrong, what was expected and what to do.

    Scripts print the message as one line and exit with code 1. In a library call it is an ordinary
    ``ValueError``.
    """


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of Python or JAX means that host or device ran out of memory."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)
