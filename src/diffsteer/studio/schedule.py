"""The noise levels of a recipe: SNR, the nodes that it visits, and the brightness that follows."""

import math
from pathlib import Path
from typing import Any

import torch

from diffsteer.core.level import CLEAN
from diffsteer.core.schedule import Discrete, Schedule
from diffsteer.doctor.brightness import DATA, expected
from diffsteer.doctor.present import bell
from diffsteer.generate.recipe import Recipe
from diffsteer.hf.time_arguments import Timeline
from diffsteer.report.plots import Chart, Curve, Point, write_png
from diffsteer.studio.cost import scheduler_with_steps

FLOOR = -8.0
"""Least log10 of an SNR that is drawn; zero lies below."""


def draw(recipe: Recipe, model: Any, path: Path) -> str:
    """Draw the schedule of a recipe to a PNG, and say in words what it means.

    Args:
        recipe: What is sampled.
        model: Of the recipe.
        path: Of the PNG.
    """
    scheduler = scheduler_with_steps(recipe, model)
    timeline = Timeline.of(scheduler)
    levels = [timeline.level(t) for t in scheduler.timesteps.double().tolist()]
    schedule = timeline.schedule
    times = torch.linspace(schedule.first, schedule.last, 200, dtype=torch.float64)
    curve = [Point(float(t), _log_snr(schedule.at(t))) for t in times]
    nodes = tuple(Point(float(v.t), _log_snr(v)) for v in levels)
    name = f"visited in {recipe.steps} steps"
    snr = (Curve("schedule", tuple(curve), 0, dotted=False), Curve(name, nodes, 1, joined=False))
    charts = [Chart("Signal to noise ratio", "timestep", "log10 of SNR", snr)]
    text = _start(levels[0], schedule)
    if isinstance(schedule, Discrete):
        light = expected(schedule, model.latent, [*levels, CLEAN])
        bells = (bell("data", DATA.mean, DATA.spread, 0), bell("samples", light.mean, light.std, 1))
        charts.append(Chart("Brightness, expected", "mean of an image", "density", bells))
        text += (
            f" Expected brightness of samples {light.mean:.3f}, spread {light.std:.3f}; of the "
            f"data {DATA.mean} and {DATA.spread}."
        )
    write_png(path, charts, f"{recipe.model}, {recipe.sampler or 'its own sampler'}, {name}")
    return text


def _log_snr(level: Any) -> float:
    snr = float(level.snr)
    return max(math.log10(snr), FLOOR) if 0 < snr < math.inf else FLOOR if snr == 0 else -FLOOR


def _start(level: Any, schedule: Schedule) -> str:
    alpha = float(level.alpha)
    if alpha == 0:
        return "Sampling starts from pure noise, as the network was trained to: any brightness."
    last = float(schedule.at(schedule.last).alpha)
    missed = " The last timestep is not visited." if alpha > last * 1.001 else ""
    return (
        f"Sampling starts from pure noise where the network expects {alpha:.3g} of the image, so "
        f"that samples tend to medium brightness.{missed}"
    )
