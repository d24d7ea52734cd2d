"""Places of tokens, as arguments of a network say them."""

from collections.abc import Iterator, Mapping
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor

from diffsteer.guidance.attention_edits import Size

PLACES = ("mask", "ids", "shape", "len", "segment", "indicator", "frames", "height", "width")
"""Parts of names of arguments on which the places of tokens depend."""


def places_of(arguments: Mapping[str, Any]) -> str:
    """Arguments on which the places of tokens depend, by value, for calls of equal shapes."""
    names = [name for name in arguments if any(part in name for part in PLACES)]
    values = (arguments[name] for name in names)
    return repr([v.tolist() if isinstance(v, Tensor) else v for v in values])


def grids_of(arguments: Mapping[str, Any], count: int, last: bool = False) -> list[Size]:
    """Heights and widths in tokens that arguments of a network name, of a video after its frames.

    They are places of tokens, `(tokens, k)`, shapes, `(frames, h, w)`, or numbers.

    Args:
        arguments: Of the network.
        count: Tokens of the image or video.
        last: Whether they follow those of other images in its input.
    """
    grids: list[Size] = []
    numbers = [arguments.get(name) for name in ("num_frames", "height", "width")]
    if all(isinstance(number, int) for number in numbers):
        grids += _shapes_in(numbers, last)
    for name, value in arguments.items():
        if isinstance(value, Tensor) and name.endswith("ids") and value.ndim >= 2:
            places = value.reshape(-1, *value.shape[-2:])[0]
            ends = places[:count], places[-count:]  # where one is text, it is in no order
            grids += [grid for end in (reversed(ends) if last else ends) for grid in _in_order(end)]
        if "shape" in name:
            grids += _shapes_in(value, last)
    return [grid for grid in grids if prod(grid) == count]


def _in_order(places: Tensor) -> Iterator[Size]:
    """Shapes whose rows and columns, or frames, rows and columns, are neighbours in `places`."""
    x = (places - places[0]).long()
    for dims, dim in product((2, 3), range(x.shape[1])):
        columns = x[:, dim : dim + dims]
        size = tuple((columns.amax(dim=0) + 1).tolist())
        strides = torch.tensor([prod(size[i + 1 :]) for i in range(len(size))], device=x.device)
        if len(size) == dims and (columns * strides).sum(dim=1).tolist() == list(range(len(x))):
            yield size


def _shapes_in(value: Any, last: bool) -> Iterator[Size]:
    """Shapes of images and videos in a tree, the last first where that is asked for."""
    if not isinstance(value, list | tuple):
        return
    if all(isinstance(side, int) for side in value):
        grid = tuple(value[1:] if len(value) == 3 and value[0] == 1 else value)
        yield from [grid] if len(grid) in (2, 3) else []
    for inner in reversed(value) if last else value:
        yield from _shapes_in(inner, last)
