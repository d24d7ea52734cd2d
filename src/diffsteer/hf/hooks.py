"""Replace an attribute of a pipeline, a scheduler or a network for a while, and put it back.

    with replaced(network, "forward", forward), replaced(pipe, "scheduler", scheduler):
        ...

All that diffsteer changes in objects of diffusers it changes so.
"""

from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakValueDictionary

from typing_extensions import override


class SteersNetwork:
    """Base of what answers for a network by a replaced forward; a network has one at most."""


class Replaced(AbstractContextManager[None]):
    """An attribute that another value replaces until exit; made by `replaced`."""

    def __init__(self, owner: Any, name: str, value: Any) -> None:
        self._owner, self._name, self._value = owner, name, value
        self._active = False
        self._below: Replaced | None = None

    @override
    def __enter__(self) -> None:
        self._own = self._name in vars(self._owner)
        self._previous = getattr(self._owner, self._name) if self._own else None
        self._below = _latest.get(self._key)
        self._active, _latest[self._key] = True, self
        setattr(self._owner, self._name, self._value)

    @override
    def __exit__(self, *_: object) -> None:
        swept = self._swept
        self._active = False
        if _latest.get(self._key) is self:
            _latest.pop(self._key)
            if self._below is not None and not swept:
                _latest[self._key] = self._below
        if swept:
            return  # an earlier replacement ended first and put back what was there before both
        if self._own:
            setattr(self._owner, self._name, self._previous)
        else:
            vars(self._owner).pop(self._name, None)

    @property
    def _swept(self) -> bool:
        """Whether a replacement under this one has ended."""
        below = self._below
        return below is not None and (not below._active or below._swept)

    @property
    def _key(self) -> tuple[int, str]:
        return id(self._owner), self._name


_latest: WeakValueDictionary[tuple[int, str], Replaced] = WeakValueDictionary()
"""The latest replacement of each attribute that is in force."""


def replaced(owner: Any, name: str, value: Any) -> Replaced:
    """Replace an attribute of an object until exit, then restore it exactly.

    An attribute of the object itself is set back; one that its class defines shows again. Where
    replacements end out of order, the earlier one ends the later ones with it.

    Args:
        owner: The object, such as a network, a scheduler or a pipeline.
        name: Of the attribute.
        value: What stands there meanwhile.
    """
    return Replaced(owner, name, value)
