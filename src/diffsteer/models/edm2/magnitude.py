"""Layers that keep the magnitude of what flows through them.

Unit variance in is unit variance out, on expectation, whatever the weights: no layer normalisation,
no biases, and weights of which only the direction is learned.

Source: Karras et al. 2024, sec. 2 and app. B, https://arxiv.org/abs/2312.02696.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from diffsteer.core.level import upcast

EPS = 1e-4
"""Added to a norm before dividing by it, so that zeros stay zeros."""

SILU_STD = 0.596
"""Root mean square of silu of a unit Gaussian."""


def normalize(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Bring the root mean square over `dim` to 1, or just below."""
    norm = torch.linalg.vector_norm(
        x, dim=dim, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32)
    )
    scale = math.sqrt(norm.numel() / x.numel()) if x.numel() else 1.0
    return x / torch.add(EPS, norm, alpha=scale).to(x.dtype)


def normalize_weight(w: Tensor) -> Tensor:
    """Normalise what each output sees, all dimensions but the first."""
    return normalize(w, tuple(range(1, w.ndim)))


def mp_silu(x: Tensor) -> Tensor:
    """Sigmoid-weighted linear unit that keeps unit variance."""
    return F.silu(x).div_(SILU_STD)


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Mix uncorrelated `a` and `b`, `t` in [0, 1] of `b`, keeping their variance."""
    return torch.lerp(a, b, t).div_(math.hypot(1 - t, t))


def mp_cat(a: Tensor, b: Tensor, t: float = 0.5) -> Tensor:
    """Join channels so that `b` contributes the share `t` to the next layer, whatever its width."""
    wide_a, wide_b = a.shape[1], b.shape[1]
    c = math.sqrt((wide_a + wide_b) / ((1 - t) ** 2 + t**2))
    return torch.cat([a * (c / math.sqrt(wide_a) * (1 - t)), b * (c / math.sqrt(wide_b) * t)], 1)


class MPFourier(nn.Module):
    """Random Fourier features of one number, `(B,)` to `(B, channels)`."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels))

    @override
    def forward(self, x: Tensor) -> Tensor:
        angle = torch.outer(x, self.freqs.to(x.dtype)) + self.phases.to(x.dtype)
        return angle.cos() * math.sqrt(2)


class MPConv(nn.Module):
    """Convolution, or linear layer without a kernel, whose weight acts by its direction alone.

    While training, every call first replaces the weight by its normalised self, so that its
    magnitude cannot grow.

    Attributes:
        weight: `(channels_out, channels_in, *kernel)`.
        keeps: Whether evaluation without gradients remembers the normalised weight. It is made anew
            when the weight was changed in place, but writes to `weight.data` go unseen until
            `train()` or `eval()` is called.
    """

    def __init__(self, channels_in: int, channels_out: int, *kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels_out, channels_in, *kernel))
        self.keeps = False
        self._kept: tuple[tuple[object, ...], Tensor] | None = None

    @override
    def train(self, mode: bool = True) -> "MPConv":
        self.keeps, self._kept = False, None
        return super().train(mode)

    @override
    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        w = self.effective(gain, x.dtype)
        return F.linear(x, w) if w.ndim == 2 else F.conv2d(x, w, padding=w.shape[-1] // 2)

    def effective(self, gain: Tensor | float, dtype: torch.dtype) -> Tensor:
        """Normalised weight times gain / sqrt(fan in).

        The factor is computed in the dtype of `gain`: a gain in float16 rounds it.
        """
        if not self.keeps or torch.is_grad_enabled() or self.weight.is_inference():
            return self._made(gain, dtype)
        read = [t for t in (self.weight, gain) if isinstance(t, Tensor)]
        key = (dtype, *((t._version, t.data_ptr()) for t in read))
        if self._kept is None or self._kept[0] != key:
            self._kept = key, self._made(gain, dtype)
        return self._kept[1]

    def _made(self, gain: Tensor | float, dtype: torch.dtype) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.weight.copy_(normalize_weight(upcast(self.weight)))
        w = normalize_weight(upcast(self.weight))
        return (w * (gain / math.sqrt(w[0].numel()))).to(dtype)
