"""A pipeline and what refines its noise, as experiments ask them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.core.noise import Noise
from diffsteer.core.sampler import DDIM
from diffsteer.core.spacing import grid
from diffsteer.generate.base import NFECounter
from diffsteer.generate.call import call_of
from diffsteer.generate.from_noise import sample_from_noise
from diffsteer.generate.outputs import images_of
from diffsteer.generate.pipelines import open_pipeline
from diffsteer.generate.recipe import Recipe
from diffsteer.guidance.denoiser import Cond
from diffsteer.hf.families import packed, size_of, unpacked
from diffsteer.hf.hooks import replaced
from diffsteer.hf.network import PipelineNetwork, network_replaced
from diffsteer.hf.prompt_conditions import first_call, require_prompts, sampled_on
from diffsteer.metrics.features import Extractor
from diffsteer.refine.hook import Refine, opened
from diffsteer.refine.nlg import TrainingFreeRefiner
from diffsteer.train.refiner.msd import Student
from diffsteer_lab.noise_analysis.inversion import Inversion
from diffsteer_lab.noise_analysis.results import Samples


class _Out(NamedTuple):
    """What a network returns."""

    sample: Tensor


class _Step(NamedTuple):
    """What a scheduler's step returns."""

    prev_sample: Tensor


class NoiseExperiment:
    """A pipeline and its refiner.

    Noise is of unit variance, float32, on the CPU, `(B, C, H, W)`, and so are latents; they are
    packed into rows of patches for pipelines that do so alone.

    Args:
        recipe: Model, refiner and guidance.
        by: The refiner, in the network of the pipeline.
        shape: Of one sample's noise.
        device: Where networks run.
        extractor: Of features of images, if any.
        weights: Hash of the pipeline's weights.
        tokens: Height and width of its noise in patches, where it packs it.

    Attributes:
        progress: Called with the number of images or noises of each part that is done.
    """

    def __init__(
        self,
        recipe: Recipe,
        by: Refine,
        shape: tuple[int, ...],
        device: str = "",
        extractor: Extractor | None = None,
        weights: str = "",
        tokens: tuple[int, int] | None = None,
    ) -> None:
        self.recipe, self.by, self.shape, self._tokens = recipe, by, shape, tokens
        self.weights, self.extractor, self._device = weights, extractor, device
        self._guided = replace(recipe, refiner="", strength=1.0)
        told = () if tokens is None else ("guidance_scale=1.0",)  # as refiners are trained
        settings = (*recipe.settings, *told)
        self._plain = replace(self._guided, guidance="", guide="", settings=settings)
        self.progress: Callable[[int], Any] = lambda n: None
        self._spent: dict[str, float] = {}

    @property
    def guided(self) -> bool:
        """Whether there is a guidance."""
        return bool(self.recipe.guidance)

    def text(self, seed: int) -> str:
        """The prompt of a seed."""
        return self.recipe.for_seed(seed).prompt

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Noise of seeds, as the pipeline would draw it on the CPU."""
        return Noise(seeds)(torch.empty(len(seeds), *self.shape))

    def _inside(self, x: Tensor) -> Tensor:
        """As the pipeline has it."""
        return x if self._tokens is None else packed(x)

    def _outside(self, x: Tensor) -> Tensor:
        """As we have it, on the CPU."""
        x = x.to("cpu", torch.float32)
        return x if self._tokens is None else unpacked(x, self._tokens)

    def nfe(self) -> dict[str, float]:
        """Network evaluations of refining and sampling since the last call, by network."""
        spent, self._spent = self._spent, {}
        return spent

    def _spend(self, counter: NFECounter) -> None:
        for name, n in counter().items():
            self._spent[name] = self._spent.get(name, 0) + n

    def refuses(self, baseline: TrainingFreeRefiner) -> str:
        """Reason why a baseline can do nothing here; empty where it can."""
        with open_pipeline(self._plain, self._device) as images:
            return baseline.refuses(PipelineNetwork.of(images.pipe).terminal)

    @torch.no_grad()
    def refined(
        self, noise: Tensor, texts: Sequence[str], baseline: TrainingFreeRefiner | None = None
    ) -> Tensor:
        """Noise refined for prompts, by the refiner, or by a baseline in full strength."""
        by, strength = (
            (self.by, self.recipe.refiner_strength) if baseline is None else (baseline, 1.0)
        )
        with open_pipeline(self._plain, self._device) as images:
            pipe = images.pipe
            conds = {"cond": self._cond(pipe, texts)}
            if by.null:
                conds["null"] = self._cond(pipe, [""] * len(texts))
            refined = by(self._inside(noise).to(pipe.device), conds, PipelineNetwork.of(pipe))
            self._spend(images.nfe)
        return torch.lerp(noise, self._outside(refined), strength)

    def _cond(self, pipe: Any, texts: Sequence[str]) -> Cond:
        """Conditioning of prompts, at the size of the recipe."""
        return first_call(pipe, **call_of(pipe, self._plain, texts))[1]

    def draw(self, noise: Tensor, texts: Sequence[str], path: bool = False) -> Samples:
        """Sample noise without guidance; `path` keeps the predicted x0 of each step."""
        return self._draw(self._plain, noise, texts, path)

    def teach(self, noise: Tensor, texts: Sequence[str], path: bool = False) -> Samples:
        """Sample noise with guidance; `path` keeps the predicted x0 of each step."""
        return self._draw(self._guided, noise, texts, path)

    def _draw(self, recipe: Recipe, noise: Tensor, texts: Sequence[str], path: bool) -> Samples:
        seen: list[Tensor] = []
        watch = seen.append if path else None
        with open_pipeline(recipe, self._device) as images:
            x = self._inside(noise)
            latents, pictures = sample_from_noise(
                images.pipe, recipe, texts, x, shown=True, watch=watch
            )
            self._spend(images.nfe)
        assert pictures is not None
        features = None if self.extractor is None else self.extractor(pictures).cpu()
        self.progress(len(noise))
        way = tuple(self._outside(x0) for x0 in seen)
        return Samples(self._outside(latents), pictures, features, way)

    @torch.no_grad()
    def decoded(self, latents: Tensor, texts: Sequence[str]) -> Tensor:
        """Images that the pipeline would show if its sampling ended in these latents.

        By the pipeline itself, whatever its family does to them; its network is not asked.

        Returns:
            uint8, `(B, 3, H, W)`.
        """
        with open_pipeline(self._plain, self._device) as images:
            pipe = images.pipe
            end = self._inside(latents).to(pipe.device, pipe.dtype)
            model = PipelineNetwork.of(pipe)

            def nothing(arguments: dict[str, Any]) -> _Out:
                n = model.channels
                x = model.split(arguments[model.family.sample])[0]
                times = (model.module.config.out_channels or n) // n  # twice with a variance
                return _Out(torch.cat([torch.zeros_like(x)] * times, dim=1))

            call = call_of(pipe, self._plain, texts)
            call["generator"] = [torch.Generator().manual_seed(0) for _ in texts]
            step = replaced(pipe.scheduler, "step", lambda *_, **__: _Step(end))
            with network_replaced(pipe, nothing), step:
                pictures = images_of(pipe, range(len(texts)), call)
            self._spend(images.nfe)
        return pictures

    @torch.no_grad()
    def inverted(
        self, latents: Tensor, texts: Sequence[str], inversion: Inversion
    ) -> tuple[Tensor, Tensor]:
        """Noise that an inversion without guidance finds for latents, and what DDIM makes of it.

        Both on the levels of the recipe's steps from the terminal one, with the prompts.
        """
        with open_pipeline(self._plain, self._device) as images:
            pipe = images.pipe
            model, cond = PipelineNetwork.of(pipe), self._cond(pipe, texts)
            schedule = sampled_on(pipe, texts[0], **self.recipe.size)
            levels = grid(schedule, self.recipe.steps, "trailing")
            student = Student(lambda x, at: model(x, at, cond), model.prediction, levels, DDIM())
            size = float(levels[0].alpha.hypot(levels[0].sigma))
            x = self._inside(latents).to(pipe.device)
            noise = inversion(x, levels, student.denoised) / size
            return self._outside(noise), self._outside(student(noise))


@contextmanager
def noise_experiment(
    recipe: Recipe, device: str = "", extractor: Extractor | None = None
) -> Iterator[NoiseExperiment]:
    """Load a pipeline and what refines its noise, until closed.

    Args:
        recipe: Model, refiner, prompts, and how to sample; its guidance is the teacher's.
        device: Where; empty for a GPU if there is one.
        extractor: Of features of images, if any.

    Raises:
        FileNotFoundError: there is no refiner.
        ValueError: it belongs to another network, none is named, or a prompt is empty.
    """
    if not recipe.refiner:
        raise InputError("there is nothing to analyse: name what refines the noise, --refiner")
    require_prompts(list(recipe.prompts))
    plain = replace(recipe, refiner="", strength=1.0, guidance="", guide="")
    with open_pipeline(plain, device) as images:
        x, arguments = first_call(images.pipe, **call_of(images.pipe, plain, plain.prompts[:1]))
        shape, tokens = tuple(x.shape[1:]), None
        if PipelineNetwork.of(images.pipe).family.packed:
            tokens = size_of(arguments["img_ids"].value, shape[0])
            shape = tuple(unpacked(torch.empty(1, *shape), tokens).shape[1:])
        by, give_back = opened(recipe.refiner, images.pipe)
        weights = images.weights
    try:
        yield NoiseExperiment(recipe, by, shape, device, extractor, weights, tokens)
    finally:
        give_back()
