"""Place of a sample in a network's input and output, measured from the tensors themselves.

Pipelines put the scheduler's sample into their network's input (among conditioning channels or
tokens, in a list, with a frame dimension) and make the scheduler's model output of what it returns
(a slice, negated). Both are views of the network's tensors times a factor.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor

ROUNDING = 1e-2
"""Largest relative difference, in norm, of tensors that are equal up to rounding to bfloat16."""


@dataclass(frozen=True)
class View:
    """The part of a network's tensor that holds a sample.

    Attributes:
        squeezed: Dimensions of length 1 that the sample does not have.
        dim: Dimension along which the sample is a part, or None where it is all.
        start: First index of the part; negative from the end.
        length: Length of the part.
        grid: Frames, height and width of tokens, `(B, tokens, C)`, of samples `(B, C, F, H, W)`.
        run: First of the tokens that are taken, before all else, and how many; none for all.
    """

    squeezed: tuple[int, ...] = ()
    dim: int | None = None
    start: int = 0
    length: int = 0
    grid: tuple[int, ...] = ()
    run: tuple[int, ...] = ()

    def __call__(self, tensor: Tensor) -> Tensor:
        """Return the part of a tensor, `(B, *D)`, in its memory."""
        if self.run:
            tensor = tensor.narrow(1, *self.run)
        for dim in reversed(self.squeezed):
            tensor = tensor.squeeze(dim)
        if self.grid:
            tensor = torch.unflatten(tensor.transpose(1, 2), 2, self.grid)
        return tensor if self.dim is None else tensor.narrow(self.dim, self.start, self.length)


def views(shape: Sequence[int], part: Sequence[int], lengths: Sequence[int] = ()) -> Iterator[View]:
    """Views of tensors of a shape that have the shape of a part, the likeliest first.

    Args:
        shape: Of the tensors.
        part: Of the part.
        lengths: Tokens of each of two samples, one of which the part is of.
    """
    if lengths:
        for start, length in zip((0, lengths[0]), lengths, strict=True):
            for view in views((shape[0], length, *shape[2:]), part):
                yield replace(view, run=(start, length))
        return
    ones = [i for i, n in enumerate(shape) if i and n == 1]
    for squeezed in combinations(ones, max(len(shape) - len(part), 0)):
        left = [n for i, n in enumerate(shape) if i not in squeezed]
        if len(left) != len(part):
            continue
        unequal = [i for i, (n, m) in enumerate(zip(left, part, strict=True)) if n != m]
        if not unequal:
            yield View(squeezed)
        elif len(unequal) == 1 and unequal[0] and left[unequal[0]] > part[unequal[0]]:
            dim, length = unequal[0], part[unequal[0]]
            yield View(squeezed, dim, 0, length)
            yield View(squeezed, dim, -length, length)
    if len(shape) == 3 and len(part) == 5 and shape[2] == part[1]:
        count, rest = divmod(shape[1], part[3] * part[4])
        grid = (count, part[3], part[4])
        for view in () if rest else views((shape[0], part[1], *grid), part):
            yield replace(view, grid=grid)


def placed(inputs: Tensor, sample: Tensor, lengths: Sequence[int] = ()) -> View | None:
    """View of an input that holds a sample, `(B, *D)`, times any factor; None where none does.

    `lengths` are tokens of each of two samples in the input.
    """
    if not torch.isfinite(sample).all():  # which the end of the sampling refuses
        return next(views(inputs.shape, sample.shape, lengths), None)
    for view in (*views(inputs.shape, sample.shape, lengths), *_inner(inputs.shape, sample.shape)):
        if fitted(view(inputs), [sample]) is not None:
            return view
    return None


def frames_replaced(inputs: Tensor, sample: Tensor) -> tuple[int, ...]:
    """Frames of an input `(B, C, F, H, W)` that hold a condition, all others the sample.

    Empty where all frames hold the sample, or none does.
    """
    if inputs.shape != sample.shape or inputs.ndim != 5:
        return ()
    same = (inputs == sample.to(inputs.dtype)).flatten(3).all(dim=3).all(dim=1).all(dim=0)
    return tuple((~same).nonzero().flatten().tolist()) if same.any() else ()


def _inner(shape: Sequence[int], part: Sequence[int]) -> Iterator[View]:
    """Runs of channels with others before and after them."""
    if len(shape) == len(part) > 3 and tuple(shape[2:]) == tuple(part[2:]):
        yield from (View((), 1, start, part[1]) for start in range(1, shape[1] - part[1]))


def fitted(
    target: Tensor, parts: Sequence[Tensor], tolerance: float = ROUNDING
) -> tuple[float, ...] | None:
    """Factors by which parts, of the target's shape, add up to it; None where they do not.

    Waits for the device once.

    Args:
        target: The sum.
        parts: What it is a sum of.
        tolerance: Largest norm of what is left, relative to the target's.
    """
    rows = torch.stack([x.flatten().double() for x in (*parts, target)])
    gram = (rows @ rows.T).cpu()
    if not (gram[-1, -1] > 0 and torch.isfinite(gram).all()):
        return None
    factors = torch.linalg.pinv(gram[:-1, :-1]) @ gram[:-1, -1]
    left = torch.cat([factors, -torch.ones_like(factors[:1])])
    if not left @ gram @ left <= tolerance**2 * gram[-1, -1]:
        return None
    return tuple(factors.tolist())
