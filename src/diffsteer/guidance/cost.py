"""Network evaluations of a guidance over a sampling, counted without any network."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from diffsteer.core.level import CLEAN, Level
from diffsteer.core.prediction import Prediction
from diffsteer.core.schedule import Schedule
from diffsteer.guidance.base import Guidance
from diffsteer.guidance.queries import GuidanceState, Plan, plan


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
