"""Baselines beside the refiner: cost, distance to the guided image, score."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from diffsteer.metrics.best_of_n import BestOf, Score, scored
from diffsteer.refine.nlg import NLG
from diffsteer_lab.noise_analysis.experiment import NoiseExperiment
from diffsteer_lab.noise_analysis.experiments import FULLY, GUIDED, UNREFINED, Case
from diffsteer_lab.noise_analysis.results import Results, Samples

DRAWS = 4
MOVED = NLG()
BEST, NUDGED = f"best of {DRAWS}", f"NLG({MOVED.rounds})"


def left_out(experiment: NoiseExperiment, judged: bool) -> dict[str, str]:
    """Reasons why baselines are left out, by name.

    Args:
        experiment: Pipeline and refiner.
        judged: Whether there is a score.
    """
    reasons = {}
    if not experiment.guided:
        reasons[GUIDED] = "no guidance was named (--guidance)"
    if not judged:
        reasons[BEST] = "no score was named that chooses (--score)"
    if experiment.by == MOVED and experiment.recipe.strength == 1:
        reasons[NUDGED] = f"it is what is analysed here, as {FULLY}"
    elif why := experiment.refuses(MOVED):
        reasons[NUDGED] = why
    return reasons


def extra_images(missing: Mapping[str, str]) -> int:
    """Number of images of a seed that `compare_baselines` samples."""
    return (DRAWS - 1) * (BEST not in missing) + (NUDGED not in missing)


def compare_baselines(
    experiment: NoiseExperiment,
    case: Case,
    results: Results,
    score: Score | None,
    missing: Mapping[str, str],
) -> None:
    """Note network evaluations an image, distance to the guided image, and score.

    The best of the draws starts from other noise, so that it has no distance.

    Args:
        experiment: Pipeline and refiner.
        case: Of it.
        results: They are noted here.
        score: What draws are chosen by, and all are judged by.
        missing: Of `left_out`.
    """
    every, rows = {UNREFINED: case.plain, FULLY: case.fully}, dict(case.nfe)
    if case.guided is not None:
        every[GUIDED] = case.guided
    experiment.nfe()
    if NUDGED not in missing:
        every[NUDGED] = experiment.draw(
            experiment.refined(case.noise, case.texts, MOVED), case.texts
        )
        rows[NUDGED] = experiment.nfe()
    if score is not None:
        every[BEST] = _best(experiment, case, score)
        rest = experiment.nfe()
        rows[BEST] = {name: n + rest[name] for name, n in rows[UNREFINED].items()}
    for name, got in every.items():
        results.keep("rivals", name, got.images)
        for network, n in rows[name].items():
            each = torch.full((len(case.seeds),), n / len(case.seeds))
            results.note(f"rivals: {network}", name, each)
        if score is not None:
            results.note("rivals: score", name, scored(score, got.images, case.texts))
        if case.guided is not None and name != BEST:
            results.compare("rivals: teacher", name, got, case.guided, case.plain)


def _best(experiment: NoiseExperiment, case: Case, score: Score) -> Samples:
    """The best of the draws, of which the first is there."""
    draws = [case.plain]

    def images(seeds: Sequence[int]) -> Tensor:
        if seeds != case.seeds:
            draws.append(experiment.draw(experiment.noise(seeds), case.texts))
        return draws[-1].images

    best = BestOf(images, score, DRAWS, experiment.recipe.prompts)
    chosen = best.chosen(case.seeds)
    turns = [(c - s) // best.stride for c, s in zip(chosen, case.seeds, strict=True)]
    return Samples(
        torch.stack([draws[k].latents[i] for i, k in enumerate(turns)]),
        torch.stack([draws[k].images[i] for i, k in enumerate(turns)]),
    )
