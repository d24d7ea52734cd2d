"""The network of a diffusers pipeline: where it is, and how it is called."""

import inspect
import sys
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from diffsteer.core.errors import InputError
from diffsteer.core.level import Level, upcast
from diffsteer.core.prediction import Prediction
from diffsteer.core.schedule import Schedule
from diffsteer.guidance.denoiser import Cond
from diffsteer.hf.architectures import Family, family_of
from diffsteer.hf.hooks import Replaced, replaced
from diffsteer.hf.protocols import NetworkLike, SchedulerLike
from diffsteer.hf.timesteps import timestep_like, timestep_schedule

PARTS = ("unet", "transformer")
"""What pipelines call their network."""


def network_of(pipe: Any) -> Any:
    """The denoising network of a pipeline, or the network itself.

    Raises:
        ValueError: the pipeline has none.
    """
    if isinstance(pipe, nn.Module):
        return pipe
    for name in PARTS:
        if getattr(pipe, name, None) is not None:
            return getattr(pipe, name)
    raise InputError(f"{type(pipe).__name__} has neither a unet nor a transformer to steer")


def unwrap_compiled(module: Any) -> Any:
    """The network inside a compiled one."""
    return getattr(module, "_orig_mod", module)


def uncompiled() -> AbstractContextManager[Any]:
    """Run compiled code as it was written meanwhile, so that it sees layers that were changed."""
    if "torch._dynamo" not in sys.modules:  # nothing can be compiled; importing it takes seconds
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def channels(network: NetworkLike) -> int:
    """Channels of the sample: what the network returns, less a learned variance."""
    takes = network.config.in_channels
    returns = network.config.out_channels or takes
    return int(takes if returns == 2 * takes else min(takes, returns))


def bind_arguments(network: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a call of a network's forward, by name."""
    signature = _signature(type(unwrap_compiled(network)).forward)
    arguments: dict[str, Any] = dict(signature.bind(network, *args, **kwargs).arguments)
    arguments.pop("self")
    more: dict[str, Any] = arguments.pop("kwargs", {})
    return arguments | more


@cache
def _signature(forward: Hashable) -> inspect.Signature:
    return inspect.signature(forward)  # type: ignore[arg-type]


_steered: WeakSet[nn.Module] = WeakSet()


@contextmanager
def claimed(network: Any) -> Iterator[None]:
    """Mark a network as steered until exit."""
    check_free(network)
    _steered.add(unwrap_compiled(network))
    yield
    _steered.discard(unwrap_compiled(network))


def check_free(network: Any) -> None:
    """Check that the forward of a network can be replaced.

    Raises:
        ValueError: it is steered already, or calls do not pass through it.
    """
    if unwrap_compiled(network) in _steered:
        raise InputError("this pipeline is steered already: remove the other steering first")
    if getattr(network, "_compiled_call_impl", None) is not None:
        raise InputError(
            "this network was compiled in place, which leaves no way in: use "
            "pipe.unet = torch.compile(pipe.unet) instead of pipe.unet.compile()"
        )


def network_replaced(pipe: Any, answer: Callable[[dict[str, Any]], Any]) -> Replaced:
    """Let a function of its arguments, by name, stand in for the network of a pipeline."""
    network = network_of(pipe)

    def forward(*args: Any, **kwargs: Any) -> Any:
        return answer(bind_arguments(network, args, kwargs))

    return replaced(network, "forward", forward)


EXTRA = "extra"
"""Name, in a condition, of channels or tokens that go with the sample and are not denoised."""


@dataclass(frozen=True, eq=False)
class Shared:
    """An argument that is the same for all rows, though its first dimension may be as long."""

    value: Any


@dataclass(frozen=True, eq=False)
class PipelineNetwork:
    """A pipeline's network with all that is needed to call it.

    Attributes:
        module: The network itself, not compiled.
        forward: Evaluates it; that of the network where nothing is wrapped around it.
        family: Of the network.
        schedule: On which the scheduler's timesteps lie.
        prediction: Prediction type.
    """

    module: Any
    forward: Callable[..., Any]
    family: Family
    schedule: Schedule
    prediction: Prediction

    @classmethod
    def of(cls, pipe: Any, forward: Callable[..., Any] | None = None) -> "PipelineNetwork":
        """Network of a pipeline of diffusers, called past any steering where `forward` is given.

        Raises:
            ValueError: the network is of no known family, or the schedule cannot be steered.
        """
        return cls.on(pipe.scheduler, network_of(pipe), forward)

    @classmethod
    def on(
        cls, scheduler: SchedulerLike, network: Any, forward: Callable[..., Any] | None = None
    ) -> "PipelineNetwork":
        """Network that a scheduler samples; see `of`."""
        module = unwrap_compiled(network)
        return cls(module, forward or module, family_of(module), *timestep_schedule(scheduler))

    @property
    def terminal(self) -> Level:
        """The noisiest level that the network knows, where sampling starts."""
        return self.schedule.at(self.schedule.last)

    def __call__(self, x: Tensor, level: Level, cond: Cond) -> Tensor:
        """Output for a sample at a level, in the shape of `x` and float32 or wider.

        Args:
            x: The sample, `(B, C, H, W)`, or packed, as the network takes it.
            level: 0-dim; what the network is told comes from it.
            cond: All other arguments, as `condition` gives them.
        """
        return self.split(self.evaluate(x, cond, self.module.dtype, level))[0]

    def evaluate(
        self, x: Tensor, cond: Cond, dtype: torch.dtype, level: Level | None = None
    ) -> Tensor:
        """Whole output, with a learned variance beside the sample's channels.

        Args:
            x: As for a call.
            cond: As for a call.
            dtype: Of the sample that the network is given.
            level: Where it is evaluated; None for the timestep of the condition.
        """
        arguments = {
            name: value.value if isinstance(value, Shared) else value
            for name, value in cond.items()
            if name != EXTRA
        }
        if level is not None:
            arguments["timestep"] = timestep_like(
                level, self.schedule, self.family.flow_time, arguments["timestep"]
            )
        inputs = x.to(dtype)
        if (extra := cond.get(EXTRA)) is not None:
            inputs = torch.cat([inputs, extra.to(inputs)], dim=self.family.channel_dim)
        arguments[self.family.sample] = inputs
        return upcast(self.forward(**arguments, return_dict=False)[0])

    def split(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """The sample, and channels beyond it (a mask, a learned variance), or None."""
        n, dim = channels(self.module), self.family.channel_dim
        if inputs.shape[dim] == n:
            return inputs, None
        return inputs.narrow(dim, 0, n), inputs.narrow(dim, n, inputs.shape[dim] - n)

    def condition(self, arguments: Cond, extra: Tensor | None = None) -> Cond:
        """Condition of a call's arguments, the sample left out, with channels beyond it."""
        cond = {k: v for k, v in arguments.items() if k not in (self.family.sample, "return_dict")}
        cond |= {name: Shared(cond[name]) for name in self.family.shared if name in cond}
        return cond if extra is None else {**cond, EXTRA: extra}
