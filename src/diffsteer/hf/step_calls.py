"""Calls of networks between two steps of a scheduler, answered with probes.

A probe is a tensor of random numbers in the form of the network's output. The model output that the
pipeline makes of the probes says which part of the network's output it takes, with which sign, and
which of two calls, or halves of a batch, is for the null prompt: its factor is negative.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Any

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.core.level import upcast
from diffsteer.hf.network import PROBE_SEED, sample_argument
from diffsteer.hf.timesteps import LOSSY
from diffsteer.hf.views import ROUNDING, View, fitted, placed, views

EPSILON = 2.0**-5
"""Share by which the probe of a second condition differs from the first's."""
CLOSE = 0.1
"""Largest relative difference of a model output from a sum of the probes: some pipelines bring the
norm of the guided output back, which the probes hardly change."""
TIMES: tuple[Callable[[float, float], float], ...] = (
    lambda t, n: t,
    lambda t, n: t / n,
    lambda t, n: 1 - t / n,
    lambda t, n: t - 1,
)
"""Times that networks are told at a timestep t of n."""


@dataclass(frozen=True, eq=False)
class Form:
    """Form of a network's output: a tensor or a list of tensors, alone, in a tuple or an object.

    Attributes:
        shape: Of the tensor, or the list stacked, `(N, *D)`.
        dtype: Of the tensor.
        wrap: Puts such a tensor into the form.
    """

    shape: torch.Size
    dtype: torch.dtype
    wrap: Callable[[Tensor], Any]

    @classmethod
    def of(cls, output: Any) -> "Form":
        """Form of an output.

        Raises:
            ValueError: it holds several tensors or lists, or none.
        """
        values = [output] if isinstance(output, Tensor | list) else list(_values(output))
        if sum(isinstance(value, Tensor | list) for value in values) != 1:
            raise InputError(
                "the network returns several outputs (image and sound), where one is expected: "
                "such pipelines cannot be steered yet"
            )
        tensor, listed = tensor_of(output), isinstance(values[0], list)

        def wrap(x: Tensor) -> Any:
            value = list(x.unbind()) if listed else x
            if isinstance(output, Mapping):
                return type(output)(**{next(iter(output)): value})
            return (value, *output[1:]) if isinstance(output, tuple) else value

        return cls(tensor.shape, tensor.dtype, wrap)


def _values(output: Any) -> Any:
    return output.values() if isinstance(output, Mapping) else output


def tensor_of(output: Any) -> Tensor:
    """First tensor of a network's output, `(N, *D)`; a list of samples is stacked."""
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
        time: Timestep of the scheduler.
    """

    module: Any
    name: str
    inputs: Tensor
    listed: bool
    arguments: dict[str, Any]
    autocast: Callable[[], AbstractContextManager[Any]]
    probe: Tensor = field(default_factory=lambda: torch.empty(0))
    out: Tensor | None = None
    time: float = 0.0

    @classmethod
    def read(cls, module: Any, arguments: dict[str, Any]) -> "Call":
        """Call of a network with arguments by name."""
        name = sample_argument(module)
        given = arguments.pop(name)
        inputs = torch.stack(given) if isinstance(given, list) else given
        autocast = _autocast(inputs.device.type)
        return cls(module, name, inputs, given is not inputs, arguments, autocast)

    @cached_property
    def key(self) -> Any:
        """Equal for calls with outputs of one form."""
        return id(self.module), self.inputs.shape, self.inputs.dtype, _shapes(self.arguments)


def _autocast(device: str) -> Callable[[], AbstractContextManager[Any]]:
    if not torch.amp.is_autocast_available(device):
        return nullcontext
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return lambda: torch.autocast(device, dtype, enabled)


def _shapes(tree: Any) -> Any:
    """Shapes and dtypes of all tensors in a tree of arguments, with all else that is hashable."""
    if isinstance(tree, Tensor):
        return tree.shape, tree.dtype
    if isinstance(tree, Mapping):
        return tuple((key, _shapes(value)) for key, value in tree.items())
    if isinstance(tree, list | tuple):
        return tuple(_shapes(value) for value in tree)
    return tree if isinstance(tree, bool | str | None) else type(tree)


def probe(form: Form, second: bool) -> Tensor:
    """Random tensor of a form; halves of a batch, and second calls, differ by a small share."""
    generator = torch.Generator().manual_seed(PROBE_SEED)
    rows, rest = form.shape[0], form.shape[1:]
    x = torch.randn(rows // 2 if rows % 2 == 0 else rows, *rest, generator=generator)
    if rows % 2 == 0:
        x = torch.cat([x, x + EPSILON * torch.randn(x.shape, generator=generator)])
    if second:
        x = x + EPSILON * torch.randn(x.shape, generator=generator)
    return x.to(form.dtype)


@dataclass(frozen=True, eq=False)
class Part:
    """One condition of a call: some rows of its batch.

    Attributes:
        call: The call.
        rows: Rows of its batch, one for each sample.
        taken: Where its input holds the sample.
        given: Part of its output that becomes the scheduler's model output.
        sign: Factor of that part.
    """

    call: Call
    rows: slice
    taken: View = View()
    given: View = View()
    sign: float = 1.0

    @property
    def sample(self) -> Tensor:
        """The sample as the network is given it, `(B, *D)`."""
        return self.taken(self.call.inputs[self.rows])

    def output(self, x: Tensor, arguments: Mapping[str, Any], network: Any = None) -> Tensor:
        """Output of a network for samples, `(B, *D)`, under all conditions of the call, `(N, *D)`.

        The batch is the call's own: which arguments have a row for each sample is not known.

        Args:
            x: The samples as the network is given them.
            arguments: All others by name.
            network: Another network, in place of the call's.
        """
        call, size = self.call, len(x)
        inputs = call.inputs.clone()
        for start in range(0, len(inputs), size):
            self.taken(inputs[start : start + size]).copy_(x)
        given = list(inputs.unbind()) if call.listed else inputs
        with call.autocast():
            return tensor_of((network or call.module)(**{**arguments, call.name: given}))

    def model_output(self, out: Tensor) -> Tensor:
        """The scheduler's model output of an output, `(N, *D)`, in float32 or wider."""
        return self.sign * upcast(self.given(out[self.rows]))


