"""`diffsteer refine`: targets of noise refiners, and what those do; importable without torch."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import OmitArgPrefixes

from diffsteer.recipe import Recipe, prompts_of, seeds_of

if TYPE_CHECKING:
    from diffsteer.eval.features import Extractor

NOTHING_SAID = Recipe()
AS_TRAINED = Recipe(sampler="DDIM()", steps=10)
"""How the student of `diffsteer train refiner` samples, where its settings do not say otherwise."""


def targets(
    recipe: OmitArgPrefixes[Recipe] = NOTHING_SAID,
    prompts: Path = Path("prompts.txt"),
    seeds: str = "0-9999",
    out: Path = Path("targets"),
    batch: int = 8,
    device: str = "",
    score: str = "",
) -> None:
    """Sample what a guided teacher makes of noise, for `diffsteer train refiner`.

    What is there is not made again. Where torchrun or accelerate launch starts several processes,
    each makes a share.

    Args:
        recipe: The teacher; its guidance is what the refiner is to replace.
        prompts: File with one prompt a line; seed i shows prompt i mod their number.
        seeds: One target each: "0-9999".
        out: Folder for the targets.
        batch: Targets at a time, >= 1; changes none of them.
        device: Where it runs; empty for a GPU if there is one.
        score: By which training may leave out the worse (settings.least): CLIPScore("WEIGHTS"),
            Aesthetic("FILE", clip="WEIGHTS"), or MODULE:FUNCTION from uint8 pictures (N, 3, H, W)
            and their prompts to a number each.
    """
    from diffsteer.eval.processes import Processes, launched
    from diffsteer.refine.scores import name_of, score_of
    from diffsteer.refine.targets import make

    if not recipe.model or recipe.prompt:
        raise ValueError("name a model (hub id or folder), and give prompts in a file (--prompts)")
    recipe = replace(recipe, prompts=prompts_of(prompts))
    judge = score_of(score, device) if score else None
    with launched():
        scorer = name_of(judge, score) if judge else ""
        n = make(recipe, seeds_of(seeds), out, batch, device, judge, scorer)
        if Processes.running().rank == 0:
            print(f"{out} holds {n} targets of {recipe.guidance}")


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

    Spectra of the change and of inverted guided pictures, refined noise swapped band by band,
    sweeps of strength and prompt, and rivals, with intervals over seeds. Features are those of the
    extra `eval`, where it is installed.

    Args:
        recipe: Model and refiner; the guidance is of the pictures that the refiner is compared
            with, and of them alone.
        prompts: File with one prompt a line; seed i shows prompt i mod their number. With three
            or more, prompts are swapped for one another too.
        seeds: Those that are sampled, each about 40 times: "0-15".
        count: Noises in the spectra of the change, >= 2; each costs a row of the network.
        out: Folder for index.html, analysis.json, charts (SVG) and pictures (PNG).
        batch: Samples at a time, >= 1.
        device: Where it runs; empty for a GPU if there is one.
        show: Pictures of so many of the first seeds in the page.
        score: As in `diffsteer refine targets`; judges pictures by strength, and rivals.
    """
    from tqdm import tqdm

    from diffsteer.refine.scores import score_of
    from diffsteer.refine.study.analysis import analyse, planned
    from diffsteer.refine.study.files import write
    from diffsteer.refine.study.subject import subject

    if not recipe.model or recipe.prompt:
        raise ValueError("name a model (hub id or folder), and give prompts in a file (--prompts)")
    recipe, numbers = replace(recipe, prompts=prompts_of(prompts)), seeds_of(seeds)
    judge = score_of(score, device) if score else None
    with subject(recipe, device, _extractor(device)) as studied:
        total = planned(studied, numbers, batch, show, judge is not None)
        with tqdm(total=total, unit="picture", disable=None) as bar:
            studied.progress = bar.update
            found = analyse(studied, numbers, count, batch, show, judge)
    write(found, out)
    print(*found.verdicts, out / "index.html", sep="\n")


def _extractor(device: str) -> "Extractor | None":
    """The extractor that works offline, where it is installed."""
    from importlib.util import find_spec

    from diffsteer.eval.efficientnet import PACKAGE, EfficientNetLite0
    from diffsteer.eval.features import device_of

    return EfficientNetLite0(device=device_of(device)) if find_spec(PACKAGE) else None
