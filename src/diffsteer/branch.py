"""How a guidance asks for network evaluations, and how they are answered together.

A guidance is a generator: it yields the branches that it wants to know, receives their answers in
the same order, and returns what to add to x0. `together` runs several in lockstep, so that all that
is asked in one round is one joint question; `run` answers each distinct branch once.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

from diffsteer.attention import Edit
from diffsteer.level import Level
from diffsteer.prediction import Kind

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Branch:
    """One variant of the network call at one step.

    Attributes:
        cond: Which conditioning: "cond", "null", or another name that the denoiser knows.
        net: Which network: "main" or "guide".
        edits: Changes of attention, as (layer, edit).
        x: Another input than the sample, `(B, *D)`, at the same level.
        record: Layers whose attention scores are wanted.
    """

    cond: str = "cond"
    net: str = "main"
    edits: tuple[tuple[str, Edit], ...] = ()
    x: Tensor | None = None
    record: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for branches with equal answers, but for what they record."""
        return self.cond, self.net, self.edits, None if self.x is None else id(self.x)


@dataclass(frozen=True, eq=False)
class Answer:
    """What the network said of a branch.

    Attributes:
        out: Its output, `(B, *D)`.
        x: The input it was asked for.
        level: The level of the input.
        kind: What the output predicts.
        maps: Attention scores of the recorded layers, `(B, h, w)`, with mean 1.
        variance: What it says of its variance where it learned one, else None, `(B, *D)`: from -1,
            the posterior's, to 1, that of the noise added, in logarithms.
    """

    out: Tensor
    x: Tensor
    level: Level
    kind: Kind
    maps: dict[str, Tensor] = field(default_factory=dict)
    variance: Tensor | None = None

    @cached_property
    def x0(self) -> Tensor:
        """The denoised sample."""
        return self.kind.x0(self.x, self.out, self.level)

    @cached_property
    def eps(self) -> Tensor:
        """The noise in the sample."""
        return self.kind.solve(self.x, self.out, self.level)[1]


@dataclass(frozen=True, eq=False)
class Point:
    """Where a guidance is asked for its shift.

    Attributes:
        x: The sample, `(B, *D)`.
        level: Its level, 0-dim.
        kind: What the network predicts.
        step: Index of the sampling step, 0 for the first.
    """

    x: Tensor
    level: Level
    kind: Kind
    step: int = 0


Asking = Generator[tuple[Branch, ...], tuple[Answer, ...], T]
Evaluate = Callable[[Sequence[Branch]], Sequence[Answer]]


def together(*askers: Asking[T]) -> Asking[list[T]]:
    """Advance askers in lockstep, so that what they ask in one round is one joint question."""
    done: dict[int, T] = {}
    asked: dict[int, tuple[Branch, ...]] = {}

    def advance(i: int, answers: tuple[Answer, ...] | None) -> None:
        try:
            asked[i] = askers[i].send(answers)  # type: ignore[arg-type]
        except StopIteration as stop:
            asked.pop(i, None)
            done[i] = stop.value

    for i in range(len(askers)):
        advance(i, None)
    while asked:
        current = dict(asked)
        answers = iter((yield tuple(b for branches in current.values() for b in branches)))
        for i, branches in current.items():
            advance(i, tuple(islice(answers, len(branches))))
    return [done[i] for i in range(len(askers))]


def based(shift: Asking[Tensor]) -> Asking[tuple[Answer, Tensor]]:
    """Ask for the "cond" branch and a guidance together; returns its answer and the shift."""
    found: list[Answer] = []

    def base() -> Asking[Tensor]:
        found.extend((yield (Branch(),)))
        return found[0].x

    _, moved = yield from together(base(), shift)
    return found[0], moved


def run(asker: Asking[T], evaluate: Evaluate) -> T:
    """Answer an asker; every distinct branch is evaluated once in the whole run."""
    known: dict[tuple[object, ...], tuple[Branch, Answer]] = {}
    answers: tuple[Answer, ...] | None = None
    while True:
        try:
            asked = asker.send(answers)  # type: ignore[arg-type]
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        new = _unknown(asked, known)
        for branch, answer in zip(new, evaluate(new) if new else (), strict=True):
            known[branch.key] = (branch, answer)  # the branch keeps its x, and so its key, alive
        answers = tuple(known[branch.key][1] for branch in asked)


def _unknown(
    asked: Sequence[Branch], known: dict[tuple[object, ...], tuple[Branch, Answer]]
) -> list[Branch]:
    """Distinct branches that have no answer yet, each recording what any of its askers wants."""
    new: dict[tuple[object, ...], Branch] = {}
    for branch in asked:
        have = known[branch.key][0].record if branch.key in known else None
        if have is not None and set(branch.record) <= set(have):
            continue
        first = new.setdefault(branch.key, branch)
        wanted = dict.fromkeys((*first.record, *branch.record))
        new[branch.key] = replace(first, record=tuple(wanted))
    return list(new.values())


@dataclass(frozen=True)
class Plan:
    """Cost of one step.

    Attributes:
        rows: Evaluations of each network, in samples, by its name.
        passes: Calls of each network, if nothing keeps its rows from being stacked.
    """

    rows: dict[str, int]
    passes: dict[str, int]

    def __str__(self) -> str:
        return ", ".join(
            f"{net}: {_some(n, 'row')} in {_some(self.passes[net], 'pass', 'es')}"
            for net, n in self.rows.items()
        )


def _some(n: int, thing: str, plural: str = "s") -> str:
    return f"{n} {thing}" if n == 1 else f"{n} {thing}{plural}"


def plan(asker: Asking[T], at: Point) -> Plan:
    """Count what an asker evaluates at a point, without any network."""
    rows: dict[str, int] = {}
    passes: dict[str, int] = {}

    def count(branches: Sequence[Branch]) -> list[Answer]:
        for net in dict.fromkeys(branch.net for branch in branches):
            passes[net] = passes.get(net, 0) + 1
        for branch in branches:
            rows[branch.net] = rows.get(branch.net, 0) + 1
        flat = torch.ones(len(at.x), *at.x.shape[-2:])
        maps = [dict.fromkeys(branch.record, flat) for branch in branches]
        return [Answer(torch.zeros_like(at.x), at.x, at.level, at.kind, found) for found in maps]

    run(asker, count)
    return Plan(rows, passes)
