"""The network of ADM and its classifier of noisy pictures; that of IDDPM is a case of it.

Tensor names and shapes are those of the published checkpoints. The modules of attention compute it
by scaled_dot_product_attention, so that guidances can read and edit it.

Source: Nichol & Dhariwal 2021, https://arxiv.org/abs/2102.09672; Dhariwal & Nichol 2021, sec. 3 and
app. H, https://arxiv.org/abs/2105.05233.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from diffsteer.nets.adm_flags import Flags

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
            raise ValueError(f"{channels} channels cannot be split into {heads} attention heads")
        self.heads, self.new_order = heads, new_order
        self.norm = nn.GroupNorm(32, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = _zero(nn.Conv1d(channels, channels, 1))

    @override
    def forward(self, x: Tensor) -> Tensor:
        pixels = x.flatten(2)
        q, k, v = split_heads(self.qkv(self.norm(pixels)), self.heads, self.new_order)
        seen = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2)
        out: Tensor = pixels + self.proj_out(seen.reshape(pixels.shape))
        return out.view(x.shape)


class ResBlock(nn.Module):
    """Residual block that is told time and class, and may change resolution on its way."""

    def __init__(self, given: int, made: int, flags: Flags, resize: Resize | None = None) -> None:
        super().__init__()
        self.resize, self.scales = resize, flags.use_scale_shift_norm
        told = 4 * flags.num_channels
        self.in_layers = nn.Sequential(
            nn.GroupNorm(32, given), nn.SiLU(), nn.Conv2d(given, made, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(told, made * (1 + self.scales)))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, made),
            nn.SiLU(),
            nn.Dropout(flags.dropout),
            _zero(nn.Conv2d(made, made, 3, padding=1)),
        )
        self.skip_connection = nn.Identity() if given == made else nn.Conv2d(given, made, 1)

    @override
    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        first_norm, first_act, first_conv = self.in_layers
        norm, act, drop, conv = self.out_layers
        h = first_act(first_norm(x))
        if self.resize is not None:
            h, x = self.resize(h), self.resize(x)
        h, told = first_conv(h), self.emb_layers(emb)[..., None, None]
        if self.scales:
            scale, shift = told.chunk(2, dim=1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + told)
        out: Tensor = self.skip_connection(x) + conv(drop(act(h)))
        return out


class Downsample(nn.Module):
    """Half the resolution by a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    @override
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.op(x)
        return out


class Upsample(nn.Module):
    """Twice the resolution by repeated pixels and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    @override
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(DOUBLE(x))
        return out


class Stage(nn.ModuleList):
    """Layers one after another, those that take it told time and class."""

    @override
    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


class Encoder(nn.Module):
    """What a denoiser and a classifier have in common: the way down and the middle."""

    def __init__(self, flags: Flags) -> None:
        super().__init__()
        self.flags = flags
        base, widths = flags.num_channels, flags.widths
        self.time_embed = nn.Sequential(
            nn.Linear(base, 4 * base), nn.SiLU(), nn.Linear(4 * base, 4 * base)
        )
        self.skips = [widths[0]]  # channels of what each stage leaves for the way up
        stages = [Stage([nn.Conv2d(3, widths[0], 3, padding=1)])]
        for depth, width in enumerate(widths):
            for _ in range(flags.num_res_blocks):
                layers: list[nn.Module] = [ResBlock(self.skips[-1], width, flags)]
                stages.append(Stage([*layers, *self._attention(width, depth)]))
                self.skips.append(width)
            if depth < len(widths) - 1:
                down = ResBlock(width, width, flags, HALVE) if flags.resblock_updown else None
                stages.append(Stage([down or Downsample(width)]))
                self.skips.append(width)
        self.input_blocks = nn.ModuleList(stages)
        last = widths[-1]
        self.middle_block = Stage(
            [
                ResBlock(last, last, flags),
                Attention(last, flags.heads(last), flags.use_new_attention_order),
                ResBlock(last, last, flags),
            ]
        )

    def _attention(self, width: int, depth: int, up: bool = False) -> list[nn.Module]:
        flags = self.flags
        if 2**depth not in flags.rates:
            return []
        return [Attention(width, flags.heads(width, up), flags.use_new_attention_order)]

    def encode(self, x: Tensor, emb: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features of the middle, and what each stage on the way down leaves for the way up.

        Raises:
            ValueError: the sides of the pictures cannot be halved that often.
        """
        least = 2 ** (len(self.flags.widths) - 1)
        if x.ndim != 4 or x.shape[1] != 3 or x.shape[2] % least or x.shape[3] % least:
            raise ValueError(
                f"pictures of shape {tuple(x.shape)}: this network takes (B, 3, H, W) with sides "
                f"that are multiples of {least}"
            )
        left = []
        for stage in self.input_blocks:
            x = stage(x, emb)
            left.append(x)
        middle: Tensor = self.middle_block(x, emb)
        return middle, left

    def embed(self, t: Tensor) -> Tensor:
        """Features of the time, `(B, 4 num_channels)`, from timesteps `(B,)`."""
        dtype = next(self.time_embed.parameters()).dtype
        emb: Tensor = self.time_embed(time_features(t, self.flags.num_channels).to(dtype))
        return emb

    def attention_layers(self) -> dict[str, nn.Module]:
        """Self-attention modules by name; that of the middle is found as "mid" as well."""
        return {
            name.replace("middle_block", "mid.middle_block"): module
            for name, module in self.named_modules()
            if isinstance(module, Attention)
        }


