"""`diffsteer sample`: images whose metadata hold all that made them; importable without torch."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, arg

from diffsteer.cli.options import said, typed
from diffsteer.core.errors import InputError
from diffsteer.generate.options import ADMOptions, format_of, options_of
from diffsteer.generate.recipe import NOTHING, Recipe, recipe_of, recipe_of_png
from diffsteer.io.hub import require_known
from diffsteer.io.seeds import format_seeds, parse_seeds, prompts_of
from diffsteer.models.edm2.loop_settings import Loop


@dataclass(frozen=True)
class Published:
    """A published configuration, such as edm2-img64-s-autog-fid, or how to sample a network.

    Attributes:
        preset: Its name.
        models: Folder with its networks, as .pkl files or folders of `diffsteer convert`, and with
            the decoder of latents; nothing is downloaded.
        weight: Of guidance, instead of the preset's.
        ema: Relative width of the main network's average, instead of the preset's.
        guide_ema: The same of the guide.
        label: Class of all images, by number or name; without, each seed draws one.
        subdirs: Sort images into folders of a thousand seeds.
        precision: "official-bit" rounds gains as official sampling did, "f32-clean" does not; empty
            for the first with a preset and the second without.
    """

    preset: str = ""
    models: Path = Path("models")
    weight: float | None = None
    ema: float | None = None
    guide_ema: float | None = None
    label: Annotated[int | str | None, arg(name="class")] = None
    subdirs: Annotated[bool, FlagCreatePairsOff] = False
    precision: Literal["", "official-bit", "f32-clean"] = ""


COLUMNS = 8
"""Most images in a row of a contact sheet."""
PUBLISHED, NETWORK, LOOP = Published(), ADMOptions(), Loop()


def sample(
    recipe: Recipe | Mapping[str, Any] = NOTHING,
    seeds: str = "0",
    out: Path = Path("out"),
    batch: int = 4,
    device: str = "",
    prompts: Path | None = None,
    like: Path | None = None,
    preset: Published = PUBLISHED,
    network: ADMOptions = NETWORK,
    noise: Loop = LOOP,
    file: Path | None = None,
    frames: bool = False,
    save: Path | None = None,
    sheet: Path | None = None,
) -> None:
    """Sample images; one that is there already is not made again.

    `cli/sample_options.py` says what the arguments are, in their order on the command line:
    `preset`, `network`, `noise` are its advanced options, `file` its --recipe, `like` its --from;
    `recipe` may be those of its fields that are given.
    """
    numbers = parse_seeds(seeds)
    if batch < 1:
        raise InputError(f"batch={batch} makes no image: give at least 1")
    chosen = said(recipe) if isinstance(recipe, Recipe) else {**recipe}
    chosen |= {} if prompts is None else {"prompts": prompts_of(prompts)}
    numbered = seeds != "0" or "seeds" in typed()
    recipe, seed = _merged(file, chosen)
    numbers = [seed] if seed is not None and not numbered else numbers
    own = said(network) | _without(said(noise), "steps")  # --steps is of the recipe
    settings = _without(said(preset, label="class"), "subdirs") | own
    if like is not None:
        if _without(settings, "models") or chosen or file or numbered:
            raise InputError(
                "--from repeats an image as it was: give no model, recipe or seeds, no preset, "
                "no options"
            )
        recipe, seed = recipe_of_png(like)
        numbers = [seed]
        if preset.models != PUBLISHED.models:
            recipe = _with_options(recipe, {"models": preset.models})
    elif preset.preset and not format_of(recipe.model):
        if chosen or file:
            raise InputError("a preset says model and recipe: give neither, nor --from")
        options_of("", own)
        recipe = _preset_recipe(preset)
    elif settings:
        recipe = _with_options(recipe, settings)
    if not recipe.model:
        raise InputError("name a model (hub id or folder), or an image to repeat with --from")
    require_known(recipe.model, recipe.guide, recipe.refiner)
    from diffsteer.generate.generator import open_generator
    from diffsteer.generate.recipe_checks import known_media, require_consistent
    from diffsteer.generate.seed_images import SeedImages, launch, share
    from diffsteer.hf.offload import require_offload
    from diffsteer.io.atomic import require_writable, write_json
    from diffsteer.io.device import device_of
    from diffsteer.io.media import require_video

    require_consistent(recipe)
    if known_media(recipe) == "video" and not frames:
        require_video()
    _require_kind(recipe, known_media(recipe), frames, sheet)
    if sheet is not None and launch()[1] > 1:
        raise InputError("--sheet shows images of one process: leave it out")
    for file in filter(None, (save, sheet)):
        if file.is_dir():
            raise InputError(f"{file} is a folder: name a file in it")
    if save is not None and save.suffix.lower() != ".json":
        raise InputError(f"--save writes JSON, and {save} does not end in .json: name one")
    if sheet is not None and sheet.suffix.lower() != ".png":
        raise InputError(f"--sheet writes a PNG, and {sheet} does not end in .png: name one")
    for path in (out, *(file.parent for file in (save, sheet) if file)):
        require_writable(path)
    if save is not None:
        write_json(save, recipe.to_json())
    numbers = share(numbers)
    require_offload(recipe.offload, device_of(device))
    if not sys.stderr.isatty():
        print(f"loading {recipe.model}", file=sys.stderr, flush=True)
    with open_generator(recipe, device) as generator:
        _require_kind(recipe, generator.media, frames, sheet)
        images = SeedImages(out, generator, preset.subdirs, frames)
        done = images.fill(numbers, batch)
    if sheet is not None:
        write_sheet(sheet, recipe, {seed: images.path(seed) for seed in numbers})
    print(f"{out}: {done} of {len(numbers)} images were there, {len(numbers) - done} made")


def _require_kind(recipe: Recipe, made: str, frames: bool, sheet: Path | None) -> None:
    """Check that what is made, which may be unknown, can be written as asked."""
    for flag, given, kind in (("frames", frames, "video"), ("sheet", sheet, "image")):
        if given and made not in ("", kind):
            raise InputError(
                f"--{flag} is of {kind}s, and {recipe.model} makes {made}: leave it out"
            )


def write_sheet(path: Path, recipe: Recipe, images: Mapping[int, Path]) -> None:
    """Write a contact sheet of the images of seeds: a row for each prompt, its seeds as label."""
    from PIL import Image

    from diffsteer.io.atomic import atomic_write
    from diffsteer.io.sheet import sheet

    prompts: dict[str, list[int]] = {}
    for seed in images:
        prompts.setdefault(recipe.for_seed(seed).prompt, []).append(seed)
    lines = [
        (prompt, seeds[start : start + COLUMNS])
        for prompt, seeds in prompts.items()
        for start in range(0, len(seeds), COLUMNS)
    ]
    rows = [[Image.open(images[seed]).convert("RGB") for seed in seeds] for _, seeds in lines]
    labels = [
        f"{prompt[:60]} {recipe.guidance} seeds {format_seeds(seeds)}" for prompt, seeds in lines
    ]
    widest = max(len(seeds) for _, seeds in lines)
    first = [f"seed {seed}" for seed in lines[0][1]]
    columns = first if len(lines) == 1 else [""] * widest
    with atomic_write(path) as file:
        sheet(rows, columns, labels).save(file, format="png")


def _merged(file: Path | None, changes: dict[str, Any]) -> tuple[Recipe, int | None]:
    """Recipe of a file with other fields in place of its own, and the seed where it is an image."""
    if file is None:
        return Recipe(**changes), None
    recipe, seed = recipe_of(file)
    made = replace(recipe, **_dropped(recipe, changes), **changes)
    if "guidance" in changes and isinstance(own := made.options, ADMOptions):
        head_split = own.official_head_split and "SAG" in made.guidance
        asked = "Classifier" in made.guidance or "classifier" in made.sampler
        classifier = own.classifier if asked else ""
        own = replace(own, official_head_split=head_split, classifier=classifier)
        made = replace(made, options=own)  # without what was of the guidance of the file
    return made, seed


def _dropped(recipe: Recipe, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults for what belongs to a field of a recipe that is changed, unless it is changed too.

    Two prompts are one; the strength is of the image or else of the refiner; a guide is asked by
    the guidance, and spacing and zero SNR are of the sampler.
    """
    gone: set[str] = set()
    if changes.keys() & {"prompt", "prompts"}:
        gone |= {"prompt", "prompts"}
    if "image" in changes and bool(changes["image"]) != bool(recipe.image):
        gone |= {"strength", "mask"}
    owned = {"refiner": {"strength"}, "guidance": {"guide"}, "sampler": {"spacing", "zero_snr"}}
    off = [name for name in owned if changes.get(name) == "" and getattr(recipe, name)]
    gone |= {each for name in off for each in owned[name]}
    return {n: getattr(Recipe, n) for n in gone - changes.keys()}


def _with_options(recipe: Recipe, settings: dict[str, Any]) -> Recipe:
    """Recipe with other options of its model in place of those that it says."""
    table = recipe.options.to_dict() if recipe.options else {}
    return replace(recipe, options=options_of(recipe.model, table | settings))


def _without(table: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key != name}


def _preset_recipe(flags: Published) -> Recipe:
    from diffsteer.generate.edm2 import recipe_of_preset
    from diffsteer.models.edm2.presets import preset

    chosen = preset(flags.preset).varied(flags.weight, flags.ema, flags.guide_ema)
    return recipe_of_preset(chosen, flags.models, flags.label, flags.precision)
