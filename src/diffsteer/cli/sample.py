"""`diffsteer sample`: images whose metadata hold all that made them; importable without torch."""

from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import OmitArgPrefixes, arg

from diffsteer.core.errors import InputError
from diffsteer.generate import networks, published
from diffsteer.generate.networks import Images
from diffsteer.generate.options import (
    NO_OPTIONS,
    OFFICIAL_NOISE,
    Noise,
    Options,
    again,
)
from diffsteer.generate.published import NOTHING_PUBLISHED, Published
from diffsteer.generate.recipe import Recipe, recipe_of_png
from diffsteer.generate.seed_images import Numbered, share
from diffsteer.io.seeds import parse_seeds, prompts_of

if TYPE_CHECKING:
    from diffsteer.generate.pipelines import Rendering

NOTHING_SAID = Recipe()


def sample(
    recipe: OmitArgPrefixes[Recipe] = NOTHING_SAID,
    seeds: str = "0",
    out: Path = Path("out"),
    batch: int = 4,
    device: str = "",
    prompts: Path | None = None,
    like: Annotated[Path | None, arg(name="from", metavar="PNG")] = None,
    preset: OmitArgPrefixes[Published] = NOTHING_PUBLISHED,
    network: OmitArgPrefixes[Options] = NO_OPTIONS,
    noise: OmitArgPrefixes[Noise] = OFFICIAL_NOISE,
) -> None:
    """Sample images; one that is there already is not made again.

    Where torchrun or accelerate launch starts several processes, each makes a share of them.

    Args:
        recipe: How.
        seeds: One image each: "7", "0-63", "0-3,8".
        out: Folder for the images, SEED.png.
        batch: Images at a time, >= 1; changes none of them.
        device: Where it runs; empty for a GPU if there is one.
        prompts: File with one prompt a line; the image of seed i shows prompt i mod their number.
        like: Repeat this picture: its metadata hold model, recipe and seed.
        preset: A published configuration, instead of model and recipe; or, where the model is a
            folder of `diffsteer convert`, its class and the like.
        network: More of such a folder of ADM.
        noise: More of such a folder of EDM2.
    """
    from diffsteer.generate.pipelines import rendering

    numbers = parse_seeds(seeds)
    if batch < 1:
        raise InputError(f"batch={batch} makes no picture: give at least 1")
    if prompts is not None:
        recipe = replace(recipe, prompts=prompts_of(prompts))
    if like is not None:
        if (recipe, seeds, network, noise) != (NOTHING_SAID, "0", NO_OPTIONS, OFFICIAL_NOISE):
            raise InputError(
                "--from repeats an image as it was: give no model, recipe or seeds, no options"
            )
        recipe, seed = recipe_of_png(like)
        numbers = [seed]
        preset, network, noise = again(like, preset)
    if networks.format_of(recipe.model):
        images = networks.opened(recipe, preset, network, noise, device)
        _fill(images, numbers, out, batch, preset.subdirs)
        return
    if (network, noise) != (NO_OPTIONS, OFFICIAL_NOISE):
        raise InputError(
            "respacing, classifier and head split are of ADM networks, sigmas, rho and churn of "
            "EDM2: name a folder of `diffsteer convert adm` or `convert edm2` as model"
        )
    if preset != NOTHING_PUBLISHED:
        if recipe != NOTHING_SAID:
            raise InputError("a preset says model and recipe: give neither, nor --from")
        published.sample(preset, numbers, out, batch, device)
        return
    if not recipe.model:
        raise InputError("name a model (hub id or folder), or an image to repeat with --from")
    _fill(rendering(recipe, device), numbers, out, batch)


def _fill(
    opened: "AbstractContextManager[Rendering | Images]",
    seeds: list[int],
    out: Path,
    batch: int,
    subdirs: bool = False,
) -> None:
    """Make this process's share of the images, and say how many."""
    mine = share(seeds)
    with opened as images:
        done = render(images, mine, out, batch, subdirs)
    print(f"{out}: {done} of {len(mine)} images were there, {len(mine) - done} made")


def render(
    images: "Rendering | Images", seeds: list[int], out: Path, batch: int, subdirs: bool = False
) -> int:
    """Make the images of seeds, SEED.png in a folder; returns how many were there already.

    Raises:
        ValueError: another recipe or model made an image that is there.
    """
    pictures = Numbered(out, images.decides, {"made_by": images.recipe.hash}, subdirs)
    todo = pictures.missing(seeds)
    pictures.fill(todo, images, batch)
    return len(seeds) - len(todo)
