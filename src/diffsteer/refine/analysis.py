"""What a refiner changes in noise, and which part of that carries the result.

Source: Ahn et al. 2024, sec. 3.1 and appendix E, https://arxiv.org/abs/2412.03895. Distances, their
intervals and the verdict are ours.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from diffsteer.eval.bootstrap import Interval
from diffsteer.recipe import numeral
from diffsteer.refine.best import STRIDE, Score, scored
from diffsteer.refine.inversion import INVERSIONS
from diffsteer.refine.record import Drawn, Measured, Record
from diffsteer.refine.spectrum import TENTHS, Spectra, band, swapped
from diffsteer.refine.subject import Subject

CUTS = (0.01, 0.02, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7)
"""Upper edges of bands that grow from 0."""
KEPT = (0.1, 0.2, 0.3, 0.5)
"""Radii below, or above, which refined noise is kept while the rest is drawn anew."""
STRENGTHS = (0.25, 0.5, 0.75, 1.5, 2.0)
"""Factors of the change, besides 0 and 1."""
STOPS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of the way from one noise to another."""
RANDOM, REFINED = "another random noise", "refined noise"
UNREFINED, GUIDED = "unrefined", "guided"


@dataclass(frozen=True, eq=False)
class Case:
    """Some seeds, with what experiments start from and compare with.

    Attributes:
        texts: A prompt each.
        noise: Of the seeds.
        refined: What the refiner makes of it.
        fresh: Other Gaussian noise.
        plain: Sampled from `noise`.
        fully: From `refined`.
        other: From `fresh`.
        taught: Guided, from `noise`; None without a guidance.
    """

    texts: list[str]
    noise: Tensor
    refined: Tensor
    fresh: Tensor
    plain: Drawn
    fully: Drawn
    other: Drawn
    taught: Drawn | None

    @classmethod
    def of(cls, subject: Subject, seeds: Sequence[int]) -> "Case":
        """Sample what serves all experiments."""
        texts = [subject.text(seed) for seed in seeds]
        noise, fresh = subject.noise(seeds), subject.noise([seed + STRIDE for seed in seeds])
        refined = subject.refined(noise, texts)
        plain, fully, other = (subject.draw(x, texts) for x in (noise, refined, fresh))
        taught = subject.teach(noise, texts) if subject.guided else None
        return cls(texts, noise, refined, fresh, plain, fully, other, taught)


# ------------------------------------------------------------------ spectra


def spectra(
    subject: Subject, count: int, batch: int, progress: Callable[[int], object] = lambda n: None
) -> dict[str, Spectra]:
    """Spectra of what refining changes, and of the difference of unrelated noises."""
    found = {name: Spectra(*subject.shape[-2:]) for name in (RANDOM, REFINED)}
    for seeds in parts(range(count), batch):
        noise = subject.noise(seeds)
        found[RANDOM].add(noise, subject.noise([seed + STRIDE for seed in seeds]))
        found[REFINED].add(noise, subject.refined(noise, [subject.text(s) for s in seeds]))
        progress(len(seeds))
    return found


def invert(subject: Subject, case: Case, found: dict[str, Spectra], record: Record) -> None:
    """The noise that inversions find for the teacher's pictures, and what it becomes again."""
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


def swap_bands(subject: Subject, case: Case, record: Record) -> None:
    """One band of refined noise in unrefined noise: how far is that from refining all of it?"""
    record.keep("bands", UNREFINED, case.plain)
    record.keep("bands", "fully refined", case.fully)
    for low, high in bands(*subject.shape[-2:]):
        got = subject.draw(swapped(case.noise, case.refined, low, high), case.texts)
        record.compare("bands", named(low, high), got, case.fully, case.plain)
        record.keep("bands", named(low, high), got)


