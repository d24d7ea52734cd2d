"""A guider for SamplerCustomAdvanced: one evaluation of any sum of guidances."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import comfy.model_management
import comfy.samplers
from torch import Tensor

from diffsteer import Guidance, Level
from diffsteer.core.errors import InputError
from diffsteer.core.level import CLEAN
from diffsteer.core.noise import seeds_of
from diffsteer.guidance import Answer, Branch, GuidanceState, run
from diffsteer.guidance.queries import with_conditional
from diffsteer.guidance.step_memory import Memory as Kept
from diffsteer.guidance.step_memory import StepMemory, Store

from .attention import edited
from .blocks import skipping
from .levels import Sampling
from .prompts import random_texts, two_texts
from .variant import Variant

CONDS = {"cond": "positive", "null": "negative"}


class Memory:
    """What a guidance keeps in one sampling: its memory, and seeds from the noise, as `steer`."""

    def __init__(self) -> None:
        self.step, self.seeds = StepMemory(Store()), tuple[int, ...]()

    def begin(self, step: int, level: Level, shape: Sequence[int]) -> tuple[Kept, Level | None]:
        """Begin an evaluation; returns what was kept and, of an inner one, its step's start."""
        start = self.step.start
        anew = step == 0 and start is not None and float(start.t) == float(level.t)
        if self.step.index != step or anew:  # ComfyUI does not tell where a sampling begins
            self.step = StepMemory(self.step.store, step)
        return self.step.begin(level, shape)


class Evaluation:
    """Answers the branches of a guidance by ComfyUI's models at one sample and level.

    Args:
        models: By the names of branches, "main" and "guide".
        conds: Conditions of each, "positive" and "negative".
        x: The sample as ComfyUI has it, `(B, *D)`.
        sigma: Its level, `(B,)`.
        options: Options of the model.
        variant: Weights of the guide, where it is a clone of the main model.
    """

    def __init__(
        self, models: dict[str, Any], conds: dict[str, Any], x: Tensor, sigma: Tensor,
        options: Any, variant: Variant | None = None,
    ) -> None:  # fmt: skip
        self.models, self.conds, self.x, self.sigma, self.options = models, conds, x, sigma, options
        self.variant = variant
        self.sampling = Sampling.of(models["main"].model_sampling)
        self.level = self.sampling.level(float(sigma.max()))
        self.known: dict[str, Tensor] = {}

    def denoised(self, guidance: Guidance | None, memory: Memory) -> tuple[Tensor, Tensor]:
        """x0 of the prompt, and what the guidance adds to it."""
        step, ahead = self._step()
        kept, start = memory.begin(step, self.level, self.x.shape)
        x = self.sampling.scaled(self.x, self.level)
        if (step == 0 and start is None) or len(memory.seeds) != len(x):
            memory.seeds = seeds_of(x)
        at = GuidanceState(
            x, self.level, self.sampling.prediction, step, self.sampling.schedule,
            memory.seeds, ahead, kept, start,
        )  # fmt: skip
        if guidance is None:
            (answer,) = self([Branch()])
            return answer.x0, 0 * x
        answer, shift = run(with_conditional(guidance.shift(at)), self)
        return answer.x0, shift

    def __call__(self, branches: Sequence[Branch]) -> list[Answer]:
        """Answer branches: plain ones of a model together, edited ones each by itself."""
        plain = [b for b in branches if self._is_plain(b)]
        missing = list(dict.fromkeys(b.cond for b in plain if b.cond not in self.known))
        if missing:
            conds = [self._cond("main", name) for name in missing]
            outs = self._calculate("main", conds, self.x, self.sigma, self.options)
            self.known |= dict(zip(missing, outs, strict=True))
        return [self._answer(branch) for branch in branches]

    def _answer(self, branch: Branch) -> Answer:
        level, maps = branch.level or self.level, dict[str, Tensor]()
        _check(branch)
        scaled = self.sampling.scaled(self.x, self.level) if branch.x is None else branch.x
        if self._is_plain(branch):
            x0 = self.known[branch.cond]
        else:
            x, sigma = self.x, self.sigma
            if branch.x is not None or branch.level is not None:
                x = self.sampling.unscaled(scaled, level).to(self.x)
                sigma = self.sigma * 0 + self.sampling.sigma(level)
            x0 = self._changed(branch, x, sigma, maps)
        rows = slice(None) if branch.samples is None else list(branch.samples)
        x0 = x0.float()[rows] if branch.x is None or branch.samples is None else x0.float()
        scaled = scaled[rows] if branch.x is None else scaled
        maps = {name: scores[rows] for name, scores in maps.items()}
        out = self.sampling.prediction.output_for_x0(scaled, x0, level)
        return Answer(out, scaled, level, self.sampling.prediction, maps)

    def _changed(self, branch: Branch, x: Tensor, sigma: Tensor, maps: dict[str, Tensor]) -> Tensor:
        """Answer of a network in which a branch changes attention, blocks or texts."""
        cond, model = self._cond(branch.net, branch.cond), self.models[branch.net]
        options = edited(self.options, model, branch, maps)
        if branch.unrelated is not None:
            cond = random_texts(cond, branch.unrelated)
        if branch.second is not None:
            others = self._cond(branch.net, branch.second.cond)
            cond, options = two_texts(cond, others, options, model, branch.second)
        with skipping(options, model, branch, len(x)) as options:
            (x0,) = self._calculate(branch.net, [cond], x, sigma, options)
        return x0

    def _is_plain(self, branch: Branch) -> bool:
        plain = branch.net == "main" and branch.x is None and branch.level is None
        texts = branch.second is not None or branch.unrelated is not None
        return plain and not branch.edits and not branch.record and not texts

    def _calculate(
        self, net: str, conds: list[Any], x: Tensor, sigma: Tensor, options: Any
    ) -> list[Tensor]:
        other = self.variant if net == "guide" else None
        with nullcontext() if other is None else other.on():
            return comfy.samplers.calc_cond_batch(self.models[net], conds, x, sigma, options)

    def _cond(self, net: str, name: str) -> Any:
        if net not in self.models:
            hint = "connect a model to guide" if net == "guide" else "ComfyUI has main and guide"
            raise InputError(f"the guidance asks for a network {net!r}: {hint}")
        known = self.conds[net]
        if known.get(CONDS.get(name, name)) is None:
            raise InputError(
                f"the guidance asks for the condition {name!r}: connect {CONDS.get(name, name)}"
            )
        return known[CONDS.get(name, name)]

    def _step(self) -> tuple[int, Level]:
        """Index of the step, and the level that it goes to, from the sigmas of the sampling."""
        sigmas = self.options.get("transformer_options", {}).get("sample_sigmas")
        if sigmas is None:
            return 0, CLEAN
        current = float(self.sigma.max())
        values = [float(value) for value in sigmas]
        step = max((i for i, v in enumerate(values[:-1]) if v >= current * (1 - 1e-6)), default=0)
        following = values[step + 1]
        return step, self.sampling.level(following) if following > 0 else CLEAN


