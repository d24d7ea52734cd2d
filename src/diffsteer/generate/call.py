"""Arguments of a pipeline's call by a recipe, checked before and after its model is loaded."""

import inspect
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffsteer.core.errors import InputError, did_you_mean
from diffsteer.generate.recipe import Recipe
from diffsteer.generate.setting_values import value_of
from diffsteer.hf.signature import call_arguments

if TYPE_CHECKING:
    from PIL.Image import Image

FRAMES = ("num_frames", "video_length", "frames")
SECONDS = ("audio_end_in_s", "audio_length_in_s", "audio_duration_s", "audio_duration", "duration")
RATES = ("frame_rate", "fps", "target_fps")
MASKS = ("mask_image", "mask")
"""Names of one thing among the arguments of pipelines."""
OPTIONS = {
    "prompt": "prompt",
    "negative_prompt": "negative",
    "num_inference_steps": "steps",
    "image": "image",
    "strength": "strength",
    "width": "width",
    "height": "height",
    "class_labels": "prompt",
    "generator": "seeds",
    **dict.fromkeys(MASKS, "mask"),
    **dict.fromkeys(FRAMES, "num-frames"),
    **dict.fromkeys(SECONDS, "audio-seconds"),
    **dict.fromkeys(RATES, "fps"),
}
"""Options of ours for arguments of pipelines."""
OURS = ("latents", "output_type", "return_dict", "callback_on_step_end", "batch_size")
"""Arguments of a call that are not a user's to give."""
TECHNICAL = re.compile("embed|callback|kwargs|_mask$")
"""Part of the names of arguments that no text can give."""
FILLS = re.compile("Inpaint|Fill")
"""Part of the names of pipelines that need an image and a mask, though their call has defaults."""
EDITS = re.compile(
    "Inpaint|Fill|Img2Img|ImageToVideo|ImageVariation|Pix2Pix|Edit|Upscale|SuperRes|Depth2Img"
)
"""The same of an image."""


def settings_of(recipe: Recipe) -> dict[str, str]:
    """Texts of further arguments of the call by name, each given as KEY=VALUE."""
    table: dict[str, str] = {}
    for text in recipe.settings:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise InputError(f"--set {text}: write KEY=VALUE, such as --set guidance_scale=3.5")
        if name in OPTIONS or name in OURS:
            use = f"use --{OPTIONS[name]}" if name in OPTIONS else "it is decided by the command"
            raise InputError(f"--set {name}: {use}")
        if name in table:
            raise InputError(f"--set {name} is given twice")
        table[name] = value
    return table


def needed(recipe: Recipe) -> tuple[str, ...]:
    """Arguments by which the class of a pipeline is chosen."""
    wanted = {"image": recipe.image, "mask_image": recipe.mask}
    return tuple(name for name, given in wanted.items() if given)


def fitting(recipe: Recipe, pipeline: str, takes: Collection[str]) -> dict[str, Any]:
    """Arguments of the call that a recipe asks for beside its prompt and steps.

    Args:
        recipe: What to make.
        pipeline: Name of the pipeline, for errors.
        takes: Names of the arguments of its call.

    Raises:
        InputError: the pipeline does not take one of them.
    """
    call: dict[str, Any] = {}
    for option, names, value in (
        ("--num-frames", FRAMES, recipe.num_frames),
        ("--audio-seconds", SECONDS, recipe.audio_seconds),
    ):
        if value:
            call[_taken(option, names, pipeline, takes)] = value
    if recipe.fps and media(takes) != "video":
        raise InputError(f"{pipeline} makes no videos: leave --fps out")
    if recipe.fps and (rates := [name for name in RATES if name in takes]):
        call[rates[0]] = recipe.fps
    if recipe.image:
        _taken("--image", ("image",), pipeline, takes)
        if recipe.strength is not None:
            call[_taken("--strength", ("strength",), pipeline, takes)] = recipe.strength
    if recipe.mask:
        _taken("--mask", MASKS, pipeline, takes)
    if not recipe.image and (unknown := sorted(recipe.size.keys() - takes)):
        raise InputError(f"{pipeline} takes no {', '.join(unknown)}: leave it out")
    settings = settings_of(recipe)
    for name in settings:
        if name not in takes:
            rest = [
                n for n in sorted({*takes} - OPTIONS.keys() - {*OURS}) if not TECHNICAL.search(n)
            ]
            raise InputError(
                f"{pipeline} takes no {name}{did_you_mean(name, rest)}: it takes {', '.join(rest)}"
            )
    arguments = call_arguments(pipeline)
    return call | {n: value_of(pipeline, n, text, arguments) for n, text in settings.items()}


