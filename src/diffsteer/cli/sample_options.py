"""Options of `diffsteer sample` in the order in which they matter; importable without torch."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, arg

from diffsteer.cli.options import is_typed, part, said
from diffsteer.cli.sample import LOOP, NETWORK, PUBLISHED, Published, sample
from diffsteer.generate.options import ADMOptions
from diffsteer.generate.recipe import NOTHING
from diffsteer.models.edm2.loop_settings import Loop

if TYPE_CHECKING:
    Method: TypeAlias = Any
    Weights: TypeAlias = Any
    Media: TypeAlias = Any
else:
    Method = part(
        "Method", "More of the method.", "guide", "refiner", "strength", "spacing", "zero_snr"
    )
    Weights = part("Weights", "How the model is loaded.", "dtype", "offload", "lora", "config")
    Media = part(
        *("Media", "Images to start from, videos, sounds, and any argument of the pipeline."),
        *("image", "mask", "num_frames", "audio_seconds", "fps", "settings"),
    )


@dataclass(frozen=True)
class Run:
    """What is sampled, where, and what is written beside it.

    Attributes:
        prompts: File with one prompt a line; the image of seed i shows prompt i mod their number.
        batch: Images at a time, >= 1; at another number a network rounds otherwise: one grey level
            in a few values in float32, two in every eighth in bfloat16.
        device: Where it runs; empty for a GPU if there is one.
        like: Repeat this image exactly: its metadata hold model, recipe and seed; to the bit in the
            batch that it was made in, else but for the rounding of --batch.
        save: JSON file for the recipe, which `--recipe`, `evaluate` and `compare` take.
        sheet: PNG for a labelled contact sheet of the images.
        frames: Keep videos as folders of frames, SEED/0000.png, instead of MP4.
    """

    prompts: Path | None = None
    batch: int = 4
    device: str = ""
    like: Annotated[Path | None, arg(name="from", metavar="PNG")] = None
    save: Annotated[Path | None, arg(metavar="JSON")] = None
    sheet: Annotated[Path | None, arg(metavar="PNG")] = None
    frames: Annotated[bool, FlagCreatePairsOff] = False


RUN, METHOD, WEIGHTS, MEDIA = Run(), Method(), Weights(), Media()


def command(
    model: Annotated[str, Positional, arg(metavar="MODEL")] = "",
    /,
    prompt: str = "",
    negative: str = "",
    guidance: str = "",
    sampler: str = "",
    steps: int = NOTHING.steps,
    width: int = 0,
    height: int = 0,
    seeds: str = "0",
    out: Path = Path("out"),
    file: Annotated[Path | None, arg(name="recipe", metavar="FILE")] = None,
    run: OmitArgPrefixes[Run] = RUN,
    method: OmitArgPrefixes[Method] = METHOD,
    weights: OmitArgPrefixes[Weights] = WEIGHTS,
    media: OmitArgPrefixes[Media] = MEDIA,
    advanced_preset: OmitArgPrefixes[Published] = PUBLISHED,
    advanced_adm: OmitArgPrefixes[ADMOptions] = NETWORK,
    advanced_edm2: OmitArgPrefixes[Loop] = LOOP,
) -> None:
    """Sample images, videos or sounds; one that is there already is not made again.

    An image: diffsteer sample critters --prompt "a purple critter" --guidance "CFG(3)" --out images

    Again, varied: diffsteer sample --recipe images/000000.png --guidance "PAG(1)" --out varied

    Your own: diffsteer sample FOLDER --prompt "a cat" --seeds 0-63 --dtype bfloat16 --offload model

    Where torchrun or accelerate launch starts several processes, each makes a share of them.

    Args:
        model: Hub id or folder of a diffusers pipeline, the name of a model that ships (critters),
            a .safetensors checkpoint (with --config), or a folder of `diffsteer convert`.
        prompt: What to show; for networks of classes (DiT) the name or number of one.
        negative: What the null half of the batch shows instead of nothing.
        guidance: Such as "CFG(6) + SAG(0.75)"; empty for none. docs/choosing-a-guidance.md.
        sampler: Such as "UniPC()" or "DDIM(eta=1.0)"; empty keeps the scheduler of the model.
        steps: Number of sampling steps.
        width: Of the image in pixels; 0 for the size of the model.
        height: The same.
        seeds: One image each: "7", "0-63", "0-3,8".
        out: Folder for the images, SEED.png.
        file: Recipe to follow: JSON, or a sample of this command, whose seed is taken as well;
            options beside it replace what it says: --guidance "", --lora "", --set "", --image ""
            and --no-zero-snr switch off.
        run: More of the run.
        method: More of the method.
        weights: How the model is loaded.
        media: Images to start from, videos, sounds, and any argument of the pipeline.
        advanced_preset: A published configuration, instead of model and recipe; or, where the model
            is a folder of `diffsteer convert`, its class and the like.
        advanced_adm: More of a folder of `diffsteer convert adm`.
        advanced_edm2: More of a folder of `diffsteer convert edm2`.
    """
    named: dict[str, Any] = {"model": model, "prompt": prompt, "negative": negative}
    named |= {"guidance": guidance, "sampler": sampler, "steps": steps}
    named |= {"width": width, "height": height}
    fields = {n: v for n, v in named.items() if is_typed(n) or v != getattr(NOTHING, n)}
    fields |= said(method) | said(weights) | said(media, settings="set")
    if "set" in fields:
        fields["settings"] = fields.pop("set")
    rest: dict[str, Any] = asdict(run)
    rest |= {"preset": advanced_preset, "network": advanced_adm, "noise": advanced_edm2}
    sample(fields, seeds, out, file=file, **rest)
