"""Conditions that a pipeline makes of prompts, read from the first call of its network."""

from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.core.schedule import Flow, Schedule
from diffsteer.guidance.denoiser import Cond
from diffsteer.hf.conditioning import conditioning_kwargs
from diffsteer.hf.hooks import replaced
from diffsteer.hf.network import PipelineNetwork, network_replaced
from diffsteer.hf.scheduler_config import trained


class _Reached(Exception):
    """Ends a pipeline at the first call of its network."""


def first_call(pipe: Any, **call: Any) -> tuple[Tensor, Cond]:
    """Sample and all other arguments that a pipeline would send to its network first.

    Whatever a family makes of its prompts is in them. The pipeline gets no further, and its
    scheduler is as it was.
    """
    first: dict[str, Any] = {}

    def answer(arguments: dict[str, Any]) -> Any:
        first.update(arguments)
        raise _Reached

    with replaced(pipe, "scheduler", copy(pipe.scheduler)):
        try:
            with network_replaced(pipe, answer):
                pipe(**call)
        except _Reached:
            network = PipelineNetwork.of(pipe)
            inputs = first[network.family.sample]
            return network.split(inputs)[0], network.condition(first, inputs)
    raise InputError(f"{type(pipe).__name__} did not call its network: nothing can be refined")


def conditions(
    pipe: Any, prompts: list[str], shape: Sequence[int] | None = None, **call: Any
) -> Cond:
    """Condition of prompts, one a row: all arguments of the network but the sample.

    Args:
        pipe: A pipeline with prompts.
        prompts: One a row.
        shape: Of one sample's noise, which decides what some networks are told.
        call: What else the pipeline is called with.
    """
    # some schedulers have no fewer steps than 4
    kwargs = {"guidance_scale": 1.0, "num_inference_steps": 4}
    kwargs |= {**conditioning_kwargs(pipe, prompts), **call}
    with torch.no_grad():
        x, cond = first_call(pipe, **kwargs)
    if len(x) != len(prompts):
        raise InputError(
            f"{type(pipe).__name__} would sample {len(x)} images for {len(prompts)} prompts: give "
            "one prompt for each, and leave out num_images_per_prompt"
        )
    if shape is not None and x.shape[1:] != torch.Size(shape):
        raise InputError(
            f"the noise is of shape {tuple(shape)} and {type(pipe).__name__} would sample "
            f"{tuple(x.shape[1:])}, for which the network is told something else: give the height "
            "and width of the images"
        )
    return cond


def sampled_on(pipe: Any, prompt: str, **call: Any) -> Schedule:
    """Schedule on which a pipeline samples: a shift that depends on the image size counts."""
    schedule, _ = trained(pipe.scheduler)
    if not pipe.scheduler.config.get("use_dynamic_shifting"):
        return schedule
    halves: list[float] = []
    scheduler = copy(pipe.scheduler)
    time_shift = scheduler.time_shift

    def noted(mu: float, power: float, sigmas: Any) -> Any:
        halves.append(time_shift(mu, power, 0.5))
        return time_shift(mu, power, sigmas)

    scheduler.time_shift = noted
    with replaced(pipe, "scheduler", scheduler):
        conditions(pipe, [prompt], **call)
    return Flow(halves[0] / (1 - halves[0]))  # a shift of s takes 1/2 to s / (1 + s)


def require_prompts(prompts: list[str]) -> None:
    """Check that there are prompts, and that none is empty."""
    if isinstance(prompts, str):
        raise InputError(f"{prompts!r} is one text: give a list, one prompt a row")
    empty = [i for i, prompt in enumerate(prompts) if not prompt.strip()]
    if empty or not prompts:
        problem = f"prompt {empty[0]} is empty" if prompts else "there is no prompt"
        raise InputError(
            f"{problem}: noise is refined for what the image is to show; give a prompt for each"
        )
