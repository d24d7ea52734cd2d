"""The network of a diffusers pipeline: where it is, and how it is called."""

import inspect
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple
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

PARTS = ("unet", "transformer", "transformer_2", "unconditional_transformer", "prior", "decoder")
"""What pipelines call their network."""


def network_of(pipe: Any) -> Any:
    """The denoising network of a pipeline, or the network itself."""
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


class Place(NamedTuple):
    """Channels of a network's input that are the noisy sample, a run of them.

    Attributes:
        start: The first; channels before and after are conditioning.
        size: How many.
        certain: Whether nothing else can be meant; else the scheduler's sample has to tell.
    """

    start: int
    size: int
    certain: bool = True


def place_of(network: NetworkLike, learned: bool = False) -> Place:
    """Place of the sample as far as channels tell: those returned, less a learned variance.

    Args:
        network: The network.
        learned: Whether the scheduler takes a learned variance.
    """
    takes = network.config.in_channels
    returns = network.config.out_channels or takes
    if returns == 2 * takes:
        return Place(0, takes)
    size = returns // 2 if learned else min(takes, returns)
    return Place(0, size, size == takes)


def bind_arguments(network: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a call of a network's forward, by name."""
    signature = _signature(type(unwrap_compiled(network)).forward)
    arguments: dict[str, Any] = dict(signature.bind(network, *args, **kwargs).arguments)
    arguments.pop("self")
    more: dict[str, Any] = arguments.pop("kwargs", {})
    return arguments | more


def sample_argument(network: Any) -> str:
    """Name of the argument of a network that holds the sample: its first."""
    return list(_signature(type(unwrap_compiled(network)).forward).parameters)[1]


@cache
def _signature(forward: Hashable) -> inspect.Signature:
    return inspect.signature(forward)  # type: ignore[arg-type]


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


PROBE_SEED = 0x5EED_0F_9A0BE5
"""Seed of noise in the place of an answer, which must not be latents: nobody draws them with it."""
EXTRA = "extra"
"""Name, in a condition, of channels or tokens that go with the sample and are not denoised."""


@dataclass(frozen=True, eq=False)
class Shared:
    """An argument that is the same for all rows, though its first dimension may be as long."""

    value: Any


PER_SAMPLE = frozenset({"gligen", "ip_adapter_image_embeds", "ip_hidden_states"})
"""Attention arguments with a row for each sample."""
SHARED = frozenset({"ip_adapter_masks", "img_ids", "txt_ids"})
"""Arguments without a row for each sample: one for each adapter, or token."""


def with_shared(network: Any, arguments: Cond, rows: int) -> Cond:
    """Arguments of a call of so many rows, `Shared` where they have no row for each.

    What diffusers' own forward takes has a row for each sample, or one for all, but for what
    `SHARED` names. Attention arguments go to processors of any kind: only `PER_SAMPLE` has rows.
    """
    bases = (c for c in type(network).__mro__ if c.__module__.startswith("diffusers."))
    own: Any = next(bases, type(network))
    known = _signature(own.forward).parameters
    return {
        name: {k: _shared(k, v, rows, k in PER_SAMPLE) for k, v in value.items()}
        if name.endswith("attention_kwargs") and isinstance(value, Mapping)
        else _shared(name, value, rows, name in known)
        for name, value in arguments.items()
    }


def _shared(name: str, value: Any, rows: int, per_sample: bool) -> Any:
    if isinstance(value, Mapping):
        return {k: _shared(k, v, rows, per_sample) for k, v in value.items()}
    if isinstance(value, list | tuple) and name not in SHARED:
        return type(value)(_shared(name, v, rows, per_sample) for v in value)
    if name in SHARED and not isinstance(value, Shared):
        return Shared(value)
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    if len(value) == 1 < rows:
        return Shared(value)
    if per_sample and len(value) != rows:
        raise InputError(
            f"{name} has {len(value)} rows in a call of {rows}: give one for each sample, or one"
        )
    if not per_sample and len(value) == rows > 1:
        raise InputError(
            f"{name} of shape {tuple(value.shape)} may hold a row for each of {rows} rows of this "
            "call, or be the same for all: give it another first dimension"
        )
    return value if per_sample else Shared(value)


def without_shared(tree: Any) -> Any:
    """Arguments as the network takes them."""
    if isinstance(tree, Shared):
        return tree.value
    if isinstance(tree, Mapping):
        return {key: without_shared(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(without_shared(value) for value in tree)
    return tree


@dataclass(frozen=True, eq=False)
class PipelineNetwork:
    """A pipeline's network with all that is needed to call it.

    Attributes:
        module: The network itself, not compiled.
        forward: Evaluates it; that of the network where nothing is wrapped around it.
        family: Of the network.
        schedule: On which the scheduler's timesteps lie.
        prediction: Prediction type.
        place: Of the noisy sample in the input.
    """

    module: Any
    forward: Callable[..., Any]
    family: Family
    schedule: Schedule
    prediction: Prediction
    place: Place

    @classmethod
    def of(cls, pipe: Any, forward: Callable[..., Any] | None = None) -> "PipelineNetwork":
        """Network of a pipeline of diffusers, called past any steering where `forward` is given."""
        return cls.on(pipe.scheduler, network_of(pipe), forward)

    @classmethod
    def on(
        cls, scheduler: SchedulerLike, network: Any, forward: Callable[..., Any] | None = None
    ) -> "PipelineNetwork":
        """Network that a scheduler samples; see `of`."""
        module = unwrap_compiled(network)
        learned = str(scheduler.config.get("variance_type")).startswith("learned")
        settings = *timestep_schedule(scheduler), place_of(module, learned)
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
        out = self.evaluate(x, cond, self.module.dtype, level)
        return out.narrow(self.family.channel_dim, 0, self.place.size)

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
        arguments = without_shared({name: v for name, v in cond.items() if name != EXTRA})
        if level is not None:
            arguments["timestep"] = timestep_like(
                level, self.schedule, self.family.flow_time, arguments["timestep"]
            )
        inputs = x.to(dtype)
        if extra := cond.get(EXTRA):
            before, after = (part.to(inputs) for part in extra)
            inputs = torch.cat([before, inputs, after], dim=self.family.channel_dim)
        arguments[self.family.sample] = inputs
        return upcast(self.forward(**arguments, return_dict=False)[0])

    def noise_like_output(self, inputs: Tensor) -> Tensor:
        """Noise in the shape and dtype of the output for an input."""
        shape, config = list(inputs.shape), self.module.config
        shape[self.family.channel_dim] = config.out_channels or config.in_channels
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(PROBE_SEED))
        return noise.to(inputs)

    def split(self, inputs: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """The sample, and the channels before and after it, or None where there are none."""
        (start, size, _), dim = self.place, self.family.channel_dim
        left = inputs.shape[dim] - start - size
        if not start and not left:
            return inputs, None
        before, sample, after = torch.split(inputs, [start, size, left], dim=dim)
        return sample, (before, after)

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
