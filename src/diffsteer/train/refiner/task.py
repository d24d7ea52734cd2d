"""Training a noise refiner: its unguided samples approach those of a guided teacher."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.core.level import Level
from diffsteer.core.noise import Noise, seeds_of
from diffsteer.core.parse import parse
from diffsteer.core.sampler import Sampler
from diffsteer.core.schedule import Flow
from diffsteer.core.spacing import grid
from diffsteer.generate.call import call_of
from diffsteer.generate.from_noise import noise_shape, sample_from_noise
from diffsteer.generate.outputs import images_of
from diffsteer.generate.pipelines import configured
from diffsteer.generate.recipe import Recipe
from diffsteer.generate.recipe_checks import require_consistent
from diffsteer.hf.load import load
from diffsteer.hf.load import network as guide_network
from diffsteer.hf.prompt_conditions import conditions, require_prompts, sampled_on
from diffsteer.io.hashing import digest
from diffsteer.io.seeds import prompts_of
from diffsteer.io.strict import from_table
from diffsteer.refine.heads import HEADS
from diffsteer.refine.low_frequency import LOW_FREQUENCY, require_width
from diffsteer.refine.metadata import fingerprint
from diffsteer.refine.refiner import NoiseRefiner
from diffsteer.steering import steer
from diffsteer.train.fingerprint import Fingerprint
from diffsteer.train.refiner.msd import GRADIENTS, Student
from diffsteer.train.refiner.targets import Targets
from diffsteer.train.settings import Pictures
from diffsteer.train.stream import Sample
from diffsteer.train.task import Task, plain_attention


@dataclass(frozen=True)
class RefinerSettings:
    """Settings of `RefinerTask`.

    Attributes:
        start: Folder or hub id of the pipeline, or "critters".
        targets: Folder of `diffsteer refine targets`; empty to sample the teacher while training.
        least: Leave out targets that scored less; of stored targets.
        teacher: Settings of its recipe: guidance, sampler, steps. Of stored targets it
            is checked and may be left out.
        prompt_file: One prompt a line; for a teacher that is sampled while training.
        rank: Of the adapter; of head "low_frequency" the width of its small network.
        alpha: Of the adapter: its scale times its rank; 0 for the rank.
        head: What the output changes, of `diffsteer.refine.heads.HEADS`; "low_frequency" trains a
            small network of its own in place of an adapter.
        gradient: "msd", or "full" for back-propagation through the sampling.
        penalty: Factor of the mean squared change of the noise, which is added to the loss (Eyring
            et al. 2025, https://arxiv.org/abs/2508.09968): it keeps noise as it is where that
            decides little, which nothing else does.
        sampler: Of the student, unguided.
        steps: Its steps, on trailing nodes from the terminal level.
    """

    start: str = ""
    targets: str = ""
    least: float | None = None
    teacher: Mapping[str, Any] = field(default_factory=dict)
    prompt_file: str = ""
    rank: int = 16
    alpha: int = 0
    head: str = "zero_init"
    gradient: str = "msd"
    penalty: float = 0.0
    sampler: str = "DDIM()"
    steps: int = 10

    def __post_init__(self) -> None:
        if not self.start:
            raise InputError("settings.start is empty: name the pipeline to start from, --model")
        if self.gradient not in GRADIENTS:
            raise InputError(
                f"settings.gradient={self.gradient!r}: there are {', '.join(GRADIENTS)}"
            )
        if self.head not in HEADS:
            raise InputError(f"settings.head={self.head!r}: there are {', '.join(HEADS)}")
        if self.head == LOW_FREQUENCY:
            require_width(self.rank, self.alpha or self.rank)
        if min(self.rank, self.steps) < 1:
            raise InputError(
                f"settings.rank={self.rank}, settings.steps={self.steps}: give at least 1 each"
            )
        if not 0 <= self.penalty < float("inf"):
            raise InputError(f"settings.penalty={self.penalty}: give a number >= 0")
        if bool(self.targets) == bool(self.prompt_file):
            raise InputError(
                "a refiner learns from a folder of `diffsteer refine targets`, settings.targets "
                "(--targets), or from a teacher that is sampled meanwhile, settings.prompt_file "
                "and settings.teacher: give one of both"
            )
        if self.prompt_file and self.least is not None:
            raise InputError(
                f"settings.least={self.least} is of stored targets, and settings.prompt_file has "
                "none: leave it out"
            )
        twice = {"model", "prompt", "prompts"} & self.teacher.keys()
        if self.prompt_file and twice:
            raise InputError(
                f"settings.teacher says {', '.join(sorted(twice))}: that is said by settings.start "
                "and settings.prompt_file"
            )
        loading = {"dtype", "offload", "lora", "config"} & self.teacher.keys()
        if self.prompt_file and loading:
            raise InputError(
                f"settings.teacher says {', '.join(sorted(loading))}: the teacher is the float32 "
                "model of settings.start; fuse adapters into a model of its own"
            )
        if self.prompt_file and not self.teacher.get("guidance"):
            raise InputError('settings.teacher has no guidance: give one, such as "CFG(6)"')


class Prompts:
    """Prompts as a source of training, with stored targets in the place of pixels if there are any.

    Without, the task samples the targets itself, from noise that is new in every epoch.

    Args:
        texts: All prompts.
        targets: Stored ones.
    """

    def __init__(self, texts: Sequence[str], targets: Targets | None = None) -> None:
        self.texts, self.targets = list(texts), targets
        counts: dict[str, str | int] = {"samples": len(self.texts)}
        counts |= {"digest": digest({"prompts": texts})[:16]}
        self.fingerprint = targets.fingerprint if targets else Fingerprint({}, counts)

    def __len__(self) -> int:
        return len(self.texts) if self.targets is None else len(self.targets.seeds)

    def __getitem__(self, index: int) -> Sample:
        """A target, `(0,)` where there are none, and its prompt."""
        if self.targets is None:
            return Sample(torch.empty(0), self.texts[index])
        return Sample(self.targets.latents[index], self.targets.prompt(index))

    def seed(self, index: int, seed: int) -> int:
        """Seed of the noise of a target; that of the image where there are none."""
        return seed if self.targets is None else self.targets.seeds[index]


def _taught(settings: RefinerSettings) -> Targets | Recipe:
    """Stored targets, or the recipe of a teacher; needs no model."""
    if settings.targets:
        return Targets.at(Path(settings.targets), settings.least)
    texts = prompts_of(Path(settings.prompt_file))
    require_prompts(list(texts))
    table = {"model": settings.start, "prompts": texts, **settings.teacher}
    recipe = from_table(Recipe, table, "settings.teacher")
    require_consistent(recipe)
    return recipe


class RefinerTask(Task):
    """The adapter of a frozen pipeline's network, or the small network beside it."""

    shown = "distance"

    def __init__(self, settings: RefinerSettings) -> None:
        super().__init__()
        self.settings = settings
        self.sampler = parse(settings.sampler, Sampler)
        taught = _taught(settings)
        self.pipe = load(settings.start, torch.float32)
        self.pipe.set_progress_bar_config(disable=True)
        parts = {n: m for n, m in self.pipe.components.items() if isinstance(m, nn.Module)}
        self.parts = nn.ModuleDict(parts).requires_grad_(False).eval()
        if isinstance(taught, Targets):
            self.refiner = NoiseRefiner(self.pipe, settings.rank, settings.head, settings.alpha)
            taught.require(fingerprint(self.refiner.model.module), settings.teacher)
            self.source = Prompts(taught.key["prompts"], taught)
            self.teacher = taught.key
            self.shape = tuple(taught.key["shape"])
        else:
            self.recipe = taught
            name, dtype = self.recipe.guide, torch.float32
            guide = guide_network(name, dtype) if name else None
            self.guide = guide and guide.requires_grad_(False).eval()
            with configured(self.pipe, self.recipe, guide=self.guide):
                pass  # what it says can be done
            self.refiner = NoiseRefiner(self.pipe, settings.rank, settings.head, settings.alpha)
            self.source, self.teacher = Prompts(taught.prompts), self.recipe.to_dict()
            self.shape = noise_shape(self.pipe, self.recipe)
        part = self.refiner.part
        self.small = part if isinstance(part, nn.Module) else None
        self.texts = self.source.texts
        require_prompts(self.texts)
        self._numbers = {text: i for i, text in enumerate(self.texts)}
        width, height = self.teacher["width"], self.teacher["height"]
        self.plain = Recipe(settings.start, steps=settings.steps, width=width, height=height)
        schedule = sampled_on(self.pipe, self.texts[0], **self.plain.size)
        self.levels = grid(schedule, settings.steps, "trailing")
        network = self.refiner.model.module
        if not torch.cuda.is_available() and type(network).__name__ == "UNet2DConditionModel":
            plain_attention(network)

    @override
    def example(self, number: int, index: int, sample: Sample, seed: int) -> dict[str, Tensor]:
        noise = Noise([self.source.seed(index, seed)])(torch.empty(1, *self.shape))[0]
        batch = {"noise": noise, "prompt": torch.tensor(self._numbers[sample.caption])}
        return batch | {"target": sample.pixels} if len(sample.pixels) else batch

    @override
    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        texts = [self.texts[i] for i in batch["prompt"].tolist()]
        noise, model = batch["noise"], self.refiner.model
        target = batch["target"] if "target" in batch else self._target(noise, texts)
        cond = conditions(self.pipe, texts, self.shape, **self.plain.size)

        def net(x: Tensor, level: Level) -> Tensor:
            return model(x, level, cond)

        refined = self.refiner(noise, {"cond": cond})
        student = Student(net, model.prediction, self.levels, self.sampler, Noise(seeds_of(noise)))
        distance = GRADIENTS[self.settings.gradient].loss(refined, target, student)
        change = (refined - noise).square().mean()
        loss = distance + self.settings.penalty * change
        return {"loss": loss, "distance": distance, "change": change.detach().sqrt()}

    @override
    def trained(self) -> dict[str, nn.Parameter]:
        return self.refiner.parameters

    @override
    @torch.no_grad()
    def pictures(self, how: Pictures) -> Tensor:
        """One image for each prompt, with its number as seed."""
        texts = list(how.prompts) or self.texts[:16]
        flow = isinstance(self.refiner.model.schedule, Flow)
        sampler = "" if flow else self.settings.sampler
        recipe = replace(self.plain, sampler=sampler)
        generators = [torch.Generator().manual_seed(i) for i in range(len(texts))]
        with configured(self.pipe, recipe), steer(self.pipe, refiner=self.refiner):
            call = {**call_of(self.pipe, recipe, texts), "generator": generators}
            return images_of(self.pipe, range(len(texts)), call)

    @override
    def save(self, folder: Path) -> None:
        """Write the refiner, with what it learnt from."""
        settings = {k: v for k, v in asdict(self.settings).items() if k != "teacher"}
        teacher = {k: v for k, v in self.teacher.items() if k != "prompts"}
        made = {**settings, "teacher": teacher, "number_of_prompts": len(self.texts)}
        self.refiner.save(folder, made | ({"nfe": self._nfe()} if self.small else {}))

    def _nfe(self) -> float:
        """Operations of refining one noise over those of one evaluation of the network."""
        from torch.utils.flop_counter import FlopCounterMode

        model, x = self.refiner.model, torch.zeros(1, *self.shape, device=self.device)
        cond = conditions(self.pipe, self.texts[:1], self.shape, **self.plain.size)

        def operations(call: Callable[[], Tensor]) -> int:
            with FlopCounterMode(display=False) as counter:
                call()
            total: int = counter.get_total_flops()
            return total

        refining = operations(lambda: self.refiner(x, {"cond": cond}))
        return refining / operations(lambda: model(x, model.terminal, cond))

    def _target(self, noise: Tensor, texts: list[str]) -> Tensor:
        """Sample of the teacher from given noise."""
        with configured(self.pipe, self.recipe, guide=self.guide):
            return sample_from_noise(self.pipe, self.recipe, texts, noise)[0].to(noise.device)
