"""All experiments on one refiner."""

from collections.abc import Sequence
from dataclasses import dataclass

from diffsteer.core.errors import InputError
from diffsteer.generate.recipe import Recipe
from diffsteer.metrics.best_of_n import Score
from diffsteer_lab.noise_analysis.baselines import compare_baselines, extra_images, left_out
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
from diffsteer_lab.noise_analysis.spectrum import Spectra
from diffsteer_lab.noise_analysis.trajectory import note_trajectory
from diffsteer_lab.noise_analysis.verdict import Verdict, verdicts


def planned(
    experiment: NoiseExperiment,
    seeds: Sequence[int],
    count: int,
    batch: int,
    show: int,
    judged: bool = False,
) -> int:
    """Number of noises that `analyse` refines for spectra and of images that it samples.

    Arguments are those of `analyse`; `judged` is whether there is a score.
    """
    texts = [experiment.text(seed) for seed in seeds]
    swaps = partners(texts, experiment.recipe.prompts)
    guided = experiment.guided * (1 + 2 * ("unrelated" in swaps))
    for_prompts = 2 * len(swaps) + len(swaps.keys() - {"empty"})
    each = len(bands(*experiment.shape[-2:])) + 2 * len(KEPT) + len(STRENGTHS) + for_prompts
    each += extra_images(left_out(experiment, judged))
    images = len(seeds) * (3 + guided + each) + 2 * len(STOPS) * _pairs(seeds, batch, show)
    return count + images


def _pairs(seeds: Sequence[int], batch: int, show: int) -> int:
    """Number of pairs of noises between which samples are drawn."""
    return len(seeds[: max(min(show, batch), 2)])


@dataclass(frozen=True, eq=False)
class Analysis:
    """Results of all experiments.

    Attributes:
        recipe: Model, refiner and sampling.
        weights: Hash of the pipeline's weights.
        refiner: Hash of the refiner's; empty where it has none.
        seeds: Those that were sampled.
        count: How many noises are in the spectra of refining.
        shape: Of one sample's noise.
        spectra: By the name of what is compared with the noise.
        results: Of the experiments.
        verdicts: One a space.
        left_out: Baselines that are not beside the refiner, and why.
    """

    recipe: Recipe
    weights: str
    refiner: str
    seeds: tuple[int, ...]
    count: int
    shape: tuple[int, ...]
    spectra: dict[str, Spectra]
    results: Results
    verdicts: list[Verdict]
    left_out: dict[str, str]

    def prompt(self, seed: int) -> str:
        """Prompt of a seed."""
        return self.recipe.for_seed(seed).prompt


def analyse(
    experiment: NoiseExperiment,
    seeds: Sequence[int],
    count: int = 128,
    batch: int = 8,
    show: int = 4,
    score: Score | None = None,
) -> Analysis:
    """Run every experiment.

    Args:
        experiment: Pipeline and refiner.
        seeds: Those that are sampled, about 40 times each; >= 2, each once.
        count: Noises in the spectra of refining, of seeds 0 to count - 1; >= 2.
        batch: Samples at a time, >= 1; bounds the memory.
        show: Images of so many of the first seeds are kept; >= 0.
        score: Judges images in the sweep of strengths, and baselines.

    Raises:
        ValueError: the numbers cannot be, or the refiner changes nothing.
    """
    if len(set(seeds)) < max(len(seeds), 2) or count < 2 or batch < 1 or show < 0:
        raise InputError(
            f"{len(seeds)} seeds, count={count}, batch={batch}, show={show}: give at least 2 "
            "seeds, each once, and count >= 2, as intervals need; batch >= 1 and show >= 0"
        )
    noise_spectra = spectra(experiment, count, batch)
    if noise_spectra[REFINED].size() == 0:
        raise InputError(
            "this refiner leaves noise as it is, so that there is nothing to analyse: was it "
            "trained, and is its strength not 0?"
        )
    results, missing = Results(show), left_out(experiment, score is not None)
    for part in parts(seeds, batch):
        case = Case.of(experiment, part)
        if case.guided is not None:
            invert(experiment, case, noise_spectra, results)
        swap_bands(experiment, case, results)
        redraw(experiment, case, results)
        strengths(experiment, case, results, score)
        swap_prompts(experiment, case, results, partners(case.texts, experiment.recipe.prompts))
        note_trajectory(experiment, case, results)
        compare_baselines(experiment, case, results, score, missing)
    interpolate(experiment, seeds[: _pairs(seeds, batch, show)], results)
    size = experiment.shape[-2:]
    moved = results.ratios("moved")[REFINED]
    answers = verdicts(results.ratios("bands"), moved, noise_spectra[REFINED].energy(), *size)
    refiner = getattr(experiment.by, "sha256", "")
    about = experiment.recipe, experiment.weights, refiner, tuple(seeds), count, experiment.shape
    return Analysis(*about, noise_spectra, results, answers, missing)
