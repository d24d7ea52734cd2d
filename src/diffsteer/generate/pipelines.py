"""Images of diffusers pipelines."""

import inspect
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.generate.base import Generator, NotFinite
from diffsteer.generate.call import call_of, guidance_text, media, needed
from diffsteer.generate.outputs import frame_rate, images_of, sample_rate
from diffsteer.generate.recipe import Recipe
from diffsteer.generate.recipe_checks import require_consistent, with_guide
from diffsteer.hf.conditioning import PROMPTS, conditioning_argument, conditioning_kwargs
from diffsteer.hf.hooks import wrapped
from diffsteer.hf.load import guide_beside, load, require_fits
from diffsteer.hf.lora import lora_files
from diffsteer.hf.network import networks_of
from diffsteer.hf.offload import place, require_offload
from diffsteer.hf.scheduler_config import is_flow
from diffsteer.io.device import device_of, dtype_of
from diffsteer.io.hashing import digest, file_hash, weights_hash
from diffsteer.refine.hook import opened
from diffsteer.steering import steer

_OPEN = set[int]()
"""Pipelines that are set up for a recipe now."""


class _Rehearsed(Exception):
    """Ends a sampling at its first step."""


class PipelineGenerator(Generator):
    """Makes the images of a diffusers pipeline; opened by `open_pipeline`.

    Attributes:
        pipe: The pipeline, as the recipe sets it up.
    """

    def __init__(self, recipe: Recipe, pipe: Any, weights: str) -> None:
        super().__init__(recipe, weights)
        self.pipe, self._sounds = pipe, dict[int, Tensor]()

    @property
    @override
    def key(self) -> dict[str, Any]:
        return {**_deciding(self.recipe).to_dict(), "weights": self.weights}

    @override
    def provenance(self, seed: int) -> dict[str, Any]:
        recipe = _deciding(self.recipe).for_seed(seed)
        return {"recipe": recipe.to_dict(), "weights": self.weights}

    @override
    def metadata(self, seed: int) -> dict[str, Any]:
        offload = {} if self.recipe.offload == "none" else {"offload": self.recipe.offload}
        whole = _deciding(self.recipe)
        return {**self.provenance(seed), "made_by": whole.hash, **offload}

    @property
    @override
    def media(self) -> str:
        return media(self._takes)

    @property
    @override
    def rate(self) -> int:
        if self.media == "audio":
            return sample_rate(self.pipe)
        call = call_of(self.pipe, self.recipe, [self.recipe.for_seed(0).prompt])
        return self.recipe.fps or frame_rate(self.pipe, call, self._takes)

    @override
    def sound(self, seed: int) -> tuple[Tensor, int] | None:
        samples = self._sounds.pop(seed, None)
        return None if samples is None else (samples, sample_rate(self.pipe))

    @override
    def rehearse(self) -> None:
        def stop(*_: Any, **__: Any) -> None:
            raise _Rehearsed

        with suppress(_Rehearsed), wrapped(self.pipe.scheduler, "step", stop):
            self._sampled([0])

    @override
    def sampled(self, seeds: Sequence[int]) -> Tensor:
        if self.media == "image" and not self.recipe.image:
            return self._sampled(seeds)
        samples, refused = dict[int, Tensor](), list[int]()
        for seed in seeds:  # pipelines of videos and of image to image do not all take several
            try:
                samples[seed] = self._sampled([seed])[0]
            except NotFinite:
                refused.append(seed)
        if refused:
            raise NotFinite(refused, samples)
        return torch.stack([*samples.values()])

    @property
    def _takes(self) -> Any:
        return inspect.signature(self.pipe.__call__).parameters

    def _sampled(self, seeds: Sequence[int]) -> Tensor:
        prompts = [self.recipe.for_seed(seed).prompt for seed in seeds]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        kwargs = call_of(self.pipe, self.recipe, prompts)
        with _blaming(self.recipe.settings):
            return images_of(self.pipe, seeds, {**kwargs, "generator": generators}, self._sounds)


@contextmanager
def _blaming(settings: Sequence[str]) -> Iterator[None]:
    """Turn what a pipeline stumbles over into one line where arguments of its call were given."""
    try:
        yield
    except (TypeError, AttributeError, LookupError, ArithmeticError) as error:
        if not settings:
            raise
        raise InputError(
            f"the pipeline fails with --set {' --set '.join(settings)} ({type(error).__name__}: "
            f"{error}): look at these values, or leave them out"
        ) from error


def _deciding(recipe: Recipe) -> Recipe:
    """What decides the samples of a recipe."""
    return replace(recipe, offload="none")