class Clock:
    """What a network is told at a timestep, as the calls of a sampling show it.

    At one timestep two rules may mean the same (t = n / 2); the others tell them apart.
    """

    def __init__(self) -> None:
        self._rules = TIMES

    def see(self, arguments: Mapping[str, Any], now: float, n: float) -> None:
        """Take note of a call at the timestep `now` of n."""
        kept = tuple(rule for rule in self._rules if self._name(arguments, rule(now, n)))
        self._rules = kept or self._rules

    def told(self, arguments: Mapping[str, Any], t: float, now: float, n: float) -> dict[str, Any]:
        """Arguments with which a network is told the timestep t, from those of `now`.

        Raises:
            ValueError: none of them, or more than one rule, is known to say the timestep.
        """
        names = {rule: self._name(arguments, rule(now, n)) for rule in self._rules}
        rules = [rule for rule, name in names.items() if name]
        if not rules or len({rule(t, n) for rule in rules}) > 1:
            raise InputError(
                "the guidance asks the network at another noise level, and it is not certain how "
                f"its arguments ({', '.join(arguments)}) say the timestep"
            )
        name = names[rules[0]]
        times = torch.as_tensor(arguments[name])
        dtype = times.dtype if times.is_floating_point() else torch.float32
        return {**arguments, name: torch.full_like(times, rules[0](t, n), dtype=dtype)}

    def _name(self, arguments: Mapping[str, Any], time: float) -> str:
        """Name of the argument that holds a time, empty where none does."""
        for name, value in arguments.items():
            if (name == "t" or name.startswith("time")) and value is not None:
                times = torch.as_tensor(value)
                error = time - times.double()
                if not times.is_floating_point():  # rounded down
                    fits = ((error >= 0) & (error < 1)).all()
                else:
                    share = ROUNDING if times.dtype in LOSSY else 1e-4
                    fits = error.abs().max() <= share * abs(time) + 1e-5
                if fits:
                    return name
        return ""


def parts_of(calls: list[Call], model_output: Tensor, sample: Tensor) -> dict[str, Part]:
    """Conditions of a step's calls: "cond" and, where there are two, "null".

    Args:
        calls: Made since the last step.
        model_output: What the pipeline made of their probes, `(B, *D)`.
        sample: The scheduler's, `(B, *D)`.

    Raises:
        ValueError: the layout cannot be made out.
    """
    size = len(sample)
    parts = [
        Part(call, slice(start, start + size))
        for call in calls
        for start in range(0, len(call.inputs), size)
    ]
    if len(parts) > 2 or any(len(call.inputs) % size for call in calls):
        rows = " and ".join(str(len(call.inputs)) for call in calls)
        raise InputError(
            f"calls its network with {rows} samples to step {size}, where each sample is expected "
            "once, or once for the prompt and once for the null prompt"
        )
    parts = [replace(part, taken=_taken(part, sample)) for part in parts]
    factors, given = _given(parts, model_output)
    if not 0.5 < abs(sum(factors)) < 2:
        raise InputError(
            f"multiplies what its network returns by {sum(factors):.3g}, where 1 or -1 is expected"
        )
    sign = 1.0 if sum(factors) > 0 else -1.0
    parts = [replace(part, given=view, sign=sign) for part, view in zip(parts, given, strict=True)]
    if len(parts) == 2 and factors[0] * sign < factors[1] * sign:
        parts.reverse()
    return dict(zip(("cond", "null"), parts, strict=False))


def _taken(part: Part, sample: Tensor) -> View:
    inputs = part.call.inputs[part.rows]
    if (view := placed(inputs, sample)) is None:
        raise InputError(
            f"gives its network {tuple(inputs.shape)}, in which the scheduler's sample "
            f"{tuple(sample.shape)} is neither the first nor the last channels or tokens"
        )
    return view


def _given(parts: list[Part], output: Tensor) -> tuple[tuple[float, ...], tuple[View, ...]]:
    """Factors and views of the parts' probes that add up to the scheduler's model output."""
    probes = [part.call.probe[part.rows] for part in parts]
    choices = [list(views(probe.shape, output.shape)) for probe in probes]
    fits = []
    for chosen in product(*choices):
        columns = [view(probe) for view, probe in zip(chosen, probes, strict=True)]
        if (factors := fitted(output, columns, CLOSE)) is not None:
            total = sum(f * column.double() for f, column in zip(factors, columns, strict=True))
            fits.append((float((output.double() - total).norm()), factors, chosen))
    if fits:  # where only one of the views is right, what is left may be small as well
        return min(fits, key=lambda fit: fit[0])[1:]
    raise InputError(
        f"steps its scheduler by {tuple(output.shape)}, which is no part of what its network "
        f"returns, {tuple(probes[0].shape)}, times a factor"
    )
