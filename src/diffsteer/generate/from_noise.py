"""Sample a pipeline from given noise."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from diffsteer.core.noise import seeds_of
from diffsteer.generate.base import require_finite
from diffsteer.generate.call import call_of
from diffsteer.generate.outputs import images_of, results
from diffsteer.generate.recipe import Recipe
from diffsteer.hf.conditioning import seeded
from diffsteer.hf.hooks import Replaced, wrapped
from diffsteer.hf.prompt_conditions import first_call
from diffsteer.hf.time_arguments import Predicted, predicted
from diffsteer.refine.hook import started_from


def noise_shape(pipe: Any, recipe: Recipe) -> tuple[int, ...]:
    """Shape of one sample's noise as the network of a pipeline takes it; needs a prompt."""
    x, _ = first_call(pipe, **call_of(pipe, recipe, recipe.prompts[:1]))
    return tuple(x.shape[1:])


@contextmanager
def _starting(pipe: Any, noise: Tensor) -> Iterator[dict[str, Any]]:
    """Let a pipeline start from noise, `(B, *D)`; gives what its call has to say for it."""
    if "latents" in signature(pipe.__call__).parameters:
        yield {"latents": noise.to(pipe.device, pipe.dtype)}
        return
    with started_from(pipe, noise):  # a pipeline that draws its noise itself: DiT
        yield {}


def predictions(scheduler: Any, note: Callable[[Predicted], Any]) -> Replaced:
    """Call `note` before each step with what the network of a pipeline predicts, guided or not."""

    def noted(
        step: Any, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        note(predicted(scheduler, model_output, timestep, sample))
        return step(model_output, timestep, sample, *args, **kwargs)

    return wrapped(scheduler, "step", noted)


@torch.no_grad()
def sample_from_noise(
    pipe: Any,
    recipe: Recipe,
    texts: Sequence[str],
    noise: Tensor,
    seeds: Sequence[int] = (),
    shown: bool = False,
    watch: Callable[[Tensor], Any] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Latents in which a sampling from noise ends, `(B, *D)`, float32 on the CPU, and its images.

    Args:
        pipe: The pipeline, set up.
        recipe: As it was set up.
        texts: A prompt each.
        noise: Unit Gaussian noise, `(B, *D)`; fresh noise of ancestral samplers follows from it.
        seeds: Of the noise, for errors.
        shown: Whether to decode images, uint8 `(B, 3, H, W)`; None without.
        watch: Called in each step with the x0 that the network predicts, guided where the sampling
            is, like the latents.
    """
    last: deque[Tensor] = deque(maxlen=1)

    def note(now: Predicted) -> None:
        if watch is not None:
            watch(now.x0[: len(noise)].to("cpu", torch.float32))

    generators = [torch.Generator().manual_seed(seed) for seed in seeds_of(noise)]
    with (
        seeded(pipe, generators),
        results(pipe.scheduler, "step", last),
        predictions(pipe.scheduler, note) if watch else nullcontext(),
        _starting(pipe, noise) as start,
    ):
        call = {**call_of(pipe, recipe, texts), "generator": generators, **start}
        seeds = seeds or seeds_of(noise)
        images = images_of(pipe, seeds, call) if shown else pipe(**call, output_type="latent")
    latents = last[0][: len(noise)].to("cpu", torch.float32)  # DiT steps both halves
    return require_finite(seeds, latents, latents), images if shown else None
