"""Images of diffusers pipelines."""

import inspect
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.generate.base import Generator, require_finite
from diffsteer.generate.consistent import require_consistent
from diffsteer.generate.recipe import Recipe
from diffsteer.hf.conditioning import PROMPTS, conditioning_argument, conditioning_kwargs, seeded
from diffsteer.hf.hooks import replaced
from diffsteer.hf.load import load, network
from diffsteer.hf.network import network_of
from diffsteer.hf.scheduler_config import flows
from diffsteer.io.device import device_of
from diffsteer.io.hashing import digest, weights_hash
from diffsteer.refine.hook import opened
from diffsteer.steering import steer


class _Rehearsed(Exception):
    """Ends a sampling at its first step."""


class PipelineGenerator(Generator):
    """Makes the images of a diffusers pipeline; opened by `open_pipeline`.

    Attributes:
        pipe: The pipeline, as the recipe sets it up.
    """

    def __init__(self, recipe: Recipe, pipe: Any, weights: str) -> None:
        super().__init__(recipe, weights)
        self.pipe = pipe

    @property
    @override
    def key(self) -> dict[str, Any]:
        return {**self.recipe.to_dict(), "weights": self.weights}

    @override
    def provenance(self, seed: int) -> dict[str, Any]:
        return {"recipe": self.recipe.for_seed(seed).to_dict(), "weights": self.weights}

    @override
    def rehearse(self) -> None:
        def stop(*_: Any, **__: Any) -> None:
            raise _Rehearsed

        step = self.pipe.scheduler.step
        with suppress(_Rehearsed), replaced(self.pipe.scheduler, "step", wraps(step)(stop)):
            self._images([0])

    @override
    def __call__(self, seeds: Sequence[int]) -> Tensor:
        return self._images(seeds)

    def _images(self, seeds: Sequence[int]) -> Tensor:
        prompts = [self.recipe.for_seed(seed).prompt for seed in seeds]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        kwargs = call_of(self.pipe, self.recipe, prompts)
        with seeded(self.pipe, generators):
            return images_of(self.pipe, seeds, {**kwargs, "generator": generators})


@contextmanager
def open_pipeline(recipe: Recipe, device: str = "") -> Iterator[PipelineGenerator]:
    """Load the pipeline of a recipe and make its images until closed.

    Args:
        recipe: What to make.
        device: Where; empty for a GPU if there is one. float32 on a CPU, bfloat16 on a GPU.
    """
    require_consistent(recipe)
    folder = Path(recipe.model).resolve()
    files = [(path, path.stat().st_mtime_ns) for path in sorted(folder.rglob("*"))]
    pipe, scheduler, weights = _loaded(recipe.model, device_of(device), tuple(files))
    pipe.scheduler = scheduler
    if conditioning_argument(pipe) == PROMPTS and not all(recipe.prompts or [recipe.prompt]):
        advice = "noise is refined" if recipe.refiner else "images are made"
        warnings.warn(
            f"there is no prompt, so that {advice} for nothing in particular: give --prompt",
            stacklevel=3,
        )
    with configured(pipe, recipe, weights) as generator:
        yield generator


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
        guide = network(recipe.guide, pipe.dtype).to(pipe.device)
        guide_weights = weights_hash(guide)
    conditioning_kwargs(pipe, recipe.prompts or [recipe.prompt], bool(_guidance(recipe)))
    with ExitStack() as stack:
        stack.callback(setattr, pipe, "scheduler", pipe.scheduler)
        pipe.scheduler = scheduler_of(recipe, pipe.scheduler)
        refine = None
        if recipe.refiner:
            refine, give_back = opened(recipe.refiner, pipe)
            stack.callback(give_back)
        more = {"guide": guide_weights, "refiner": getattr(refine, "sha256", None)}
        if any(more.values()):
            weights = digest({"main": weights, **{k: v for k, v in more.items() if v}})
        generator = PipelineGenerator(recipe, pipe, weights)
        stack.enter_context(generator.counting(network_of(pipe), guide))
        if recipe.guidance or refine is not None:
            guidance, how_much = _guidance(recipe), recipe.strength
            stack.enter_context(steer(pipe, guidance, guide, refiner=refine, strength=how_much))
        yield generator


def _guidance(recipe: Recipe) -> str | None:
    """The guidance; one that is off where the refiner needs the null prompt to be sent."""
    return recipe.guidance or ("CFG(1)" if recipe.refiner.startswith("NLG") else None)


