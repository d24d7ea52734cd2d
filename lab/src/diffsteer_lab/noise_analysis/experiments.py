"""Experiments on refined noise, each of which writes what it finds into `Results`.

Source: Ahn et al. 2024, sec. 3.1 and appendix E, https://arxiv.org/abs/2412.03895; distances are
ours.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.io.seeds import format_number
from diffsteer.metrics.best_of_n import STRIDE, Score, scored
from diffsteer_lab.noise_analysis.experiment import NoiseExperiment
from diffsteer_lab.noise_analysis.inversion import INVERSIONS
from diffsteer_lab.noise_analysis.results import Results, Samples
from diffsteer_lab.noise_analysis.spectrum import TENTHS, Spectra, band, swapped

CUTS = (0.01, 0.02, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7)
"""Upper edges of bands that grow from 0."""
KEPT = (0.1, 0.2, 0.3, 0.5)
"""Radii below, or above, which refined noise is kept while the rest is drawn anew."""
STRENGTHS = (0.25, 0.5, 0.75, 1.5, 2.0)
"""Factors of the change, besides 0 and 1."""
STOPS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of the way from one noise to another."""
RANDOM, REFINED = "another random noise", "refined noise"
UNREFINED, FULLY, GUIDED = "unrefined", "fully refined", "guided"


@dataclass(frozen=True, eq=False)
class Case:
    """Some seeds, with what experiments start from and compare with.

    Attributes:
        seeds: Those.
        texts: A prompt each.
        noise: Of the seeds.
        refined: What the refiner makes of it.
        fresh: Other Gaussian noise.
        plain: Sampled from `noise`, with its path.
        fully: From `refined`, with its path.
        other: From `fresh`.
        guided: Guided, from `noise`, with its path; None without a guidance.
        nfe: Network evaluations, by network, of unrefined, fully refined and guided images.
    """

    seeds: list[int]
    texts: list[str]
    noise: Tensor
    refined: Tensor
    fresh: Tensor
    plain: Samples
    fully: Samples
    other: Samples
    guided: Samples | None
    nfe: dict[str, dict[str, float]]

    @classmethod
    def of(cls, experiment: NoiseExperiment, seeds: Sequence[int]) -> "Case":
        """Sample what serves all experiments.

        Raises:
            ValueError: samples are not finite, or refining changes none of them.
        """
        texts = [experiment.text(seed) for seed in seeds]
        noise, fresh = experiment.noise(seeds), experiment.noise([seed + STRIDE for seed in seeds])
        experiment.nfe()
        plain = experiment.draw(noise, texts, path=True)
        rows = {UNREFINED: experiment.nfe()}
        refined = experiment.refined(noise, texts)
        fully = experiment.draw(refined, texts, path=True)
        rows[FULLY] = experiment.nfe()
        gap = float(plain.apart(fully)["latents"].sum())
        if not 0 < gap < float("inf"):
            raise InputError(
                f"samples of refined and unrefined noise are {gap:g} apart: they must be finite, "
                "and refining has to change them"
            )
        guided = experiment.teach(noise, texts, path=True) if experiment.guided else None
        rows[GUIDED] = experiment.nfe()
        other = experiment.draw(fresh, texts)
        return cls(list(seeds), texts, noise, refined, fresh, plain, fully, other, guided, rows)


# ------------------------------------------------------------------ spectra


def spectra(experiment: NoiseExperiment, count: int, batch: int) -> dict[str, Spectra]:
    """Spectra of what refining changes, and of the difference of unrelated noises."""
    noise_spectra = {name: Spectra(*experiment.shape[-2:]) for name in (RANDOM, REFINED)}
    for seeds in parts(range(count), batch):
        noise = experiment.noise(seeds)
        noise_spectra[RANDOM].add(noise, experiment.noise([seed + STRIDE for seed in seeds]))
        noise_spectra[REFINED].add(
            noise, experiment.refined(noise, [experiment.text(s) for s in seeds])
        )
        experiment.progress(len(seeds))
    return noise_spectra


