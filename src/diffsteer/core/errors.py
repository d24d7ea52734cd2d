"""The error that a user can act on; imports nothing."""


class InputError(ValueError):
    """Input that cannot be used as given; the message says what was expected and what to do.

    `diffsteer` prints it in one line. Any other ValueError is a fault and keeps its traceback.
    """