def require_inputs(recipe: Recipe, pipeline: str) -> None:
    """Check that a recipe gives the images that a pipeline cannot be called without.

    Raises:
        InputError: it does not, or the pipeline needs what no option gives.
    """
    arguments = call_arguments(pipeline)
    wanted = {name for name, argument in arguments.items() if argument.default is None}
    wanted |= {"image"} if EDITS.search(pipeline) else set()
    wanted |= {*MASKS} if FILLS.search(pipeline) else set()
    needs = wanted & arguments.keys()
    if "image" in needs and not recipe.image:
        raise InputError(f"{pipeline} starts from an image: give one by --image FILE")
    if needs & {*MASKS} and not recipe.mask:
        raise InputError(f"{pipeline} paints where a mask is white: give one by --mask FILE")
    if rest := sorted(needs - OPTIONS.keys() - settings_of(recipe).keys()):
        raise InputError(
            f"{pipeline} cannot be called without {', '.join(rest)}, which no option of ours "
            "gives: where texts can, give it by --set"
        )


def require_a_step(recipe: Recipe, pipeline: str, strength: Any, flow: bool) -> None:
    """Check that some of the steps are left where sampling starts from an image.

    Args:
        recipe: With an image.
        pipeline: Name of its class.
        strength: Share of the steps that is sampled; None where that is not known.
        flow: Whether the scheduler is of flow matching; those pipelines round up.
    """
    share = strength if isinstance(strength, int | float) else 1.0
    own = {"denoising_start", "timesteps", "sigmas"} & settings_of(recipe).keys()
    if flow or own or pipeline.startswith(("LatentConsistency", "SanaSprint")):  # takes all steps
        return
    if int(recipe.steps * share) < 1:
        raise InputError(
            f"strength={share} of {recipe.steps} steps leaves none to sample: give at least "
            f"--steps {math.ceil(1 / share)}, or a higher --strength"
        )


def media(takes: Collection[str]) -> str:
    """What a pipeline makes, by the arguments of its call: image, video or audio."""
    if {*SECONDS} & {*takes} and not {*FRAMES} & {*takes}:
        return "audio"
    return "video" if {*FRAMES} & {*takes} else "image"


def images_in(recipe: Recipe, takes: Collection[str]) -> "dict[str, Image]":
    """The image and the mask of a recipe as the call takes them, in the size that it asks for."""
    if not recipe.image:
        return {}
    given = {"image": read_image(recipe.image)}
    if recipe.mask:
        name = next(name for name in MASKS if name in takes)
        given[name] = read_image(recipe.mask).convert("L")
    size = recipe.width or given["image"].width, recipe.height or given["image"].height
    return {name: each if each.size == size else each.resize(size) for name, each in given.items()}


def read_image(path: str) -> "Image":
    """Image of a file as RGB, upright."""
    from PIL import Image

    from diffsteer.io.images import MAX_BYTES, decode
    from diffsteer.io.strict import read_bytes

    data = read_bytes(Path(path), MAX_BYTES)
    return Image.fromarray(decode(path, data, upright=True).pixels.permute(1, 2, 0).numpy())


