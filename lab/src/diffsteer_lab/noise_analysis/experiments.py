"""Experiments on refined noise, each of which writes what it finds into a record.

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
        taught: Guided, from `noise`, with its path; None without a guidance.
        rows: Rows of each network that went into unrefined, fully refined and guided images.
    """

    seeds: list[int]
    texts: list[str]
    noise: Tensor
    refined: Tensor
    fresh: Tensor
    plain: Samples
    fully: Samples
    other: Samples
    taught: Samples | None
    rows: dict[str, dict[str, float]]

    @classmethod
    def of(cls, subject: NoiseExperiment, seeds: Sequence[int]) -> "Case":
        """Sample what serves all experiments.

        Raises:
            ValueError: samples are not finite, or refining changes none of them.
        """
        texts = [subject.text(seed) for seed in seeds]
        noise, fresh = subject.noise(seeds), subject.noise([seed + STRIDE for seed in seeds])
        subject.rows()
        plain = subject.draw(noise, texts, path=True)
        rows = {UNREFINED: subject.rows()}
        refined = subject.refined(noise, texts)
        fully = subject.draw(refined, texts, path=True)
        rows[FULLY] = subject.rows()
        gap = float(plain.apart(fully)["latents"].sum())
        if not 0 < gap < float("inf"):
            raise InputError(
                f"samples of refined and unrefined noise are {gap:g} apart: they must be finite, "
                "and refining has to change them"
            )
        taught = subject.teach(noise, texts, path=True) if subject.guided else None
        rows[GUIDED] = subject.rows()
        other = subject.draw(fresh, texts)
        return cls(list(seeds), texts, noise, refined, fresh, plain, fully, other, taught, rows)


# ------------------------------------------------------------------ spectra


def spectra(subject: NoiseExperiment, count: int, batch: int) -> dict[str, Spectra]:
    """Spectra of what refining changes, and of the difference of unrelated noises."""
    found = {name: Spectra(*subject.shape[-2:]) for name in (RANDOM, REFINED)}
    for seeds in parts(range(count), batch):
        noise = subject.noise(seeds)
        found[RANDOM].add(noise, subject.noise([seed + STRIDE for seed in seeds]))
        found[REFINED].add(noise, subject.refined(noise, [subject.text(s) for s in seeds]))
    return found


def invert(
    subject: NoiseExperiment, case: Case, found: dict[str, Spectra], record: Results
) -> None:
    """The noise that inversions find for the teacher's images, and what it becomes again."""
    assert case.taught is not None
    target = case.taught.latents
    for name, inversion in INVERSIONS.items():
        noise, again = subject.inverted(target, case.texts, inversion)
        found.setdefault(name, Spectra(*subject.shape[-2:])).add(case.noise, noise)
        error = (again - target).double().square().flatten(1).sum(1)
        error /= target.double().square().flatten(1).sum(1)
        record.note("round trip", name, error.sqrt())


# ------------------------------------------------------------------ bands


def bands(h: int, w: int) -> list[tuple[float, float]]:
    """Tenths of the radius and bands that grow from 0; those that hold what one before does, not.

    On small noise many edges lie between the same frequencies.
    """
    found: list[tuple[float, float]] = []
    seen = [torch.zeros(h, w, dtype=torch.bool)]
    for low, high in (*pairwise(TENTHS), *((0.0, cut) for cut in CUTS)):
        held = band(h, w, low, high)
        if not any(torch.equal(held, each) for each in seen):
            seen.append(held)
            found.append((low, high))
    return found


def swap_bands(subject: NoiseExperiment, case: Case, record: Results) -> None:
    """One band of refined noise in unrefined noise: how far is that from refining all of it?"""
    record.keep("bands", UNREFINED, case.plain)
    record.keep("bands", FULLY, case.fully)
    record.compare("moved", REFINED, case.fully, case.plain, case.other)
    for low, high in bands(*subject.shape[-2:]):
        got = subject.draw(swapped(case.noise, case.refined, low, high), case.texts)
        record.compare("bands", named(low, high), got, case.fully, case.plain)
        record.keep("bands", named(low, high), got)


def redraw(subject: NoiseExperiment, case: Case, record: Results) -> None:
    """Refined noise below a radius, or above it, and the rest drawn anew."""
    record.keep("redraw", FULLY, case.fully)
    record.keep("redraw", "all drawn anew", case.other)
    for cut in KEPT:
        for low, high in ((0.0, cut), (cut, 1.0)):
            got = subject.draw(swapped(case.fresh, case.refined, low, high), case.texts)
            record.compare("redraw", named(low, high), got, case.fully, case.other)
            record.keep("redraw", named(low, high), got)


def named(low: float, high: float) -> str:
    """Name of a band."""
    return f"{low:g} to {high:g}"


# ------------------------------------------------------------------ strength


