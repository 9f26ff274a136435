"""The one exception for mistakes that the user can mend."""


class InputError(ValueError):
    """What the user gave cannot be used; the message says what came and what would work.

    Scripts print the message as one line and exit with code 1; in a library call it is an
    ordinary ``ValueError``.
    """
