"""All experiments on one refiner."""

from collections.abc import Sequence
from dataclasses import dataclass

from diffsteer.core.errors import InputError
from diffsteer.metrics.best_of_n import Score
from diffsteer_lab.noise_analysis.experiment import NoiseExperiment
from diffsteer_lab.noise_analysis.experiments import (
    KEPT,
    REFINED,
    STOPS,
    STRENGTHS,
    Case,
    bands,
    interpolate,
    invert,
    partners,
    parts,
    redraw,
    spectra,
    strengths,
    swap_bands,
    swap_prompts,
)
from diffsteer_lab.noise_analysis.results import Results
from diffsteer_lab.noise_analysis.rivals import extra_images, left_out, rivals
from diffsteer_lab.noise_analysis.spectrum import Spectra
from diffsteer_lab.noise_analysis.trajectory import trajectory
from diffsteer_lab.noise_analysis.verdict import Verdict, verdicts


def planned(
    subject: NoiseExperiment, seeds: Sequence[int], batch: int, show: int, judged: bool = False
) -> int:
    """How many images `analyse` samples; `judged`: with a score."""
    texts = [subject.text(seed) for seed in seeds]
    swaps = partners(texts, subject.recipe.prompts)
    guided = subject.guided * (1 + 2 * ("unrelated" in swaps))
    for_prompts = 2 * len(swaps) + len(swaps.keys() - {"empty"})
    each = len(bands(*subject.shape[-2:])) + 2 * len(KEPT) + len(STRENGTHS) + for_prompts
    each += extra_images(left_out(subject, judged))
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
        left_out: What is not beside the refiner, and why.
    """

    recipe: dict[str, object]
    weights: str
    refiner: str
    seeds: tuple[int, ...]
    count: int
    shape: tuple[int, ...]
    spectra: dict[str, Spectra]
    record: Results
    verdicts: list[Verdict]
    left_out: dict[str, str]


def analyse(
    subject: NoiseExperiment,
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
        show: Images of so many of the first seeds are kept; >= 0.
        score: Judges images in the sweep of strengths, and rivals.

    Raises:
        ValueError: the numbers cannot be, or the refiner changes nothing.
    """
    if len(set(seeds)) < max(len(seeds), 2) or count < 2 or batch < 1 or show < 0:
        raise InputError(
            f"{len(seeds)} seeds, count={count}, batch={batch}, show={show}: give at least 2 "
            "seeds, each once, and count >= 2, as intervals need; batch >= 1 and show >= 0"
        )
    found = spectra(subject, count, batch)
    if found[REFINED].size() == 0:
        raise InputError(
            "this refiner leaves noise as it is, so that there is nothing to analyse: was it "
            "trained, and is its strength not 0?"
        )
    record, missing = Results(show), left_out(subject, score is not None)
    for part in parts(seeds, batch):
        case = Case.of(subject, part)
        if case.taught is not None:
            invert(subject, case, found, record)
        swap_bands(subject, case, record)
        redraw(subject, case, record)
        strengths(subject, case, record, score)
        swap_prompts(subject, case, record, partners(case.texts, subject.recipe.prompts))
        trajectory(subject, case, record)
        rivals(subject, case, record, score, missing)
    interpolate(subject, seeds[: _pairs(seeds, batch, show)], record)
    size = subject.shape[-2:]
    moved = record.ratios("moved")[REFINED]
    answers = verdicts(record.ratios("bands"), moved, found[REFINED].energy(), *size)
    refiner = getattr(subject.by, "sha256", "")
    about = subject.recipe.to_dict(), subject.weights, refiner, tuple(seeds), count, subject.shape
    return Analysis(*about, found, record, answers, missing)
