"""Whether an image has the background that its prompt asks for; needs no network."""

from collections.abc import Sequence

import torch
from torch import Tensor

Colour = tuple[int, int, int]


def corners(pictures: Tensor, side: int = 4) -> Tensor:
    """Median colour of the four corners, `(N, 3)`, float64, in 0 to 255.

    Args:
        pictures: uint8 `(N, 3, H, W)`.
        side: Of each corner in pixels.
    """
    ends = torch.cat([torch.arange(side), torch.arange(-side, 0)])
    edge = pictures[:, :, ends][:, :, :, ends].flatten(2).double()
    return edge.quantile(0.5, dim=2)


def errors(pictures: Tensor, colours: Sequence[Colour]) -> Tensor:
    """Mean absolute difference of each background from the colour asked for, `(N,)`, in 0..255."""
    wanted = torch.tensor(list(colours), dtype=torch.float64)
    return (corners(pictures) - wanted).abs().mean(1)