def redraw(subject: Subject, case: Case, record: Record) -> None:
    """Refined noise below a radius, or above it, and the rest drawn anew."""
    record.keep("redraw", "fully refined", case.fully)
    record.keep("redraw", "all drawn anew", case.other)
    for cut in KEPT:
        for low, high in ((0.0, cut), (cut, 1.0)):
            got = subject.draw(swapped(case.fresh, case.refined, low, high), case.texts)
            record.compare("redraw", named(low, high), got, case.fully, case.other)
            record.keep("redraw", named(low, high), got)


def named(low: float, high: float) -> str:
    """Name of a band."""
    return f"{low:g} to {high:g}"


@dataclass(frozen=True)
class Verdict:
    """Whether the lowest band of refined noise carries the result, by the numbers.

    "yes" where the interval of the share that it carries lies above one half, "no" where it lies
    below, else "undecided". The share is 1 less the squared distance to the fully refined result
    that is left when this band alone is refined, over the distance when nothing is.

    Attributes:
        space: In which distances are taken.
        answer: As above.
        band: The lowest band that there is.
        carried: The share.
        energy: Share of the refiner's change that lies in this band.
        coefficients: How many frequencies it holds.
        of: How many there are.
        rival: The band with the largest share among the other tenths.
        rival_carried: Its share.
    """

    space: str
    answer: str
    band: str
    carried: Measured
    energy: float
    coefficients: int
    of: int
    rival: str
    rival_carried: Measured

    def __str__(self) -> str:
        return (
            f"Does the lowest band carry the result? {self.answer.capitalize()}, in {self.space}: "
            f"radii {self.band}, {self.coefficients} of {self.of} frequencies a channel and "
            f"{self.energy:.0%} of the change, carry {share(self.carried)} of it; of the other "
            f"tenths, {self.rival} carries most, {share(self.rival_carried)}"
        )


def verdicts(
    found: dict[str, dict[str, Measured]], energy: Sequence[float], h: int, w: int
) -> list[Verdict]:
    """A verdict for each space.

    Args:
        found: Distances of bands, of `Record.ratios`.
        energy: Of the change, of `Spectra.energy`.
        h: Height of the noise.
        w: Its width.
    """
    tenths = [(low, high) for low, high in bands(h, w) if (low, high) in set(pairwise(TENTHS))]
    names = [named(*edges) for edges in tenths]
    held = int(band(h, w, *tenths[0]).sum())
    spaces = [s for s in found[names[0]] if all(s in found[name] for name in names)]
    made = []
    for space in spaces:
        first, *others = (_carried(found[name][space]) for name in names)
        best = max(range(len(others)), key=lambda i: others[i].value)
        low, high = first.interval
        answer = "yes" if low > 0.5 else "no" if high < 0.5 else "undecided"
        rival = names[1 + best], others[best]
        made.append(Verdict(space, answer, names[0], first, energy[0], held, h * w, *rival))
    return made


def _carried(distance: Measured) -> Measured:
    low, high = distance.interval
    return Measured(1 - distance.value, Interval(1 - high, 1 - low))


def share(carried: Measured) -> str:
    """A share as people read it."""
    low, high = carried.interval
    return f"{carried.value:.0%} ({low:.0%} to {high:.0%})"


# ------------------------------------------------------------------ strength


def strengths(subject: Subject, case: Case, record: Record, score: Score | None) -> None:
    """The change times a factor: how far it leads, how near to the teacher, how good by a score."""
    every = {0.0: case.plain, 1.0: case.fully}
    for factor in STRENGTHS:
        x = case.noise + factor * (case.refined - case.noise)
        every[factor] = subject.draw(x, case.texts)
    for factor, got in sorted(every.items()):
        name = numeral(factor * subject.recipe.strength)
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
    subject: Subject, case: Case, record: Record, swaps: Mapping[str, list[str]]
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


