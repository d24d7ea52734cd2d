"""Guidance of a sample in several parts (video and sound), each by itself.

A network answers for all parts at once. What a guidance asks about one part is asked about all, so
that it costs as many evaluations as one part, while norms and memory are those of each part.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from diffsteer.core.noise import number
from diffsteer.guidance.queries import Answer, Branch, GuidanceState, Queries

Guided = tuple[Answer, Tensor]
T = TypeVar("T")


def _as_it_is(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Parts:
    """Parts of a sample, `(B, tokens, C)`: runs of its tokens, a video and its sound.

    Attributes:
        lengths: Tokens of each.
        unpacked: Makes a video, `(B, C, F, H, W)`, of the tokens of the first.
        packed: The inverse.
    """

    lengths: Sequence[int]
    unpacked: Callable[[Tensor], Tensor] = _as_it_is
    packed: Callable[[Tensor], Tensor] = _as_it_is

    def split(self, x: Tensor) -> list[Tensor]:
        """Return the parts of a sample."""
        first, *others = torch.split(x, list(self.lengths), dim=1)
        return [self.unpacked(first), *others]

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the sample of parts."""
        first, *others = parts
        return torch.cat([self.packed(first), *others], dim=1)


def each_part(
    guided: Callable[[GuidanceState], Queries[Guided]], at: GuidanceState, parts: Parts
) -> Queries[Guided]:
    """Ask for an answer and what to add to its x0, of parts of a sample each by itself.

    Args:
        guided: A guidance's method.
        at: State of the whole sample, `(B, tokens, C)`.
        parts: Of the sample.
    """
    askers = [guided(state) for state in _states(at, parts)]
    done: dict[int, Guided] = {}
    answers: dict[int, tuple[Answer, ...] | None] = dict.fromkeys(range(len(askers)))
    while answers:
        asked: dict[int, tuple[Branch, ...]] = {}
        for i, answer in answers.items():
            try:
                asked[i] = askers[i].send(answer)  # type: ignore[arg-type]
            except StopIteration as stop:
                done[i] = stop.value
        joint = _joint(asked)
        joined = (
            (yield tuple(_branch(asking, at, parts) for asking in joint.values())) if asked else ()
        )
        whole = dict(zip(joint, joined, strict=True))
        answers = {
            i: tuple(_part(whole[key], i, parts) for key in _keys(branches))
            for i, branches in asked.items()
        }
    guided_parts = [done[i] for i in range(len(askers))]
    first, *_ = (answer for answer, _ in guided_parts)
    out, x = (parts.joined([getattr(a, name) for a, _ in guided_parts]) for name in ("out", "x"))
    shift = parts.joined([shift for _, shift in guided_parts])
    return Answer(out, x, first.level, first.prediction), shift


def _states(at: GuidanceState, parts: Parts) -> list[GuidanceState]:
    """States of the parts, with a memory and seeds of their own."""
    seeds = range(len(at.x)) if at.seeds is None else at.seeds
    return [
        replace(
            at.of_term(i),
            x=x,
            is_sound=i > 0,
            seeds=at.seeds if i == 0 else tuple(number(f"{s} part {i}".encode()) for s in seeds),
        )
        for i, x in enumerate(parts.split(at.x))
    ]


def _keys(branches: Sequence[Branch]) -> list[Any]:
    """Keys of branches that are equal for those of another part that ask the same."""
    keys: list[Any] = []
    for branch in branches:
        key = branch.x is None, replace(branch, x=None).key
        keys.append((key, sum(other == key for other, _ in keys)))
    return keys


def _joint(asked: dict[int, tuple[Branch, ...]]) -> dict[Any, dict[int, Branch]]:
    """Branches that parts have in common, by key, with the parts that ask each."""
    joint: dict[Any, dict[int, Branch]] = {}
    for i, branches in asked.items():
        for key, branch in zip(_keys(branches), branches, strict=True):
            joint.setdefault(key, {})[i] = branch
    return joint


def _branch(asking: dict[int, Branch], at: GuidanceState, parts: Parts) -> Branch:
    """One branch about all parts; a part that does not ask it is as it is."""
    first = next(iter(asking.values()))
    record = dict.fromkeys(name for branch in asking.values() for name in branch.record)
    if first.x is None:
        return replace(first, record=tuple(record))
    rows = slice(None) if first.samples is None else list(first.samples)
    own = [x[rows] for x in parts.split(at.x)]
    for i, branch in asking.items():
        assert branch.x is not None
        own[i] = branch.x
    return replace(first, x=parts.joined(own), record=tuple(record))


def _part(answer: Answer, i: int, parts: Parts) -> Answer:
    """Answer of a network about one part."""
    out, x = (parts.split(tensor)[i] for tensor in (answer.out, answer.x))
    return replace(answer, out=out, x=x)
