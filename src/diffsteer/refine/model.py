"""A pipeline's network as a function of a sample, a level and a condition."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.core.level import Level, upcast
from diffsteer.core.prediction import Prediction
from diffsteer.core.schedule import Flow, Schedule
from diffsteer.guidance.denoiser import Cond
from diffsteer.hf.architectures import Family, family_of
from diffsteer.hf.conditioning import conditioning_kwargs
from diffsteer.hf.network import (
    bind_arguments,
    channels,
    network_of,
    put_back,
    timestep_like,
    unwrap_compiled,
)
from diffsteer.hf.scheduler_config import trained


@dataclass(frozen=True, eq=False)
class Model:
    """The network of a pipeline with all that is needed to call it.

    Attributes:
        network: The network itself, not compiled.
        forward: How it is called; that of the network where nothing is wrapped around it.
        family: Of the network.
        schedule: What it was trained on.
        kind: What it predicts.
    """

    network: Any
    forward: Callable[..., Any]
    family: Family
    schedule: Schedule
    kind: Prediction

    @classmethod
    def of(cls, pipe: Any, forward: Callable[..., Any] | None = None) -> "Model":
        """The network of a pipeline of diffusers.

        Raises:
            ValueError: it is of no known family, or the schedule is none that we know.
        """
        network = unwrap_compiled(network_of(pipe))
        schedule, kind = trained(pipe.scheduler)
        return cls(network, forward or network, family_of(network), schedule, kind)

    @property
    def terminal(self) -> Level:
        """The noisiest level that the network knows, where sampling starts."""
        return self.schedule.at(self.schedule.last)

    def __call__(self, x: Tensor, level: Level, cond: Cond) -> Tensor:
        """Return its output, in the shape of `x` and float32 or wider.

        Args:
            x: The sample, `(B, C, H, W)`, or packed, as the network takes it.
            level: 0-dim; what the network is told comes from it.
            cond: All other arguments, as a pipeline gives them.
        """
        said = dict(cond)
        extra = said.pop("extra", None)
        flow = self.family.flow_time if isinstance(self.schedule, Flow) else 1.0
        said["timestep"] = timestep_like(level.t.item() * flow, said["timestep"])
        whole = x.to(self.network.dtype)
        if extra is not None:
            whole = torch.cat([whole, extra.to(whole)], dim=self._dim)
        said[self.family.sample] = whole
        out = self.forward(**said, return_dict=False)[0]
        return upcast(self.split(out)[0])

    def split(self, whole: Tensor) -> tuple[Tensor, Tensor | None]:
        """The sample, and channels beyond it (a mask, a learned variance), or None."""
        n, rest = channels(self.network), whole.shape[self._dim]
        if rest == n:
            return whole, None
        return whole.narrow(self._dim, 0, n), whole.narrow(self._dim, n, rest - n)

    def cond(self, said: Mapping[str, Any]) -> tuple[Tensor, Cond]:
        """The sample of a call of the network, and all else that the call says."""
        rest = {k: v for k, v in said.items() if k not in (self.family.sample, "return_dict")}
        x, extra = self.split(said[self.family.sample])
        return x, rest if extra is None else {**rest, "extra": extra}

    @property
    def _dim(self) -> int:
        return -1 if self.family.packed else 1


class _Reached(Exception):
    """Ends a pipeline at the first call of its network."""


def first_call(pipe: Any, **call: Any) -> tuple[Tensor, Cond]:
    """What a pipeline would send to its network first: the sample, and all other arguments.

    Whatever a family makes of its prompts is in them. The pipeline gets no further, and its
    scheduler is as it was.

    Args:
        pipe: Of a known family.
        call: Arguments of its call.
    """
    seen: dict[str, Any] = {}

    def watch(said: dict[str, Any]) -> Any:
        seen.update(said)
        raise _Reached

    scheduler = pipe.scheduler
    pipe.scheduler = copy(scheduler)
    try:
        with replaced(pipe, watch):
            pipe(**call)
    except _Reached:
        return Model.of(pipe).cond(seen)
    finally:
        pipe.scheduler = scheduler
    raise InputError(f"{type(pipe).__name__} did not call its network: nothing can be refined")


@contextmanager
def replaced(pipe: Any, act: Callable[[dict[str, Any]], Any]) -> Iterator[None]:
    """Let a function of its arguments, by name, stand in for the network of a pipeline."""
    network = network_of(pipe)
    before = network.__dict__.get("forward")
    network.forward = lambda *args, **kwargs: act(bind_arguments(network, args, kwargs))
    try:
        yield
    finally:
        put_back(network, before)


def conditions(
    pipe: Any, prompts: list[str], shape: Sequence[int] | None = None, **call: Any
) -> Cond:
    """What the network is told of prompts, one a row: all its arguments but the sample.

    Args:
        pipe: A pipeline with prompts.
        prompts: One a row.
        shape: Of one sample's noise, which decides what some networks are told.
        call: What else the pipeline is called with.

    Raises:
        ValueError: called so, the pipeline samples noise of another shape.
    """
    # some schedulers have no fewer steps than 4
    said = {
        "guidance_scale": 1.0,
        "num_inference_steps": 4,
        **conditioning_kwargs(pipe, prompts),
        **call,
    }
    with torch.no_grad():
        x, cond = first_call(pipe, **said)
    if shape is not None and x.shape[1:] != torch.Size(shape):
        raise InputError(
            f"the noise is of shape {tuple(shape)} and {type(pipe).__name__} would sample "
            f"{tuple(x.shape[1:])}, for which the network is told something else: give the height "
            "and width of the pictures"
        )
    return cond


def sampled_on(pipe: Any, prompt: str, **call: Any) -> Schedule:
    """The schedule on which a pipeline samples: a shift that depends on the image size counts.

    Args:
        pipe: A pipeline with prompts.
        prompt: Any.
        call: What else the pipeline is called with.
    """
    schedule, _ = trained(pipe.scheduler)
    if not pipe.scheduler.config.get("use_dynamic_shifting"):
        return schedule
    halves: list[float] = []
    scheduler = copy(pipe.scheduler)

    def watched(mu: float, power: float, sigmas: Any) -> Any:
        halves.append(shift(mu, power, 0.5))
        return shift(mu, power, sigmas)

    shift, scheduler.time_shift = scheduler.time_shift, watched
    before, pipe.scheduler = pipe.scheduler, scheduler
    try:
        conditions(pipe, [prompt], **call)
    finally:
        pipe.scheduler = before
    return Flow(halves[0] / (1 - halves[0]))  # a shift of s takes 1/2 to s / (1 + s)


def require_prompts(prompts: list[str]) -> None:
    """Check that there are prompts, and that each says something.

    Raises:
        ValueError: not so.
    """
    if isinstance(prompts, str):
        raise InputError(f"{prompts!r} is one text: give a list, one prompt a row")
    empty = [i for i, prompt in enumerate(prompts) if not prompt.strip()]
    if empty or not prompts:
        what = f"prompt {empty[0]} is empty" if prompts else "there is no prompt"
        raise InputError(
            f"{what}: noise is refined for what the image is to show; give a prompt for each"
        )
