"""What decides how images come out, its text in files and images, and its hash.

A recipe and a seed make one picture: `diffsteer sample` writes both into its PNG files, and
`diffsteer evaluate` and `diffsteer compare` take recipes and seeds. Imports without torch.
"""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, Suppress, UseAppendAction, arg

from diffsteer.core.errors import InputError, brief
from diffsteer.generate.options import ADMOptions, Options, options_of
from diffsteer.generate.recipe_values import make_plain
from diffsteer.io.hashing import digest
from diffsteer.io.seeds import format_number, is_seed, prompts_of
from diffsteer.io.strict import (
    MAX_PIXELS,
    from_table,
    inner_path,
    parse_json,
    read_bytes,
    read_object,
    refused,
)

KEY = "diffsteer"
"""Name of the text in a PNG that holds the recipe."""
VIDEO, SOUND = ".mp4", ".wav"
"""Files whose recipe stands beside them, in a JSON file of the same name."""
WEIGHT = "{w}"
"""Stands in a guidance for the numbers of a sweep."""
MOST_FPS = 1000
"""Most frames a second of a video."""
LATER = (
    *("dtype", "offload", "lora", "config", "image", "mask"),
    *("num_frames", "audio_seconds", "fps", "settings"),
)
"""Fields that version 0.1.0 did not have: left out of files at their defaults, so that what it made
is known again."""