class ADM(Encoder):
    """The denoising network.

    Raises:
        ValueError: the flags are of a classifier, or make no network.
    """

    def __init__(self, flags: Flags) -> None:
        if flags.classifier:
            raise ValueError("these are flags of a classifier: build ADMClassifier")
        super().__init__(flags)
        if flags.class_cond:
            self.label_emb = nn.Embedding(flags.num_classes, 4 * flags.num_channels)
        widths, left, now = flags.widths, list(self.skips), flags.widths[-1]
        stages = []
        for depth, width in reversed(list(enumerate(widths))):
            for i in range(flags.num_res_blocks + 1):
                layers: list[nn.Module] = [ResBlock(now + left.pop(), width, flags)]
                layers += self._attention(width, depth, up=True)
                if depth and i == flags.num_res_blocks:
                    up = ResBlock(width, width, flags, DOUBLE) if flags.resblock_updown else None
                    layers.append(up or Upsample(width))
                stages.append(Stage(layers))
                now = width
        self.output_blocks = nn.ModuleList(stages)
        last = _zero(nn.Conv2d(now, 6 if flags.learn_sigma else 3, 3, padding=1))
        self.out = nn.Sequential(nn.GroupNorm(32, now), nn.SiLU(), last)

    @override
    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the prediction, and its variance channels if it learned them.

        Args:
            x: Noisy pictures, `(B, 3, H, W)`, data in [-1, 1].
            t: Timesteps, `(B,)`.
            y: Classes, `(B,)`, if and only if it is class-conditional.

        Returns:
            `(B, 3, H, W)`, or `(B, 6, H, W)`.

        Raises:
            ValueError: classes are missing, not wanted, or not as many as pictures.
        """
        if (y is not None) != self.flags.class_cond:
            needs = "needs classes y" if self.flags.class_cond else "knows no classes"
            raise ValueError(f"this network {needs} (class_cond={self.flags.class_cond})")
        emb = self.embed(t)
        if y is not None:
            if y.shape != t.shape:
                raise ValueError(f"{tuple(y.shape)} classes for {tuple(t.shape)} times: one a row")
            emb = emb + self.label_emb(y)
        h, left = self.encode(x.to(emb.dtype), emb)
        for stage in self.output_blocks:
            h = stage(torch.cat([h, left.pop()], dim=1), emb)
        out: Tensor = self.out(h)
        return out


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


class ADMClassifier(Encoder):
    """The classifier of noisy pictures, for classifier guidance.

    Raises:
        ValueError: the flags are of a denoiser, or make no network.
    """

    def __init__(self, flags: Flags) -> None:
        if not flags.classifier:
            raise ValueError("these are flags of a denoiser: build ADM")
        super().__init__(flags)
        last, side = flags.widths[-1], flags.image_size // 2 ** (len(flags.widths) - 1)
        pool = Pool(side, last, flags.heads(last), flags.num_classes)
        self.out = nn.Sequential(nn.GroupNorm(32, last), nn.SiLU(), pool)

    @override
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return logits `(B, classes)` of noisy pictures `(B, 3, H, W)` at timesteps `(B,)`."""
        emb = self.embed(t)
        middle, _ = self.encode(x.to(emb.dtype), emb)
        logits: Tensor = self.out(middle)
        return logits


def time_features(t: Tensor, size: int) -> Tensor:
    """Cosines and sines of the timesteps `(B,)`, `(B, size)`, float32.

    In the order of operations of the published networks: an angle of 1000 radians shows every
    rounding of its frequency.
    """
    half = size // 2
    ranks = torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t.float()[:, None] * (-math.log(10_000) * ranks / half).exp()
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def _zero(layer: Layer) -> Layer:
    """Start from 0, so that a new block changes nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