@lru_cache(maxsize=1)
def _loaded(
    model: str, device: str, files: tuple[tuple[Path, int], ...] = ()
) -> tuple[Any, Any, str]:
    """Pipeline, its own scheduler and the hash of both; kept while its files are unchanged."""
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    pipe = load(model, dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    parts = {n: weights_hash(m) for n, m in pipe.components.items() if isinstance(m, nn.Module)}
    config = {k: repr(v) for k, v in pipe.scheduler.config.items() if not k.startswith("_")}
    return pipe, pipe.scheduler, digest({"parts": parts, "scheduler": config})


def scheduler_of(recipe: Recipe, scheduler: Any) -> Any:
    """The scheduler of a recipe, with what the pipeline's says of the network."""
    from diffsteer.hf.scheduler import SteerScheduler

    if not recipe.sampler:
        return scheduler
    name = type(scheduler).__name__
    if flows({"_class_name": name, **scheduler.config}):
        raise InputError(
            f"sampler={recipe.sampler!r} cannot take the place of {name}, which samples a flow: "
            'keep that with an empty sampler, --sampler ""'
        )
    changes: dict[str, Any] = {"sampler": recipe.sampler, "timestep_spacing": recipe.spacing}
    if recipe.zero_snr:
        changes["rescale_betas_zero_snr"] = True
    return SteerScheduler.from_config(scheduler.config, **changes)


def call_of(pipe: Any, recipe: Recipe, texts: Sequence[str]) -> dict[str, Any]:
    """Arguments of one call of the pipeline, but for where its noise comes from.

    The null half is always sent where something may ask for it; what is not asked for is not
    evaluated.
    """
    takes = inspect.signature(pipe.__call__).parameters
    call: dict[str, Any] = {"num_inference_steps": recipe.steps}
    call |= conditioning_kwargs(pipe, texts, bool(_guidance(recipe)))
    if recipe.negative and "negative_prompt" not in takes:
        raise InputError(f"{type(pipe).__name__} takes no negative prompt: leave it out")
    if recipe.negative:
        call["negative_prompt"] = [recipe.negative] * len(texts)
    if "guidance_scale" in takes:
        call["guidance_scale"] = 2.0 if _guidance(recipe) else 1.0
    if unknown := recipe.size.keys() - takes:
        names = ", ".join(sorted(unknown))
        raise InputError(f"{type(pipe).__name__} takes no {names}: leave it out")
    if len(recipe.size) == 1:  # some pipelines take no notice of one alone
        call |= dict.fromkeys(("height", "width"), _default_size(pipe))
    return call | recipe.size


def _default_size(pipe: Any) -> int:
    """Side in pixels of the images that a pipeline makes by itself."""
    tokens = getattr(pipe, "default_sample_size", network_of(pipe).config.get("sample_size"))
    scale = getattr(pipe, "vae_scale_factor", None)
    if not (isinstance(tokens, int) and isinstance(scale, int)):
        raise InputError(f"{type(pipe).__name__} names no size of its own: give width and height")
    return tokens * scale


def images_of(pipe: Any, seeds: Sequence[int], call: Mapping[str, Any]) -> Tensor:
    """Images of one call of a pipeline, uint8 `(N, 3, H, W)`, as many and as large as it asks for.

    Args:
        pipe: The pipeline.
        seeds: Of the images, for errors.
        call: Its arguments, but for the output type.
    """
    last: deque[Tensor] = deque(maxlen=1)
    decoded: deque[Tensor] = deque()
    with ExitStack() as stack:
        stack.enter_context(_results(pipe.scheduler, "step", last))
        if hasattr(vae := getattr(pipe, "vae", None), "decode"):
            stack.enter_context(_results(vae, "decode", decoded))
        try:
            output = pipe(**call, output_type="np").images
        except InputError:
            raise
        except (ValueError, OverflowError) as error:  # such as of a size, or an endless prompt
            raise InputError(f"{type(pipe).__name__} refuses this call: {error}") from error
    floats = [*last, torch.from_numpy(output)] + ([torch.cat([*decoded])] if decoded else [])
    pil = pipe.numpy_to_pil(np.nan_to_num(output))
    pixels = np.stack([np.array(image.convert("RGB")) for image in pil])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    size = {"height": images.shape[2], "width": images.shape[3]}
    if len(images) != len(seeds) or any(call.get(name, n) != n for name, n in size.items()):
        wanted = ", ".join(f"{name} {call[name]}" for name in size if name in call)
        raise InputError(
            f"{type(pipe).__name__} gave {len(images)} images of {size['width']} x "
            f"{size['height']} pixels for {len(seeds)} of {wanted or 'its own size'}: give "
            "both width and height, as multiples that it takes"
        )
    return require_finite(seeds, images, *floats)


@contextmanager
def _results(owner: Any, name: str, results: deque[Tensor]) -> Iterator[None]:
    """Append the tensors that a method of a scheduler or autoencoder returns, until closed."""
    method = getattr(owner, name)

    @wraps(method)  # pipelines look at the signature of `step` for whether to send generators
    def watched(*args: Any, **kwargs: Any) -> Any:
        out = method(*args, **kwargs)
        results.append(out[0])
        return out

    with replaced(owner, name, watched):
        yield
