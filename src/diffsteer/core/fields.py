"""Field types of value objects that are checked once, by `check_fields` in `__post_init__`."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, get_type_hints

from diffsteer.core.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Rule:
    """Condition on a field, as in `Annotated[float, Rule("a number > 0", lambda v: v > 0)]`."""

    expected: str
    holds: Callable[[Any], bool]


def is_number(value: object) -> bool:
    """Accept whole and floating-point numbers."""
    return isinstance(value, int | float)


def is_whole(value: object) -> bool:
    """Accept whole numbers, not bool."""
    return isinstance(value, int) and not isinstance(value, bool)


Finite = Annotated[float, Rule("a finite number", lambda v: is_number(v) and math.isfinite(v))]
Positive = Annotated[float, Rule("a number > 0", lambda v: is_number(v) and v > 0)]
Share = Annotated[float, Rule("in [0, 1]", lambda v: is_number(v) and 0 <= v <= 1)]
Whole = Annotated[int, Rule("a whole number", is_whole)]
Count = Annotated[int, Rule("a whole number >= 0", lambda v: is_whole(v) and v >= 0)]
Name = Annotated[str, Rule("a name", lambda v: isinstance(v, str) and v != "")]


def check_fields(value: object) -> None:
    """Check every field of `value` whose annotation carries a `Rule`."""
    cls = type(value)
    try:
        hints = get_type_hints(cls, include_extras=True)
    except NameError:  # postponed annotations of names that exist for type checkers only
        hints = cls.__annotations__
    for name, hint in hints.items():
        for rule in getattr(hint, "__metadata__", ()):
            if isinstance(rule, Rule) and not rule.holds(given := getattr(value, name)):
                raise InputError(f"{cls.__name__}: {name} must be {rule.expected}, got {given!r}")


def renamed_fields(**names: str) -> Callable[[type[T]], type[T]]:
    """Let a class take and show fields under old names as well, with a `DeprecationWarning`.

    Args:
        names: From old names to new ones.
    """

    def decorate(cls: type[T]) -> type[T]:
        init = cls.__init__

        def warned(old: str) -> str:
            message = f"{cls.__name__}: {old} is {names[old]} now"
            warnings.warn(message, DeprecationWarning, stacklevel=3)
            return names[old]

        def __init__(self: T, *args: Any, **kwargs: Any) -> None:
            for old in names.keys() & kwargs.keys():
                kwargs[warned(old)] = kwargs.pop(old)
            init(self, *args, **kwargs)

        def alias(old: str) -> property:
            return property(lambda self: getattr(self, warned(old)))

        cls.__init__ = __init__  # type: ignore[assignment, method-assign]
        for old in names:
            setattr(cls, old, alias(old))
        return cls

    return decorate
