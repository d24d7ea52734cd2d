"""Pictures of a recipe from seeds: `with rendering(recipe) as images: images([0, 1])`."""

import inspect
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffsteer.core.errors import InputError
from diffsteer.generate.recipe import WEIGHT, Recipe
from diffsteer.hf.conditioning import conditioning_argument, conditioning_kwargs
from diffsteer.hf.load import network, pipeline
from diffsteer.hf.network import network_of, put_back
from diffsteer.hf.scheduler_config import flows
from diffsteer.hf.stepping import seeded
from diffsteer.io.device import device_of
from diffsteer.io.hashing import digest, weights_hash
from diffsteer.refine.hook import opened
from diffsteer.steering import steer

SAMPLE = ("sample", "hidden_states")
"""What networks call the sample among their arguments."""


class Rows:
    """Counts the rows that networks evaluate."""

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}

    def __call__(self) -> dict[str, float]:
        """Rows since the last call, by the name of the network."""
        rows, self._rows = self._rows, dict.fromkeys(self._rows, 0)
        return {name: float(n) for name, n in rows.items()}

    @contextmanager
    def counting(self, module: Any, name: str) -> Iterator[None]:
        """Count the rows of a network, below any steering, until closed."""
        forward, own = module.forward, module.__dict__.get("forward")
        self._rows[name] = 0

        def counted(*args: Any, **kwargs: Any) -> Any:
            x = args[0] if args else kwargs[next(n for n in SAMPLE if n in kwargs)]
            self._rows[name] += len(x)
            return forward(*args, **kwargs)

        module.forward = counted
        try:
            yield
        finally:
            put_back(module, own)


class Rendering:
    """Makes the images of a recipe; opened by `rendering`.

    Attributes:
        recipe: What is made.
        weights: Hash of the weights as they were loaded, and of the scheduler's config: another
            checkpoint under the same name, or another precision, makes other images.
        rows: How many rows of which network were evaluated.
    """

    def __init__(self, recipe: Recipe, pipe: Any, weights: str) -> None:
        self.recipe, self.weights = recipe, weights
        self.rows = Rows()
        self._pipe = pipe

    @property
    def key(self) -> dict[str, Any]:
        """All that decides the images, in plain values."""
        return {**self.recipe.said, "weights": self.weights}

    def decides(self, seed: int) -> dict[str, Any]:
        """All that decides the image of one seed, as it is written into the image."""
        return {"recipe": self.recipe.for_seed(seed).said, "weights": self.weights}

    def __call__(self, seeds: Sequence[int]) -> Tensor:
        """One image a seed, uint8 `(N, 3, H, W)`, the same alone and in any batch.

        Raises:
            ValueError: the pipeline takes no prompt and there is one.
        """
        texts = [self.recipe.for_seed(seed).prompt for seed in seeds]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        call = call_of(self._pipe, self.recipe, texts)
        with seeded(self._pipe, generators):
            return stacked(self._pipe(**call, generator=generators))

    @property
    def pipe(self) -> Any:
        """The pipeline, as the recipe sets it up."""
        return self._pipe


@contextmanager
def rendering(recipe: Recipe, device: str = "") -> Iterator[Rendering]:
    """Load what a recipe names and make its images until closed.

    Args:
        recipe: What to make.
        device: Where; empty for a GPU if there is one. float32 on a CPU, bfloat16 on a GPU.

    Raises:
        ValueError: the recipe names no model, or what cannot be.
    """
    if not recipe.model:
        raise InputError("the recipe names no model: give a hub id or folder")
    if WEIGHT in recipe.guidance:
        raise InputError(
            f"{recipe.guidance!r} holds {WEIGHT}: `diffsteer compare --weights` fills it"
        )
    pipe, scheduler, weights = _loaded(recipe.model, device_of(device))
    pipe.scheduler = scheduler
    with rendering_by(pipe, recipe, weights) as made:
        yield made


@contextmanager
def rendering_by(
    pipe: Any, recipe: Recipe, weights: str = "", guide: Any = None
) -> Iterator[Rendering]:
    """Set up a pipeline that is there as a recipe says, until closed.

    Args:
        pipe: Of the recipe's model.
        recipe: What to make.
        weights: Hash of the pipeline's weights.
        guide: That of the recipe, where it is there already; then it is in no hash.

    Raises:
        ValueError: the recipe says what cannot be.
    """
    if not recipe.refiner and recipe.strength != 1:
        raise InputError(f"strength={recipe.strength} of no refiner: name one, or leave it out")
    if recipe.negative and not recipe.guidance and recipe.refiner:
        warnings.warn(
            "a negative prompt acts by guidance alone: noise is refined for the prompt, and "
            "without a guidance nothing moves away from the negative one",
            stacklevel=3,
        )
    if (
        recipe.refiner
        and conditioning_argument(pipe)
        and not all(recipe.prompts or [recipe.prompt])
    ):
        warnings.warn(
            "there is no prompt: noise is refined for what the image is to show, and refiners "
            "are trained on prompts that say something. Give one, or leave the refiner out",
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
        made = Rendering(recipe, pipe, weights)
        stack.enter_context(made.rows.counting(network_of(pipe), "rows"))
        if guide is not None:
            stack.enter_context(made.rows.counting(guide, "rows of the guide"))
        if recipe.guidance or refine is not None:
            guidance, how_much = _guidance(recipe), recipe.strength
            stack.enter_context(steer(pipe, guidance, guide, refiner=refine, strength=how_much))
        yield made


def _guidance(recipe: Recipe) -> str | None:
    """The guidance; for a rival that needs the null half to be sent, one that is off."""
    return recipe.guidance or ("CFG(1)" if recipe.refiner.startswith("NLG") else None)


@lru_cache(maxsize=1)
def _loaded(model: str, device: str) -> tuple[Any, Any, str]:
    """Pipeline, its own scheduler and the hash of both; kept, since sweeps take it again."""
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    pipe = pipeline(model, dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    parts = {n: weights_hash(m) for n, m in pipe.components.items() if isinstance(m, nn.Module)}
    config = {k: repr(v) for k, v in pipe.scheduler.config.items() if not k.startswith("_")}
    return pipe, pipe.scheduler, digest({"parts": parts, "scheduler": config})


def scheduler_of(recipe: Recipe, scheduler: Any) -> Any:
    """The scheduler of a recipe, with what the pipeline's says of the network.

    Raises:
        ValueError: the recipe names a sampler, and the network is one of a flow.
    """
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

    Raises:
        ValueError: the pipeline takes no such prompt and there is one.
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
    if odd := recipe.size.keys() - takes:
        raise InputError(f"{type(pipe).__name__} takes no {', '.join(sorted(odd))}: leave it out")
    return call | recipe.size


def stacked(output: Any) -> Tensor:
    """Pictures of a pipeline's output, uint8 `(N, 3, H, W)`."""
    every = [np.array(picture.convert("RGB")) for picture in output.images]
    return torch.from_numpy(np.stack(every)).permute(0, 3, 1, 2)
