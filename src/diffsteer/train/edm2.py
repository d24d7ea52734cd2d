"""Training EDM2: class-conditional or not, of pixels or of latents.

The loss of a noise level is divided by the error to expect there, which the network learns along:

    exp(-u(sigma)) lambda(sigma) |D(x; sigma) - x0|^2 + u(sigma),
    lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2,    ln sigma ~ N(mean, std^2)

It is least where u is the logarithm of the expected lambda |D - x0|^2, and every level then pulls
alike.

Source: Karras et al. 2024, sec. 2.2 and app. B, https://arxiv.org/abs/2312.02696; the weighting is
that of Kendall et al. 2018, https://arxiv.org/abs/1705.07115.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import NormalDist
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.core.level import Level
from diffsteer.core.loss_weight import EDMWeight
from diffsteer.core.prediction import Preconditioned
from diffsteer.core.schedule import EDM
from diffsteer.generate.edm2 import Decoder
from diffsteer.guidance import CFG
from diffsteer.hf.weights import complete_weights
from diffsteer.models.edm2.generate import Loop, encoded, generate
from diffsteer.models.edm2.model import EDM2, Checkpoint
from diffsteer.train.latents import cached
from diffsteer.train.objective import Objective, clean, low_discrepancy
from diffsteer.train.settings import Pictures
from diffsteer.train.stream import Sample, Source
from diffsteer.train.task import Task, network_of_config

NORMAL = NormalDist()

NO_CLASS = -1
"""Label of an image whose caption was dropped."""


@dataclass(frozen=True)
class EDM2Settings:
    """Settings of `EDM2Task`.

    Attributes:
        network: Arguments of `EDM2`. A caption is a class; `label_dim` is their number and may be
            left out, and 0 is unconditional.
        mean: Mean of ln sigma.
        std: Its standard deviation.
        vae: Folder or hub id of a diffusers `AutoencoderKL` whose latents the network works on;
            empty for pixels.
        latent_mean: Mean by channel of its latents of pixels in [0, 1], as it makes them.
        latent_std: Their standard deviations; they are brought to sigma_data of the network.
    """

    network: Mapping[str, Any]
    mean: float = -0.4
    std: float = 1.0
    vae: str = ""
    latent_mean: tuple[float, ...] = ()
    latent_std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.std < 0:
            raise InputError(f"settings.std={self.std} is no standard deviation")
        given = (bool(self.vae), bool(self.latent_mean), bool(self.latent_std))
        if len(set(given)) > 1 or not all(std > 0 for std in self.latent_std):
            raise InputError(
                "latents need all of settings.vae, settings.latent_mean and settings.latent_std, "
                "with a number for each channel, > 0 in the last; pixels none of them"
            )


class EDM2Task(Task):
    """An EDM2 network.

    Args:
        settings: What it is.
        captions: Of all samples; the different ones are the classes.
        drop: Share of captions that come empty, by which it learns to go without a class.
    """

    shown = "error"

    def __init__(self, settings: EDM2Settings, captions: Sequence[str], drop: float = 0.0) -> None:
        super().__init__()
        self.settings, self.drop = settings, drop
        config = dict(settings.network)
        self.classes = classes_of(captions) if config.get("label_dim") != 0 else []
        if config.setdefault("label_dim", len(self.classes)) != len(self.classes):
            raise InputError(
                f"the data has {len(self.classes)} classes, {', '.join(self.classes[:3])}, ...; "
                f"settings.network.label_dim={config['label_dim']}: leave it out, or change "
                "data.label"
            )
        if drop and not self.classes:
            raise InputError(
                f"data.drop={drop} of an unconditional network: --set data.drop=0, or give "
                "classes, by data.label or beside the arrays, and no settings.network.label_dim"
            )
        self.net: EDM2 = network_of_config(EDM2, config, "settings.network")
        if not settings.vae:
            self.side = ("settings.network.img_resolution", self.net.shape[1])
        channels = {self.net.shape[0], len(settings.latent_mean), len(settings.latent_std)}
        if settings.vae and len(channels) > 1:
            raise InputError(
                f"a network of {self.net.shape[0]} channels, {len(settings.latent_mean)} means and "
                f"{len(settings.latent_std)} deviations of latents: one for each channel"
            )
        sigma_data = self.net.sigma_data
        self.objective = Objective(EDM(), Preconditioned(sigma_data), EDMWeight(sigma_data))
        self._numbers = {name: i for i, name in enumerate(self.classes)}
        self.vae: Any = None
        if settings.vae:
            from diffusers import AutoencoderKL

            with complete_weights(bar=False):
                self.vae = AutoencoderKL.from_pretrained(settings.vae).float().eval()
            self.vae.requires_grad_(False)

    @override
    def prepare(
        self, source: Source, cache: Path, alone: Callable[[Callable[[], None]], None]
    ) -> Source:
        if self.settings.vae:
            encode = partial(encoded, vae=self.vae)
            source = cached(source, cache, self.vae, encode, alone, "[0, 1]")
        shape = tuple(self._channels(source[0].pixels).shape)
        if shape != self.net.shape:
            raise InputError(f"the data has shape {shape}, the network {self.net.shape}")
        return source

    @override
    def example(self, number: int, index: int, sample: Sample, seed: int) -> dict[str, Tensor]:
        noise = torch.randn(self.net.shape, generator=torch.Generator().manual_seed(seed))
        batch = {"noise": noise, "deviate": torch.tensor(NORMAL.inv_cdf(low_discrepancy(number)))}
        x = self._channels(sample.pixels)
        batch |= {"latents": self._scaled(x)} if x.is_floating_point() else {"pixels": x}
        if self.classes:
            label = self._numbers[sample.caption] if sample.caption else NO_CLASS
            batch |= {"label": torch.tensor(label)}
        if self.net.config["dropout"]:
            batch |= {"seed": torch.tensor(seed >> 1)}  # 63 bits, which a tensor holds
        return batch

    @override
    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        """Losses: "loss", "error" (lambda |D - x0|^2 per number), and "uncertainty" (u)."""
        if "seed" in batch:  # dropout draws what depends on the images alone, after a resume too
            torch.manual_seed(int(batch["seed"][0]))
        x0 = batch["latents"] if "latents" in batch else clean(batch["pixels"])
        sigma = (self.settings.mean + self.settings.std * batch["deviate"].cpu().double()).exp()
        x0 = x0.to(batch["noise"])
        labels = self._one_hot(batch["label"]) if "label" in batch else None

        def net(x: Tensor, level: Level) -> Tensor:
            return self.net.out(x, level.sigma, labels)

        error = self.objective.losses(net, x0, batch["noise"], sigma)
        u = self.net.uncertainty(sigma.to(x0)).flatten()
        loss = x0[0].numel() * weighed(error, u).mean()
        return {"loss": loss, "error": error.mean(), "uncertainty": u.mean()}

    @override
    def pictures(self, how: Pictures) -> Tensor:
        """Thirty-two images, of seeds 0 to 31; guided by its own null class."""
        guidance = None if how.guidance == 1 else CFG(how.guidance)
        try:
            drawn = generate(self.net, range(32), guidance, loop=Loop(how.steps))
        finally:
            self.net.train()
        return Decoder(self._encoder(), self.vae)(range(32), drawn)

    @override
    def save(self, folder: Path) -> None:
        """Write a folder that `EDM2.load` reads."""
        self._stored({}).save(folder, over=True)

    @override
    def store(self, weights: dict[str, Tensor], path: Path, images: int) -> None:
        """Write a folder that `EDM2.load` and `diffsteer ema` read, in float16 as published."""
        tensors = {name.removeprefix("net."): w for name, w in weights.items()}
        stored = self._stored(tensors, torch.float16)
        replace(stored, about={**stored.about, "images": images}).save(path, over=True)

    def _stored(
        self, weights: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
    ) -> Checkpoint:
        """The network with some weights in place of its own, and what is known of it."""
        tensors = {**self.net.state_dict(), **weights}
        mean, std = self.settings.mean, self.settings.std
        loss = {"P_mean": mean, "P_std": std, "sigma_data": self.net.sigma_data}
        return Checkpoint(
            self.net.config,
            {name: t.detach().to("cpu", dtype).contiguous() for name, t in tensors.items()},
            {"encoder": self._encoder(), "loss": loss, "classes": self.classes},
        )

    def _encoder(self) -> dict[str, Any]:
        """How images become what the network works on."""
        if not self.settings.vae:
            return {"kind": "rgb"}
        scale, bias = self._factors()
        return {"kind": "vae", "vae_name": self.settings.vae, "scale": scale, "bias": bias}

    def _channels(self, x: Tensor) -> Tensor:
        """Pixels or latents as the network takes them: grey images have three equal channels."""
        return x[:1] if self.net.shape[0] == 1 else x

    def _one_hot(self, label: Tensor) -> Tensor:
        """One-hot labels, `(B, label_dim)`; zeros for none."""
        known = F.one_hot(label.clamp(min=0), len(self.classes))
        return known * (label != NO_CLASS).to(known)[:, None]

    def _factors(self) -> tuple[list[float], list[float]]:
        """Scale and bias by channel that bring latents to what the network works on."""
        scale = [self.net.sigma_data / std for std in self.settings.latent_std]
        bias = [-m * s for m, s in zip(self.settings.latent_mean, scale, strict=True)]
        return scale, bias

    def _scaled(self, raw: Tensor) -> Tensor:
        scale, bias = (raw.new_tensor(v)[:, None, None] for v in self._factors())
        return raw * scale + bias


def weighed(error: Tensor, u: Tensor) -> Tensor:
    """Errors by their log variance, exp(-u) error + u, elementwise; least at u = ln(error)."""
    return error * (-u).exp() + u


def classes_of(captions: Sequence[str]) -> list[str]:
    """Classes in the order of their numbers: that of whole numbers, or else of text."""
    names = set(captions) - {""}  # images without classes
    if len(names) > 100_000:
        raise InputError(
            f"{len(names)} different captions are no classes: say by data.label what a class is"
        )
    if all(name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))  # ties, as "01" and "1", by text
    return sorted(names)
