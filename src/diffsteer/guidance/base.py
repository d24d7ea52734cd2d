"""What a guidance is, and how guidances combine."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields

import torch
from torch import Tensor
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.guidance.queries import Branch, GuidanceState, Queries, lockstep
from diffsteer.guidance.rescale import rescale, rescale_centred


class Guidance(ABC):
    """A way to move the prediction of a network. Define `shift`, as a frozen dataclass.

    Guidances add (`CFG(5) + PAG(3)`), scale (`2 * PAG(3)`) and limit (`.within`, `.over`). Their
    text is their value: `parse(repr(g), Guidance) == g`.
    """

    @abstractmethod
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        """Yield branches, receive their answers in the same order, return what to add to x0.

        Args:
            at: The sample and its level.

        Returns:
            A tensor in the shape of `at.x`, added to the x0 of the "cond" branch.
        """

    def __add__(self, other: "Guidance") -> "Guidance":
        """Apply both."""
        mine, theirs = ((g.terms if isinstance(g, Sum) else (g,)) for g in (self, other))
        return Sum((*mine, *theirs))

    def __rmul__(self, factor: float) -> "Guidance":
        """Scale what it adds."""
        return Scaled(self, float(factor))

    def within(self, lo: float, hi: float = math.inf) -> "Guidance":
        """Apply it only where lo < sigma / alpha <= hi; elsewhere it costs nothing."""
        return Within(self, float(lo), float(hi))

    def over(self, start: int, stop: int) -> "Guidance":
        """Apply it only in the steps start <= step < stop, counted from 0."""
        return Over(self, start, stop)

    def rescaled(self, phi: float = 0.7, centred: bool = False) -> "Guidance":
        """Bring the spread of the guided output back to the prompt's alone, by the share `phi`."""
        return Rescaled(self, float(phi), centred)

    def clamped(self, limit: float = 1.0) -> "Guidance":
        """Keep the guided x0 within -limit and limit; networks of pixels are sampled so."""
        return Clamped(self, float(limit))

    def parts(self) -> "Iterator[Guidance]":
        """Itself, and all guidances that it is made of."""
        yield self
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            for inner in value if isinstance(value, tuple) else (value,):
                if isinstance(inner, Guidance):
                    yield from inner.parts()

    def __repr__(self) -> str:
        """Text that `parse` reads back; fields at their defaults are left out."""
        said = [
            f"{f.name}={value!r}" if f.kw_only or f.default is not MISSING else repr(value)
            for f in fields(self)  # type: ignore[arg-type]
            if (value := getattr(self, f.name)) != f.default
        ]
        return f"{type(self).__name__}({', '.join(said)})"


def extrapolate(at: GuidanceState, factor: float, good: Branch, bad: Branch) -> Queries[Tensor]:
    """Ask two branches and move from the bad to the good one; a factor of 0 asks nothing.

    Returns:
        factor (x0 of good - x0 of bad), `(B, *D)`.
    """
    if factor == 0:
        return torch.zeros_like(at.x)
    better, worse = yield good, bad
    return factor * (better.x0 - worse.x0)


def finite(guidance: Guidance, *names: str) -> None:
    """Check that the fields of a guidance are finite numbers.

    Raises:
        ValueError: one is not.
    """
    _require(
        guidance,
        names,
        lambda value: isinstance(value, int | float) and math.isfinite(value),
        "a finite number",
    )


def named(guidance: Guidance, *names: str) -> None:
    """Check that the fields of a guidance are names: of a layer, a network, a condition.

    Raises:
        ValueError: one is not.
    """
    _require(guidance, names, lambda value: isinstance(value, str) and value != "", "a name")


def whole(guidance: Guidance, *names: str) -> None:
    """Check that the fields of a guidance are whole numbers.

    Raises:
        ValueError: one is not.
    """
    _require(
        guidance,
        names,
        lambda value: isinstance(value, int) and not isinstance(value, bool),
        "a whole number",
    )


def _require(
    guidance: Guidance, names: tuple[str, ...], fits: Callable[[object], bool], wanted: str
) -> None:
    for name in names:
        value = getattr(guidance, name)
        if not fits(value):
            raise InputError(f"{type(guidance).__name__}: {name}={value!r} must be {wanted}")


def _guidance(inner: object) -> None:
    if not isinstance(inner, Guidance):
        raise InputError(f"{inner!r} is no guidance that could be changed")


