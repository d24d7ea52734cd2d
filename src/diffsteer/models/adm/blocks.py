"""Layers of the ADM network and its classifier, by the names of their tensors."""

import math
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.models.adm.flags import Flags

Layer = TypeVar("Layer", bound=nn.Module)
Resize = Callable[[Tensor], Tensor]
HALVE: Resize = partial(F.avg_pool2d, kernel_size=2)
DOUBLE: Resize = partial(F.interpolate, scale_factor=2, mode="nearest")


def split_heads(qkv: Tensor, heads: int, new_order: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value, each `(B, heads, N, channels)`, from one tensor `(B, C, N)`.

    Args:
        qkv: The three of them along the channels.
        heads: How many there are.
        new_order: Whether the channels are (query, key, value) x heads, or heads x (q, k, v).
    """
    b, _, n = qkv.shape
    shape = (b, 3, heads, -1, n) if new_order else (b, heads, 3, -1, n)
    q, k, v = qkv.view(shape).transpose(-1, -2).unbind(1 if new_order else 2)
    return q, k, v


def join_heads(q: Tensor, k: Tensor, v: Tensor, new_order: bool) -> Tensor:
    """Inverse of `split_heads`."""
    joined = torch.stack([q, k, v], dim=1 if new_order else 2).transpose(-1, -2)
    return joined.reshape(len(q), -1, q.shape[2])


class Attention(nn.Module):
    """Self-attention over all pixels, `(B, C, H, W)` to the same."""

    def __init__(self, channels: int, heads: int, new_order: bool) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise InputError(f"{channels} channels cannot be split into {heads} attention heads")
        self.heads, self.new_order = heads, new_order
        self.norm = nn.GroupNorm(32, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero(nn.Conv1d(channels, channels, 1))

    @override
    def forward(self, x: Tensor) -> Tensor:
        pixels = x.flatten(2)
        q, k, v = split_heads(self.qkv(self.norm(pixels)), self.heads, self.new_order)
        seen = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2)
        out: Tensor = pixels + self.proj_out(seen.reshape(pixels.shape))
        return out.view(x.shape)


class ResBlock(nn.Module):
    """Residual block with an embedding of time and class, which may change the resolution."""

    def __init__(self, given: int, made: int, flags: Flags, resize: Resize | None = None) -> None:
        super().__init__()
        self.resize, self.scales = resize, flags.use_scale_shift_norm
        self.in_layers = nn.Sequential(
            nn.GroupNorm(32, given), nn.SiLU(), nn.Conv2d(given, made, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(4 * flags.num_channels, made * (1 + self.scales))
        )
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, made),
            nn.SiLU(),
            nn.Dropout(flags.dropout),
            zero(nn.Conv2d(made, made, 3, padding=1)),
        )
        self.skip_connection = nn.Identity() if given == made else nn.Conv2d(given, made, 1)

    @override
    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        first_norm, first_act, first_conv = self.in_layers
        norm, act, drop, conv = self.out_layers
        h = first_act(first_norm(x))
        if self.resize is not None:
            h, x = self.resize(h), self.resize(x)
        h, shift = first_conv(h), self.emb_layers(emb)[..., None, None]
        if self.scales:
            scale, shift = shift.chunk(2, dim=1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + shift)
        out: Tensor = self.skip_connection(x) + conv(drop(act(h)))
        return out


def downsample(channels: int) -> nn.Module:
    """Half the resolution by a convolution."""
    op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
    return nn.Sequential(OrderedDict(op=op))


def upsample(channels: int) -> nn.Module:
    """Twice the resolution by repeated pixels and a convolution."""
    conv = nn.Conv2d(channels, channels, 3, padding=1)
    return nn.Sequential(OrderedDict(resize=nn.Upsample(scale_factor=2), conv=conv))


class Stage(nn.ModuleList):
    """Layers one after another; residual blocks get the embedding of time and class."""

    @override
    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


class Pool(nn.Module):
    """Attention of the mean over all pixels, `(B, C, H, W)` to `(B, classes)`."""

    def __init__(self, side: int, channels: int, heads: int, classes: int) -> None:
        super().__init__()
        self.heads = heads
        place = torch.randn(channels, side**2 + 1) / channels**0.5
        self.positional_embedding = nn.Parameter(place)
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, classes, 1)

    @override
    def forward(self, x: Tensor) -> Tensor:
        pixels = x.flatten(2)
        pixels = torch.cat([pixels.mean(dim=-1, keepdim=True), pixels], dim=-1)
        q, k, v = split_heads(self.qkv_proj(pixels + self.positional_embedding), self.heads, True)
        seen = F.scaled_dot_product_attention(q[:, :, :1], k, v)  # only the mean's place is read
        out: Tensor = self.c_proj(seen.transpose(-1, -2).reshape(*x.shape[:2], 1))
        return out[..., 0]


def time_features(t: Tensor, size: int) -> Tensor:
    """Cosines and sines of the timesteps `(B,)`, `(B, size)`, float32.

    In the order of operations of the published networks: an angle of 1000 radians shows every
    rounding of its frequency.
    """
    half = size // 2
    ranks = torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t.float()[:, None] * (-math.log(10_000) * ranks / half).exp()
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def zero(layer: Layer) -> Layer:
    """Start from 0, so that a new block changes nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
