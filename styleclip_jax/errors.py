"""Errors that scripts report in one line: mistakes of the user, and insufficient memory."""

from typing import Any, get_args

# JAX's messages on devices and on CPUs.
_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory")


class InputError(ValueError):
    """Invalid input; the message says what is wrong, what was expected and what to do.

    Scripts print the message as one line and exit with code 1. In a library call it is an ordinary
    ``ValueError``.
    """


def check_choices(config: Any, **choices: Any) -> None:
    """Raises InputError if a field of a configuration is not one of its choices.

    Args:
        config: A dataclass.
        **choices: The ``Literal`` type of every field that is a choice.
    """
    for name, choice in choices.items():
        value, allowed = getattr(config, name), get_args(choice)
        if value not in allowed:
            raise InputError(f"{name} is {value!r}, expected {' or '.join(allowed)}")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of Python or JAX means that host or device ran out of memory."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)