def invert(
    experiment: NoiseExperiment, case: Case, noise_spectra: dict[str, Spectra], results: Results
) -> None:
    """The noise that inversions find for the teacher's images, and what it becomes again."""
    assert case.guided is not None
    target = case.guided.latents
    for name, inversion in INVERSIONS.items():
        noise, again = experiment.inverted(target, case.texts, inversion)
        noise_spectra.setdefault(name, Spectra(*experiment.shape[-2:])).add(case.noise, noise)
        error = (again - target).double().square().flatten(1).sum(1)
        error /= target.double().square().flatten(1).sum(1)
        results.note("round trip", name, error.sqrt())


# ------------------------------------------------------------------ bands


def bands(h: int, w: int) -> list[tuple[float, float]]:
    """Tenths of the radius and bands that grow from 0; each set of frequencies once.

    On small noise many edges lie between the same frequencies.
    """
    distinct: list[tuple[float, float]] = []
    insides = [torch.zeros(h, w, dtype=torch.bool)]
    for low, high in (*pairwise(TENTHS), *((0.0, cut) for cut in CUTS)):
        inside = band(h, w, low, high)
        if not any(torch.equal(inside, each) for each in insides):
            insides.append(inside)
            distinct.append((low, high))
    return distinct


def swap_bands(experiment: NoiseExperiment, case: Case, results: Results) -> None:
    """One band of refined noise in unrefined noise: how far is that from refining all of it?"""
    results.keep("bands", UNREFINED, case.plain.images)
    results.keep("bands", FULLY, case.fully.images)
    results.compare("moved", REFINED, case.fully, case.plain, case.other)
    for low, high in bands(*experiment.shape[-2:]):
        got = experiment.draw(swapped(case.noise, case.refined, low, high), case.texts)
        results.compare("bands", band_name(low, high), got, case.fully, case.plain)
        results.keep("bands", band_name(low, high), got.images)


def redraw(experiment: NoiseExperiment, case: Case, results: Results) -> None:
    """Refined noise below a radius, or above it, and the rest drawn anew."""
    results.keep("redraw", FULLY, case.fully.images)
    results.keep("redraw", "all drawn anew", case.other.images)
    for cut in KEPT:
        for low, high in ((0.0, cut), (cut, 1.0)):
            got = experiment.draw(swapped(case.fresh, case.refined, low, high), case.texts)
            results.compare("redraw", band_name(low, high), got, case.fully, case.other)
            results.keep("redraw", band_name(low, high), got.images)


def band_name(low: float, high: float) -> str:
    """Name of a band."""
    return f"{low:g} to {high:g}"


# ------------------------------------------------------------------ strength


def strengths(
    experiment: NoiseExperiment, case: Case, results: Results, score: Score | None
) -> None:
    """The change times a factor: how far it leads, how near to the teacher, how good by a score."""
    every = {0.0: case.plain, 1.0: case.fully}
    for factor in STRENGTHS:
        x = case.noise + factor * (case.refined - case.noise)
        every[factor] = experiment.draw(x, case.texts)
    for factor, got in sorted(every.items()):
        name = format_number(factor * experiment.recipe.refiner_strength)
        results.compare("strength: change", name, got, case.plain, case.fully)
        results.keep("strength", name, got.images)
        if case.guided is not None:
            results.compare("strength: teacher", name, got, case.guided, case.plain)
        if score is not None:
            results.note("strength: score", name, scored(score, got.images, case.texts))
    if case.guided is not None:
        results.keep("strength", GUIDED, case.guided.images)
        if score is not None:
            value = scored(score, case.guided.images, case.texts)
            results.note("strength: score", GUIDED, value)


# ------------------------------------------------------------------ prompts