@dataclass(frozen=True)
class Recipe:
    """All that decides how an image comes out, but its seed.

    Attributes:
        model: Hub id or folder of a diffusers pipeline, a .safetensors checkpoint (with config), a
            model that ships, or a folder of `diffsteer convert`.
        prompt: What to show, for networks of classes (DiT) the name or number of one; may be empty.
        prompts: Many of them instead: the image of seed i shows prompts[i mod their number].
        negative: What the null half of the batch shows instead of nothing.
        guidance: Such as "CFG(6) + SAG(0.75)" or "CFG(ramp(1, 7))"; empty for none. There are CFG,
            APG, CFGZero, CFGpp, RectifiedCFGpp, FDG, FreSca, SMC, Adaptive, FBG, MAMBO, TCFG, ADG,
            CFGNorm, CFGRenorm, DynamicThreshold, Momentum, PAG, SEG, SAG, SLG, STG, S2, TPG, Auto,
            AutoDropout, AutoNoise, SelfGuidance, TSG, ICG, SWG, NAG and Classifier:
            docs/choosing-a-guidance.md.
        sampler: Such as "UniPC()" or "DDIM(eta=1.0)"; empty keeps the scheduler of the model.
        spacing: Which timesteps a sampler visits: trailing, leading, linspace, logsigma, karras,
            ays-sd, ays-sdxl, ays-svd.
        zero_snr: Rescale the schedule to zero terminal SNR; for networks that were trained so.
        steps: Number of sampling steps.
        width: Of the image in pixels; 0 for the size of the model.
        height: The same.
        guide: Hub id or folder of the weaker network for autoguidance, or of its pipeline.
        refiner: Hub id or folder of what refines the initial noise, or "NLG(20)"; empty for none.
        strength: Factor of what the refiner changes, 1 as trained; with image, the share of the
            steps that is sampled, in (0, 1], None for the pipeline's own.
        dtype: Of the weights: float32, float16, bfloat16; "auto" is bfloat16 on a GPU, float32 on a
            CPU.
        offload: What waits in the machine's memory while another part of the pipeline computes on
            the accelerator: none, model (whole parts), sequential or group (layers). Changes no
            image.
        lora: Low-rank adaptations, each PATH or PATH:SCALE; a folder that `diffsteer train` wrote
            brings its scheduler.
        config: Folder of the configuration and tokenizer of a model in one file.
        image: File of the image that sampling starts from, or that the pipeline edits.
        mask: File of the mask of inpainting; white is painted anew.
        num_frames: Of a video; 0 for the pipeline's own.
        audio_seconds: Length of a sound; 0 for the pipeline's own.
        fps: Frames a second of an MP4; 0 for the pipeline's own.
        settings: More arguments of the pipeline's call, each KEY=VALUE.
        options: Of an EDM2 or ADM network; None for their defaults and for pipelines.
    """

    model: Annotated[str, Positional, arg(metavar="MODEL")] = ""
    prompt: str = ""
    prompts: Annotated[tuple[str, ...], Suppress] = ()
    negative: str = ""
    guidance: str = ""
    sampler: str = ""
    spacing: str = "trailing"
    zero_snr: bool = False
    steps: int = 25
    width: int = 0
    height: int = 0
    guide: str = ""
    refiner: str = ""
    strength: float | None = None
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    offload: Literal["none", "model", "sequential", "group"] = "none"
    lora: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="PATH[:SCALE]")] = ()
    config: str = ""
    image: str = ""
    mask: str = ""
    num_frames: int = 0
    audio_seconds: float = 0.0
    fps: int = 0
    settings: Annotated[UseAppendAction[tuple[str, ...]], arg(name="set", metavar="KEY=VALUE")] = ()
    options: Annotated[Options | None, Suppress] = None

    def __post_init__(self) -> None:
        make_plain(self)
        prompts = (self.prompt, self.negative, *self.prompts)
        if broken := [p for p in prompts if p != p.encode("utf-8", "replace").decode()]:
            raise InputError(f"prompt {brief(broken[0])} holds no UTF-8: type or save it as such")
        if self.strength is None and not self.image:
            object.__setattr__(self, "strength", 1.0)
        if self.steps < 1:
            raise InputError(f"{self.steps} steps sample nothing: give at least 1")
        _require_media(self)
        if self.prompt and self.prompts:
            raise InputError("a recipe has a prompt or a list of prompts: leave one of them out")
        if not self.sampler and (self.zero_snr or self.spacing != "trailing"):
            raise InputError(
                "spacing and zero SNR belong to a sampler of ours: name one, such as "
                '--sampler "UniPC()"'
            )
        respacing = isinstance(self.options, ADMOptions) and self.options.respacing
        if respacing and (self.steps, self.spacing) != (Recipe.steps, Recipe.spacing):
            raise InputError(
                f"{self.model} takes no steps and spacing beside respacing: leave them out"
            )
        if min(self.width, self.height) < 0:
            raise InputError(
                f"{self.width} x {self.height} pixels: give both >= 0; 0 is the size of the model"
            )
        if max(self.width, 1) * max(self.height, 1) > MAX_PIXELS:
            raise InputError(
                f"{self.width} x {self.height} pixels: an image has at most {MAX_PIXELS}"
            )

    @property
    def hash(self) -> str:
        """Sha256 of all that differs from the defaults, in hex."""
        return digest(self.to_json())

    def to_dict(self) -> dict[str, Any]:
        """Fields in plain values, as JSON reads them back; without the options."""
        names = [field.name for field in fields(self) if field.name != "options"]
        table = {n: getattr(self, n) for n in names if n not in LATER or self.differs(n)}
        return {n: list(v) if isinstance(v, tuple) else v for n, v in table.items()}

    def to_json(self) -> dict[str, Any]:
        """What `read` reads back: all that is not at its default, and the options."""
        table = {name: value for name, value in self.to_dict().items() if self.differs(name)}
        return table | ({"options": self.options.to_dict()} if self.options else {})

    def differs(self, name: str) -> bool:
        """Whether a field is not at its default."""
        return bool(getattr(self, name) != getattr(NOTHING, name))

    @property
    def changed(self) -> dict[str, Any]:
        """Fields that are not at their defaults, in their order."""
        return {f.name: getattr(self, f.name) for f in fields(self) if self.differs(f.name)}

    def command(self, *more: str, prompts: str = "prompts.txt") -> str:
        """Shell command that samples it, ending in more words; its `options` are left out.

        Args:
            more: Words at its end.
            prompts: File that has its list of prompts.
        """
        words = ["diffsteer", "sample", self.model, *self.flags]
        if self.prompts:
            words += ["--prompts", prompts]
        return shlex.join([*words, *more])

    @property
    def flags(self) -> list[str]:
        """Options of the command line for all but the model, lists of prompts and `options`."""
        words: list[str] = []
        for name, value in self.changed.items():
            if name not in ("model", "prompts", "options"):
                flag = "--set" if name == "settings" else f"--{name.replace('_', '-')}"
                for each in value if isinstance(value, tuple) else (value,):
                    words += [flag] if each is True else [flag, str(each)]
        return words

    @property
    def refiner_strength(self) -> float:
        """Factor of what the refiner changes."""
        return 1.0 if self.strength is None else self.strength

    @property
    def size(self) -> dict[str, int]:
        """Width and height for a pipeline's call, where they are not the model's own."""
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


