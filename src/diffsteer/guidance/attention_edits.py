"""Edits of self-attention, as functions of its queries, keys and values.

Source: Ahn et al. 2024 (PAG), https://arxiv.org/abs/2403.17377; Hong 2024 (SEG),
https://arxiv.org/abs/2408.00760; Hong et al. 2023 (SAG), https://arxiv.org/abs/2210.00939.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from diffsteer.core.errors import InputError

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
Size = tuple[int, ...]


class Edit(ABC):
    """A change of self-attention."""

    @abstractmethod
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, attend: Attend, size: Size) -> Tensor:
        """Return what replaces `attend(q, k, v, None)`, `(B, heads, tokens, channels)`.

        Args:
            q: Queries of the image tokens, h w of them, and then of text tokens, if any.
            k: Keys.
            v: Values.
            attend: The attention as it was; its last argument is a boolean mask or None.
            size: Shape of the image in tokens, as in `ImageTokens`.
        """


@dataclass(frozen=True)
class Identity(Edit):
    """Every image token attends to no other image token (PAG); to itself, and to text if any."""

    @override
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, attend: Attend, size: Size) -> Tensor:
        n = prod(size)
        if k.shape[2] == n:
            return v
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
        mask[:n, :n] = torch.eye(n, dtype=torch.bool, device=q.device)
        return attend(q, k, v, mask)


@dataclass(frozen=True)
class BlurQuery(Edit):
    """Queries are blurred over the image (SEG).

    Args:
        sigma: Of the Gaussian, in tokens; inf replaces every query by their mean.
    """

    sigma: float = float("inf")

    @override
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, attend: Attend, size: Size) -> Tensor:
        n = prod(size)
        image = self._blurred(q[:, :, :n], size)
        return attend(torch.cat([image, q[:, :, n:]], dim=2), k, v, None)

    def _blurred(self, q: Tensor, size: Size) -> Tensor:
        if self.sigma == float("inf"):
            return q.mean(dim=2, keepdim=True).expand_as(q)
        b, heads, _, c = q.shape
        frames = q.reshape(b, heads, -1, prod(in_plane(size)), c).permute(0, 1, 2, 4, 3)
        image = frames.reshape(b, -1, *in_plane(size))
        image = blur(image, self.sigma, 2 * round(3 * self.sigma) + 1)
        return image.reshape(frames.shape).permute(0, 1, 2, 4, 3).reshape(q.shape)


@dataclass(frozen=True)
class SecondContext:
    """A second text that attention reads, away from which its output is moved (NAG).

    Args:
        scale: s of Z+ + s (Z+ - Z-).
        tau: Largest L1 norm of that in multiples of Z+'s.
        alpha: Share of the result; the rest is Z+.
        cond: Condition with the second text.
    """

    scale: float
    tau: float
    alpha: float
    cond: str

    def combined(self, positive: Tensor, negative: Tensor) -> Tensor:
        """What replaces Z+, from both outputs of attention, `(B, heads, tokens, channels)`."""
        plus, minus = (
            z.to(torch.promote_types(z.dtype, torch.float32)) for z in (positive, negative)
        )
        moved = plus + self.scale * (plus - minus)
        norm, most = (z.abs().sum(dim=(1, 3), keepdim=True) for z in (moved, self.tau * plus))
        moved = torch.where(norm > most, most / norm, 1.0) * moved
        return torch.lerp(plus, moved, self.alpha).to(positive.dtype)


def in_plane(size: Size) -> Size:
    """Height and width of an image or a frame in tokens."""
    if len(size) < 2:
        raise InputError(
            f"this layer attends to {size[0]} tokens, of which neither height nor width is known, "
            "so nothing can be blurred in it: take another layer, or PAG, which needs neither"
        )
    return size[-2:]


def blur(image: Tensor, sigma: float, kernel: int) -> Tensor:
    """Gaussian blur, `(B, C, H, W)` or `(B, C, F, H, W)`, reflected at the border.

    Args:
        image: What to blur.
        sigma: Standard deviation in pixels, > 0.
        kernel: Size, odd; along each side at most what reflection at the border allows. The taps
            are renormalised, as in the official code of SAG.
    """
    if image.ndim == 5:
        frames = image.transpose(1, 2)
        blurred = blur(frames.flatten(0, 1), sigma, kernel)
        return blurred.reshape(frames.shape).transpose(1, 2)
    for dim in (2, 3):
        reach = min(kernel // 2, image.shape[dim] - 1)
        taps = torch.arange(-reach, reach + 1, device=image.device, dtype=torch.float32)
        taps = torch.exp(-0.5 * (taps / sigma) ** 2)
        taps = (taps / taps.sum()).to(image.dtype)
        pad = (0, 0, reach, reach) if dim == 2 else (reach, reach, 0, 0)
        weight = taps.view((1, 1, -1, 1) if dim == 2 else (1, 1, 1, -1))
        weight = weight.expand(image.shape[1], -1, -1, -1)
        with _as_given(image):
            image = F.conv2d(F.pad(image, pad, mode="reflect"), weight, groups=image.shape[1])
    return image


def received(q: Tensor, k: Tensor) -> Tensor:
    """Attention that each token receives, mean over heads, `(B, tokens)`; its mean is 1."""
    with _as_given(q):
        scores = q.float() @ k.float().transpose(-1, -2) / q.shape[-1] ** 0.5
        weights: Tensor = scores.softmax(dim=-1)
    return weights.mean(dim=1).sum(dim=1)


def _as_given(x: Tensor) -> AbstractContextManager[object]:
    """Computing in the dtypes that are given, though the pipeline may run under torch.autocast."""
    if not torch.amp.is_autocast_available(x.device.type):
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)
