"""Guidance of a sample in several parts (video and sound), each by itself.

A network answers for all parts at once. What a guidance asks about one part is asked about all, so
that it costs as many evaluations as one part, while norms and memory are those of each part.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from diffsteer.core.noise import number
from diffsteer.guidance.queries import Answer, Branch, GuidanceState, Queries

Guided = tuple[Answer, Tensor]
T = TypeVar("T")


def each_part(
    guided: Callable[[GuidanceState], Queries[Guided]], at: GuidanceState, lengths: Sequence[int]
) -> Queries[Guided]:
    """Ask for an answer and what to add to its x0, of runs of tokens each by itself.

    Args:
        guided: A guidance's method.
        at: State of the whole sample, `(B, tokens, C)`.
        lengths: Tokens of each part.
    """
    askers = [guided(state) for state in _states(at, lengths)]
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
            (yield tuple(_branch(parts, at, lengths) for parts in joint.values())) if asked else ()
        )
        whole = dict(zip(joint, joined, strict=True))
        answers = {
            i: tuple(_part(whole[key], i, lengths) for key in _keys(branches))
            for i, branches in asked.items()
        }
    guided_parts = [done[i] for i in range(len(askers))]
    first, *_ = (answer for answer, _ in guided_parts)
    out, x = (
        torch.cat([getattr(a, name) for a, _ in guided_parts], dim=1) for name in ("out", "x")
    )
    shift = torch.cat([shift for _, shift in guided_parts], dim=1)
    return Answer(out, x, first.level, first.prediction), shift


def _states(at: GuidanceState, lengths: Sequence[int]) -> list[GuidanceState]:
    """States of the parts, with a memory and seeds of their own."""
    seeds = range(len(at.x)) if at.seeds is None else at.seeds
    return [
        replace(
            at.of_term(i),
            x=x,
            seeds=at.seeds if i == 0 else tuple(number(f"{s} part {i}".encode()) for s in seeds),
        )
        for i, x in enumerate(torch.split(at.x, list(lengths), dim=1))
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


def _branch(parts: dict[int, Branch], at: GuidanceState, lengths: Sequence[int]) -> Branch:
    """One branch about all parts; a part that does not ask it is as it is."""
    first = next(iter(parts.values()))
    record = dict.fromkeys(name for branch in parts.values() for name in branch.record)
    if first.x is None:
        return replace(first, record=tuple(record))
    rows = slice(None) if first.samples is None else list(first.samples)
    own = [x[rows] for x in torch.split(at.x, list(lengths), dim=1)]
    for i, branch in parts.items():
        assert branch.x is not None
        own[i] = branch.x
    return replace(first, x=torch.cat(own, dim=1), record=tuple(record))


def _part(answer: Answer, i: int, lengths: Sequence[int]) -> Answer:
    """Answer of a network about one part."""
    out, x = (torch.split(tensor, list(lengths), dim=1)[i] for tensor in (answer.out, answer.x))
    return replace(answer, out=out, x=x)
