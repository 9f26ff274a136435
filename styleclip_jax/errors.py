"""What ends a script in one line: mistakes that the user can mend, and too little memory."""

# Of a device, and of a CPU in the middle of a computation.
_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory")


class InputError(ValueError):
    """What the user gave cannot be used; the message says what came and what would work.

    Scripts print the message as one line and exit with code 1; in a library call it is an
    ordinary ``ValueError``.
    """


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of Python or JAX says that the memory of host or device has run out."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)
