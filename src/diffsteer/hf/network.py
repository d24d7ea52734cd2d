"""The network of a diffusers pipeline: where it is, what it is told, how to stand in for it."""

import inspect
import sys
from collections.abc import Hashable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from diffsteer.core.errors import InputError

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


def channels(network: Any) -> int:
    """Channels of the sample: what the network returns, less a learned variance."""
    given, returned = (
        network.config.in_channels,
        network.config.out_channels or network.config.in_channels,
    )
    return int(given if returned == 2 * given else min(given, returned))


def bind_arguments(network: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What a call of a network's forward says, by name."""
    signature = _signature(type(unwrap_compiled(network)).forward)
    said: dict[str, Any] = dict(signature.bind(network, *args, **kwargs).arguments)
    said.pop("self")
    more: dict[str, Any] = said.pop("kwargs", {})
    return said | more


@cache
def _signature(forward: Hashable) -> inspect.Signature:
    return inspect.signature(forward)  # type: ignore[arg-type]


def put_back(network: Any, own: Any) -> None:
    """Give a network the forward that it had of its own, or that of its class."""
    if own is not None:
        network.forward = own
    else:
        network.__dict__.pop("forward", None)


def timestep_like(time: float, before: float | Tensor) -> Tensor:
    """What a network is told of another time, in the shape of what it was told.

    Always a floating tensor, since networks cut numbers down to whole ones.
    """
    like = torch.as_tensor(before)
    dtype = like.dtype if like.is_floating_point() else torch.float32
    return torch.full_like(like, time, dtype=dtype)


def check_free(network: Any) -> None:
    """Check that the forward of a network can be wrapped.

    Raises:
        ValueError: it is steered already, or calls do not pass through it.
    """
    if type(getattr(network.forward, "__self__", None)).__name__ in ("Steering", "Refining"):
        raise InputError("this pipeline is steered already: remove the other steering first")
    if getattr(network, "_compiled_call_impl", None) is not None:
        raise InputError(
            "this network was compiled in place, which leaves no way in: use "
            "pipe.unet = torch.compile(pipe.unet) instead of pipe.unet.compile()"
        )


def returned(answer: Tensor, as_dict: bool) -> Any:
    """An answer in the form in which a network of diffusers returns it."""
    if not as_dict:
        return (answer,)
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    return Transformer2DModelOutput(sample=answer)
