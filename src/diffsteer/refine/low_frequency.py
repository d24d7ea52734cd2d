"""A small network of its own that changes the low frequencies of noise for a prompt.

An adapter of the denoiser costs one evaluation of it, though it is the lowest frequencies of
refined noise that decide most (Ahn et al. 2024, section E.2, https://arxiv.org/abs/2412.03895).
LENS changes these alone, by a small network (Jeon and Lee 2026, https://arxiv.org/abs/2605.07253);
P-Guide moves the initial latents to the prompt in place of guidance (Peng and Gao 2026,
https://arxiv.org/abs/2605.06124). LENS learns from rewards and P-Guide from data; this network
learns from guided samples, as every refiner here. The cosine basis and the layers are ours.
"""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.guidance.denoiser import Cond
from diffsteer.hf.conditioning import PROMPTS, conditioning_argument, conditioning_kwargs
from diffsteer.hf.prompt_conditions import first_call

SHARE = 4
"""Height and width over those of the band that is changed."""
LAYERS, ATTENTION_HEADS, WAVES = 3, 4, 8
"""Layers of the network, heads of their attention, and cosines by which it knows a place."""
LOW_FREQUENCY = "low_frequency"
"""Name of the head that takes this network in place of an adapter."""
TEXT_WEIGHT = "text.1.weight"
"""Of a file, `(width, text)`."""
TEXT, MASKS = "encoder_hidden_states", ("encoder_attention_mask", "encoder_hidden_states_mask")


class LowFrequencyNetwork(nn.Module):
    """A transformer on a quarter of the resolution; its output is zero before training.

    Places of the low-pass noise attend to each other and to the prompt's embeddings.

    Args:
        channels: Of the noise.
        text: Of the prompt's embeddings.
        width: Of the layers; a multiple of 4.
    """

    def __init__(self, channels: int, text: int, width: int) -> None:
        super().__init__()
        layer = partial(nn.TransformerDecoderLayer, width, ATTENTION_HEADS, 4 * width, 0.0, "gelu")
        self.noise, self.place = nn.Linear(channels, width), nn.Linear(2 * WAVES, width)
        self.text = nn.Sequential(nn.LayerNorm(text), nn.Linear(text, width))
        self.layers = nn.ModuleList(layer(batch_first=True, norm_first=True) for _ in range(LAYERS))
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, channels))
        for p in self.out[1].parameters():
            nn.init.zeros_(p)

    @classmethod
    def of(cls, pipe: Any, width: int, channels: int, text: int = 0) -> "LowFrequencyNetwork":
        """Network for a pipeline, which is asked for the size of its embeddings where it is 0."""
        if not text:
            if conditioning_argument(pipe) != PROMPTS:
                raise InputError(
                    f"{type(pipe).__name__} takes no prompt, of which the low_frequency network "
                    "makes its change: take another head, such as zero_init"
                )
            call = {"guidance_scale": 1.0, "num_inference_steps": 4}
            with torch.no_grad():
                x, cond = first_call(pipe, **call, **conditioning_kwargs(pipe, ["an image"]))
            text = _text(x, cond).shape[-1]
        return cls(channels, text, width)

    @override
    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        """Change of unit noise, `(B, C, H, W)`, in the lowest ceil(H / 4) x ceil(W / 4) cosines.

        Args:
            x: The noise.
            cond: What the denoiser is told besides, with embeddings `(B, L, text)`.
        """
        text, masks = _text(x, cond), [cond[name] for name in MASKS if cond.get(name) is not None]
        down, right = (low_pass(n).to(x) for n in x.shape[-2:])
        size = len(down), len(right)
        dtype = self.place.weight.dtype
        low = (down @ x @ right.mT).flatten(2).mT.to(dtype)
        tokens = self.noise(low) + self.place(_places(*size).to(low))
        prompt = self.text(text.to(dtype))
        padding = masks[0] == 0 if masks else None
        for layer in self.layers:
            tokens = layer(tokens, prompt, memory_key_padding_mask=padding)
        change: Tensor = self.out(tokens).mT.unflatten(2, size).to(x)
        return down.mT @ change @ right


def require_width(width: int, alpha: int) -> None:
    """Check rank and alpha, which are an adapter's, as width of the network."""
    if width < 1 or width % ATTENTION_HEADS or alpha != width:
        raise InputError(
            f"rank={width}, alpha={alpha}: the low_frequency network has its width as rank, a "
            f"multiple of {ATTENTION_HEADS} such as 64, and no alpha: leave it out"
        )


def low_pass(n: int) -> Tensor:
    """Matrix to the lowest quarter of n cosines, `(ceil(n / 4), n)`, float64.

    Its rows are orthonormal, and places again: unit Gaussian noise stays unit Gaussian
    noise. The transpose is the way back.
    """
    k = -(-n // SHARE)
    return _cosines(k, k).mT @ _cosines(k, n)


def _cosines(k: int, n: int) -> Tensor:
    """First k vectors of the orthonormal discrete cosine transform (DCT-II) of n samples."""
    frequency, place = torch.arange(k).double()[:, None], torch.arange(n).double() + 0.5
    size = (2.0 - (frequency == 0).double()) / n
    return size.sqrt() * (math.pi / n * frequency * place).cos()


def _places(h: int, w: int) -> Tensor:
    """Cosines of the height and width of each place, `(h w, 2 WAVES)`, of any size."""
    waves = math.pi * torch.arange(WAVES).double()
    down, right = (((torch.arange(n).double() + 0.5) / n)[:, None].mul(waves).cos() for n in (h, w))
    return torch.cat([down.repeat_interleave(w, 0), right.repeat(h, 1)], 1)


def _text(x: Tensor, cond: Cond) -> Tensor:
    """Embeddings of the prompts, where the network can be used."""
    text = cond.get(TEXT)
    if x.ndim != 4 or not isinstance(text, Tensor) or text.ndim != 3:
        shape = tuple(text.shape) if isinstance(text, Tensor) else "none"
        raise InputError(
            f"the low_frequency network takes noise (B, C, H, W) and prompt embeddings (B, L, D), "
            f"this pipeline has {tuple(x.shape)} and {shape}: take another head, such as zero_init"
        )
    return text
