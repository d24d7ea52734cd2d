"""Network evaluations of a guidance over a sampling, counted without any network."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from diffsteer.core.errors import InputError, brief
from diffsteer.core.level import CLEAN, Level
from diffsteer.core.prediction import Prediction
from diffsteer.core.schedule import Schedule
from diffsteer.guidance.base import Guidance
from diffsteer.guidance.queries import Answer, Branch, GuidanceState, Queries, dry_answers, run

T = TypeVar("T")


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


def plan(asker: Queries[T], at: GuidanceState) -> Plan:
    """Count what an asker evaluates at a point, without any network.

    Args:
        asker: Such as `guidance.guided(at)`, with the evaluation of the prompt, or
            `guidance.shift(at)`.
        at: The point.
    """
    if not isinstance(asker, Generator):
        raise InputError(f"{brief(asker)} asks nothing yet: plan(guidance.guided(at), at)")
    rows: dict[str, int] = {}
    passes: dict[str, int] = {}

    def count(branches: Sequence[Branch]) -> list[Answer]:
        for net, _ in dict.fromkeys((branch.net, at.form(branch)) for branch in branches):
            passes[net] = passes.get(net, 0) + 1
        for branch in branches:
            rows[branch.net] = rows.get(branch.net, 0) + (1 if branch.second is None else 2)
        return dry_answers(branches, at)

    run(asker, count)
    return Plan(rows, passes)


def plans(
    guidance: Guidance, levels: Sequence[Level], schedule: Schedule, prediction: Prediction
) -> list[Plan]:
    """Cost of each step for one sample.

    Args:
        guidance: What guides.
        levels: At which the network is evaluated.
        schedule: Of the levels.
        prediction: Of the network.
    """
    x, made = torch.zeros(1, 4, 8, 8), list[Plan]()
    for i, level in enumerate(levels):
        at = GuidanceState(x, level, prediction, i, schedule)
        at = replace(at, next=levels[i + 1] if i + 1 < len(levels) else CLEAN)
        made.append(plan(guidance.guided(at), at))
    return made


def total(costs: Sequence[Plan]) -> Plan:
    """Sum of the costs of steps."""
    nets = list(dict.fromkeys(net for cost in costs for net in cost.rows))
    return Plan(
        {net: sum(c.rows.get(net, 0) for c in costs) for net in nets},
        {net: sum(c.passes.get(net, 0) for c in costs) for net in nets},
    )
