"""Dropout in some rows of a batch, in a network that is evaluating.

The network never leaves its evaluation mode and no global random state is touched: calls of
`torch.nn.functional.dropout`, which every `torch.nn.Dropout` makes, are answered here.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from diffsteer.core.errors import InputError


@dataclass(frozen=True)
class Dropout:
    """Zero a share of what passes each dropout layer and enlarge the rest.

    Args:
        p: The share, in ]0, 1[, whatever that of the layer is.
        seeds: One for each sample. A sample's masks depend on its own, on the device and on the
            order of the layers, not on the batch.
    """

    p: float
    seeds: tuple[int, ...]


@contextmanager
def dropped(parts: Sequence[tuple[slice, Dropout]], rows: int) -> Iterator[None]:
    """Drop in these parts of a pass of `rows` rows while the context is open."""
    mode = _DropoutMode(parts, rows)
    with mode:
        yield
    if not mode.hits:
        raise no_dropout()


def no_dropout() -> InputError:
    """Make the error for a network without dropout."""
    return InputError(
        "this network has no dropout layer (nothing in it calls torch.nn.functional.dropout), so "
        "there is nothing to switch on: guide with input noise, or with a second network"
    )


class _DropoutMode(TorchFunctionMode):
    """Answers the calls of dropout in a pass."""

    def __init__(self, parts: Sequence[tuple[slice, Dropout]], rows: int) -> None:
        super().__init__()
        self.parts, self.rows, self.hits = parts, rows, 0
        self._generators: dict[tuple[int, int], torch.Generator] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.dropout:
            return func(*args, **(kwargs or {}))
        x = args[0] if args else (kwargs or {})["input"]
        return self._dropped(x)

    def _dropped(self, x: Tensor) -> Tensor:
        self.hits += 1
        each, left = divmod(len(x), self.rows)
        if left:
            raise InputError(
                f"a dropout layer sees {len(x)} rows in a pass of {self.rows}, so that its samples "
                "cannot be told apart"
            )
        x = x.clone()
        for number, (part, dropout) in enumerate(self.parts):
            for i, seed in enumerate(dropout.seeds):
                row = part.start + i
                drawn = x[row * each : (row + 1) * each]
                u = torch.rand(
                    drawn.shape, generator=self._generator(number, i, seed, x), device=x.device
                )
                drawn.mul_((u >= dropout.p) / (1 - dropout.p))
        return x

    def _generator(self, part: int, i: int, seed: int, x: Tensor) -> torch.Generator:
        if (part, i) not in self._generators:
            self._generators[part, i] = torch.Generator(x.device).manual_seed(seed)
        return self._generators[part, i]