def _check(branch: Branch) -> None:
    """Refuse what only pipelines of diffusers can answer."""
    if branch.dropout is not None or branch.adapter is not None:
        raise InputError(
            "guidance by dropout or by an adapter's scale works in pipelines of diffusers: in "
            "ComfyUI give the weaker model, with its LoRA, as guide"
        )


class Guider(comfy.samplers.CFGGuider):
    """Guider of a sum of guidances; its model's own CFG is not used."""

    def __init__(self, model: Any, guidance: Guidance, guide: Any = None) -> None:
        super().__init__(model)
        self.guidance, self.guide, self.memory = guidance, guide, Memory()
        self.variant: Variant | None = None

    def inner_sample(
        self, noise: Tensor, latent_image: Tensor, device: Any, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Sample, with the guide's model loaded and given the conditions of the main one."""
        self.memory, self.variant = Memory(), None
        if self.guide is None:
            return super().inner_sample(noise, latent_image, device, *args, **kwargs)
        if self.guide.is_clone(self.model_patcher):
            self.variant = Variant(self.model_patcher, self.guide, self.loaded_models)
        else:
            self.loaded_models = [*self.loaded_models, self.guide]  # cleaned up with the others
            comfy.model_management.load_models_gpu([self.model_patcher, *self.loaded_models])
            self.guide.pre_run()
        conds = {k: [c.copy() for c in v] for k, v in self.conds.items()}
        self.guide_conds = comfy.samplers.process_conds(
            self.guide.model, noise, conds, device, latent_image
        )
        return super().inner_sample(noise, latent_image, device, *args, **kwargs)

    def predict_noise(
        self, x: Tensor, timestep: Tensor, model_options: Any = None, seed: Any = None
    ) -> Tensor:
        """Guided x0 of a sample, as samplers ask for it."""
        models, conds = {"main": self.inner_model}, {"main": self.conds}
        if self.guide is not None:
            models["guide"], conds["guide"] = self.guide.model, self.guide_conds
        evaluation = Evaluation(models, conds, x, timestep, model_options or {}, self.variant)
        x0, shift = evaluation.denoised(self.guidance, self.memory)
        return (x0 + shift).to(x)
