"""Self-attention guidance: away from an image blurred where the network looks."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.guidance.attention_taps import blur
from diffsteer.guidance.base import Guidance, finite, named, whole
from diffsteer.guidance.queries import Answer, Branch, GuidanceState, Queries


@dataclass(frozen=True, repr=False)
class SAG(Guidance):
    """Self-attention guidance; scale 0 is off and costs nothing.

    What receives more than average attention in a layer is blurred out of the predicted x0, the
    result is noised again with the predicted eps, and the prediction moves away from what the
    network makes of it. The published rule is in eps; in x0 it is scale (blurred x0 - x0 of the
    blurred input), which holds for every prediction type.

    Args:
        scale: Strength (0.75 is usual with CFG; the official `guide_scale` is 1 + scale).
        layer: Self-attention layer to look at, by a part of its name; the first that fits.
        threshold: Attention received, in multiples of the average, above which a token is blurred.
        sigma: Of the blur, in pixels of the sample, > 0.
        kernel: Taps of the blur, odd.
        clamp: Bound of the predicted x0 before it is blurred; 1 for networks of pixels in [-1, 1].
        on: The branch it works on: "null" beside CFG, "cond" without.

    Source: Hong et al. 2023, algorithm 1, https://arxiv.org/abs/2210.00939.
    """

    scale: float
    layer: str = "mid"
    threshold: float = 1.0
    sigma: float = 1.0
    kernel: int = 9
    on: str = "null"
    clamp: float = float("inf")

    def __post_init__(self) -> None:
        finite(self, "scale", "threshold", "sigma")
        whole(self, "kernel")
        named(self, "layer", "on")
        if self.sigma <= 0 or self.kernel < 1 or self.kernel % 2 == 0:
            raise InputError(
                f"SAG: a blur needs sigma > 0 and an odd number of taps, not sigma={self.sigma}, "
                f"kernel={self.kernel}"
            )
        if not self.clamp > 0:
            raise InputError(f"SAG: clamp={self.clamp} leaves no image: give a bound > 0")

    @override
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        if self.scale == 0:
            return torch.zeros_like(at.x)
        (seen,) = yield (Branch(self.on, record=(self.layer,)),)
        blurred = self.blurred(seen)
        (worse,) = yield (Branch(self.on, x=at.level.mix(blurred, seen.eps)),)
        return self.scale * (blurred - worse.x0)

    def blurred(self, seen: Answer) -> Tensor:
        """The predicted x0, `(B, C, H, W)`, blurred where the network looked."""
        mask = (seen.maps[self.layer] > self.threshold)[:, None].to(seen.x.dtype)
        mask = F.interpolate(mask, seen.x.shape[-2:], mode="nearest")
        x0 = seen.x0.clamp(-self.clamp, self.clamp)
        return torch.lerp(x0, blur(x0, self.sigma, self.kernel), mask)
