"""`diffsteer refine`: what noise refiners learn from; importable without torch."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import OmitArgPrefixes

from diffsteer.recipe import Recipe, prompts_of, seeds_of

if TYPE_CHECKING:
    from diffsteer.refine.best import Score

NOTHING_SAID = Recipe()


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
        score: MODULE:FUNCTION from uint8 pictures (N, 3, H, W) and their prompts to a number each,
            by which training may leave out the worse (settings.least).
    """
    from diffsteer.eval.processes import Processes, launched
    from diffsteer.refine.targets import make

    if not recipe.model or recipe.prompt:
        raise ValueError("name a model (hub id or folder), and give prompts in a file (--prompts)")
    recipe = replace(recipe, prompts=prompts_of(prompts))
    function = _function(score) if score else None
    with launched():
        n = make(recipe, seeds_of(seeds), out, batch, device, function, score)
        if Processes.running().rank == 0:
            print(f"{out} holds {n} targets of {recipe.guidance}")


def _function(name: str) -> "Score":
    """The function that MODULE:FUNCTION names."""
    from importlib import import_module

    module, colon, function = name.partition(":")
    try:
        found: Score = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--score {name}: {error}; write MODULE:FUNCTION") from error
    if not colon or not callable(found):
        raise ValueError(f"--score {name} is no function: write MODULE:FUNCTION")
    return found
