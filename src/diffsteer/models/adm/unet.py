"""The network of ADM and its classifier of noisy images; that of IDDPM is a case of it.

Tensor names and shapes are those of the published checkpoints. The modules of attention compute it
by scaled_dot_product_attention, so that guidances can read and edit it.

Source: Nichol & Dhariwal 2021, https://arxiv.org/abs/2102.09672; Dhariwal & Nichol 2021, sec. 3 and
app. H, https://arxiv.org/abs/2105.05233.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.models.adm.blocks import (
    DOUBLE,
    HALVE,
    Attention,
    Pool,
    ResBlock,
    Stage,
    downsample,
    time_features,
    upsample,
    zero,
)
from diffsteer.models.adm.flags import Flags


class Encoder(nn.Module, ABC):
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
                stages.append(Stage([down or downsample(width)]))
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

    @abstractmethod
    @override
    def forward(self, *args: Any) -> Tensor:
        """Evaluate the network."""

    def _attention(self, width: int, depth: int, up: bool = False) -> list[nn.Module]:
        flags = self.flags
        if 2**depth not in flags.rates:
            return []
        return [Attention(width, flags.heads(width, up), flags.use_new_attention_order)]

    def encode(self, x: Tensor, emb: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features of the middle, and what each stage on the way down leaves for the way up."""
        least = 2 ** (len(self.flags.widths) - 1)
        if x.ndim != 4 or x.shape[1] != 3 or x.shape[2] % least or x.shape[3] % least:
            raise InputError(
                f"images must have shape (B, 3, H, W), got {tuple(x.shape)}, with sides "
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
    """The denoising network."""

    def __init__(self, flags: Flags) -> None:
        if flags.classifier:
            raise InputError("these are flags of a classifier: build ADMClassifier")
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
                    layers.append(up or upsample(width))
                stages.append(Stage(layers))
                now = width
        self.output_blocks = nn.ModuleList(stages)
        last = zero(nn.Conv2d(now, 6 if flags.learn_sigma else 3, 3, padding=1))
        self.out = nn.Sequential(nn.GroupNorm(32, now), nn.SiLU(), last)

    @override
    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the prediction, and its variance channels if it learned them.

        Args:
            x: Noisy images, `(B, 3, H, W)`, data in [-1, 1].
            t: Timesteps, `(B,)`.
            y: Classes, `(B,)`, if and only if it is class-conditional.

        Returns:
            `(B, 3, H, W)`, or `(B, 6, H, W)`.
        """
        if (y is not None) != self.flags.class_cond:
            needs = "needs classes y" if self.flags.class_cond else "knows no classes"
            raise InputError(f"this network {needs} (class_cond={self.flags.class_cond})")
        emb = self.embed(t)
        if y is not None:
            if y.shape != t.shape:
                raise InputError(f"{tuple(y.shape)} classes for {tuple(t.shape)} times: one a row")
            emb = emb + self.label_emb(y)
        h, left = self.encode(x.to(emb.dtype), emb)
        for stage in self.output_blocks:
            h = stage(torch.cat([h, left.pop()], dim=1), emb)
        out: Tensor = self.out(h)
        return out


class ADMClassifier(Encoder):
    """The classifier of noisy images, for classifier guidance."""

    def __init__(self, flags: Flags) -> None:
        if not flags.classifier:
            raise InputError("these are flags of a denoiser: build ADM")
        super().__init__(flags)
        last, side = flags.widths[-1], flags.image_size // 2 ** (len(flags.widths) - 1)
        pool = Pool(side, last, flags.heads(last), flags.num_classes)
        self.out = nn.Sequential(nn.GroupNorm(32, last), nn.SiLU(), pool)

    @override
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return logits `(B, classes)` of noisy images `(B, 3, H, W)` at timesteps `(B,)`."""
        emb = self.embed(t)
        middle, _ = self.encode(x.to(emb.dtype), emb)
        logits: Tensor = self.out(middle)
        return logits
