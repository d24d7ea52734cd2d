"""CFG with weights of their own for coarse and fine structure of the difference of c and u.

Both are linear in the difference, so that they are the same in x0 and in the network's output.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.core.fields import Count, Finite
from diffsteer.guidance.base import Guidance
from diffsteer.guidance.queries import Branch, GuidanceState, Queries


@dataclass(frozen=True, repr=False)
class FDG(Guidance):
    """Frequency-decoupled guidance: CFG by `low` for coarse structure and `high` for the rest.

    Coarse is what a level of the Laplacian pyramid leaves: halved in size and enlarged again, with
    a binomial filter of 5 taps each. Both at 1 is off; both equal is CFG.

    Args:
        low: Weight of coarse structure and colour, 5 for Stable Diffusion XL (table 8).
        high: Weight of detail, 10 for Stable Diffusion XL.

    Source: Sadat et al. 2025, algorithm 2, https://arxiv.org/abs/2506.19713.
    """

    low: Finite
    high: Finite

    @override
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        if self.low == self.high == 1:
            return torch.zeros_like(at.x)
        require_images(at.x, "FDG")
        cond, null = yield Branch(), Branch(cond="null")
        difference = cond.x0 - null.x0
        low = coarse(difference)
        return (self.low - 1) * low + (self.high - 1) * (difference - low)


@dataclass(frozen=True, repr=False)
class FreSca(Guidance):
    """Frequency scaling: CFG with the difference times `low` below a frequency, `high` above.

    Scale, low and high at 1 is off.

    Args:
        scale: As for CFG.
        low: Factor of frequencies of less than `cutoff` cycles an image, along both sides.
        high: Factor of the others.
        cutoff: Cycles an image, >= 0; 20 in the paper, for latents of 64 x 64.

    Source: Huang et al. 2025, https://arxiv.org/abs/2504.02154.
    """

    scale: Finite
    low: Finite = 1.0
    high: Finite = 1.25
    cutoff: Count = 20

    @override
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        if self.scale * self.low == self.scale * self.high == 1:
            return torch.zeros_like(at.x)
        require_images(at.x, "FreSca")
        cond, null = yield Branch(), Branch(cond="null")
        difference = cond.x0 - null.x0
        near = (
            (torch.fft.fftfreq(n, 1 / n, device=at.x.device) + 0.5).abs() <= self.cutoff
            for n in at.x.shape[-2:]
        )
        rows, columns = near
        kept = (rows[:, None] & columns[None, :]).to(at.x.dtype)
        low: Tensor = torch.fft.ifft2(torch.fft.fft2(difference) * kept).real
        scaled = self.low * low + self.high * (difference - low)
        return self.scale * scaled - difference


def coarse(x: Tensor) -> Tensor:
    """Coarse part of images, `(B, *, H, W)`: one level of the Laplacian pyramid."""
    images = x.reshape(-1, 1, *x.shape[-2:])
    half = [max(side // 2, 1) for side in x.shape[-2:]]
    small = F.interpolate(_binomial(images), half, mode="bilinear", align_corners=False)
    large = F.interpolate(small, x.shape[-2:], mode="bilinear", align_corners=False)
    return _binomial(large).reshape(x.shape)


def _binomial(x: Tensor) -> Tensor:
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=x.dtype, device=x.device) / 16
    mode = "reflect" if min(x.shape[-2:]) > 2 else "replicate"
    x = F.pad(x, (2, 2, 2, 2), mode)
    return F.conv2d(F.conv2d(x, taps.view(1, 1, 1, 5)), taps.view(1, 1, 5, 1))


def require_images(x: Tensor, name: str) -> None:
    """Refuse samples without height and width."""
    if x.ndim < 4:
        raise InputError(
            f"{name} filters images, and the samples of this network, {tuple(x.shape[1:])}, are "
            "packed or sound: take CFG or APG"
        )
