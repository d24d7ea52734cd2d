"""`diffsteer refine`: targets of noise refiners; importable without torch."""

from dataclasses import replace
from pathlib import Path

from tyro.conf import OmitArgPrefixes

from diffsteer.core.errors import InputError
from diffsteer.generate.recipe import NOTHING, Recipe
from diffsteer.io.seeds import parse_seeds, prompts_of


def targets(
    recipe: OmitArgPrefixes[Recipe] = NOTHING,
    prompts: Path = Path("prompts.txt"),
    seeds: str = "0-9999",
    out: Path = Path("targets"),
    batch: int = 8,
    device: str = "",
    score: str = "",
    trajectory: bool = False,
) -> None:
    """Sample what a guided teacher makes of noise, for `diffsteer train refiner` or `agd`.

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
            Aesthetic("FILE", clip="WEIGHTS"), or MODULE:FUNCTION from uint8 images (N, 3, H, W)
            and their prompts to a number each.
        trajectory: Keep each step as well, for `diffsteer train agd`.
    """
    from diffsteer.generate.recipe_checks import require_consistent
    from diffsteer.io.atomic import require_writable
    from diffsteer.io.distributed import Processes, launched
    from diffsteer.metrics.scores import name_of, score_of
    from diffsteer.train.refiner.targets import make

    if not recipe.model or recipe.prompt:
        raise InputError("name a model (hub id or folder), and give prompts in a file (--prompts)")
    recipe = replace(recipe, prompts=prompts_of(prompts))
    require_consistent(recipe)
    require_writable(out)
    judge = score_of(score, device) if score else None
    with launched():
        scorer = name_of(judge, score) if judge else ""
        n = make(recipe, parse_seeds(seeds), out, batch, device, judge, scorer, trajectory)
        if Processes.running().rank == 0:
            print(f"{out} holds {n} targets of {recipe.guidance}")
