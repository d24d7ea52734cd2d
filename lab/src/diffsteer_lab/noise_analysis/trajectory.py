"""What the network predicts on the way: is the layout there from the first step?

Source: Ahn et al. 2024, fig. 10 and 25, https://arxiv.org/abs/2412.03895, who show images; the
numbers are ours.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffsteer_lab.noise_analysis.experiment import NoiseExperiment
from diffsteer_lab.noise_analysis.experiments import FULLY, GUIDED, UNREFINED, Case
from diffsteer_lab.noise_analysis.results import Results
from diffsteer_lab.noise_analysis.spectrum import TENTHS, swapped

SHOWN = (1, 2, 4, 7)
"""Steps of which predictions are shown, where they are not the last."""
END = "end"
ALL, LAYOUT, TEACHER = "trajectory", "trajectory: layout", "trajectory: teacher"


def note_trajectory(experiment: NoiseExperiment, case: Case, results: Results) -> None:
    """How far each step's prediction of x0 is from where its sampling ends.

    Squared distances in latents, over the square of the end: 0 where all of it is there, 1 where no
    more of it is there than in latents of zeros. Beside all frequencies, the lowest tenth of them,
    which is the layout, and the distance from where guided sampling ends.
    """
    ways = {UNREFINED: case.plain, FULLY: case.fully}
    if case.guided is not None:
        ways[GUIDED] = case.guided
    for way, drawn in ways.items():
        for step, x0 in enumerate(drawn.path, 1):
            _left(results, ALL, way, step, x0, drawn.latents)
            _left(results, LAYOUT, way, step, _low(x0), _low(drawn.latents))
            if case.guided is not None:
                _left(results, TEACHER, way, step, x0, case.guided.latents)
        name = images_of(way)
        for step in steps_shown(len(drawn.path)):
            if (n := min(results.wanted(name, f"step {step}"), len(case.texts))) > 0:
                images = experiment.decoded(drawn.path[step - 1][:n], case.texts[:n])
                results.keep(name, f"step {step}", images)
        results.keep(name, END, drawn.images)


def images_of(way: str) -> str:
    """Name under which the images of a way of sampling are kept."""
    return f"trajectory, {way}"


def steps_shown(steps: int) -> Sequence[int]:
    """Which of so many are shown, besides the end."""
    return [step for step in SHOWN if step < steps]


def _left(results: Results, experiment: str, way: str, step: int, x0: Tensor, end: Tensor) -> None:
    over, under = (v.double().square().flatten(1).sum(dim=1) for v in (x0 - end, end))
    results.divide(experiment, str(step), way, over, under)


def _low(x: Tensor) -> Tensor:
    """The part of latents in the lowest tenth of frequencies."""
    return swapped(torch.zeros_like(x), x, *TENTHS[:2])
