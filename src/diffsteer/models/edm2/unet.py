"""The network of EDM2 between its preconditioners."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.models.edm2.config import Architecture
from diffsteer.models.edm2.magnitude import MPConv, MPFourier, mp_cat, mp_silu, mp_sum, normalize

CLIP = 256.0
"""Greatest magnitude of an activation, which float16 can hold."""

BALANCE = 0.3
"""Share of a residual branch."""


class Block(nn.Module):
    """Residual block with optional resampling and self-attention, `(B, C, H, W)`.

    Args:
        channels_in: Channels of the input.
        channels_out: Channels of the output.
        channels_emb: Channels of the embedding of noise level and label.
        decodes: Whether it belongs to the decoder.
        kind: "down" halves the sides first, by means of 2x2; "up" doubles them, by repetition;
            others leave them.
        heads: Of self-attention; 0 is none.
        dropout: Share of activations that training drops.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        channels_emb: int,
        decodes: bool,
        kind: str,
        heads: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.decodes, self.kind, self.heads, self.dropout = decodes, kind, heads, dropout
        self.emb_gain = nn.Parameter(torch.zeros([]))
        first = channels_in if decodes else channels_out
        self.conv_res0 = MPConv(first, channels_out, 3, 3)
        self.emb_linear = MPConv(channels_emb, channels_out)
        self.conv_res1 = MPConv(channels_out, channels_out, 3, 3)
        changes = channels_in != channels_out
        self.conv_skip = MPConv(channels_in, channels_out, 1, 1) if changes else None
        self.attn_qkv = MPConv(channels_out, channels_out * 3, 1, 1) if heads else None
        self.attn_proj = MPConv(channels_out, channels_out, 1, 1) if heads else None

    @override
    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        x = self._resampled(x)
        if not self.decodes:
            x = normalize(x if self.conv_skip is None else self.conv_skip(x), dim=1)
        y = self.conv_res0(mp_silu(x))
        scale = self.emb_linear(emb, gain=self.emb_gain) + 1
        y = mp_silu(y * scale[:, :, None, None].to(y.dtype))
        y = self.conv_res1(F.dropout(y, self.dropout, self.training))
        if self.decodes and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = mp_sum(x, y, BALANCE)
        if self.heads:
            x = mp_sum(x, self._attended(x), BALANCE)
        return x.clamp_(-CLIP, CLIP)

    def _resampled(self, x: Tensor) -> Tensor:
        if self.kind == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2, mode="nearest") if self.kind == "up" else x

    def _attended(self, x: Tensor) -> Tensor:
        """Cosine attention; queries, keys and values alternate along the channels of a head."""
        assert self.attn_qkv is not None and self.attn_proj is not None
        b, _, h, w = x.shape
        qkv = self.attn_qkv(x).reshape(b, self.heads, -1, 3, h * w)
        qkv = qkv.permute(3, 0, 1, 4, 2).contiguous()  # (3, B, heads, H W, C / heads)
        q, k, v = normalize(qkv, dim=-1).unbind()
        y = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.attn_proj(y.transpose(2, 3).reshape(x.shape))
        return out


class UNet(nn.Module):
    """The network between the preconditioners, with unit variance in and out."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        widths = [arch.model_channels * m for m in arch.channel_mult]
        emb = max(widths)
        self.emb_fourier = MPFourier(widths[0])
        self.emb_noise = MPConv(widths[0], emb)
        self.emb_label = MPConv(arch.label_dim, emb) if arch.label_dim else None
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()

        def block(side: int, kind: str, n_in: int, n_out: int, attends: bool = False) -> None:
            heads = n_out // arch.channels_per_head if attends else 0
            if attends and (not heads or n_out % heads):
                raise InputError(
                    f"attention at side {side} has {n_out} channels, which make no heads of "
                    f"{arch.channels_per_head}: change channels_per_head"
                )
            part = self.dec if decodes else self.enc
            made = Block(n_in, n_out, emb, decodes, kind, heads, arch.dropout)
            part[f"{side}x{side}_{kind}"] = made

        top = arch.img_resolution
        levels = [(top >> i, width) for i, width in enumerate(widths)]
        n, skips, decodes = widths[0], [widths[0]], False
        self.enc[f"{top}x{top}_conv"] = MPConv(arch.img_channels + 1, n, 3, 3)
        for i, (side, width) in enumerate(levels):
            if i:
                block(side, "down", n, n)
                skips.append(n)
            for j in range(arch.num_blocks):
                block(side, f"block{j}", n, width, side in arch.attn_resolutions)
                n = width
                skips.append(n)
        decodes = True
        block(levels[-1][0], "in0", n, n, attends=True)
        block(levels[-1][0], "in1", n, n)
        for i, (side, width) in reversed(list(enumerate(levels))):
            if i < len(levels) - 1:
                block(side, "up", n, n)
            for j in range(arch.num_blocks + 1):
                block(side, f"block{j}", n + skips.pop(), width, side in arch.attn_resolutions)
                n = width
        self.out_conv = MPConv(n, arch.img_channels, 3, 3)

    @override
    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        emb = self.embedding(c_noise, labels)
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        skips = []
        for block in self.enc.values():
            x = block(x, emb) if isinstance(block, Block) else block(x)
            skips.append(x)
        for name, block in self.dec.items():
            x = block(mp_cat(x, skips.pop()) if "block" in name else x, emb)
        out: Tensor = self.out_conv(x, gain=self.out_gain)
        return out

    def embedding(self, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        """Embedding of noise level, `(B or 1,)`, and one-hot labels, `(B or 1, label_dim)`."""
        emb: Tensor = self.emb_noise(self.emb_fourier(c_noise))
        if self.emb_label is not None and labels is not None:
            scaled = labels * math.sqrt(labels.shape[1])
            emb = mp_sum(emb, self.emb_label(scaled), 0.5)
        return mp_silu(emb)
