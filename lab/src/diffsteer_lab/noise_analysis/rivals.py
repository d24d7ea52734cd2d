"""The refiner beside what else could be done: what each costs, and what comes of it."""

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


def left_out(subject: NoiseExperiment, judged: bool) -> dict[str, str]:
    """Why something is not beside the refiner, by its name.

    Args:
        subject: What is studied.
        judged: Whether there is a score.
    """
    found = {}
    if not subject.guided:
        found[GUIDED] = "no guidance was named (--guidance)"
    if not judged:
        found[BEST] = "no score was named that chooses (--score)"
    if subject.by == MOVED and subject.recipe.strength == 1:
        found[NUDGED] = f"it is what is analysed here, as {FULLY}"
    elif why := subject.refuses(MOVED):
        found[NUDGED] = why
    return found


def extra_images(missing: Mapping[str, str]) -> int:
    """How many images of a seed `rivals` samples."""
    return (DRAWS - 1) * (BEST not in missing) + (NUDGED not in missing)


def rivals(
    subject: NoiseExperiment,
    case: Case,
    record: Results,
    score: Score | None,
    missing: Mapping[str, str],
) -> None:
    """Rows of networks an image, distance to the guided image, and score.

    The best of the draws starts from other noise, so that it has no distance.

    Args:
        subject: What is studied.
        case: Of it.
        record: Of results.
        score: What draws are chosen by, and all are judged by.
        missing: Of `left_out`.
    """
    every, rows = {UNREFINED: case.plain, FULLY: case.fully}, dict(case.rows)
    if case.taught is not None:
        every[GUIDED] = case.taught
    subject.rows()
    if NUDGED not in missing:
        every[NUDGED] = subject.draw(subject.refined(case.noise, case.texts, MOVED), case.texts)
        rows[NUDGED] = subject.rows()
    if score is not None:
        every[BEST] = _best(subject, case, score)
        rest = subject.rows()
        rows[BEST] = {name: n + rest[name] for name, n in rows[UNREFINED].items()}
    for name, got in every.items():
        record.keep("rivals", name, got)
        for network, n in rows[name].items():
            each = torch.full((len(case.seeds),), n / len(case.seeds))
            record.note(f"rivals: {network}", name, each)
        if score is not None:
            record.note("rivals: score", name, scored(score, got.pictures, case.texts))
        if case.taught is not None and name != BEST:
            record.compare("rivals: teacher", name, got, case.taught, case.plain)


def _best(subject: NoiseExperiment, case: Case, score: Score) -> Samples:
    """The best of the draws, of which the first is there."""
    draws = [case.plain]

    def images(seeds: Sequence[int]) -> Tensor:
        if seeds != case.seeds:
            draws.append(subject.draw(subject.noise(seeds), case.texts))
        return draws[-1].pictures

    best = BestOf(images, score, DRAWS, subject.recipe.prompts)
    chosen = best.chosen(case.seeds)
    turns = [(c - s) // best.stride for c, s in zip(chosen, case.seeds, strict=True)]
    return Samples(
        torch.stack([draws[k].latents[i] for i, k in enumerate(turns)]),
        torch.stack([draws[k].pictures[i] for i, k in enumerate(turns)]),
    )
