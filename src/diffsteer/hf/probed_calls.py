"""Calls of networks between two steps of a scheduler, and the forms of their outputs."""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.hf.families import known_family
from diffsteer.hf.network import sample_argument, sample_channels, unwrap_compiled

MOST_CALLS = 2
"""Most calls of networks in a step: one for each condition."""


@dataclass(frozen=True, eq=False)
class Form:
    """Form of a network's output: a tensor or a list of tensors, alone, in a tuple or an object.

    Attributes:
        shape: Of the tensor, or the list stacked, `(N, *D)`.
        dtype: Of the tensor.
        wrap: Puts such a tensor into the form.
        second: Argument of the network for the second sample, which is its second output.
    """

    shape: torch.Size
    dtype: torch.dtype
    wrap: Callable[[Tensor], Any]
    second: str = ""

    @classmethod
    def of(cls, output: Any, call: "Call") -> "Form":
        """Form of the output of a call.

        Raises:
            ValueError: it holds several tensors or lists, or none; but for two samples of tokens.
        """
        values = [output] if isinstance(output, Tensor | list) else list(_values(output))
        count = sum(isinstance(value, Tensor | list) for value in values)
        second = call.second_sample(*values) if count == len(values) == 2 else ""
        if count != 1 and not second:
            raise InputError(
                "the network returns several outputs, which are not the tokens of two samples "
                "(video and sound) that it is given: such pipelines cannot be steered"
            )
        tensor, listed = tensor_of(output, bool(second)), isinstance(values[0], list)

        def wrap(x: Tensor) -> Any:
            parts: list[Any] = [list(x.unbind()) if listed else x]
            if second:
                parts = list(torch.split(x, [len(value[0]) for value in values], dim=1))
            if isinstance(output, Mapping):
                return type(output)(**dict(zip(output, parts, strict=False)))
            return (*parts, *output[len(parts) :]) if isinstance(output, tuple) else parts[0]

        return cls(tensor.shape, tensor.dtype, wrap, second)

    @classmethod
    def expected(cls, call: "Call") -> "Form | None":
        """Form of the output of a network of a known family, which is not evaluated for it."""
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        network = unwrap_compiled(call.module)
        if (family := known_family(network)) is None:
            return None
        shape, as_object = list(call.inputs.shape), call.arguments.get("return_dict", True)
        shape[family.channel_dim] = network.config.out_channels or network.config.in_channels

        def wrap(x: Tensor) -> Any:
            return Transformer2DModelOutput(sample=x) if as_object else (x,)

        return cls(torch.Size(shape), call.inputs.dtype, wrap)


def _values(output: Any) -> Any:
    return output.values() if isinstance(output, Mapping) else output


def tensor_of(output: Any, both: bool = False) -> Tensor:
    """First tensor of a network's output, `(N, *D)`, or the tokens of both; lists are stacked."""
    if both:
        return torch.cat(list(_values(output)), dim=1)
    value = output if isinstance(output, Tensor | list) else next(iter(_values(output)))
    return torch.stack(value) if isinstance(value, list) else value


