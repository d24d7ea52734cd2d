"""Training ADM networks of pixels: denoisers, class-conditional or not, and noisy classifiers.

The result is a folder as `diffsteer convert adm` writes, so that networks of one's own go the way
of the published ones. The variance is not learned.

Source: Ho et al. 2020, eq. 14, https://arxiv.org/abs/2006.11239; Dhariwal & Nichol 2021, sec. 3
and 4, https://arxiv.org/abs/2105.05233.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.core.level import Level
from diffsteer.core.sampler import DDPM, sample
from diffsteer.core.spacing import grid
from diffsteer.generate.base import require_finite
from diffsteer.io.model_folder import write_model
from diffsteer.models.adm.checkpoint import Diffusion, schedule_of, timesteps
from diffsteer.models.adm.files import FORMAT
from diffsteer.models.adm.flags import Flags
from diffsteer.models.adm.unet import ADM, ADMClassifier
from diffsteer.train.edm2 import classes_of
from diffsteer.train.objective import Objective, clean, low_discrepancy, uniform_times
from diffsteer.train.settings import Pictures
from diffsteer.train.stream import Sample
from diffsteer.train.task import Task


@dataclass(frozen=True)
class ADMSettings:
    """Settings of `ADMTask` and `ADMClassifierTask`.

    Attributes:
        flags: Of the network and its noise, as official command lines name them:
            `diffsteer.models.adm.flags.Flags`. A caption is a class where class_cond or classifier
            is true.
    """

    flags: Mapping[str, Any]

    @property
    def labelled(self) -> bool:
        """Whether captions are classes."""
        flags = Flags.of(self.flags)  # which also reads texts, "False"
        return flags.class_cond or flags.classifier


class NoisyPixels(Task):
    """Noise and timesteps of images, and the folder of what learns from them.

    Args:
        settings: What it is.
        captions: Of all samples; the different ones are the classes of a network that has them.
    """

    net: ADM | ADMClassifier

    def __init__(self, settings: ADMSettings, captions: Sequence[str]) -> None:
        super().__init__()
        flags = dict(settings.flags)
        self.classes = classes_of(captions) if settings.labelled else []
        if settings.labelled and not self.classes:
            raise InputError(
                "settings.flags ask for classes, and the data has none: say by data.label what a "
                "class is, or leave out class_cond and classifier"
            )
        if self.classes:
            flags.setdefault("num_classes", len(self.classes))
        self.flags = Flags.of(flags)
        if self.flags.learn_sigma:
            raise InputError("settings.flags: leave out learn_sigma: variance is not trained")
        if self.classes and self.flags.num_classes != len(self.classes):
            raise InputError(
                f"the data has {len(self.classes)} classes, settings.flags.num_classes is "
                f"{self.flags.num_classes}: leave it out, or change data.label"
            )
        self.schedule = schedule_of(self.flags)
        self.shape = (3, self.flags.image_size, self.flags.image_size)
        self.side = ("settings.flags.image_size", self.flags.image_size)

    @override
    def example(self, number: int, index: int, sample: Sample, seed: int) -> dict[str, Tensor]:
        if sample.pixels.shape != self.shape:
            raise InputError(
                f"the data has shape {tuple(sample.pixels.shape)}, the network {self.shape}"
            )
        batch = {
            "pixels": sample.pixels,
            "noise": torch.randn(self.shape, generator=torch.Generator().manual_seed(seed)),
            "place": torch.tensor(low_discrepancy(number)),
            "seed": torch.tensor(seed >> 1),  # 63 bits, which a tensor holds
        }
        if self.classes:
            batch["label"] = torch.tensor(self.classes.index(sample.caption))
        return batch

    @override
    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        torch.manual_seed(int(batch["seed"][0]))  # dropout draws what depends on the images alone
        return self.losses(clean(batch["pixels"]), batch)

    @abstractmethod
    def losses(self, x0: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Losses of data `x0`, `(B, 3, H, W)` in [-1, 1], with what `example` gives."""

    @override
    def save(self, folder: Path) -> None:
        """Write a folder as `diffsteer convert adm` does."""
        content = {"flags": asdict(self.flags), "classes": self.classes}
        write_model(folder, FORMAT, content, self.net.state_dict(), over=True)

    @override
    def store(self, weights: dict[str, Tensor], path: Path, images: int) -> None:
        """Write an average that `diffsteer ema` and `diffsteer convert adm` read."""
        super().store({n.removeprefix("net."): w for n, w in weights.items()}, path, images)


class ADMTask(NoisyPixels):
    """An ADM network: the error of its noise, at all timesteps alike."""

    net: ADM

    def __init__(self, settings: ADMSettings, captions: Sequence[str]) -> None:
        super().__init__(settings, captions)
        self.net = ADM(self.flags)
        self.diffusion = Diffusion(self.net)
        self.objective = Objective(self.schedule, self.diffusion.prediction)

    @override
    def losses(self, x0: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        def net(x: Tensor, level: Level) -> Tensor:
            out: Tensor = self.net(x, timesteps(self.flags, x, level), batch.get("label"))
            return out

        times = uniform_times(self.schedule, batch["place"])
        return {"loss": self.objective.losses(net, x0, batch["noise"], times).mean()}

    @override
    @torch.no_grad()
    def pictures(self, how: Pictures) -> Tensor:
        """Thirty-two images of seeds 0 to 31, by DDPM without guidance."""
        seeds, count = range(32), len(self.classes)
        labels = torch.tensor([seed % count for seed in seeds]) if count else None
        levels = grid(self.schedule, how.steps, "trailing")
        denoise = self.diffusion.denoiser(
            classes=None if labels is None else labels.to(self.device)
        )
        self.net.eval()
        try:
            steps = sample(denoise, levels, self.shape, seeds, DDPM, self.device)
            *_, last = steps
        finally:
            self.net.train()
        return require_finite(seeds, ((last.x + 1) * 127.5).clamp(0, 255).byte().cpu(), last.x)


class ADMClassifierTask(NoisyPixels):
    """A classifier of noisy images: its cross-entropy in nats, at all timesteps alike."""

    net: ADMClassifier
    shown = "wrong"

    def __init__(self, settings: ADMSettings, captions: Sequence[str]) -> None:
        super().__init__(settings, captions)
        if len(self.classes) < 2:
            raise InputError(
                f"the data has {len(self.classes)} classes, and a classifier tells at least 2 "
                "apart: say by data.label what a class is"
            )
        self.net = ADMClassifier(self.flags)

    @override
    def losses(self, x0: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        level = self.schedule.at(uniform_times(self.schedule, batch["place"]).cpu())
        x, classes = level.mix(x0, batch["noise"]), batch["label"]
        logits = self.net(x, timesteps(self.flags, x, level)).float()
        wrong = (logits.argmax(1) != classes).float().mean()
        return {"loss": F.cross_entropy(logits, classes), "wrong": wrong}

    @override
    def pictures(self, how: Pictures) -> Tensor:
        raise InputError("a classifier makes no images: leave pictures.every out")
