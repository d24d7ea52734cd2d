"""`diffsteer sample`: pictures whose metadata hold all that made them; importable without torch."""

import inspect
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, arg

from diffsteer.commands import published
from diffsteer.commands.published import NOTHING_PUBLISHED, Published

KEY = "diffsteer"
"""Name of the text in a PNG that holds the recipe."""


@dataclass(frozen=True)
class Recipe:
    """All that decides how a picture comes out, but its seed.

    Attributes:
        prompt: What to show; empty for networks without prompts.
        negative: What the null half of the batch shows instead of nothing.
        guidance: Such as "CFG(6) + SAG(0.75)"; empty for none.
        sampler: Such as "UniPC()" or "DDIM(eta=1.0)"; empty keeps the scheduler of the model.
        spacing: Which timesteps a sampler visits: trailing, leading, linspace, logsigma, karras.
        zero_snr: Rescale the schedule to zero terminal SNR; for networks that were trained so.
        steps: Number of sampling steps.
        width: Of the picture in pixels; 0 for the size of the model.
        height: The same.
        guide: Hub id or folder of the weaker network for autoguidance.
    """

    prompt: str = ""
    negative: str = ""
    guidance: str = ""
    sampler: str = ""
    spacing: str = "trailing"
    zero_snr: Annotated[bool, FlagCreatePairsOff] = False
    steps: int = 25
    width: int = 0
    height: int = 0
    guide: str = ""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"{self.steps} steps sample nothing: give at least 1")
        if not self.sampler and (self.zero_snr or self.spacing != "trailing"):
            raise ValueError(
                "spacing and zero SNR belong to a sampler of ours: name one, such as "
                '--sampler "UniPC()"'
            )


NOTHING_SAID = Recipe()


def sample(
    model: Positional[str] = "",
    /,
    recipe: OmitArgPrefixes[Recipe] = NOTHING_SAID,
    seeds: str = "0",
    out: Path = Path("out"),
    batch: int = 4,
    device: str = "",
    like: Annotated[Path | None, arg(name="from", metavar="PNG")] = None,
    preset: OmitArgPrefixes[Published] = NOTHING_PUBLISHED,
) -> None:
    """Sample pictures; one that is there already is not made again.

    Args:
        model: Hub id or folder of a diffusers pipeline.
        recipe: How.
        seeds: One picture each: "7", "0-63", "0-3,8".
        out: Folder for the pictures, SEED.png.
        batch: Pictures at a time, >= 1; changes none of them.
        device: Where it runs; empty for a GPU if there is one.
        like: Repeat this picture: its metadata hold model, recipe and seed.
        preset: A published configuration, instead of model and recipe.
    """
    numbers = seeds_of(seeds)
    if preset != NOTHING_PUBLISHED:
        if model or recipe != NOTHING_SAID or like:
            raise ValueError("a preset says model and recipe: give neither, nor --from")
        published.sample(preset, numbers, out, batch, device)
        return
    if like is not None:
        if model or recipe != NOTHING_SAID or seeds != "0":
            raise ValueError("--from repeats a picture as it was: give no model, recipe or seeds")
        model, recipe, numbers = recalled(like)
    if not model:
        raise ValueError("name a model (hub id or folder), or a picture to repeat with --from")
    if batch < 1:
        raise ValueError(f"batch={batch} makes no picture: give at least 1")
    todo = [seed for seed in numbers if not _made(out / f"{seed:06d}.png", model, recipe)]
    print(
        f"{out}: {len(numbers) - len(todo)} of {len(numbers)} pictures are there, {len(todo)} to do"
    )
    if todo:
        out.mkdir(parents=True, exist_ok=True)
        for seed, picture in _pictures(model, recipe, todo, batch, device):
            _save(picture, out / f"{seed:06d}.png", model, recipe, seed)


def seeds_of(text: str) -> list[int]:
    """Read "0-63" or "1,5,7-9".

    Raises:
        ValueError: it is no such list, or names a seed twice.
    """
    seeds: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            seeds += range(int(first), int(last if dash else first) + 1)
    except ValueError as error:
        raise ValueError(f'{text!r} are no seeds: write "7", "0-63" or "0-3,8"') from error
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"{text!r} names {'no seed' if not seeds else 'a seed twice'}")
    return seeds


