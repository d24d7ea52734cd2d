"""Checks of a recipe that need none of its models."""

import math
import warnings
from dataclasses import fields, replace
from pathlib import Path

from diffsteer.core.errors import InputError, brief, did_you_mean
from diffsteer.core.parse import parse
from diffsteer.core.sampler import Sampler
from diffsteer.core.spacing import SPACINGS
from diffsteer.generate.call import (
    fitting,
    media,
    needed,
    read_image,
    require_a_step,
    require_inputs,
    settings_of,
)
from diffsteer.generate.options import ADM, EDM2, ADMOptions, EDM2Options, format_of
from diffsteer.generate.recipe import WEIGHT, Recipe
from diffsteer.guidance import SAG, Guidance
from diffsteer.guidance.adapters import scales
from diffsteer.hf.load import require_loadable
from diffsteer.hf.lora import SCHEDULER, lora_names
from diffsteer.hf.offload import require_offload
from diffsteer.hf.scheduler_config import flows
from diffsteer.hf.shipped import shipped, shipped_folder
from diffsteer.hf.signature import call_arguments, call_parameters, pipeline_class
from diffsteer.io.device import device_of
from diffsteer.io.model_folder import CONFIG, INDEX, require_model
from diffsteer.io.strict import read_object
from diffsteer.refine.metadata import ABOUT, found
from diffsteer.refine.nlg import TrainingFreeRefiner, is_training_free

USED = {
    EDM2: ("model", "guidance", "guide", "steps", "options"),
    ADM: ("model", "guidance", "guide", "steps", "sampler", "spacing", "options"),
}
"""Fields of a recipe that networks beside those of pipelines take."""


def kind_of(recipe: Recipe) -> str:
    """Kind of a recipe's model: EDM2, ADM, or empty for a pipeline."""
    options = recipe.options
    kind = EDM2 if isinstance(options, EDM2Options) and options.preset else format_of(recipe.model)
    takes = {EDM2: EDM2Options, ADM: ADMOptions, "": type(None)}[kind]
    if not isinstance(options, takes | None):
        raise InputError(f"{recipe.model} does not take {type(options).__name__}: leave them out")
    return kind


def require_consistent(recipe: Recipe) -> None:
    """Check all of a recipe that needs no model, before one is loaded."""
    if not isinstance(recipe, Recipe):
        raise InputError(f"{brief(recipe)} is no recipe: give one, such as Recipe('critters')")
    if not recipe.model:
        raise InputError("the recipe names no model: give a hub id or folder")
    if WEIGHT in recipe.guidance:
        raise InputError(
            f"{recipe.guidance!r} holds {WEIGHT}: `diffsteer compare --weights` fills it"
        )
    if recipe.strength is not None and not math.isfinite(recipe.strength):
        raise InputError(f"strength must be a finite number, got {recipe.strength}")
    sampler = parse(recipe.sampler, Sampler) if recipe.sampler else None
    if recipe.spacing not in SPACINGS:
        raise InputError(
            f"no spacing is called {recipe.spacing!r}{did_you_mean(recipe.spacing, SPACINGS)}: "
            f"there are {', '.join(SPACINGS)}"
        )
    kind, guidance = kind_of(recipe), guidance_of(recipe)
    if kind:
        _require_used(recipe, kind)
    else:
        _require_pipeline(recipe)
        _require_adapters(recipe, guidance)
    options = recipe.options or (ADMOptions() if kind == ADM else None)
    if isinstance(options, ADMOptions):
        _require_adm(options, guidance, sampler)


def guidance_of(recipe: Recipe) -> Guidance | None:
    """Guidance of a recipe; None for none."""
    guidance = parse(recipe.guidance, Guidance) if recipe.guidance else None
    evaluated = guidance is not None and "guide" in guidance.networks()
    if recipe.guide and not evaluated:
        raise InputError(
            f"guide={recipe.guide} does nothing with guidance={recipe.guidance!r}: give one that "
            'asks it, such as --guidance "Auto(1.7)", or no guide'
        )
    if evaluated and not with_guide(recipe).guide:
        raise InputError(
            f"guidance={recipe.guidance!r} evaluates a weaker network: name it, --guide MODEL"
        )
    return guidance


def with_guide(recipe: Recipe) -> Recipe:
    """Recipe with the guide that belongs to a model that ships, where it asks for one."""
    if recipe.guide or not recipe.guidance or format_of(recipe.model):
        return recipe
    if "guide" not in parse(recipe.guidance, Guidance).networks():
        return recipe
    model = shipped(recipe.model)
    return replace(recipe, guide=model.guide) if model else recipe


def _require_adapters(recipe: Recipe, guidance: Guidance | None) -> None:
    """Check that the adapters that a guidance means are those of --lora."""
    texts = [getattr(part, "adapter", None) for part in guidance.parts()] if guidance else []
    names = lora_names(recipe.lora)
    for name in (name for text in texts if text for name in scales(text)):
        if name not in names:
            raise InputError(
                f"guidance={recipe.guidance!r} asks for the adapter {name!r}"
                f"{did_you_mean(name, names)}: give its file by --lora, under whose name it is "
                f"known; there is {', '.join(names) or 'none'}"
            )


