"""What decides how images come out, its text in files and images, and its hash.

A recipe and a seed make one picture: `diffsteer sample` writes both into its PNG files, and
`diffsteer evaluate` and `diffsteer compare` take recipes and seeds. Imports without torch.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import FlagCreatePairsOff, Positional, Suppress, arg

from diffsteer.core.errors import InputError
from diffsteer.io.hashing import digest
from diffsteer.io.seeds import format_number, prompts_of
from diffsteer.io.strict import parse_json, read_json

KEY = "diffsteer"
"""Name of the text in a PNG that holds the recipe."""
WEIGHT = "{w}"
"""Stands in a guidance for the numbers of a sweep."""


@dataclass(frozen=True)
class Recipe:
    """All that decides how an image comes out, but its seed.

    Attributes:
        model: Hub id or folder of a diffusers pipeline, or a folder of `diffsteer convert`.
        prompt: What to show, for networks of classes (DiT) the name or number of one; may be empty.
        prompts: Many of them instead: the image of seed i shows prompts[i mod their number].
        negative: What the null half of the batch shows instead of nothing.
        guidance: Such as "CFG(6) + SAG(0.75)"; empty for none.
        sampler: Such as "UniPC()" or "DDIM(eta=1.0)"; empty keeps the scheduler of the model.
        spacing: Which timesteps a sampler visits: trailing, leading, linspace, logsigma, karras.
        zero_snr: Rescale the schedule to zero terminal SNR; for networks that were trained so.
        steps: Number of sampling steps.
        width: Of the image in pixels; 0 for the size of the model.
        height: The same.
        guide: Hub id or folder of the weaker network for autoguidance, or of its pipeline.
        refiner: Hub id or folder of what refines the initial noise, or "NLG(20)"; empty for none.
        strength: Factor of what the refiner changes; 1 is as trained.
    """

    model: Annotated[str, Positional, arg(metavar="MODEL")] = ""
    prompt: str = ""
    prompts: Annotated[tuple[str, ...], Suppress] = ()
    negative: str = ""
    guidance: str = ""
    sampler: str = ""
    spacing: str = "trailing"
    zero_snr: Annotated[bool, FlagCreatePairsOff] = False
    steps: int = 25
    width: int = 0
    height: int = 0
    guide: str = ""
    refiner: str = ""
    strength: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"{self.steps} steps sample nothing: give at least 1")
        if self.prompt and self.prompts:
            raise InputError("a recipe has a prompt or a list of prompts: leave one of them out")
        if not self.sampler and (self.zero_snr or self.spacing != "trailing"):
            raise InputError(
                "spacing and zero SNR belong to a sampler of ours: name one, such as "
                '--sampler "UniPC()"'
            )
        if min(self.width, self.height) < 0:
            raise InputError(
                f"{self.width} x {self.height} pixels: give both >= 0; 0 is the size of the model"
            )

    @property
    def hash(self) -> str:
        """Sha256 of all that differs from the defaults, in hex."""
        return digest(
            {k: v for k, v in self.said.items() if getattr(self, k) != getattr(Recipe, k)}
        )

    @property
    def said(self) -> dict[str, Any]:
        """All of it in plain values, as JSON reads it back."""
        return {**asdict(self), "prompts": list(self.prompts)}

    @property
    def size(self) -> dict[str, int]:
        """Width and height as a pipeline's call says them, where they are not the model's."""
        return {s: getattr(self, s) for s in ("width", "height") if getattr(self, s)}

    def for_seed(self, seed: int) -> "Recipe":
        """Recipe of the image of one seed, with the one prompt that it shows."""
        if not self.prompts:
            return self
        return replace(self, prompt=self.prompts[seed % len(self.prompts)], prompts=())

    def sweep(self, weights: Sequence[float]) -> "list[Recipe]":
        """Recipes with each weight in place of {w} in the guidance; itself where there is none."""
        if WEIGHT not in self.guidance:
            return [self]
        texts = [format_number(weight) for weight in weights]
        return [replace(self, guidance=self.guidance.replace(WEIGHT, text)) for text in texts]


def read(path: Path) -> Recipe:
    """Read a recipe from a JSON file, or from a PNG that `diffsteer sample` made.

    In JSON, `prompts` is a list, or the name of a file with one prompt a line, beside the JSON.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no recipe, or more than this version knows, or than recipes say.
    """
    if path.suffix.lower() == ".png":
        recipe, _ = recipe_of_png(path)
        more = (metadata(path) or {}).get("options", {})
        if more:
            raise InputError(
                f"{path} was made with {', '.join(f'{k}={v!r}' for k, v in more.items())}, which "
                "no recipe says: `diffsteer sample --from` repeats it; to measure such images, "
                "sample them into a folder, with the same options"
            )
        return recipe
    said = read_json(path)
    if isinstance(said, dict) and isinstance(said.get("prompts"), str):
        said["prompts"] = prompts_of(path.parent / said["prompts"])
    return _checked(said, str(path))


def recipe_of_png(path: Path) -> tuple[Recipe, int]:
    """Recipe and seed of an image that was made by `diffsteer sample`.

    Raises:
        ValueError: the image does not hold them, or a later version wrote more than we know.
    """
    said = metadata(path)
    if said is None:
        raise InputError(f"{path} holds no recipe: `diffsteer sample` did not make it")
    if "model" in said:
        raise InputError(
            f"{path} is of preset {said['model']}: repeat it by `diffsteer sample --preset "
            f"{said['model']} --seeds {said['seed']}`, with the options that it was made with"
        )
    return _checked(said.get("recipe"), str(path)), said["seed"]


def metadata(path: Path) -> dict[str, Any] | None:
    """What `diffsteer sample` wrote into an image; None where it wrote nothing.

    Raises:
        ValueError: the file is no image, or what is in it was changed.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return parsed(picture.info.get(KEY), str(path))
    except OSError as error:
        raise InputError(f"{path} is no readable picture: {error}") from error


def parsed(text: Any, where: str) -> dict[str, Any] | None:
    """Read the text of an image, called `where` in errors; None where it holds none of ours.

    Raises:
        ValueError: it is no recipe and seed as `diffsteer sample` writes them.
    """
    if not isinstance(text, str):
        return None
    said = parse_json(text, f"{where}: its recipe was changed and")
    if not (isinstance(said, dict) and "seed" in said):
        return None
    tables = (said.get("recipe"), said.get("options", {}))
    if type(said["seed"]) is not int or not all(isinstance(table, dict) for table in tables):
        raise InputError(f"{where}: its recipe was changed, it has no seed or no fields any more")
    return said


def _checked(said: Any, where: str) -> Recipe:
    """Make a recipe of what a file says, naming what it cannot be."""
    if not isinstance(said, dict):
        raise InputError(f"{where} holds no recipe: write an object such as {{'model': ...}}")
    defaults = {field.name: field.default for field in fields(Recipe)}
    if extra := said.keys() - defaults:
        raise InputError(
            f"{where} says {', '.join(sorted(extra))}, which this version does not know; "
            f"a recipe has {', '.join(defaults)}"
        )
    if isinstance(said.get("prompts"), list):
        said = said | {"prompts": tuple(said["prompts"])}
    for name, value in said.items():
        kind = type(defaults[name])
        texts = all(isinstance(each, str) for each in value) if kind is tuple is type(value) else 1
        if type(value) is not kind or not texts:
            called = "list of texts" if kind is tuple else kind.__name__
            raise InputError(f"{where}: {name}={value!r} is no {called}")
    try:
        return Recipe(**said)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