def recalled(path: Path) -> tuple[str, Recipe, list[int]]:
    """Model, recipe and seed of a picture that was made by `sample`.

    Raises:
        ValueError: the picture does not hold them, or a later version wrote more than we know.
    """
    said = _metadata(path)
    if said is None:
        raise ValueError(f"{path} holds no recipe: `diffsteer sample` did not make it")
    known = {field.name for field in fields(Recipe)}
    if extra := said["recipe"].keys() - known:
        raise ValueError(
            f"{path} says {', '.join(sorted(extra))}, which this version does not know"
        )
    return said["model"], Recipe(**said["recipe"]), [said["seed"]]


def _metadata(path: Path) -> dict[str, Any] | None:
    from PIL import Image

    with Image.open(path) as picture:
        text = picture.info.get(KEY)
    return None if text is None else json.loads(text)


def _made(path: Path, model: str, recipe: Recipe) -> bool:
    """Whether a picture is there already; one of another recipe is in the way."""
    if not path.exists():
        return False
    said = _metadata(path)
    if said is None or (said["model"], said["recipe"]) != (model, asdict(recipe)):
        raise ValueError(
            f"{path} was made otherwise: {said and said['recipe']}. "
            "Give another --out, or remove it"
        )
    return True


def _save(picture: Any, path: Path, model: str, recipe: Recipe, seed: int) -> None:
    import diffusers
    import torch
    from PIL.PngImagePlugin import PngInfo

    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
    said = {"model": model, "recipe": asdict(recipe), "seed": seed, "versions": versions}
    info = PngInfo()
    info.add_text(KEY, json.dumps(said))
    part = path.with_suffix(".part")
    picture.save(part, format="png", pnginfo=info)
    part.replace(path)


def _pictures(
    model: str, recipe: Recipe, seeds: Sequence[int], batch: int, device: str
) -> Iterator[tuple[int, Any]]:
    """Yield each seed and its picture."""
    from contextlib import nullcontext

    import torch
    from tqdm import tqdm

    from diffsteer.hf.steer import steer

    pipe = _pipeline(model, recipe, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    guide = _guide(recipe, pipe) if recipe.guide else None
    held = steer(pipe, recipe.guidance, guide) if recipe.guidance else nullcontext()
    with held, tqdm(total=len(seeds), unit="picture") as bar:
        for start in range(0, len(seeds), batch):
            part = seeds[start : start + batch]
            yield from zip(part, pipe(**_call(pipe, recipe, part)).images, strict=True)
            bar.update(len(part))


def _pipeline(model: str, recipe: Recipe, device: str) -> Any:
    import torch
    from diffusers import DiffusionPipeline

    from diffsteer.hf.scheduler import SteerScheduler

    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    pipe = DiffusionPipeline.from_pretrained(model, torch_dtype=dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    if recipe.sampler:
        changes: dict[str, Any] = {"sampler": recipe.sampler, "timestep_spacing": recipe.spacing}
        if recipe.zero_snr:
            changes["rescale_betas_zero_snr"] = True
        pipe.scheduler = SteerScheduler.from_config(pipe.scheduler.config, **changes)
    return pipe


def _guide(recipe: Recipe, pipe: Any) -> Any:
    from diffusers import AutoModel

    return AutoModel.from_pretrained(recipe.guide, torch_dtype=pipe.dtype).to(pipe.device)


def _call(pipe: Any, recipe: Recipe, seeds: Sequence[int]) -> dict[str, Any]:
    """Arguments of one call of the pipeline.

    The null half is always sent; where no guidance asks for it, it is not evaluated.
    """
    import torch

    takes = inspect.signature(pipe.__call__).parameters
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    call: dict[str, Any] = {"num_inference_steps": recipe.steps, "generator": generators}
    if "prompt" in takes:
        call |= {"prompt": [recipe.prompt] * len(seeds)}
        if recipe.negative:
            call["negative_prompt"] = [recipe.negative] * len(seeds)
    elif recipe.prompt or recipe.negative:
        raise ValueError(f"{type(pipe).__name__} takes no prompt: leave it out")
    else:
        call["batch_size"] = len(seeds)
    if "guidance_scale" in takes:
        call["guidance_scale"] = 2.0 if recipe.guidance else 1.0
    for side in ("width", "height"):
        if getattr(recipe, side):
            call[side] = getattr(recipe, side)
    return call
