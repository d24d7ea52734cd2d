"""Field types of value objects that are checked once, by `check_fields` in `__post_init__`."""

import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from functools import cache
from numbers import Integral, Real
from typing import Annotated, Any, TypeGuard, TypeVar, get_type_hints

from diffsteer.core.errors import InputError, brief

T = TypeVar("T")


@dataclass(frozen=True)
class Rule:
    """Condition on a field, as in `Annotated[float, Rule("a number > 0", lambda v: v > 0)]`."""

    expected: str
    holds: Callable[[Any], bool]


def is_number(value: object) -> bool:
    """Accept whole numbers that a float can hold and floating-point numbers, not bool."""
    return isinstance(value, float) or (is_whole(value) and abs(value) <= sys.float_info.max)


def is_whole(value: object) -> TypeGuard[int]:
    """Accept whole numbers, not bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def between(least: int, most: int) -> Rule:
    """Rule of whole numbers in [least, most]."""
    expected = f"a whole number in [{least}, {most}]"
    return Rule(expected, lambda value: is_whole(value) and least <= value <= most)


Finite = Annotated[float, Rule("a finite number", lambda v: is_number(v) and math.isfinite(v))]
PositiveFinite = Annotated[
    float, Rule("a finite number > 0", lambda v: is_number(v) and 0 < v < math.inf)
]
Positive = Annotated[float, Rule("a number > 0", lambda v: is_number(v) and v > 0)]
NotNegative = Annotated[
    float, Rule("a finite number >= 0", lambda v: is_number(v) and 0 <= v < math.inf)
]
Share = Annotated[float, Rule("in [0, 1]", lambda v: is_number(v) and 0 <= v <= 1)]
Whole = Annotated[int, Rule("a whole number", is_whole)]
Count = Annotated[int, Rule("a whole number >= 0", lambda v: is_whole(v) and v >= 0)]
Name = Annotated[str, Rule("a name", lambda v: isinstance(v, str) and v != "")]


PLAIN = {
    float: Rule("a number", is_number),
    int: Rule("a whole number", is_whole),
    bool: Rule("True or False", lambda v: isinstance(v, bool)),
    str: Rule("a text", lambda v: isinstance(v, str)),
}
"""Rules of annotations that carry none."""


@cache
def _hints(cls: type) -> dict[str, Any]:
    try:
        return get_type_hints(cls, include_extras=True)
    except NameError:  # postponed annotations of names that exist for type checkers only
        return {}


def require_texts(texts: object, name: str) -> None:
    """Refuse one text where a list of texts is meant: its letters would be taken for them."""
    if isinstance(texts, str):
        raise InputError(f"{name} must be a list of texts, got one: [{brief(texts)}]")


def offers(value: object, name: str) -> bool:
    """Whether a value has an attribute, of whatever class it is; never a class itself."""
    return not isinstance(value, type) and hasattr(value, name)


def numbers_of(cls: type) -> set[str]:
    """Names of the fields that hold numbers which need not be whole."""
    return {
        name for name, hint in _hints(cls).items() if getattr(hint, "__origin__", hint) is float
    }


def rules_of(cls: type, name: str) -> tuple[Rule, ...]:
    """Rules that the annotation of a field carries."""
    marks = getattr(_hints(cls).get(name), "__metadata__", ())
    return tuple(mark for mark in marks if isinstance(mark, Rule))


def plain_number(value: Any) -> Any:
    """Number of Python's own in place of one of numpy, whose `repr` does not parse."""
    if type(value) in (int, float, bool) or not isinstance(value, Real):
        return value
    if not hasattr(value, "dtype"):  # an IntEnum or a Fraction, in a field of the user's
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def make_numbers_plain(value: object) -> None:
    """Replace numbers of numpy in the fields of `value`."""
    for field in fields(value):  # type: ignore[arg-type]
        given = getattr(value, field.name)
        if (plain := plain_number(given)) is not given:
            object.__setattr__(value, field.name, plain)


def check_fields(value: object) -> None:
    """Check every field of `value` whose annotation is plain or carries a `Rule`.

    Numbers of numpy become Python's own first.
    """
    make_numbers_plain(value)
    cls = type(value)
    hints = _hints(cls)  # type: ignore[arg-type]  # mypy takes types for unhashable
    for field in fields(value):  # type: ignore[arg-type]
        hint, given = hints.get(field.name, Any), getattr(value, field.name)
        for rule in getattr(hint, "__metadata__", (PLAIN.get(hint),)):
            if isinstance(rule, Rule) and not rule.holds(given):
                raise InputError(
                    f"{cls.__name__}: {field.name} must be {rule.expected}, got {brief(given)}"
                )


def argument_texts(value: object, *omitted: str) -> list[str]:
    """Arguments of a value object as texts, without those at their defaults."""
    return [
        f"{f.name}={given!r}" if f.kw_only or f.default is not MISSING else repr(given)
        for f in fields(value)  # type: ignore[arg-type]
        if f.name not in omitted and (given := getattr(value, f.name)) != f.default
    ]


def as_float(value: object, name: str) -> float:
    """Convert a number, and refuse texts and truth values."""
    value = plain_number(value)
    if not is_number(value):
        raise InputError(f"{name} must be a number, got {brief(value)}")
    return float(value)  # type: ignore[arg-type]


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
