"""Guidance: x0 of the prompt plus a shift; shifts add, scale and nest.

guided x0 = x0(cond) + sum_i shift_i(x, level)
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from itertools import chain
from typing import Annotated, ClassVar, TypeVar

import torch
from torch import Tensor
from typing_extensions import override

from diffsteer.core.fields import (
    Finite,
    Rule,
    argument_texts,
    as_float,
    check_fields,
    make_numbers_plain,
)
from diffsteer.core.parse import METHODS
from diffsteer.guidance.queries import (
    Answer,
    GuidanceState,
    Queries,
    lockstep,
    with_conditional,
)
from diffsteer.guidance.weight_schedules import (
    WeightSchedule,
    as_weight,
    by_numbers,
    check_schedules,
)


class Guidance(ABC):
    """A way to move the prediction of a network. Define `shift`, as a frozen dataclass.

    Guidances add (`CFG(5) + PAG(3)`), scale (`2 * PAG(3)`) and limit (`.within`, `.over`). Their
    text is their value: `parse(repr(g), Guidance) == g`.
    """

    method: ClassVar[str] = ""
    example: ClassVar[str] = "CFG(7.5) or CFG(6) + 0.5 * PAG(3)"
    written_with: ClassVar[tuple[type, ...]] = (WeightSchedule,)

    def __init_subclass__(cls) -> None:
        """Let methods find a number wherever a weight schedule was given."""
        for name in {"shift", "guided"} & vars(cls).keys():
            setattr(cls, name, by_numbers(vars(cls)[name]))

    def __post_init__(self) -> None:
        """Check the annotated fields, with both ends of a weight schedule in its place."""
        if check_schedules(self):
            make_numbers_plain(self)
        else:
            check_fields(self)

    @abstractmethod
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        """Yield branches, receive their answers in the same order, return what to add to x0.

        The x0 is that of the "cond" branch, in the shape of `at.x`.
        """

    def guided(self, at: GuidanceState) -> Queries[tuple[Answer, Tensor]]:
        """Ask for an answer and what to add to its x0: the "cond" branch and the shift.

        Override it where the prompt alone need not be evaluated, and `shift` for sums.
        """
        return (yield from with_conditional(self.shift(at)))

    def __add__(self, other: "Guidance") -> "Guidance":
        """Apply both."""
        terms = ((g.terms if isinstance(g, Sum) else (g,)) for g in (self, other))
        return Sum(tuple(chain(*terms)))

    def __radd__(self, other: object) -> "Guidance":
        """Let `sum` add up a list, which starts from 0."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __rmul__(self, factor: float) -> "Guidance":
        """Scale what it adds."""
        return Scaled(self, as_weight(factor, "factor"))

    __mul__ = __rmul__

    def within(self, lo: float, hi: float = math.inf) -> "Guidance":
        """Apply it only where lo < sigma / alpha <= hi; elsewhere it costs nothing."""
        return WRAPPERS["within"](self, as_float(lo, "lo"), as_float(hi, "hi"))

    def over(self, start: int, stop: int) -> "Guidance":
        """Apply it only in the steps start <= step < stop, counted from 0."""
        return WRAPPERS["over"](self, start, stop)

    def rescaled(self, phi: float = 0.7, centred: bool = False) -> "Guidance":
        """Bring the spread of the guided output back to the prompt's alone, by the share `phi`."""
        return WRAPPERS["rescaled"](self, as_weight(phi, "phi"), centred)

    def clamped(self, limit: float = 1.0) -> "Guidance":
        """Keep the guided x0 within -limit and limit; networks of pixels are sampled so."""
        return WRAPPERS["clamped"](self, as_weight(limit, "limit"))

    def inner_guidances(self) -> "Iterator[Guidance]":
        """Guidances that it holds."""
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            for inner in value if isinstance(value, tuple) else (value,):
                if isinstance(inner, Guidance):
                    yield inner

    def parts(self) -> "Iterator[Guidance]":
        """Itself, and all guidances that it is made of."""
        yield self
        for inner in self.inner_guidances():
            yield from inner.parts()

    def networks(self) -> frozenset[str]:
        """Names of the networks beside "main" that it evaluates; adapters of "main" are none."""
        return frozenset(
            net
            for part in self.parts()
            if (net := getattr(part, "net", "")) and getattr(part, "adapter", None) is None
        )

    def __repr__(self) -> str:
        """Text that `parse` reads back; fields at their defaults are left out."""
        calls, core = "", self
        while core.method and isinstance(inner := getattr(core, "inner", None), Guidance):
            calls = f".{core.method}({', '.join(core._settings('inner'))}){calls}"
            if isinstance(inner, Sum | Scaled):
                return f"({inner!r}){calls}"
            core = inner  # in a loop: a text may chain more calls than Python nests
        return f"{core._text()}{calls}"

    def _text(self) -> str:
        return f"{type(self).__name__}({', '.join(self._settings())})"

    def _settings(self, *omitted: str) -> list[str]:
        return argument_texts(self, *omitted)


W = TypeVar("W", bound=type[Guidance])
WRAPPERS: dict[str, Callable[..., Guidance]] = {}
"""Classes of the methods that `composable` makes, by name."""


def composable(method: str) -> Callable[[W], W]:
    """Make a wrapper, a dataclass with a guidance `inner` first, a method of every guidance.

    `@composable("smoothed") class Smoothed(Guidance)` makes `CFG(5).smoothed(2)` mean
    `Smoothed(CFG(5), 2)`, in Python and in texts.
    """

    def register(wrapper: W) -> W:
        wrapper.method = method
        METHODS.add(method)
        make: Callable[..., Guidance] = wrapper
        WRAPPERS[method] = make
        if not hasattr(Guidance, method):
            setattr(Guidance, method, lambda self, *args, **kwargs: make(self, *args, **kwargs))
        return wrapper

    return register


Inner = Annotated[Guidance, Rule("a guidance", lambda value: isinstance(value, Guidance))]


@dataclass(frozen=True, repr=False)
class Sum(Guidance):
    """Several guidances, each as if alone, in as few evaluations as all of them need together."""

    terms: Annotated[
        tuple[Guidance, ...],
        Rule(
            "a tuple of guidances",
            lambda terms: isinstance(terms, tuple) and all(isinstance(g, Guidance) for g in terms),
        ),
    ]

    @override
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        shifts = yield from lockstep(*(g.shift(at.of_term(i)) for i, g in enumerate(self.terms)))
        return torch.stack(shifts).sum(dim=0)

    @override
    def _text(self) -> str:
        return " + ".join(map(repr, self.terms))


@dataclass(frozen=True, repr=False)
class Scaled(Guidance):
    """A guidance times a number; 0 costs nothing."""

    inner: Inner
    factor: Finite

    @override
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        if self.factor == 0:
            return torch.zeros_like(at.x)
        return self.factor * (yield from self.inner.shift(at))

    @override
    def _text(self) -> str:
        inner = repr(self.inner)
        return f"{self.factor} * " + (
            f"({inner})" if isinstance(self.inner, Sum | Scaled) else inner
        )