@contextmanager
def open_pipeline(recipe: Recipe, device: str = "") -> Iterator[PipelineGenerator]:
    """Load the pipeline of a recipe and make its images until closed.

    Args:
        recipe: What to make.
        device: Where; empty for a GPU if there is one.
    """
    require_consistent(recipe)
    recipe = with_guide(recipe)
    require_offload(recipe.offload, device_of(device))
    settings = (
        *(recipe.model, device_of(device), _files(recipe), recipe.dtype, recipe.offload),
        *(recipe.lora, recipe.config, needed(recipe)),
    )
    pipe, scheduler, weights = _loaded(*settings)
    if id(pipe) in _OPEN:  # as another recipe has set it up
        pipe, scheduler, weights = _loaded.__wrapped__(*settings)
    pipe.scheduler = scheduler
    if conditioning_argument(pipe) == PROMPTS and not all(recipe.prompts or [recipe.prompt]):
        advice = "noise is refined" if recipe.refiner else "images are made"
        warnings.warn(
            f"there is no prompt, so that {advice} for nothing in particular: give --prompt",
            stacklevel=3,
        )
    _OPEN.add(id(pipe))
    try:
        with configured(pipe, recipe, weights) as generator:
            yield generator
    finally:
        _OPEN.discard(id(pipe))


@contextmanager
def configured(
    pipe: Any, recipe: Recipe, weights: str = "", guide: Any = None
) -> Iterator[PipelineGenerator]:
    """Set up a loaded pipeline for a recipe, until closed.

    Args:
        pipe: Of the recipe's model.
        recipe: What to make.
        weights: Hash of the pipeline's weights.
        guide: The recipe's guide network where it is loaded already; then it is in no hash.
    """
    if recipe.negative and not recipe.guidance and recipe.refiner:
        warnings.warn(
            "a negative prompt acts by guidance alone: noise is refined for the prompt, and "
            "without a guidance nothing moves away from the negative one",
            stacklevel=3,
        )
    guide_weights = ""
    if recipe.guide and guide is None:
        guide = guide_beside(pipe, recipe.guide)
        guide_weights = weights_hash(guide)
    conditioning_kwargs(pipe, recipe.prompts or [recipe.prompt], bool(guidance_text(recipe)))
    with ExitStack() as stack:
        stack.callback(setattr, pipe, "scheduler", pipe.scheduler)
        pipe.scheduler = scheduler_of(recipe, pipe.scheduler)
        refine = None
        if recipe.refiner:
            refine, give_back = opened(recipe.refiner, pipe)
            stack.callback(give_back)
        more = {"guide": guide_weights, "refiner": getattr(refine, "sha256", None)}
        more |= {n: file_hash(Path(f)) for n in ("image", "mask") if (f := getattr(recipe, n))}
        if any(more.values()):
            weights = digest({"main": weights, **{k: v for k, v in more.items() if v}})
        generator = PipelineGenerator(recipe, pipe, weights)
        stack.enter_context(generator.counting(networks_of(pipe), guide))
        if recipe.guidance or refine is not None:
            guidance, strength = guidance_text(recipe), recipe.refiner_strength if refine else 1.0
            stack.enter_context(steer(pipe, guidance, guide, refiner=refine, strength=strength))
        if not guidance_text(recipe) and (guider := getattr(pipe, "guider", None)):
            if guider._enabled:  # its scale is no argument of the call
                stack.callback(guider.enable)
            guider.disable()
        yield generator


def _files(recipe: Recipe) -> tuple[tuple[Path, int], ...]:
    """Local files that a pipeline is loaded from, with the time of their last change."""
    places = [Path(place).resolve() for place in (recipe.model, recipe.config) if place]
    files = [file for place in places for file in (place, *sorted(place.rglob("*")))]
    files = [file for file in (*files, *lora_files(recipe.lora)) if file.exists()]
    return tuple((file, file.stat().st_mtime_ns) for file in files)


@lru_cache(maxsize=1)
def _loaded(
    model: str,
    device: str,
    files: tuple[tuple[Path, int], ...] = (),
    dtype: str = "auto",
    offload: str = "none",
    lora: tuple[str, ...] = (),
    config: str = "",
    takes: tuple[str, ...] = (),
) -> tuple[Any, Any, str]:
    """Pipeline, its own scheduler and the hash of both; kept while its files are unchanged."""
    require_fits(model, device, offload, dtype)
    pipe = load(model, dtype_of(dtype, device), config=config, lora=lora, takes=takes)
    pipe.set_progress_bar_config(disable=True)
    parts = {n: weights_hash(m) for n, m in pipe.components.items() if isinstance(m, nn.Module)}
    config_of = {k: repr(v) for k, v in pipe.scheduler.config.items() if not k.startswith("_")}
    weights = digest({"parts": parts, "scheduler": config_of})
    return place(pipe, device, offload), pipe.scheduler, weights


def scheduler_of(recipe: Recipe, scheduler: Any) -> Any:
    """The scheduler of a recipe, with what the pipeline's says of the network."""
    from diffsteer.hf.scheduler import SteerScheduler

    if not recipe.sampler:
        return scheduler
    name = type(scheduler).__name__
    if is_flow(scheduler):
        raise InputError(
            f"sampler={recipe.sampler!r} cannot take the place of {name}, which samples a flow: "
            'keep that with an empty sampler, --sampler ""'
        )
    changes: dict[str, Any] = {"sampler": recipe.sampler, "timestep_spacing": recipe.spacing}
    if recipe.zero_snr:
        changes["rescale_betas_zero_snr"] = True
    return SteerScheduler.from_config(scheduler.config, **changes)