def strengths(subject: NoiseExperiment, case: Case, record: Results, score: Score | None) -> None:
    """The change times a factor: how far it leads, how near to the teacher, how good by a score."""
    every = {0.0: case.plain, 1.0: case.fully}
    for factor in STRENGTHS:
        x = case.noise + factor * (case.refined - case.noise)
        every[factor] = subject.draw(x, case.texts)
    for factor, got in sorted(every.items()):
        name = format_number(factor * subject.recipe.strength)
        record.compare("strength: change", name, got, case.plain, case.fully)
        record.keep("strength", name, got)
        if case.taught is not None:
            record.compare("strength: teacher", name, got, case.taught, case.plain)
        if score is not None:
            record.note("strength: score", name, scored(score, got.pictures, case.texts))
    if case.taught is not None:
        record.keep("strength", GUIDED, case.taught)
        if score is not None:
            value = scored(score, case.taught.pictures, case.texts)
            record.note("strength: score", GUIDED, value)


# ------------------------------------------------------------------ prompts


def swap_prompts(
    subject: NoiseExperiment, case: Case, record: Results, swaps: Mapping[str, list[str]]
) -> None:
    """Noise refined for the case's prompts, sampled for others.

    Args:
        subject: What is studied.
        case: Of it.
        record: Of results.
        swaps: By the name of how they are chosen, other prompts; an empty one is refined for by
            nobody, so that there is nothing right to compare with.
    """
    record.keep("prompts", "same", case.fully)
    for name, texts in swaps.items():
        got, plain = (subject.draw(x, texts) for x in (case.refined, case.noise))
        record.compare("prompts: layout", name, got, case.fully, plain)
        record.keep("prompts", name, got, texts)
        if all(texts):
            right = subject.draw(subject.refined(case.noise, texts), texts)
            record.compare("prompts: result", name, got, right, plain)
            record.keep("prompts", f"{name}, refined for it", right, texts)
        if name == "unrelated" and subject.guided:
            led, base = (subject.teach(x, texts) for x in (case.refined, case.noise))
            record.compare("prompts: layout", f"{name}, {GUIDED}", led, case.fully, base)
            record.keep("prompts", f"{name}, {GUIDED}", led, texts)


def partners(texts: Sequence[str], prompts: Sequence[str]) -> dict[str, list[str]]:
    """For each text the prompt that shares most words with it, and the one that shares fewest.

    And none at all. "similar" and "unrelated" are missing where a text has less than two others.
    """
    words = {text: set(re.findall(r"\w+", text.lower())) for text in (*texts, *prompts)}

    def alike(a: str, b: str) -> float:
        return len(words[a] & words[b]) / max(len(words[a] | words[b]), 1)

    others = {text: [p for p in dict.fromkeys(prompts) if p != text] for text in set(texts)}
    found = {"empty": [""] * len(texts)}
    if all(len(each) > 1 for each in others.values()):
        near = {text: max(each, key=lambda p: alike(text, p)) for text, each in others.items()}
        far = {text: min(each, key=lambda p: alike(text, p)) for text, each in others.items()}
        found = {
            "similar": [near[text] for text in texts],
            "unrelated": [far[text] for text in texts],
        } | found
    return found


# ------------------------------------------------------------------ between two noises


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """The point at share `t` of the arc between rows of noise, which keeps their size."""
    x, y = (v.flatten(1) / v.flatten(1).norm(dim=1, keepdim=True) for v in (a, b))
    angle = (x * y).sum(1).clamp(-1, 1).acos().reshape(-1, *[1] * (a.ndim - 1))
    return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)


def interpolate(subject: NoiseExperiment, seeds: Sequence[int], record: Results) -> None:
    """Images of noises between those of neighbouring seeds, refined for the first's prompt.

    Notes the largest of the steps between them as a share of all: 1 / (stops - 1) where the way
    is even, 1 where it jumps.
    """
    a, b = subject.noise(seeds), subject.noise([*seeds[1:], seeds[0]])
    texts = [subject.text(seed) for seed in seeds]
    ways: dict[str, list[Samples]] = {UNREFINED: [], REFINED: []}
    for stop in STOPS:
        noise = slerp(a, b, stop)
        ways[UNREFINED].append(subject.draw(noise, texts))
        ways[REFINED].append(subject.draw(subject.refined(noise, texts), texts))
    for name, way in ways.items():
        steps = torch.stack([p.apart(q)["latents"].sqrt() for p, q in pairwise(way)])
        record.note("between", name, steps.amax(0) / steps.sum(0))
        for stop, drawn in zip(STOPS, way, strict=True):
            record.keep(f"between, {name}", f"{stop:g}", drawn)


def parts(seeds: Sequence[int], batch: int) -> list[list[int]]:
    """Seeds, so many at a time."""
    return [list(seeds[i : i + batch]) for i in range(0, len(seeds), batch)]
