"""Training an autoencoder for latents, and putting its latents on unit scale."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.generate.base import require_finite
from diffsteer.train.objective import clean
from diffsteer.train.settings import Pictures
from diffsteer.train.stream import Sample, Source
from diffsteer.train.task import Task, network_of_config, plain_attention

MOMENTS = 2_000
"""Samples from which the scale of the latents is measured."""


@dataclass(frozen=True)
class AutoencoderSettings:
    """Settings of `Autoencoder`.

    Attributes:
        network: Config of a diffusers `AutoencoderKL`.
        kl: Weight of the divergence of the latents from a unit Gaussian, in nats an element.
        edges: Weight of the absolute error of differences between neighbouring pixels.
    """

    network: Mapping[str, Any]
    kl: float = 1e-6
    edges: float = 1.0


class Autoencoder(Task):
    """An `AutoencoderKL`: absolute, squared and edge error of pixels, and a small divergence."""

    def __init__(self, settings: AutoencoderSettings) -> None:
        from diffusers import AutoencoderKL

        super().__init__()
        self.settings = settings
        self.vae = network_of_config(AutoencoderKL, settings.network, "settings.network")
        if (channels := (self.vae.config.in_channels, self.vae.config.out_channels)) != (3, 3):
            raise InputError(
                f"settings.network takes and gives {channels} channels, and images have 3: leave "
                "in_channels and out_channels at 3"
            )
        around_latents(self.vae)  # which the end of the training needs
        self.source: Source | None = None
        plain_attention(self.vae)

    @override
    def prepare(
        self, source: Source, cache: Path, alone: Callable[[Callable[[], None]], None]
    ) -> Source:
        self.source = source
        return source

    @override
    def example(self, number: int, index: int, sample: Sample, seed: int) -> dict[str, Tensor]:
        noise = torch.Generator().manual_seed(seed)
        side = 2 ** (len(self.vae.config.block_out_channels) - 1)
        _, height, width = sample.pixels.shape
        shape = (self.vae.config.latent_channels, height // side, width // side)
        return {"pixels": sample.pixels, "noise": torch.randn(shape, generator=noise)}

    @override
    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        x = clean(batch["pixels"])
        moments = self.vae.encode(x).latent_dist.parameters
        posterior = DiagonalGaussianDistribution(moments.float())
        latents = posterior.mean + posterior.std * batch["noise"]
        error = self.vae.decode(latents).sample.float() - x
        squared = error.square().mean()
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        kl = posterior.kl().mean() / latents[0].numel()
        settings = self.settings
        loss = error.abs().mean() + squared + settings.edges * edges + settings.kl * kl
        return {"loss": loss, "squared": squared, "edges": edges, "kl": kl}

    @override
    @torch.no_grad()
    def pictures(self, how: Pictures) -> Tensor:
        """Thirty-two samples, each row of eight above its reconstruction."""
        assert self.source is not None
        step = max(1, len(self.source) // 32)
        picks = [self.source[i * step % len(self.source)].pixels for i in range(32)]
        x = torch.stack(picks)
        latents = self.vae.encode(clean(x).to(self.device)).latent_dist.mean
        decoded = self.vae.decode(latents).sample
        back = require_finite(range(32), pixels(decoded), decoded)
        pairs = torch.stack([x.reshape(4, 8, *x.shape[1:]), back.reshape(4, 8, *x.shape[1:])], 1)
        return pairs.flatten(0, 2)

    @override
    def save(self, folder: Path) -> None:
        """Write the autoencoder, its latents on unit scale in each channel."""
        assert self.source is not None
        vae = deepcopy(self.vae)
        normalise(vae, *latent_moments(vae, self.source, self.device))
        vae.register_to_config(scaling_factor=1.0)
        vae.save_pretrained(folder)


@torch.no_grad()
def latent_moments(vae: Any, source: Source, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents of a source, for each channel."""
    step = max(1, len(source) // MOMENTS)
    picks = range(0, len(source), step)[:MOMENTS]
    images = (clean(source[i].pixels[None]).to(device) for i in picks)
    latents = torch.cat([vae.encode(x).latent_dist.mean.double() for x in images])
    return latents.mean((0, 2, 3)), latents.std((0, 2, 3))


def around_latents(vae: Any) -> tuple[nn.Conv2d, nn.Conv2d]:
    """The 1 x 1 convolutions after the encoder and before the decoder."""
    first, last = vae.quant_conv, vae.post_quant_conv
    if not (isinstance(first, nn.Conv2d) and isinstance(last, nn.Conv2d)):
        raise InputError(
            "this autoencoder has no 1 x 1 convolutions around its latents, which bring them to "
            "unit scale: leave use_quant_conv and use_post_quant_conv out of settings.network"
        )
    return first, last


@torch.no_grad()
def normalise(vae: Any, mean: Tensor, std: Tensor) -> None:
    """Fold (z - mean) / std into the 1 x 1 convolutions around the latents, and its inverse.

    Pipelines know one factor for all channels; this leaves them the factor 1.
    """
    first, last = around_latents(vae)
    assert first.bias is not None and last.bias is not None
    scale = torch.cat([1 / std, torch.ones_like(std)]).to(first.weight)
    first.weight.mul_(scale[:, None, None, None])
    shift = torch.cat([-mean / std, -2 * std.log()]).to(first.weight)
    first.bias.mul_(scale).add_(shift)
    last.bias.add_(last.weight[:, :, 0, 0] @ mean.to(last.weight))
    last.weight.mul_(std.to(last.weight)[None, :, None, None])


def pixels(x: Tensor) -> Tensor:
    """Floats in [-1, 1] as pixels uint8 on the CPU; what is beyond is cut off."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()
