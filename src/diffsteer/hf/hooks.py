"""Replace an attribute of a pipeline, a scheduler or a network for a while, and put it back.

    with replaced(network, "forward", forward), replaced(pipe, "scheduler", scheduler):
        ...

All that diffsteer changes in objects of diffusers it changes so.
"""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any
from weakref import WeakValueDictionary

from typing_extensions import override

OFFLOADED = "_old_forward"
"""Attribute in which accelerate keeps the forward that its hooks of a module call."""


class Replaced:
    """An attribute that another value replaces until exit; made by `replaced`.

    In the place of a method stands this object itself. It is no state of its owner: a copy and a
    pickle of the owner have what was there before. What still calls it after exit, such as a hook
    that was put around it meanwhile, reaches what was there before.
    """

    # no __dict__, which a wrapper of this method would take over, state and all
    __slots__ = (
        *("_owner", "_name", "_value", "_content", "_active", "_below", "_own", "_previous"),
        *("__wrapped__", "__weakref__"),
    )

    def __init__(self, owner: Any, name: str, value: Any) -> None:
        self._owner, self._name, self._value = owner, name, value
        self._content = self if callable(getattr(type(owner), name, None)) else value
        self._active, self._own = False, True
        self._previous: Any = None
        self._below: Replaced | None = None
        self.__wrapped__ = value  # for its signature

    def __enter__(self) -> None:
        # under the hooks of accelerate, which pipelines take off and put on in every call
        slot = OFFLOADED if OFFLOADED in self._slots else self._name
        self._own = slot in vars(self._owner)
        self._previous = getattr(self._owner, slot, None)
        self._below = _latest.get(self._key)
        self._active, _latest[self._key] = True, self
        setattr(self._owner, slot, self._content)

    def __exit__(self, *_: object) -> None:
        swept, latest = self._swept, _latest.get(self._key, self)
        self._active = False
        if swept:
            return  # an earlier replacement ended first and put back what was there before both
        _latest.pop(self._key, None)
        if self._below is not None:
            _latest[self._key] = self._below
        for slot in self._slots:
            if vars(self._owner)[slot] is not latest._content:
                continue  # others have set or wrapped it meanwhile
            if self._own or slot == OFFLOADED:
                setattr(self._owner, slot, self._previous)
            else:
                vars(self._owner).pop(slot)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Answer for the method."""
        in_force = self._active and not self._swept
        return (self._value if in_force else self._previous)(*args, **kwargs)

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        if self._own:
            return _itself, (self._previous,)
        return getattr, (self._owner, self._name)

    def below(self) -> dict[str, Any]:
        """Attributes of the owner itself that stood there before, by name."""
        return {self._name: self._previous} if self._own else {}

    @property
    def _slots(self) -> list[str]:
        """Attributes of the owner where the replacement may stand."""
        names = (self._name, OFFLOADED) if self._name == "forward" else (self._name,)
        return [name for name in names if name in vars(self._owner)]

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


def plain_forward(network: Any) -> Any:
    """Forward of a network below hooks of accelerate, which is the one that `replaced` replaces."""
    return vars(network).get(OFFLOADED, network.forward)


def _itself(value: Any) -> Any:
    return value


def replaced(owner: Any, name: str, value: Any) -> Replaced:
    """Replace an attribute of an object until exit, then restore it exactly.

    An attribute of the object itself is set back; one that its class defines shows again. Where
    replacements end out of order, the earlier one ends the later ones with it. What others have
    set there meanwhile stays.

    Args:
        owner: The object, such as a network, a scheduler or a pipeline.
        name: Of the attribute.
        value: What stands there meanwhile.
    """
    return Replaced(owner, name, value)


def wrapped(owner: Any, name: str, act: Callable[..., Any]) -> Replaced:
    """Let `act(method, *args, **kwargs)` answer for a method until exit, under its signature.

    Pipelines look at the signature of their scheduler's step for whether to send generators.
    """
    method = getattr(owner, name)
    return Replaced(owner, name, wraps(method)(partial(act, method)))