def interpolate(subject: Subject, seeds: Sequence[int], record: Record) -> None:
    """Pictures of noises between those of neighbouring seeds, refined for the first's prompt.

    Notes the largest of the steps between them as a share of all: 1 / (stops - 1) where the way
    is even, 1 where it jumps.
    """
    a, b = subject.noise(seeds), subject.noise([*seeds[1:], seeds[0]])
    texts = [subject.text(seed) for seed in seeds]
    ways: dict[str, list[Drawn]] = {UNREFINED: [], REFINED: []}
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


# ------------------------------------------------------------------ all of it


def planned(subject: Subject, seeds: Sequence[int], batch: int, show: int) -> int:
    """How many pictures `analyse` samples."""
    texts = [subject.text(seed) for seed in seeds]
    swaps = partners(texts, subject.recipe.prompts)
    guided = subject.guided * (1 + 2 * ("unrelated" in swaps))
    for_prompts = 2 * len(swaps) + len(swaps.keys() - {"empty"})
    each = len(bands(*subject.shape[-2:])) + 2 * len(KEPT) + len(STRENGTHS) + for_prompts
    return len(seeds) * (3 + guided + each) + 2 * len(STOPS) * _pairs(seeds, batch, show)


def _pairs(seeds: Sequence[int], batch: int, show: int) -> int:
    """How many ways between noises are shown."""
    return len(seeds[: max(min(show, batch), 2)])


@dataclass(frozen=True, eq=False)
class Analysis:
    """All that was found.

    Attributes:
        recipe: Of what is studied, in plain values.
        weights: Hash of the pipeline's weights.
        refiner: Hash of the refiner's; empty where it has none.
        seeds: Those that were sampled.
        count: How many noises are in the spectra of refining.
        shape: Of one sample's noise.
        spectra: By the name of what is compared with the noise.
        record: Of the experiments.
        verdicts: One a space.
    """

    recipe: dict[str, object]
    weights: str
    refiner: str
    seeds: tuple[int, ...]
    count: int
    shape: tuple[int, ...]
    spectra: dict[str, Spectra]
    record: Record
    verdicts: list[Verdict]


def analyse(
    subject: Subject,
    seeds: Sequence[int],
    count: int = 128,
    batch: int = 8,
    show: int = 4,
    score: Score | None = None,
) -> Analysis:
    """Run every experiment.

    Args:
        subject: What is studied.
        seeds: Those that are sampled, about 40 times each; >= 2, each once.
        count: Noises in the spectra of refining, of seeds 0 to count - 1; >= 2.
        batch: Samples at a time, >= 1; bounds the memory.
        show: Pictures of so many of the first seeds are kept; >= 0.
        score: Judges pictures in the sweep of strengths.

    Raises:
        ValueError: the numbers cannot be, or the refiner changes nothing.
    """
    if len(set(seeds)) < max(len(seeds), 2) or count < 2 or batch < 1 or show < 0:
        raise ValueError(
            f"{len(seeds)} seeds, count={count}, batch={batch}, show={show}: give at least 2 "
            "seeds, each once, and count >= 2, as intervals need; batch >= 1 and show >= 0"
        )
    found = spectra(subject, count, batch)
    if found[REFINED].size() == 0:
        raise ValueError(
            "this refiner leaves noise as it is, so that there is nothing to analyse: was it "
            "trained, and is its strength not 0?"
        )
    record = Record(show)
    for part in parts(seeds, batch):
        case = Case.of(subject, part)
        if case.taught is not None:
            invert(subject, case, found, record)
        swap_bands(subject, case, record)
        redraw(subject, case, record)
        strengths(subject, case, record, score)
        swap_prompts(subject, case, record, partners(case.texts, subject.recipe.prompts))
    interpolate(subject, seeds[: _pairs(seeds, batch, show)], record)
    size = subject.shape[-2:]
    answers = verdicts(record.ratios("bands"), found[REFINED].energy(), *size)
    refiner = getattr(subject.by, "sha256", "")
    about = subject.recipe.said, subject.weights, refiner, tuple(seeds), count, subject.shape
    return Analysis(*about, found, record, answers)