def _require_media(recipe: Recipe) -> None:
    if recipe.num_frames < 0:
        raise InputError(f"num_frames={recipe.num_frames} are no video: 0 is the pipeline's own")
    if not 0 <= recipe.fps <= MOST_FPS:
        raise InputError(f"fps must be in [1, {MOST_FPS}], or 0 by default, got {recipe.fps}")
    if not 0 <= recipe.audio_seconds < math.inf:
        raise InputError(
            f"audio_seconds={recipe.audio_seconds} are no length: 0 is the pipeline's own"
        )


NOTHING = Recipe()
"""The defaults."""


def read(path: Path | str) -> Recipe:
    """Read a recipe from a JSON file, or from a PNG that `diffsteer sample` made.

    In JSON, `prompts` is a list, or the name of a file with one prompt a line, beside the JSON or
    in a folder there; `options` is a table, as PNGs hold it.
    """
    path = Path(path)
    if path.suffix.lower() == ".png":
        return recipe_of_png(path)[0]
    table = read_object(path)
    if isinstance(name := table.get("prompts"), str):
        table["prompts"] = prompts_of(path.parent / inner_path(str(path), name))
    return _recipe_of(table, table.pop("options", {}), str(path))


def recipe_of(path: Path) -> tuple[Recipe, int | None]:
    """Recipe of a JSON file or a sample, and the seed of a sample."""
    if path.suffix.lower() == ".json" and not {"recipe", "seed"} <= read_object(path).keys():
        return read(path), None
    return recipe_of_png(path)


def recipe_of_png(path: Path) -> tuple[Recipe, int]:
    """Recipe and seed of a sample that was made by `diffsteer sample`."""
    table = metadata(path)
    if table is None:
        raise InputError(f"{path} holds no recipe: `diffsteer sample` did not make it")
    if "model" in table:
        raise InputError(
            f"{path} is of preset {table['model']}: repeat it by `diffsteer sample --preset "
            f"{table['model']} --seeds {table['seed']}`, with the options that it was made with"
        )
    fields = table["recipe"] | {name: table[name] for name in ("offload",) if name in table}
    return _recipe_of(fields, table.get("options", {}), str(path)), table["seed"]


def metadata(path: Path) -> dict[str, Any] | None:
    """Metadata that `diffsteer sample` wrote into or beside a sample; None where there is none."""
    from diffsteer.io.images import MAX_BYTES, text_of

    if path.suffix.lower() in (VIDEO, SOUND, ".json"):
        return parsed(read_bytes(path.with_suffix(".json")).decode(errors="replace"), str(path))
    return parsed(text_of(str(path), read_bytes(path, MAX_BYTES), KEY), str(path))


def parsed(text: Any, where: str) -> dict[str, Any] | None:
    """Read the metadata text of an image, called `where` in errors; None where it is not ours."""
    if not isinstance(text, str):
        return None
    table = parse_json(text, f"{where}: its recipe was changed and")
    if not (isinstance(table, dict) and "seed" in table):
        return None
    tables = (table.get("recipe"), table.get("options", {}))
    if not is_seed(table["seed"]) or not all(isinstance(each, dict) for each in tables):
        raise InputError(f"{where}: its recipe was changed, it has no seed or no fields any more")
    return table


def _recipe_of(table: dict[str, Any], options: Any, where: str) -> Recipe:
    """Make a recipe of fields and options that come from a file."""
    if "options" in table or not isinstance(options, dict):
        raise InputError(f"{where}: options must be a table, got {brief(options)}")
    recipe = from_table(Recipe, table, where)
    with refused(where):
        return replace(recipe, options=options_of(recipe.model, options))
