"""The error that a user can act on, and values as it shows them."""

from collections.abc import Iterable
from difflib import get_close_matches
from reprlib import Repr


class InputError(ValueError):
    """Input that cannot be used as given; the message says what was expected and what to do.

    `diffsteer` prints it in one line. Any other ValueError is a fault and keeps its traceback.
    """


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """What an error says of a name that is not known: " (did you mean 'CFG'?)", or nothing."""
    lower = {known.lower(): known for known in names}
    close = get_close_matches(name.lower(), lower, 3)
    near = min(close, key=lambda known: sorted(known) != sorted(name.lower()), default="")
    return f" (did you mean {lower[near]!r}?)" if near else ""


_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 200
_SHORT.maxlong, _SHORT.maxlevel = 80, 3


def brief(value: object) -> str:
    """Text of a value from a user or file, however long or deep it is."""
    try:
        return _SHORT.repr(value)
    except Exception:  # a number of thousands of digits, or a `__repr__` that fails
        return f"a {type(value).__name__}"
