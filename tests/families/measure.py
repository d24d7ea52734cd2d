"""Facts of how a family calls its network, measured on a record of its calls."""

from collections.abc import Callable, Iterator
from itertools import permutations
from math import cos, sin
from typing import Any

import torch
from torch import Tensor

from families.calls import Record, Step

Layout = Callable[[Tensor], Tensor]
TIMES: dict[str, Callable[[Step], float]] = {
    "t": lambda step: step.t,
    "int(t)": lambda step: float(int(step.t)),
    "t - 1": lambda step: step.t - 1,
    "t / 1000": lambda step: step.t / 1000,
    "1 - t / 1000": lambda step: 1 - step.t / 1000,
    "1000 - t": lambda step: 1000 - step.t,
    "sin t / (sin t + cos t)": lambda step: sin(step.t) / (sin(step.t) + cos(step.t)),
    "sigma": lambda step: step.sigma,
    "1 - sigma": lambda step: 1 - step.sigma,
    "sigma / (sigma + 1)": lambda step: step.sigma / (step.sigma + 1),
}


def time(record: Record) -> str:
    """Argument that carries the time, and its formula from the scheduler's timestep."""
    calls = [call for call in record.calls if call.step < 2]
    names = [n for n, v in calls[0].kwargs.items() if _numeric(v)]
    for name in sorted(names, key=lambda n: "time" not in n):
        for formula, value in TIMES.items():
            if all(_is(c.kwargs[name], value(record.steps[c.step])) for c in calls):
                return f"{name} = {formula}"
    return "unknown"


def _numeric(value: Any) -> bool:
    tensor = isinstance(value, Tensor) and value.numel() > 0 and not value.is_complex()
    return tensor or isinstance(value, int | float)


def _is(value: Any, expected: float) -> bool:
    value = torch.as_tensor(value, dtype=torch.float64)
    value = value[value != 0] if value.any() else value  # frames of time 0 are conditions
    return bool((value - expected).abs().max() <= 1e-4 * max(abs(expected), 1e-3))


def output(record: Record) -> str:
    """Factor between the network's output and what `scheduler.step` is given, and the layout."""
    factor, layout, _ = _relation(record)
    return " ".join(filter(None, (factor and f"{factor:+.4g}", layout.strip())))


def _relation(record: Record) -> tuple[float | None, str, Layout]:
    step = record.first_step()
    target, sample = step.output.double(), step.sample.double()
    parts = record.first_calls()[0].out.double().chunk(_copies(record))
    for more in ((), (sample,)):
        for out in reversed(parts):
            for name, layout in _layouts(out, target):
                factors, residual = _fit([layout(out), *more], target)
                if residual < 1e-4:
                    affine = "affine in sample " if more else ""
                    return (None if more else factors[0]), affine + name, layout
    return None, "unknown", lambda x: x


def _copies(plain: Record) -> int:
    """Conditions in the batch without guidance: more than one where it computes them anyway."""
    return max(1, len(plain.first_calls()[0].out) // len(plain.first_step().output))


def _fit(terms: list[Tensor], target: Tensor) -> tuple[list[float], float]:
    """Weights of the terms whose sum is closest to the target, and the relative residual."""
    if any(term.numel() != target.numel() for term in terms):
        return [], float("inf")
    columns = torch.stack([term.flatten() for term in terms], 1)
    weights = torch.linalg.lstsq(columns, target.flatten()[:, None], driver="gelsd").solution
    residual = (columns @ weights).flatten() - target.flatten()
    return weights.flatten().tolist(), float(residual.abs().max() / target.abs().max())


def _layouts(out: Tensor, target: Tensor) -> Iterator[tuple[str, Layout]]:
    """Ways to bring a network's output into the shape of what the scheduler is given."""
    shape, same = target.shape, tuple(range(out.ndim))
    if out.numel() == target.numel():
        for order in sorted((0, *rest) for rest in permutations(same[1:])):
            names = ("" if order == same else f"axes {order}"), _reshaped(out, order, shape)
            yield " ".join(filter(None, names)), lambda x, o=order: x.permute(o).reshape(shape)
    for axis in same[1:] if out.ndim == target.ndim else ():
        width = shape[axis]
        if width < out.shape[axis] and out.narrow(axis, 0, width).shape == shape:
            yield f"first {width} of axis {axis}", lambda x, a=axis, w=width: x.narrow(a, 0, w)
            yield f"last {width} of axis {axis}", lambda x, a=axis, w=width: x.narrow(a, -w, w)


def _reshaped(out: Tensor, order: tuple[int, ...], shape: torch.Size) -> str:
    return "" if out.permute(order).shape == shape else "reshaped"


def batches(plain: Record, guided: Record) -> tuple[int, ...]:
    """Conditions in the batch of each call of the first guided step."""
    size = len(plain.calls[0].out) // _copies(plain)
    return tuple(len(call.out) // size for call in guided.first_calls())


def contexts(record: Record) -> tuple[str | None, ...]:
    names = tuple(call.context for call in record.first_calls())
    return names if any(names) else ()


def components(record: Record) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(call.component for call in record.calls))
    return names if len(names) > 1 else ()


def conditions(plain: Record, guided: Record) -> list[Tensor]:
    """The prediction for each condition of the first guided step, in the scheduler's layout."""
    _, _, layout = _relation(plain)
    pairs = zip(guided.first_calls(), batches(plain, guided), strict=True)
    return [layout(out) for call, size in pairs for out in call.out.double().chunk(size)]


def weights(plain: Record, guided: Record) -> tuple[float, ...] | None:
    """Weights of the conditions in the guided output; None where it is no linear combination."""
    factor, _, _ = _relation(plain)
    outputs, step = conditions(plain, guided), guided.first_step()
    size, channels = plain.steps[-1].sample.shape[:2]
    terms = outputs if factor else [*outputs, step.sample[:size].double()]
    target = step.output[:size].double()
    if target.shape[1] == 2 * channels:  # a learned variance, which is not guided
        target, *terms = (term[:, :channels] for term in (target, *terms))
    values, residual = _fit(terms, target)
    if residual > 1e-4:
        return None
    total = sum(values[: len(outputs)])
    return tuple(round(value / total, 3) for value in values[: len(outputs)])
