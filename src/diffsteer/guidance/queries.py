"""Questions of guidances about a network, and their answers in as few evaluations as there can be.

A guidance is a generator, `Queries`: it yields the branches that it wants evaluated, receives their
answers in the same order, and returns what to add to x0. `lockstep` advances several such askers
round by round, so that the branches of a round are one question; `run` answers an asker, and
evaluates each distinct branch once.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

from diffsteer.core.fields import renamed_fields
from diffsteer.core.level import CLEAN, Level
from diffsteer.core.noise import number
from diffsteer.core.prediction import Prediction
from diffsteer.core.schedule import Schedule
from diffsteer.guidance.attention_edits import Edit, SecondContext
from diffsteer.guidance.block_edits import BlockEdit
from diffsteer.guidance.row_dropout import Dropout
from diffsteer.guidance.step_memory import Memory

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Branch:
    """One variant of the network call at one step.

    Attributes:
        cond: Which conditioning: "cond", "null", or another name that the denoiser knows.
        net: Which network: "main", "guide", "classifier", or another that the denoiser knows.
        edits: Changes of attention, as (layer, edit), and of blocks, as (block, edit).
        x: Another input than the sample, `(B, *D)`.
        level: The level of that input, if it is another than the sample's; a pass of its own.
        dropout: Dropout in the network.
        record: Layers whose attention scores are wanted.
        adapter: Adapters (LoRA) that act, and no others, as "style@0.3"; None leaves those that do;
            a pass of its own.
        second: Another text that attention reads; two rows of a pass of its own.
        samples: Indices of the samples that are asked about, ascending, where it is not all of
            them; the answer has a row for each. Inputs and dropout have rows for these alone.
        unrelated: Seeds of the samples, by which their prompts are replaced by random ones.
    """

    cond: str = "cond"
    net: str = "main"
    edits: tuple[tuple[str, Edit | BlockEdit], ...] = ()
    x: Tensor | None = None
    level: Level | None = None
    dropout: Dropout | None = None
    record: tuple[str, ...] = ()
    adapter: str | None = None
    second: SecondContext | None = None
    samples: tuple[int, ...] | None = None
    unrelated: tuple[int, ...] | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for branches with equal answers, but for what they record."""
        x = None if self.x is None else id(self.x)
        return self.cond, self.net, self.edits, x, self.dropout, self.unrelated, self.apart

    @property
    def time(self) -> float | None:
        """Time of its own level."""
        return None if self.level is None else self.level.t.item()

    @property
    def apart(self) -> tuple[object, ...]:
        """Equal for branches of one network that stack, if inputs and conditions have one shape."""
        return self.time, self.adapter, self.samples, self.second


@renamed_fields(kind="prediction")
@dataclass(frozen=True, eq=False)
class Answer:
    """Output of a network for a branch.

    Attributes:
        out: Its output, `(B, *D)`.
        x: The input it was asked for.
        level: The level of the input.
        prediction: What the output predicts.
        maps: Attention that tokens of the recorded layers receive, `(B, [F,] h, w)`, mean 1.
        variance: What it says of its variance where it learned one, else None, `(B, *D)`: from -1,
            the posterior's, to 1, that of the noise added, in logarithms.
    """

    out: Tensor
    x: Tensor
    level: Level
    prediction: Prediction
    maps: dict[str, Tensor] = field(default_factory=dict)
    variance: Tensor | None = None

    @cached_property
    def x0(self) -> Tensor:
        """The denoised sample."""
        return self.prediction.x0(self.x, self.out, self.level)

    @cached_property
    def eps(self) -> Tensor:
        """The noise in the sample."""
        return self.prediction.solve(self.x, self.out, self.level)[1]

    def of_samples(self, rows: list[int]) -> "Answer":
        """What it says of some samples."""
        maps = {name: scores[rows] for name, scores in self.maps.items()}
        variance = None if self.variance is None else self.variance[rows]
        return replace(self, out=self.out[rows], x=self.x[rows], maps=maps, variance=variance)


