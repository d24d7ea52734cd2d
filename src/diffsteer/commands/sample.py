"""`diffsteer sample`: pictures whose metadata hold all that made them; importable without torch."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import OmitArgPrefixes, arg

from diffsteer.commands import published
from diffsteer.commands.published import NOTHING_PUBLISHED, Published
from diffsteer.recipe import KEY, Recipe, differences, metadata, prompts_of, recalled, seeds_of

if TYPE_CHECKING:
    from torch import Tensor

    from diffsteer.render import Rendering

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
) -> None:
    """Sample pictures; one that is there already is not made again.

    Where torchrun or accelerate launch starts several processes, each makes a share of them.

    Args:
        recipe: How.
        seeds: One picture each: "7", "0-63", "0-3,8".
        out: Folder for the pictures, SEED.png.
        batch: Pictures at a time, >= 1; changes none of them.
        device: Where it runs; empty for a GPU if there is one.
        prompts: File with one prompt a line; the picture of seed i shows prompt i mod their number.
        like: Repeat this picture: its metadata hold model, recipe and seed.
        preset: A published configuration, instead of model and recipe.
    """
    from diffsteer.render import rendering

    numbers = seeds_of(seeds)
    if preset != NOTHING_PUBLISHED:
        if recipe != NOTHING_SAID or like or prompts:
            raise ValueError("a preset says model and recipe: give neither, nor --from")
        published.sample(preset, numbers, out, batch, device)
        return
    if prompts is not None:
        recipe = replace(recipe, prompts=prompts_of(prompts))
    if like is not None:
        if recipe != NOTHING_SAID or seeds != "0":
            raise ValueError("--from repeats a picture as it was: give no model, recipe or seeds")
        recipe, seed = recalled(like)
        numbers = [seed]
    if not recipe.model:
        raise ValueError("name a model (hub id or folder), or a picture to repeat with --from")
    if batch < 1:
        raise ValueError(f"batch={batch} makes no picture: give at least 1")
    numbers = numbers[int(os.environ.get("RANK", 0)) :: int(os.environ.get("WORLD_SIZE", 1))]
    with rendering(recipe, device) as images:
        done = render(images, numbers, out, batch)
    print(f"{out}: {done} of {len(numbers)} pictures were there, {len(numbers) - done} made")


def render(images: "Rendering", seeds: list[int], out: Path, batch: int) -> int:
    """Make the pictures of seeds, SEED.png in a folder; returns how many were there already.

    Raises:
        ValueError: another recipe or model made a picture that is there.
    """
    from tqdm import tqdm

    todo = [seed for seed in seeds if not _made(out / f"{seed:06d}.png", seed, images)]
    out.mkdir(parents=True, exist_ok=True)
    with tqdm(
        total=len(seeds), initial=len(seeds) - len(todo), unit="picture", disable=None
    ) as bar:
        for start in range(0, len(todo), batch):
            part = todo[start : start + batch]
            for seed, picture in zip(part, images(part), strict=True):
                _save(picture, out / f"{seed:06d}.png", seed, images)
            bar.update(len(part))
    return len(seeds) - len(todo)


def _made(path: Path, seed: int, images: "Rendering") -> bool:
    """Whether a picture is there already; one of another recipe or model is in the way."""
    if not path.exists():
        return False
    wanted = images.recipe.of(seed).said | {"weights": images.weights}
    said = metadata(path)
    made = {} if said is None else said["recipe"] | {"weights": said.get("weights")}
    if said is None or made != wanted:
        how = "not by this command" if said is None else f"otherwise: {differences(made, wanted)}"
        raise ValueError(f"{path} was made {how}. Give another --out, or remove it")
    return True


def _save(pixels: "Tensor", path: Path, seed: int, images: "Rendering") -> None:
    import diffusers
    import torch
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    from diffsteer.whole import whole

    said: dict[str, Any] = {
        "recipe": images.recipe.of(seed).said,
        "made_by": images.recipe.hash,
        "seed": seed,
        "weights": images.weights,
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
    }
    info = PngInfo()
    info.add_text(KEY, json.dumps(said))
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    with whole(path) as file:
        picture.save(file, format="png", pnginfo=info)
