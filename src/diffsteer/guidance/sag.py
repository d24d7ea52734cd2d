"""Self-attention guidance (SAG): away from the prediction for a sample with blurred detail.

With x0^ and eps^ the prediction at x, A_i the attention that token i receives (summed over queries,
averaged over heads, mean 1 over tokens), psi a threshold, and G a Gaussian filter,

    M   = 1[A > psi]                              what the network attends to
    x0~ = (1 - M) x0^ + M G(x0^)                  blurred there, and nowhere else
    x~  = alpha x0~ + sigma eps^                  noised again with the predicted eps
    eps guided = eps^(x~) + (1 + s) (eps^(x) - eps^(x~))

The last line is the published one. Since x~ holds eps^(x), for alpha > 0

    sigma (eps^(x) - eps^(x~)) = alpha (x0^(x~) - x0~),

and moving eps by s (eps^(x) - eps^(x~)) is, at fixed x, moving x0 by s (x0~ - x0^(x~)): from what
the network makes of the blurred input to what that input holds. The code returns this shift of x0,
whatever the network predicts. At alpha = 0 alone it differs from the published line: x and x~ are
the same noise there, and the line moves nothing, while the shift leads to the blurred image.

Source: Hong et al. 2023, algorithm 1, https://arxiv.org/abs/2210.00939.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.core.fields import Finite, Name, Positive, PositiveFinite, Rule, Whole
from diffsteer.guidance.attention_edits import blur
from diffsteer.guidance.base import Guidance
from diffsteer.guidance.queries import Answer, Branch, GuidanceState, Queries

MASKS = ("attention", "random", "edges", "global")
"""What SAG blurs."""


@dataclass(frozen=True, repr=False)
class SAG(Guidance):
    """Self-attention guidance; scale 0 is off and costs nothing.

    Frames of a video are blurred each by itself, and sound beside it is left as it is.

    Args:
        scale: s (0.75 is usual with CFG; the official `guide_scale` is 1 + s).
        layer: Self-attention layers that A is read from, by parts of their names, "mid" or
            "mid, up_blocks.1". A part means the first layer whose name holds it; A of several
            layers is their mean.
        threshold: psi, in multiples of the mean of A.
        sigma: Standard deviation of G, in pixels of the sample (latents, where it has them), > 0.
        kernel: Taps of G, odd; 9 for latents of 64 x 64, 31 for the official networks of pixels.
        on: The condition that x and x~ are evaluated under: "null" beside CFG, "cond" without. The
            shift is added to x0 under the prompt in both cases.
        clamp: Bound of the predicted x0 before it is blurred, so of all of x0~; 1 for networks of
            pixels in [-1, 1].
        mask: What is blurred, the paper's ablations included: "attention" is M; "random" and
            "edges" are as many tokens, drawn by the sample's seed, or those with the highest energy
            of x0^ - G(x0^) (high frequencies); "global" is all, which reads no attention.

    Source: Hong et al. 2023, algorithm 1, https://arxiv.org/abs/2210.00939.
    """

    scale: Finite
    layer: Name = "mid"
    threshold: Finite = 1.0
    sigma: PositiveFinite = 1.0
    kernel: Annotated[Whole, Rule("odd, in [1, 9999]", lambda n: 0 < n < 10_000 and n % 2 == 1)] = 9
    on: Name = "null"
    clamp: Positive = float("inf")
    mask: Annotated[str, Rule(f"one of {', '.join(MASKS)}", MASKS.__contains__)] = "attention"

    @override
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        if self.scale == 0 or at.is_sound:
            return torch.zeros_like(at.x)
        require_frames(at.x)
        (answer,) = yield (Branch(self.on, record=self.layers),)
        blurred = blurred_prediction(self, answer, at.seeds_for("mask"))
        noised = at.level.mix(blurred, answer.eps)
        (degraded,) = yield (Branch(self.on, x=noised),)
        return self.scale * (blurred - degraded.x0)

    @property
    def layers(self) -> tuple[str, ...]:
        """Parts of names of the layers that are read."""
        return () if self.mask == "global" else tuple(map(str.strip, self.layer.split(",")))


def require_frames(x: Tensor) -> None:
    """Refuse samples that are neither images nor videos."""
    if x.ndim not in (4, 5):
        raise InputError(
            f"SAG blurs images, and the samples of this network, {tuple(x.shape[1:])}, are packed "
            "or sound: take PAG, or SEG in a layer whose height and width are known"
        )


def blurred_prediction(sag: SAG, answer: Answer, seeds: Sequence[int]) -> Tensor:
    """Return x0~, `(B, C, H, W)`: the predicted x0, blurred where M is 1."""
    x0 = answer.x0.clamp(-sag.clamp, sag.clamp)
    all_blurred = blur(x0, sag.sigma, sag.kernel)
    if sag.mask == "global":
        return all_blurred
    mask = attention_mask([answer.maps[layer] for layer in sag.layers], x0, sag.threshold)
    if sag.mask == "random":
        mask = random_mask(mask, seeds)
    elif sag.mask == "edges":
        mask = edge_mask(mask, x0 - all_blurred)
    weight = F.interpolate(mask.to(x0.dtype), x0.shape[2:], mode="nearest")
    return torch.lerp(x0, all_blurred, weight)


def attention_mask(scores: Sequence[Tensor], x0: Tensor, threshold: float) -> Tensor:
    """M, `(B, 1, *tokens)`: where the mean of maps, `(B, *tokens)` each, is above a threshold."""
    maps = [a[:, None] for a in scores]
    maps = [a.unsqueeze(2) if a.ndim < x0.ndim else a for a in maps]  # one for all frames
    tokens = max((a.shape[2:] for a in maps), key=prod)
    fine = [F.interpolate(a, tokens, mode="nearest") for a in maps]
    return torch.stack(fine).mean(dim=0) > threshold


def random_mask(mask: Tensor, seeds: Sequence[int]) -> Tensor:
    """As many tokens of each sample as a mask marks, `(B, 1, *tokens)`, at random places."""
    n = mask[0].numel()
    orders = [torch.randperm(n, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    places = torch.stack(orders).to(mask.device)
    return mask.flatten(1).gather(1, places).reshape(mask.shape)


def edge_mask(mask: Tensor, high: Tensor) -> Tensor:
    """As many tokens of each sample as a mask marks, where high frequencies have most energy.

    Args:
        mask: `(B, 1, *tokens)`.
        high: High frequencies of the image, `(B, C, *D)`.
    """
    squares = high.square().mean(dim=1, keepdim=True)
    energy = F.interpolate(squares, mask.shape[2:], mode="area").flatten(1)
    rank = energy.argsort(dim=1, descending=True).argsort(dim=1)
    return (rank < mask.flatten(1).sum(dim=1, keepdim=True)).reshape(mask.shape)