def call_of(pipe: Any, recipe: Recipe, texts: Sequence[str]) -> dict[str, Any]:
    """Arguments of one call of the pipeline, but for where its noise comes from.

    The null half is always sent where something may ask for it; what is not asked for is not
    evaluated. A scale that the network is given as an input (distilled models) is the pipeline's,
    or 1 with a refiner, as it was trained.
    """
    from diffsteer.hf.conditioning import conditioning_kwargs
    from diffsteer.hf.scheduler_config import is_flow

    name, takes = type(pipe).__name__, inspect.signature(pipe.__call__).parameters
    guided = bool(guidance_text(recipe))
    call: dict[str, Any] = {"num_inference_steps": recipe.steps}
    call |= conditioning_kwargs(pipe, texts, guided)
    if recipe.negative and "negative_prompt" not in takes:
        raise InputError(f"{name} takes no negative prompt: leave it out")
    if recipe.negative:
        call["negative_prompt"] = [recipe.negative] * len(texts)
    call |= _scales(pipe, takes, guided, recipe.negative, len(texts))
    if recipe.refiner and "guidance_scale" in takes:
        call.setdefault("guidance_scale", 1.0)  # refiners are trained for networks that are told 1
    call |= fitting(recipe, name, takes) | images_in(recipe, takes)
    if recipe.image and "strength" in takes:
        strength = call.get("strength", takes["strength"].default)
        require_a_step(recipe, type(pipe).__name__, strength, is_flow(pipe.scheduler))
    size = {side: n for side, n in recipe.size.items() if side in takes}
    if len(size) == 1:  # some pipelines take no notice of one alone
        call |= dict.fromkeys(("height", "width"), _default_size(pipe))
    return call | size


def guidance_text(recipe: Recipe) -> str | None:
    """The guidance; one that is off where the refiner needs the null prompt to be sent."""
    from diffsteer.refine.nlg import is_training_free

    return recipe.guidance or ("CFG(1)" if is_training_free(recipe.refiner) else None)


def _scales(
    pipe: Any, takes: Mapping[str, Any], guided: bool, negative: str, count: int
) -> dict[str, Any]:
    """Arguments by which a pipeline sends the null prompt, or does not."""
    from diffsteer.hf.families import known_family
    from diffsteer.hf.network import network_of, unwrap_compiled

    network = unwrap_compiled(network_of(pipe))
    scale = 2.0 if guided else _unguided(pipe)
    if "true_cfg_scale" in takes:
        family = known_family(network)
        if not guided or (family and "null" not in family.halves):
            return {}
        return {"true_cfg_scale": scale, "negative_prompt": [negative] * count}
    embedded = getattr(network, "config", {}).get("guidance_embeds")
    return {"guidance_scale": scale} if "guidance_scale" in takes and not embedded else {}


def _unguided(pipe: Any) -> float:
    """Scale at which a pipeline does not guide: 1, or 0 of those that add it to 1 (Z-Image)."""
    from diffsteer.hf.hooks import replaced

    with replaced(pipe, "_guidance_scale", 1.0):
        return 0.0 if getattr(pipe, "do_classifier_free_guidance", False) else 1.0


def _default_size(pipe: Any) -> int:
    """Side in pixels of the images that a pipeline makes by itself."""
    from diffsteer.hf.network import network_of

    tokens = getattr(pipe, "default_sample_size", network_of(pipe).config.get("sample_size"))
    scale = getattr(pipe, "vae_scale_factor", None)
    if not (isinstance(tokens, int) and isinstance(scale, int)):
        raise InputError(f"{type(pipe).__name__} names no size of its own: give width and height")
    return tokens * scale


def _taken(option: str, names: Sequence[str], pipeline: str, takes: Collection[str]) -> str:
    name = next((name for name in names if name in takes), None)
    if name is None:
        raise InputError(f"{pipeline} takes no {' or '.join(names)}: leave {option} out")
    return name