def swap_prompts(
    experiment: NoiseExperiment, case: Case, results: Results, swaps: Mapping[str, list[str]]
) -> None:
    """Noise refined for the case's prompts, sampled for others.

    Args:
        experiment: Pipeline and refiner.
        case: Of it.
        results: They are noted here.
        swaps: By the name of how they are chosen, other prompts; an empty one is refined for by
            nobody, so that there is nothing right to compare with.
    """
    results.keep("prompts", "same", case.fully.images)
    for name, texts in swaps.items():
        got, plain = (experiment.draw(x, texts) for x in (case.refined, case.noise))
        results.compare("prompts: layout", name, got, case.fully, plain)
        results.keep("prompts", name, got.images, texts)
        if all(texts):
            right = experiment.draw(experiment.refined(case.noise, texts), texts)
            results.compare("prompts: result", name, got, right, plain)
            results.keep("prompts", f"{name}, refined for it", right.images, texts)
        if name == "unrelated" and experiment.guided:
            led, base = (experiment.teach(x, texts) for x in (case.refined, case.noise))
            results.compare("prompts: layout", f"{name}, {GUIDED}", led, case.fully, base)
            results.keep("prompts", f"{name}, {GUIDED}", led.images, texts)


def partners(texts: Sequence[str], prompts: Sequence[str]) -> dict[str, list[str]]:
    """For each text the prompt that shares most words with it, and the one that shares fewest.

    And none at all. "similar" and "unrelated" are missing where a text has less than two others.
    """
    words = {text: set(re.findall(r"\w+", text.lower())) for text in (*texts, *prompts)}

    def alike(a: str, b: str) -> float:
        return len(words[a] & words[b]) / max(len(words[a] | words[b]), 1)

    others = {text: [p for p in dict.fromkeys(prompts) if p != text] for text in set(texts)}
    swaps = {"empty": [""] * len(texts)}
    if all(len(each) > 1 for each in others.values()):
        near = {text: max(each, key=lambda p: alike(text, p)) for text, each in others.items()}
        far = {text: min(each, key=lambda p: alike(text, p)) for text, each in others.items()}
        swaps = {
            "similar": [near[text] for text in texts],
            "unrelated": [far[text] for text in texts],
        } | swaps
    return swaps


# ------------------------------------------------------------------ between two noises


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """The point at share `t` of the arc between rows of noise, which keeps their size."""
    x, y = (v.flatten(1) / v.flatten(1).norm(dim=1, keepdim=True) for v in (a, b))
    angle = (x * y).sum(1).clamp(-1, 1).acos().reshape(-1, *[1] * (a.ndim - 1))
    return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)


def interpolate(experiment: NoiseExperiment, seeds: Sequence[int], results: Results) -> None:
    """Images of noises between those of neighbouring seeds, refined for the first's prompt.

    Notes the largest of the steps between them as a share of all: 1 / (stops - 1) where the way
    is even, 1 where it jumps.
    """
    a, b = experiment.noise(seeds), experiment.noise([*seeds[1:], seeds[0]])
    texts = [experiment.text(seed) for seed in seeds]
    ways: dict[str, list[Samples]] = {UNREFINED: [], REFINED: []}
    for stop in STOPS:
        noise = slerp(a, b, stop)
        ways[UNREFINED].append(experiment.draw(noise, texts))
        ways[REFINED].append(experiment.draw(experiment.refined(noise, texts), texts))
    for name, way in ways.items():
        steps = torch.stack([p.apart(q)["latents"].sqrt() for p, q in pairwise(way)])
        results.note("between", name, steps.amax(0) / steps.sum(0))
        for stop, drawn in zip(STOPS, way, strict=True):
            results.keep(f"between, {name}", f"{stop:g}", drawn.images)


def parts(seeds: Sequence[int], batch: int) -> list[list[int]]:
    """Seeds, so many at a time."""
    return [list(seeds[i : i + batch]) for i in range(0, len(seeds), batch)]
