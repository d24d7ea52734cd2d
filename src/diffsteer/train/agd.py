"""Adapter guidance distillation (AGD): a LoRA that learns the guided output of its own network.

The network is frozen. Along trajectories of guided sampling, which are stored, the network with the
LoRA learns what guidance made of it there, so that one evaluation a step does for two and more.
Any guidance can be the teacher. The paper's adapters are layers of their own, which are told the
weight of CFG; a LoRA is what every program reads, and is of the one guidance that it learned.

Source: Perez Jensen and Sadat 2025, https://arxiv.org/abs/2503.07274.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.generate.call import call_of
from diffsteer.generate.outputs import images_of
from diffsteer.generate.pipelines import configured
from diffsteer.generate.recipe import Recipe
from diffsteer.hf.load import load
from diffsteer.hf.network import PipelineNetwork
from diffsteer.hf.prompt_conditions import conditions
from diffsteer.refine.lora import adaptable
from diffsteer.refine.metadata import fingerprint
from diffsteer.train.lora import add_lora, lora_part, save_lora
from diffsteer.train.refiner.targets import Targets
from diffsteer.train.settings import Pictures
from diffsteer.train.stream import Sample
from diffsteer.train.task import Task, plain_attention

STUDENT = ("model", "sampler", "spacing", "zero_snr", "steps", "width", "height")
"""What of the teacher's recipe the student samples by as well."""


@dataclass(frozen=True)
class AGDSettings:
    """Settings of `AGDTask`.

    Attributes:
        start: Folder or hub id of the pipeline, or "critters".
        targets: Folder of `diffsteer refine targets --trajectory`.
        least: Leave out trajectories whose images scored less.
        teacher: Settings of the recipe of the targets, to be checked; may be left out.
        rank: Of the LoRA, of every linear layer and every convolution without groups.
        alpha: Its scale times its rank; 0 for the rank.
    """

    start: str = ""
    targets: str = ""
    least: float | None = None
    teacher: Mapping[str, Any] = field(default_factory=dict)
    rank: int = 16
    alpha: int = 0

    def __post_init__(self) -> None:
        if not self.start or not self.targets:
            raise InputError(
                f"settings.start={self.start!r}, settings.targets={self.targets!r}: name the "
                "pipeline that is adapted, --model, and a folder of `diffsteer refine targets "
                "--trajectory`, --targets"
            )
        if self.rank < 1:
            raise InputError(f"settings.rank={self.rank}: give at least 1")


class Trajectories:
    """Steps of stored trajectories as a source of training: x and guided x0, `(2, *D)`.

    Args:
        targets: With trajectories.
    """

    def __init__(self, targets: Targets) -> None:
        if targets.trajectory is None or targets.times is None:
            raise InputError(
                f"{targets.path} holds the ends of its samplings alone: make other targets with "
                "`diffsteer refine targets --trajectory`"
            )
        self.targets, self.steps, self.times = targets, targets.trajectory, targets.times
        self.fingerprint = targets.fingerprint

    def __len__(self) -> int:
        return self.times.numel()

    def __getitem__(self, index: int) -> Sample:
        """A step and its prompt."""
        sample, _ = divmod(index, self.times.shape[1])
        return Sample(self.steps.flatten(0, 1)[index], self.targets.prompt(sample))


class AGDTask(Task):
    """The LoRA of a frozen pipeline's network."""

    def __init__(self, settings: AGDSettings) -> None:
        super().__init__()
        targets = Targets.at(Path(settings.targets), settings.least)
        self.source = Trajectories(targets)
        self.pipe = load(settings.start, torch.float32)
        self.pipe.set_progress_bar_config(disable=True)
        network = getattr(self.pipe, lora_part(self.pipe))
        targets.require(fingerprint(network), settings.teacher)
        parts = {n: m for n, m in self.pipe.components.items() if isinstance(m, nn.Module)}
        self.parts = nn.ModuleDict(parts).requires_grad_(False).eval()
        add_lora(network, settings.rank, settings.alpha, list(adaptable(network)))
        self.model = PipelineNetwork.of(self.pipe)
        self.texts = [str(text) for text in targets.key["prompts"]]
        self._numbers = {text: i for i, text in enumerate(self.texts)}
        self.student = Recipe(
            **{name: targets.key[name] for name in STUDENT if name in targets.key}
        )
        if not torch.cuda.is_available() and type(network).__name__ == "UNet2DConditionModel":
            plain_attention(network)

    @override
    def example(self, number: int, index: int, sample: Sample, seed: int) -> dict[str, Tensor]:
        x, x0 = sample.pixels
        time = self.source.times.flatten()[index]
        return {
            "x": x,
            "x0": x0,
            "time": time,
            "prompt": torch.tensor(self._numbers[sample.caption]),
        }

    @override
    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        x, texts = batch["x"], [self.texts[i] for i in batch["prompt"].tolist()]
        level = self.model.schedule.at(batch["time"].cpu())
        cond = conditions(self.pipe, texts, x.shape[1:], **self.student.size)
        guided = self.model.prediction.output_for_x0(x, batch["x0"], level)
        return {"loss": (self.model(x, level, cond) - guided).square().mean()}

    @override
    @torch.no_grad()
    def pictures(self, how: Pictures) -> Tensor:
        """One image for each prompt, with its number as seed, in the teacher's steps."""
        texts = list(how.prompts) or self.texts[:16]
        generators = [torch.Generator().manual_seed(i) for i in range(len(texts))]
        with configured(self.pipe, self.student):
            call = {**call_of(self.pipe, self.student, texts), "generator": generators}
            return images_of(self.pipe, range(len(texts)), call)

    @override
    def save(self, folder: Path) -> None:
        """Write the LoRA, as diffusers does."""
        save_lora(self.pipe, folder)
