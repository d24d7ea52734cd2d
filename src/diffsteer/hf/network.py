"""The network of a diffusers pipeline: where it is, and how it is called."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from diffsteer.core.errors import InputError
from diffsteer.core.level import Level, upcast
from diffsteer.core.prediction import Prediction
from diffsteer.core.schedule import Schedule
from diffsteer.guidance.denoiser import Cond
from diffsteer.hf.batched_arguments import put_together, signature, with_shared
from diffsteer.hf.families import Family, family_of
from diffsteer.hf.hooks import Replaced, replaced
from diffsteer.hf.timesteps import timestep_like, timestep_schedule

PARTS = ("unet", "transformer", "transformer_2", "unconditional_transformer", "prior", "decoder")
"""Names of networks in pipelines."""


def network_of(pipe: Any) -> Any:
    """The denoising network of a pipeline, or the network itself."""
    if isinstance(pipe, nn.Module):
        return pipe
    for name in PARTS:
        if getattr(pipe, name, None) is not None:
            return getattr(pipe, name)
    raise InputError(f"{type(pipe).__name__} has neither a unet nor a transformer to steer")


def networks_of(pipe: Any) -> list[Any]:
    """All denoising networks of a pipeline."""
    parts = [network for name in PARTS if (network := getattr(pipe, name, None)) is not None]
    return parts or [network_of(pipe)]


def unwrap_compiled(module: Any) -> Any:
    """The network inside a compiled one."""
    return vars(module).get("_modules", {}).get("_orig_mod", module)


def uncompiled() -> AbstractContextManager[Any]:
    """Context in which compiled code runs as it was written, so that changes of layers act."""
    if "torch._dynamo" not in sys.modules:  # nothing can be compiled; importing it takes seconds
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def sample_channels(network: Any, learned: bool = False) -> int:
    """Channels of the noisy sample: those returned, less a learned variance.

    Where a network takes more, it depends on the pipeline which of its channels they are.

    Args:
        network: A denoising network, whose config has `in_channels` and `out_channels`.
        learned: Whether the scheduler takes a learned variance.
    """
    takes: int = network.config.in_channels
    returns: int = network.config.out_channels or takes
    if returns == 2 * takes:
        return takes
    return returns // 2 if learned else min(takes, returns)


def bind_arguments(network: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a call of a network's forward, by name."""
    parameters = signature(type(unwrap_compiled(network)).forward)
    arguments: dict[str, Any] = dict(parameters.bind(network, *args, **kwargs).arguments)
    arguments.pop("self")
    more: dict[str, Any] = arguments.pop("kwargs", {})
    return arguments | more


def sample_argument(network: Any) -> str:
    """Name of the argument of a network that holds the sample: its first."""
    return list(signature(type(unwrap_compiled(network)).forward).parameters)[1]


_steered: WeakSet[nn.Module] = WeakSet()


@contextmanager
def claimed(network: Any) -> Iterator[None]:
    """Mark a network as steered until exit."""
    check_free(network)
    _steered.add(unwrap_compiled(network))
    try:
        yield
    finally:
        _steered.discard(unwrap_compiled(network))


def check_free(network: Any) -> None:
    """Check that the forward of a network can be replaced."""
    if unwrap_compiled(network) in _steered:
        raise InputError(
            "this pipeline is steered already: remove the other steering first (where it has "
            "several guiders, give all of them one SteerGuider)"
        )
    if getattr(network, "_compiled_call_impl", None) is not None:
        raise InputError(
            "this network was compiled in place, which leaves no way in: use "
            "pipe.unet = torch.compile(pipe.unet) instead of pipe.unet.compile()"
        )


def check_uncached(owner: str, network: Any) -> None:
    """Check that no block of a network keeps what it made in its last calls (FirstBlockCache).

    diffusers' caches have hooks with a state, whether they come by `enable_cache` or `apply_...`.
    """
    registries = (getattr(m, "_diffusers_hook", None) for m in unwrap_compiled(network).modules())
    hooks = (hook for registry in registries if registry for hook in registry.hooks.values())
    if cache := next((hook for hook in hooks if hook._is_stateful), None):
        raise InputError(
            f"{owner} has a cache of its network's blocks ({type(cache).__name__}), which is kept "
            "for the order of calls of the pipeline: call disable_cache() on the network, or load "
            "it without one"
        )


def network_replaced(pipe: Any, answer: Callable[[dict[str, Any]], Any]) -> Replaced:
    """Let a function of its arguments, by name, stand in for the network of a pipeline."""
    network = network_of(pipe)

    def forward(*args: Any, **kwargs: Any) -> Any:
        return answer(bind_arguments(network, args, kwargs))

    return replaced(network, "forward", forward)


EXTRA = "extra"
"""Name, in a condition, of channels that come after the sample's and are not denoised."""


@dataclass(frozen=True, eq=False)
class PipelineNetwork:
    """A pipeline's network with all that is needed to call it.

    Attributes:
        module: The network itself, not compiled.
        forward: Evaluates it; that of the network where nothing is wrapped around it.
        family: Of the network.
        schedule: On which the scheduler's timesteps lie.
        prediction: Prediction type.
        channels: Of the noisy sample, the first of the input.
    """

    module: Any
    forward: Callable[..., Any]
    family: Family
    schedule: Schedule
    prediction: Prediction
    channels: int

    @classmethod
    def of(
        cls, pipe: Any, forward: Callable[..., Any] | None = None, network: Any = None
    ) -> "PipelineNetwork":
        """Network of a pipeline of diffusers.

        Args:
            pipe: The pipeline.
            forward: Evaluates it past any steering.
            network: One of the pipeline's, maybe compiled; None for its first.
        """
        module = unwrap_compiled(network_of(pipe) if network is None else network)
        if getattr(pipe, "scheduler", None) is None:
            raise InputError(f"{type(pipe).__name__} has no scheduler: give a pipeline, which has")
        learned = str(pipe.scheduler.config.get("variance_type")).startswith("learned")
        settings = *timestep_schedule(pipe.scheduler), sample_channels(module, learned)
        return cls(module, forward or module, family_of(module), *settings)

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
        arguments = put_together({name: v for name, v in cond.items() if name != EXTRA})
        arguments["timestep"] = timestep_like(
            level, self.schedule, self.family.flow_time, arguments["timestep"]
        )
        inputs, dim = x.to(self.module.dtype), self.family.channel_dim
        if (extra := cond.get(EXTRA)) is not None:
            inputs = torch.cat([inputs, extra.to(inputs)], dim=dim)
        arguments[self.family.sample] = inputs
        out = self.forward(**arguments, return_dict=False)[0]
        return upcast(out).narrow(dim, 0, self.channels)

    def split(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """The sample, and the channels after it, or None where there are none."""
        dim = self.family.channel_dim
        if inputs.shape[dim] == self.channels:
            return inputs, None
        sizes = [self.channels, inputs.shape[dim] - self.channels]
        sample, extra = torch.split(inputs, sizes, dim=dim)
        return sample, extra

    def condition(self, arguments: Cond, inputs: Tensor) -> Cond:
        """Condition of a call's arguments: all but the sample, channels beyond it included.

        Args:
            arguments: By name.
            inputs: The sample with such channels, `(B, C, *space)`, as many rows as samples.
        """
        cond = {k: v for k, v in arguments.items() if k not in (self.family.sample, "return_dict")}
        cond = dict(with_shared(self.module, cond, len(inputs)))
        extra = self.split(inputs)[1]
        return cond if extra is None else {**cond, EXTRA: extra}