def _require_used(recipe: Recipe, kind: str) -> None:
    for field in fields(Recipe):
        if field.name not in USED[kind] and recipe.differs(field.name):
            network = "EDM2" if kind == EDM2 else "ADM"
            raise InputError(f"{recipe.model} is an {network} network, which takes no {field.name}")
    if recipe.guide and not Path(recipe.guide).exists():
        raise FileNotFoundError(f"no guide {recipe.guide}: give a folder of `diffsteer convert`")


def _warn_of_prompts(recipe: Recipe) -> None:
    """Warn of prompts outside of those that a model that ships was trained on."""
    model = shipped(recipe.model)
    if model is None or model.check is None:
        return
    for prompt in filter(None, recipe.prompts or (recipe.prompt, recipe.negative)):
        try:
            model.check(prompt)
        except InputError as error:
            warnings.warn(f"{recipe.model} does not know this prompt: {error}", stacklevel=2)
            return


def _require_pipeline(recipe: Recipe) -> None:
    require_loadable(recipe.model, recipe.config, recipe.lora)
    _require_call(recipe)
    _warn_of_prompts(recipe)
    if recipe.guide and not format_of(recipe.guide):
        require_model(recipe.guide, (CONFIG, INDEX))
    if recipe.image:
        _require_image(recipe)
    elif recipe.mask:
        raise InputError(f"mask={recipe.mask} of no image: give --image as well")
    elif not recipe.refiner and recipe.strength != 1:
        raise InputError(
            f"strength={recipe.strength} of no refiner and no image: name one, or leave it out"
        )
    if is_training_free(recipe.refiner):
        parse(recipe.refiner, TrainingFreeRefiner)
    elif recipe.refiner:
        require_model(recipe.refiner, (ABOUT,))
        found(recipe.refiner)


def media_of(recipe: Recipe) -> str:
    """What the model of a recipe makes: image, video or audio; image where only the hub knows."""
    return known_media(recipe) or "image"


def known_media(recipe: Recipe) -> str:
    """What the model of a recipe makes; empty where only the hub knows."""
    takes = _pipeline(recipe)[1]
    return media(takes) if takes or kind_of(recipe) else ""


def require_measurable(recipe: Recipe, device: str) -> None:
    """Check what `require_consistent` does, and that images are made, which can be measured."""
    require_consistent(recipe)
    require_offload(recipe.offload, device_of(device))
    require_images(recipe, media_of(recipe))


def require_images(recipe: Recipe, made: str) -> None:
    """Refuse to measure what is made where it is no image."""
    if made != "image":
        advice = "sample it with --frames, and evaluate the folder, which measures every frame"
        raise InputError(
            f"{recipe.model} makes {made}, and what is measured are images: "
            f"{advice if made == 'video' else 'evaluate takes no sounds'}"
        )


def _pipeline(recipe: Recipe) -> tuple[str, frozenset[str]]:
    """Name of a recipe's pipeline and the arguments of its call, as far as its folder tells."""
    if kind_of(recipe):
        return "", frozenset()
    name = pipeline_class(recipe.config or str(shipped_folder(recipe.model)))
    return name, call_parameters(name) if name else frozenset()


def _require_call(recipe: Recipe) -> None:
    """Check what the call of the pipeline takes, where its class is known without the hub."""
    settings_of(recipe)
    name, takes = _pipeline(recipe)
    if takes and not ({*needed(recipe)} - takes):
        fitting(recipe, name, takes)
        require_inputs(recipe, name)


def _require_image(recipe: Recipe) -> None:
    if recipe.refiner:
        raise InputError(
            f"refiner={recipe.refiner} refines pure noise, and --image starts from an image: leave "
            "one of them out"
        )
    if recipe.strength is not None and not 0 < recipe.strength <= 1:
        raise InputError(
            f"strength must be in (0, 1] with an image, got {recipe.strength} (1 keeps nothing of "
            "the image)"
        )
    _require_a_step(recipe)
    for path in filter(None, (recipe.image, recipe.mask)):
        if not Path(path).exists():
            raise FileNotFoundError(f"no image {path}: give a PNG, JPEG, WebP or BMP file")
        read_image(path)


def _require_a_step(recipe: Recipe) -> None:
    """Check the steps that a strength leaves, where the folder tells how they are counted."""
    folder = Path(recipe.config or str(shipped_folder(recipe.model)))
    pipeline = pipeline_class(str(folder))
    own = call_arguments(pipeline).get("strength")
    default = own.default if own and own.default else ""
    given = recipe.strength is not None
    if (given or default.replace(".", "", 1).isdecimal()) and (folder / SCHEDULER).is_file():
        strength = recipe.strength if given else float(default)
        require_a_step(recipe, pipeline, strength, flows(read_object(folder / SCHEDULER)))


def _require_adm(options: ADMOptions, guidance: Guidance | None, sampler: Sampler | None) -> None:
    parts = list(guidance.parts()) if guidance else []
    if options.official_head_split and not any(isinstance(part, SAG) for part in parts):
        raise InputError(
            f"official_head_split does nothing with guidance={guidance!r}: it is of SAG"
        )
    asked = "classifier" in (guidance.networks() if guidance else ())
    asked = asked or bool(getattr(sampler, "classifier", 0))
    if asked and not options.classifier:
        raise InputError("a classifier is asked for the gradient: name one, --classifier FOLDER")
    if options.classifier and not asked:
        raise InputError(
            f"classifier={options.classifier} does nothing here: give --guidance "
            '"Classifier(1.0)" or --sampler "Ancestral(classifier=1.0)", or no classifier'
        )