@dataclass(eq=False)
class Call:
    """A call of a network.

    Attributes:
        module: The network.
        name: Of the argument that holds the sample.
        inputs: That argument, a list of samples stacked, `(N, *D)`.
        listed: Whether it is a list.
        arguments: All other arguments by name.
        autocast: Makes the context of `torch.autocast` in which it was made.
        probe: Its answer, `(N, *D)`.
        out: Output of the network, where it was evaluated to learn its form.
        second: Argument with a second sample, whose tokens are the last of the inputs (sound).
        lengths: Tokens of each sample, where there are two.
        caches: What the pipeline keeps of keys and values, which the network may change, by name;
            the arguments have copies.
    """

    module: Any
    name: str
    inputs: Tensor
    listed: bool
    arguments: dict[str, Any]
    autocast: Callable[[], AbstractContextManager[Any]]
    second: str = ""
    lengths: tuple[int, ...] = ()
    probe: Tensor = field(default_factory=lambda: torch.empty(0))
    out: Tensor | None = None
    caches: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, module: Any, arguments: dict[str, Any]) -> "Call":
        """Call of a network with arguments by name, as they are now.

        Pipelines change a dict between two calls (Flux with an IP-Adapter), and networks empty the
        list that they are given (residuals of a ControlNet).
        """
        name = sample_argument(module)
        given = arguments.pop(name)
        inputs = torch.stack(given) if isinstance(given, list) else given
        autocast = _autocast(inputs.device.type)
        caches = {n: v for n, v in arguments.items() if "cache" in n and not _plain(v)}
        arguments = _own(arguments, caches)
        return cls(module, name, inputs, given is not inputs, arguments, autocast, caches=caches)

    def second_sample(self, first: Any, second: Any) -> str:
        """Name of the argument that holds the second sample of two outputs, `(N, tokens, C)`."""
        if any(not isinstance(x, Tensor) or x.ndim != 3 for x in (self.inputs, first, second)):
            return ""
        shapes = ((n, getattr(v, "shape", None)) for n, v in self.arguments.items())
        names = [name for name, shape in shapes if shape == second.shape]
        fits = first.shape == self.inputs.shape and first.shape[::2] == second.shape[::2]
        return names[0] if fits and len(names) == 1 else ""

    def joined(self, second: str) -> "Call":
        """The call with its samples as one, that of the argument `second` after its own."""
        if not second:
            return self
        arguments = dict(self.arguments)
        samples = self.inputs, arguments.pop(second)
        inputs, lengths = torch.cat(samples, dim=1), tuple(x.shape[1] for x in samples)
        return replace(self, inputs=inputs, arguments=arguments, second=second, lengths=lengths)

    @cached_property
    def key(self) -> Any:
        """Equal for calls with outputs of one form."""
        return id(self.module), self.inputs.shape, self.inputs.dtype, _shapes(self.arguments)

    @property
    def frames_apart(self) -> bool:
        """Whether an argument seems to have several rows for each sample, as texts of frames."""
        tensors = (v for v in self.arguments.values() if isinstance(v, Tensor) and v.ndim > 2)
        rows = len(self.inputs)
        return any(len(v) > rows and len(v) % rows == 0 for v in tensors)

    @property
    def keeps(self) -> bool:
        """Whether there is something in its caches."""
        return any(_tensors(cache) for cache in self.caches.values())

    def evaluated(self, inputs: Tensor, arguments: Mapping[str, Any], network: Any) -> Tensor:
        """Output of a network, `(N, *D)`, for other inputs and arguments than this call's."""
        samples: dict[str, Any] = {self.name: list(inputs.unbind()) if self.listed else inputs}
        if self.second:
            parts = torch.split(inputs, list(self.lengths), dim=1)
            samples = dict(zip((self.name, self.second), parts, strict=True))
        with self.autocast():
            output = (network or self.module)(**{**_own(arguments, self.caches), **samples})
            return tensor_of(output, bool(self.second))


def _own(arguments: Mapping[str, Any], caches: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments with containers and caches of their own, and the same tensors."""
    return {n: _copied(v) if n in caches else _rebuilt(v) for n, v in arguments.items()}


def _rebuilt(tree: Any) -> Any:
    """Dicts, lists and tuples anew, with the same contents."""
    if type(tree) is dict:
        return {key: _rebuilt(value) for key, value in tree.items()}
    return type(tree)(map(_rebuilt, tree)) if type(tree) in (list, tuple) else tree


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _tensors(tree: Any) -> list[Tensor]:
    """Tensors in a cache of any form."""
    if isinstance(tree, Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, Mapping) else getattr(tree, "__dict__", {}).values()
    parts = tree if isinstance(tree, list | tuple) else parts
    return [tensor for part in parts if not _plain(part) for tensor in _tensors(part)]


def _copied(cache: Any) -> Any:
    """Copy of a cache, with the same tensors."""
    return copy.deepcopy(cache, {id(tensor): tensor for tensor in _tensors(cache)})


def both_stepped(calls: Sequence[Call], sample: Tensor) -> bool:
    """Whether a scheduler steps both conditions as one batch, and then the sample (Cosmos)."""
    return len(calls) == 2 and len(sample) == sum(len(call.inputs) for call in calls)


def certain(call: Call) -> bool:
    """Whether a call has nothing but samples, of a known family; else its step has to tell."""
    network = unwrap_compiled(call.module)
    if (family := known_family(network)) is None:
        return False
    return call.inputs.shape[family.channel_dim] == sample_channels(network)


def _autocast(device: str) -> Callable[[], AbstractContextManager[Any]]:
    if not torch.amp.is_autocast_available(device):
        return nullcontext
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return lambda: torch.autocast(device, dtype, enabled)


def _shapes(tree: Any) -> Any:
    """Shapes and dtypes of tensors in a tree of arguments, flags and texts, types of the rest."""
    if isinstance(tree, Tensor):
        return tree.shape, tree.dtype
    if isinstance(tree, Mapping):
        return tuple((key, _shapes(value)) for key, value in tree.items())
    if isinstance(tree, list | tuple):
        return tuple(_shapes(value) for value in tree)
    return tree if isinstance(tree, bool | str | None) else type(tree)
