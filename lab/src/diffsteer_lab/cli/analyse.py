"""`diffsteer refine analyse`; importable without torch."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import OmitArgPrefixes

from diffsteer.core.errors import InputError
from diffsteer.generate.recipe import Recipe
from diffsteer.io.seeds import parse_seeds, prompts_of

if TYPE_CHECKING:
    from diffsteer.metrics.features import Extractor

AS_TRAINED = Recipe(sampler="DDIM()", steps=10)
"""Sampling of the student of `diffsteer train refiner` by default."""


def analyse(
    recipe: OmitArgPrefixes[Recipe] = AS_TRAINED,
    prompts: Path = Path("prompts.txt"),
    seeds: str = "0-15",
    count: int = 128,
    out: Path = Path("analysis"),
    batch: int = 8,
    device: str = "",
    show: int = 4,
    score: str = "",
) -> None:
    """Show what a refiner changes in noise, and which frequencies carry the result, on a page.

    Spectra of the change and of inverted guided images, refined noise swapped band by band,
    sweeps of strength and prompt, and baselines, with intervals over seeds. Features are those of
    the extra `eval`, where it is installed.

    Args:
        recipe: Model and refiner; the guidance is of the images that the refiner is compared
            with, and of them alone.
        prompts: File with one prompt a line; seed i shows prompt i mod their number. With three
            or more, prompts are swapped for one another too.
        seeds: Those that are sampled, each about 40 times: "0-15".
        count: Noises in the spectra of the change, >= 2; each costs one network evaluation.
        out: Folder for index.html, analysis.json, charts (SVG) and images (PNG).
        batch: Samples at a time, >= 1.
        device: Where it runs; empty for a GPU if there is one.
        show: Images of so many of the first seeds in the page.
        score: As in `diffsteer refine targets`; judges images by strength, and baselines.
    """
    if not recipe.model or recipe.prompt:
        raise InputError("name a model (hub id or folder), and give prompts in a file (--prompts)")
    recipe, numbers = replace(recipe, prompts=prompts_of(prompts)), parse_seeds(seeds)
    from diffsteer.io.atomic import require_writable

    require_writable(out)
    print(f"opening {recipe.model}", file=sys.stderr, flush=True)
    from diffsteer.io.progress import progress
    from diffsteer.metrics.scores import score_of
    from diffsteer_lab.noise_analysis.analysis import analyse, planned
    from diffsteer_lab.noise_analysis.experiment import noise_experiment
    from diffsteer_lab.noise_analysis.files import write

    judge = score_of(score, device) if score else None
    with noise_experiment(recipe, device, _extractor(device)) as experiment:
        total = planned(experiment, numbers, count, batch, show, judge is not None)
        print(
            f"{count} noises to refine, then {total - count} images of {recipe.steps} steps, of "
            f"{len(numbers)} seeds: fewer --seeds cost less, and give wider intervals",
            file=sys.stderr,
            flush=True,
        )
        with progress(total) as bar:
            experiment.progress = bar.update
            analysis = analyse(experiment, numbers, count, batch, show, judge)
    write(analysis, out)
    print(*analysis.verdicts, out / "index.html", sep="\n")


def _extractor(device: str) -> "Extractor | None":
    """The extractor that works offline, where it is installed."""
    from importlib.util import find_spec

    from diffsteer.io.device import device_of
    from diffsteer.metrics.efficientnet import PACKAGE, EfficientNetLite0

    return EfficientNetLite0(device=device_of(device)) if find_spec(PACKAGE) else None
