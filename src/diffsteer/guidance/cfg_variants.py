"""CFG by other functions of the same two answers, which damp it where it saturates or distorts.

c and u are the outputs of the network for the prompt and the null prompt, or x0 where it is said,
d = c - u, and norms are those of a sample. All cost what CFG costs, and scale 1 is off.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from diffsteer.core.fields import Finite, NotNegative, Positive, Share
from diffsteer.guidance.base import Guidance
from diffsteer.guidance.queries import Branch, GuidanceState, Queries


@dataclass(frozen=True, repr=False)
class _OfOutputs(Guidance):
    """CFG by a formula of c and u; scale 1 asks nothing."""

    scale: Finite

    @abstractmethod
    def output(self, c: Tensor, u: Tensor) -> Tensor:
        """Guided output, `(B, *D)`."""

    @override
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        if self.scale == 1:
            return torch.zeros_like(at.x)
        cond, null = yield Branch(), Branch(cond="null")
        return at.prediction.x0(at.x, self.output(cond.out, null.out), at.level) - cond.x0


@dataclass(frozen=True, repr=False)
class MAMBO(_OfOutputs):
    """MAMBO-G: u + (1 + (scale - 1) exp(-damping |d| / |u|)) d, less where d is large.

    Args:
        scale: Weight where d is small; 10 in the paper, for flows.
        damping: alpha of the paper; 0 is CFG.

    Source: Zhu et al. 2025, https://arxiv.org/abs/2508.03442.
    """

    damping: NotNegative = 8.0

    @override
    def output(self, c: Tensor, u: Tensor) -> Tensor:
        size = norm(c - u) / norm(u).clamp(min=TINY)
        return u + (1 + (self.scale - 1) * torch.exp(-self.damping * size)) * (c - u)


@dataclass(frozen=True, repr=False)
class TCFG(_OfOutputs):
    """Tangential damping: CFG from the part of u along the first singular vector of (c, u).

    With the Gram matrix of c and u, whose eigenvalues are l1 >= l2, that part is
    (<c, u> c + (<u, u> - l2) u) / (l1 - l2).

    Args:
        scale: As for CFG.

    Source: Kwon et al. 2025, https://arxiv.org/abs/2503.18137.
    """

    @override
    def output(self, c: Tensor, u: Tensor) -> Tensor:
        cc, cu, uu = dot(c, c), dot(c, u), dot(u, u)
        half = ((cc - uu) ** 2 / 4 + cu**2).sqrt()
        part = (cu * c + ((uu - cc) / 2 + half) * u) / (2 * half).clamp(min=TINY)
        return part + self.scale * (c - part)


@dataclass(frozen=True, repr=False)
class CFGNorm(_OfOutputs):
    """CFG whose output has, in each pixel or token, the norm of c over the channels.

    Args:
        scale: As for CFG; 4 is usual with Qwen-Image.

    Source: the pipeline of Qwen-Image, Qwen 2025, https://arxiv.org/abs/2508.02324.
    """

    @override
    def output(self, c: Tensor, u: Tensor) -> Tensor:
        channels = 2 if c.ndim == 3 else 1  # tokens are packed as (B, tokens, channels)
        out = u + self.scale * (c - u)
        return out * (norm(c, channels) / norm(out, channels).clamp(min=TINY))


@dataclass(frozen=True, repr=False)
class CFGRenorm(_OfOutputs):
    """CFG whose output has at most `limit` times the norm of c: that of Lumina 2 and Z-Image.

    Args:
        scale: As for CFG; 4 is usual.
        limit: Greatest ratio of norms, > 0; inf is CFG.

    Source: Qin et al. 2025, CFG-Renorm, https://arxiv.org/abs/2503.21758.
    """

    limit: Positive = 1.0

    @override
    def output(self, c: Tensor, u: Tensor) -> Tensor:
        out = u + self.scale * (c - u)
        return out * (self.limit * norm(c) / norm(out).clamp(min=TINY)).clamp(max=1)


@dataclass(frozen=True, repr=False)
class DynamicThreshold(_OfOutputs):
    """CFG whose contrast is, in each channel, at most that of CFG at the scale `mimic`.

    Output of each channel about its mean is limited to the quantile `percentile` of its values, or
    to the greatest value at the scale `mimic` if that is more, and then scaled down to the latter.

    Args:
        scale: As for CFG.
        mimic: Scale whose contrast is kept.
        percentile: Share of the values that are not limited.

    Source: mcmonkey4eva 2023, https://github.com/mcmonkeyprojects/sd-dynamic-thresholding, after
    Saharia et al. 2022, section 2.3, https://arxiv.org/abs/2205.11487.
    """

    mimic: Finite = 7.0
    percentile: Share = 1.0

    @override
    def output(self, c: Tensor, u: Tensor) -> Tensor:
        rows = (u + w * (c - u) for w in (self.scale, self.mimic))
        out, low = (row.flatten(2 if row.ndim > 2 else 1) for row in rows)
        mean = out.mean(dim=-1, keepdim=True)
        most = (low - low.mean(dim=-1, keepdim=True)).abs().amax(dim=-1, keepdim=True)
        reach = (out - mean).abs().quantile(self.percentile, dim=-1, keepdim=True)
        reach = torch.maximum(most, reach).clamp(min=TINY)
        out = mean + (out - mean).clamp(-reach, reach) * (most / reach)
        return out.reshape(c.shape)


@dataclass(frozen=True, repr=False)
class ADG(Guidance):
    """Angle domain guidance: x0 of the prompt turned away from that of the null.

    With t the angle between both and v = min((scale - 1) t, limit), x0 becomes
    cos(v) c + sin(v) / sin(t) (c - its part along u), which is at most sqrt(2) times as long as c.

    Args:
        scale: 2 to 15 in the paper.
        limit: Greatest turn in radians, > 0.

    Source: Jin et al. 2025, https://arxiv.org/abs/2506.11039.
    """

    scale: Finite
    limit: Positive = math.pi / 3

    @override
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        if self.scale == 1:
            return torch.zeros_like(at.x)
        cond, null = yield Branch(), Branch(cond="null")
        c, u = cond.x0, null.x0
        across = c - dot(c, u) / dot(u, u).clamp(min=TINY) * u
        sine = norm(across) / norm(c).clamp(min=TINY)
        angle = torch.atan2(sine, dot(c, u) / (norm(c) * norm(u)).clamp(min=TINY))
        turn = ((self.scale - 1) * angle).clamp(max=self.limit)
        gain = torch.where(sine > 1e-3, turn.sin() / sine.clamp(min=1e-3), self.scale - 1.0)
        return (turn.cos() - 1) * c + gain * across


TINY = 1e-30
"""Least divisor: where a norm is 0, so is what it divides."""


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each sample, `(B, 1, ...)`."""
    return (a * b).sum(dim=tuple(range(1, a.ndim)), keepdim=True)


def norm(a: Tensor, dim: int | None = None) -> Tensor:
    """Euclidean norm of each sample, or along a dimension of it, which is kept with length 1."""
    dims = tuple(range(1, a.ndim)) if dim is None else dim
    length: Tensor = torch.linalg.vector_norm(a, dim=dims, keepdim=True)
    return length
