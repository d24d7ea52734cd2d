"""Whether an image has the background that its prompt asks for; needs no network."""

from collections.abc import Mapping, Sequence

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


def nearest(pictures: Tensor, colours: Mapping[str, Colour]) -> list[str]:
    """Name of the colour that is nearest to each background, by distance in sRGB."""
    table = torch.tensor(list(colours.values()), dtype=torch.float64)
    names = list(colours)
    return [names[i] for i in torch.cdist(corners(pictures), table).argmin(1).tolist()]


def errors(pictures: Tensor, colours: Sequence[Colour]) -> Tensor:
    """Mean absolute difference of each background from the colour asked for, `(N,)`, in 0..255."""
    wanted = torch.tensor(list(colours), dtype=torch.float64)
    return (corners(pictures) - wanted).abs().mean(1)