@renamed_fields(kind="prediction")
@dataclass(frozen=True, eq=False)
class GuidanceState:
    """State of a sampling in which a guidance is asked for its shift.

    Attributes:
        x: The sample, `(B, *D)`.
        level: Its level, 0-dim.
        prediction: What the network predicts.
        step: Index of the sampling step, 0 for the first.
        schedule: What the network was trained on, for guidances that ask it at other levels.
        seeds: One for each sample, for guidances that draw; without, its place in the batch.
        next: Level that this step goes to; that of data where no sampling is known.
        memory: What the guidance keeps from step to step, a row for each sample; a state that is
            made by hand keeps nothing.
        start: Level that this step starts from, in the inner evaluations of second-order samplers;
            else None, since it is `level`.
        is_sound: Whether the sample is the sound of a video, which is guided at the same time.
    """

    x: Tensor
    level: Level
    prediction: Prediction
    step: int = 0
    schedule: Schedule | None = None
    seeds: Sequence[int] | None = None
    next: Level = CLEAN
    memory: Memory = field(default_factory=lambda: Memory(inner=True))
    start: Level | None = None
    is_sound: bool = False

    def form(self, branch: Branch) -> tuple[object, ...]:
        """Equal for branches of one network that stack, if their conditions do."""
        x = self.x if branch.x is None else branch.x
        return *branch.apart, x.shape[1:]

    def of_term(self, i: int) -> "GuidanceState":
        """State of a term of a sum, which has a memory of its own."""
        return replace(self, memory=self.memory.of_term(i))

    def seeds_for(self, purpose: str) -> tuple[int, ...]:
        """One seed for each sample, for what is drawn at this level for a purpose.

        They depend on the sample's seed, the level and the purpose, on nothing else.
        """
        seeds = range(len(self.x)) if self.seeds is None else self.seeds
        texts = (f"{seed} {self.level.t.item()} {purpose}" for seed in seeds)
        return tuple(number(text.encode()) for text in texts)


Queries = Generator[tuple[Branch, ...], tuple[Answer, ...], T]
"""An asker: it yields branches, is sent their answers, and returns its result."""
Evaluate = Callable[[Sequence[Branch]], Sequence[Answer]]


def lockstep(*askers: Queries[T]) -> Queries[list[T]]:
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


def with_conditional(shift: Queries[Tensor]) -> Queries[tuple[Answer, Tensor]]:
    """Ask for the "cond" branch and a guidance together; returns its answer and the shift."""
    answers: list[Answer] = []

    def base() -> Queries[Tensor]:
        answers.extend((yield (Branch(),)))
        return answers[0].x

    _, moved = yield from lockstep(base(), shift)
    return answers[0], moved


def run(asker: Queries[T], evaluate: Evaluate) -> T:
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


def dry_answers(branches: Sequence[Branch], at: GuidanceState) -> list[Answer]:
    """Answers in place of a network: outputs of 0 and flat maps, for plans and dry runs."""
    flat = torch.ones(len(at.x), *at.x.shape[-2:])
    answers = [
        Answer(
            torch.zeros_like(x),
            x,
            branch.level or at.level,
            at.prediction,
            dict.fromkeys(branch.record, flat),
        )
        for branch in branches
        for x in (at.x if branch.x is None else branch.x,)
    ]
    return [
        answer if branch.samples is None else answer.of_samples(list(branch.samples))
        for branch, answer in zip(branches, answers, strict=True)
    ]


def extrapolate(at: GuidanceState, factor: float, good: Branch, bad: Branch) -> Queries[Tensor]:
    """Return factor (x0 of good - x0 of bad), `(B, *D)`; a factor of 0 asks nothing."""
    if factor == 0:
        return torch.zeros_like(at.x)
    better, worse = yield good, bad
    return factor * (better.x0 - worse.x0)
