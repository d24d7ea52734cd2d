"""Values of the fields of a recipe as files hold them. Imports without torch."""

import os
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, get_type_hints

from diffsteer.core.fields import plain_number, require_texts
from diffsteer.io.strict import typed

LISTS = ("prompts", "lora", "settings")
"""Fields that hold several texts."""
OBJECTS = ("guidance", "sampler", "refiner")
"""Fields whose objects may be given in place of their texts."""


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)


def make_plain(recipe: Any) -> None:
    """Bring the fields of a recipe to what `read` would give: texts, numbers, tuples of texts.

    Paths, dtypes of torch, guidances, samplers and refiners become their texts, numbers of numpy
    Python's own.

    Raises:
        InputError: a value has another type than its field.
    """
    for field in fields(recipe):
        name, given = field.name, getattr(recipe, field.name)
        value = tuple(given) if name in LISTS and type(given) is list else given
        if not (name in LISTS and type(value) is tuple and {*map(type, value)} <= {str}):
            value = typed(_plain(name, value), _hints(type(recipe))[name], name)  # type: ignore[arg-type]
        if value is not given:
            object.__setattr__(recipe, name, value)


def _plain(name: str, value: Any) -> Any:
    if name in LISTS:
        require_texts(value, name)
        return tuple(_text(each) for each in value) if isinstance(value, Iterable) else value
    if name in OBJECTS and is_dataclass(value) and not isinstance(value, type):
        return repr(value)
    if name == "dtype":
        return value if isinstance(value, str) else str(value).removeprefix("torch.")
    return plain_number(_text(value))


def _text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value
