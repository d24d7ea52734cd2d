"""The error that a user can act on; imports the standard library alone."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Input that cannot be used as given; the message says what was expected and what to do.

    `diffsteer` prints it in one line. Any other ValueError is a fault and keeps its traceback.
    """


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """End of an error about a name that is not known: ", did you mean 'CFG'?", or nothing."""
    lower = {known.lower(): known for known in names}
    close = get_close_matches(name.lower(), lower, 1)
    return f", did you mean {lower[close[0]]!r}?" if close else ""