@dataclass(frozen=True, repr=False)
class Sum(Guidance):
    """Several guidances, each as if alone, in as few evaluations as all of them need together."""

    terms: tuple[Guidance, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.terms, tuple) or not all(
            isinstance(g, Guidance) for g in self.terms
        ):
            raise InputError(f"a sum is of guidances, not of {self.terms!r}")

    @override
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        shifts = yield from lockstep(*(g.shift(at) for g in self.terms))
        return torch.stack(shifts).sum(dim=0)

    @override
    def __repr__(self) -> str:
        return " + ".join(map(repr, self.terms))


@dataclass(frozen=True, repr=False)
class Scaled(Guidance):
    """A guidance times a number; 0 costs nothing."""

    inner: Guidance
    factor: float

    def __post_init__(self) -> None:
        _guidance(self.inner)
        finite(self, "factor")

    @override
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        if self.factor == 0:
            return torch.zeros_like(at.x)
        return self.factor * (yield from self.inner.shift(at))

    @override
    def __repr__(self) -> str:
        return f"{self.factor} * {_enclosed(self.inner)}"


@dataclass(frozen=True, repr=False)
class Within(Guidance):
    """A guidance in an interval of noise, lo < sigma / alpha <= hi.

    The interval is in the noise-to-signal ratio, so that it means the same for every schedule and
    number of steps.

    Source: Kynkaanniemi et al. 2024, https://arxiv.org/abs/2404.07724.
    """

    inner: Guidance
    lo: float
    hi: float

    def __post_init__(self) -> None:
        _guidance(self.inner)
        if not 0 <= self.lo < self.hi:
            raise InputError(
                f"within({self.lo}, {self.hi}) holds no noise: give 0 <= lo < hi in sigma/alpha"
            )

    @override
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        if not self.lo < at.level.ratio <= self.hi:
            return torch.zeros_like(at.x)
        return (yield from self.inner.shift(at))

    @override
    def __repr__(self) -> str:
        return f"{_enclosed(self.inner)}.within({self.lo}, {self.hi})"


@dataclass(frozen=True, repr=False)
class Over(Guidance):
    """A guidance in some steps, start <= step < stop."""

    inner: Guidance
    start: int
    stop: int

    def __post_init__(self) -> None:
        _guidance(self.inner)
        whole(self, "start", "stop")
        if not 0 <= self.start < self.stop:
            raise InputError(
                f"over({self.start}, {self.stop}) holds no step: give 0 <= start < stop"
            )

    @override
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        if not self.start <= at.step < self.stop:
            return torch.zeros_like(at.x)
        return (yield from self.inner.shift(at))

    @override
    def __repr__(self) -> str:
        return f"{_enclosed(self.inner)}.over({self.start}, {self.stop})"


@dataclass(frozen=True, repr=False)
class Rescaled(Guidance):
    """A guidance whose output is brought back to the spread of the prompt alone.

    Acts on the network's own output, as in the paper.

    Source: Lin et al. 2023, algorithm 2, https://arxiv.org/abs/2305.08891.
    """

    inner: Guidance
    phi: float
    centred: bool = False

    def __post_init__(self) -> None:
        _guidance(self.inner)
        if not 0 <= self.phi <= 1:
            raise InputError(f"phi={self.phi} is no share of rescaling: give 0 (none) to 1 (all)")

    @override
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        shift = yield from self.inner.shift(at)
        (cond,) = yield (Branch(),)
        act = rescale_centred if self.centred else rescale
        guided = at.kind.output_for_x0(at.x, cond.x0 + shift, at.level)
        return at.kind.x0(at.x, act(guided, cond.out, self.phi), at.level) - cond.x0

    @override
    def __repr__(self) -> str:
        centred = ", centred=True" if self.centred else ""
        return f"{_enclosed(self.inner)}.rescaled({self.phi}{centred})"


@dataclass(frozen=True, repr=False)
class Clamped(Guidance):
    """A guidance, or none, whose guided x0 is kept within -limit and limit.

    What is added to it is not clamped: `SAG(0.1).clamped() + Classifier(0.5)`.
    """

    inner: Guidance | None = None
    limit: float = 1.0

    def __post_init__(self) -> None:
        if self.inner is not None:
            _guidance(self.inner)
        finite(self, "limit")
        if self.limit <= 0:
            raise InputError(f"clamped({self.limit}) leaves no image: give a limit > 0")

    @override
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        shift = torch.zeros_like(at.x) if self.inner is None else (yield from self.inner.shift(at))
        (cond,) = yield (Branch(),)
        return (cond.x0 + shift).clamp(-self.limit, self.limit) - cond.x0

    @override
    def __repr__(self) -> str:
        if self.inner is None:
            return f"Clamped(limit={self.limit})"
        return f"{_enclosed(self.inner)}.clamped({self.limit})"


def _enclosed(inner: Guidance) -> str:
    return f"({inner!r})" if isinstance(inner, Sum | Scaled) else repr(inner)
