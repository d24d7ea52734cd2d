"""Self-attention guidance (SAG): away from an input that is blurred where it attends.

With x0^ and eps^ the prediction at x, A_i the attention that token i receives (summed over
queries, averaged over heads, mean 1 over tokens), psi a threshold, and G a Gaussian filter,

    M   = 1[A > psi]                              tokens attended to more than psi times the mean
    x0~ = (1 - M) x0^ + M G(x0^)                  blurred there
    x~  = alpha x0~ + sigma eps^                  re-noised with the eps predicted at x
    eps guided = eps^(x~) + (1 + s) (eps^(x) - eps^(x~))

The last line is the published one. The paper masks in x: (1 - M) x + M (alpha G(x0^) + sigma eps^),
which is x~, as both parts hold the same eps^. Since x~ holds eps^(x), for alpha > 0

    sigma (eps^(x) - eps^(x~)) = alpha (x0^(x~) - x0~),

and moving eps by s (eps^(x) - eps^(x~)) is, at fixed x, moving x0 by s (x0~ - x0^(x~)): the
blurred estimate minus what the network makes of it. (It is not s (x0^(x) - x0^(x~)), which is this
plus s M (x0^ - G(x0^)).) Networks that predict v or a flow's velocity are turned into x0^ and eps^
first, which extends the paper; diffusers' pipeline subtracts their raw outputs, and so moves x0 by
s sigma^2 (x0^ - x0~) more for v. At alpha = 0 (zero terminal SNR) x~ = x, where the published line
moves nothing; the code gives the limit of the shift of x0 for alpha to 0, s M (G(x0^) - x0^).

Source: Hong et al. 2023, algorithm 1, https://arxiv.org/abs/2210.00939.
"""

from collections.abc import Sequence
from dataclasses import dataclass
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
"""Values of `SAG.mask`."""


@dataclass(frozen=True, repr=False)
class SAG(Guidance):
    """Self-attention guidance; scale 0 is off and costs nothing, else x~ is one more evaluation.

    The evaluation of x~ follows that of x, in a batch of its own. Frames of a video are blurred
    each by itself, and sound beside it is left as it is.

    Args:
        scale: s (0.75 is diffusers' default, beside CFG; the official `guide_scale` is 1 + s).
        layer: Self-attention layers that A is read from, by parts of their names, "mid" (the middle
            block, as for Stable Diffusion) or "mid, up_blocks.1". A part means the first layer
            whose name holds it; A of several layers is their mean (ours). In layers that attend to
            text as well, A is of the tokens of the image alone.
        threshold: psi, in multiples of the mean of A.
        sigma: Standard deviation of G, in pixels of the sample (latents, where it has them), > 0.
        kernel: Size of G, odd; 9 for latents of 64 x 64, 31 for the official networks of pixels.
        on: The condition that x and x~ are evaluated under: "null" beside CFG, whose guided x0 is
            cond + (w - 1) (cond - null) + the shift; "cond" without CFG.
        clamp: Bound of x0^ before it is blurred, also where M is 0; eps^ stays. 1 for networks of
            pixels in [-1, 1].
        mask: Which tokens are blurred: "attention" (M); as many at places drawn by the sample's
            seed ("random"), or where x0^ - G(x0^), the high frequencies, has most energy
            ("edges"); or all ("global"), which reads no attention. The last three are after the
            paper's ablations.

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
        require_images(at.x)
        (answer,) = yield (Branch(self.on, record=self.layers),)
        blurred = blurred_prediction(self, answer, at.seeds_for("mask"))
        renoised = at.level.mix(blurred, answer.eps)
        (degraded,) = yield (Branch(self.on, x=renoised),)
        return self.scale * (blurred - degraded.x0)

    @property
    def layers(self) -> tuple[str, ...]:
        """Parts of names of the layers that are read."""
        return () if self.mask == "global" else tuple(map(str.strip, self.layer.split(",")))


def require_images(x: Tensor) -> None:
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
    tokens = attention_mask([answer.maps[layer] for layer in sag.layers], x0, sag.threshold)
    if sag.mask == "random":
        tokens = random_mask(tokens, seeds)
    elif sag.mask == "edges":
        tokens = edge_mask(tokens, x0 - all_blurred)
    mask = F.interpolate(tokens.to(x0.dtype), x0.shape[2:], mode="nearest")
    return torch.lerp(x0, all_blurred, mask)


def attention_mask(maps: Sequence[Tensor], x0: Tensor, threshold: float) -> Tensor:
    """M, `(B, 1, [F,] h, w)`: where the mean of maps, `(B, [F,] h, w)`, is above a threshold.

    Maps are resampled to the largest of their sizes.
    """
    grids = [a[:, None] for a in maps]
    grids = [a.unsqueeze(2) if a.ndim < x0.ndim else a for a in grids]  # one for all frames
    size = tuple(map(max, zip(*(a.shape[2:] for a in grids), strict=True)))
    resampled = [F.interpolate(a, size, mode="nearest") for a in grids]
    return torch.stack(resampled).mean(dim=0) > threshold


def random_mask(mask: Tensor, seeds: Sequence[int]) -> Tensor:
    """As many tokens of each sample as a mask marks, `(B, 1, [F,] h, w)`, at random places."""
    n = mask[0].numel()
    orders = [torch.randperm(n, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    permutations = torch.stack(orders).to(mask.device)
    return mask.flatten(1).gather(1, permutations).reshape(mask.shape)


def edge_mask(mask: Tensor, high_pass: Tensor) -> Tensor:
    """As many tokens of each sample as a mask marks, where high frequencies have most energy.

    Args:
        mask: `(B, 1, [F,] h, w)`.
        high_pass: High frequencies of the image, `(B, C, *D)`.
    """
    squares = high_pass.square().mean(dim=1, keepdim=True)
    energy = F.interpolate(squares, mask.shape[2:], mode="area").flatten(1)
    rank = energy.argsort(dim=1, descending=True).argsort(dim=1)
    return (rank < mask.flatten(1).sum(dim=1, keepdim=True)).reshape(mask.shape)
