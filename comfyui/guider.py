"""A guider for SamplerCustomAdvanced: one evaluation of any sum of guidances."""

from collections.abc import Sequence
from typing import Any

import comfy.model_management
import comfy.samplers
from torch import Tensor

from diffsteer import Guidance, Level
from diffsteer.core.errors import InputError
from diffsteer.core.level import CLEAN
from diffsteer.guidance import Answer, Branch, GuidanceState, run
from diffsteer.guidance.memory import Store
from diffsteer.guidance.queries import with_conditional

from .attention import edited
from .levels import Sampling

CONDS = {"cond": "positive", "null": "negative"}


class Evaluation:
    """Answers the branches of a guidance by ComfyUI's models at one sample and level."""

    def __init__(
        self, models: dict[str, Any], conds: dict[str, Any], x: Tensor, sigma: Tensor, options: Any
    ) -> None:
        self.models, self.conds, self.x, self.sigma, self.options = models, conds, x, sigma, options
        self.sampling = Sampling.of(models["main"].model_sampling)
        self.level = self.sampling.level(float(sigma.max()))
        self.known: dict[str, Tensor] = {}

    def denoised(self, guidance: Guidance | None, memory: Store) -> tuple[Tensor, Tensor]:
        """x0 of the prompt, and what the guidance adds to it."""
        step, ahead = self._step()
        kept, start = memory.begin(step, self.level, len(self.x))
        x = self.sampling.scaled(self.x, self.level)
        at = GuidanceState(
            x, self.level, self.sampling.prediction, step, self.sampling.schedule,
            next=ahead, memory=kept, start=start,
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
        if branch.dropout is not None or branch.adapter is not None:
            raise InputError(
                "guidance by dropout or by an adapter's scale works in pipelines of diffusers: in "
                "ComfyUI give the weaker model, with its LoRA, as guide"
            )
        scaled = self.sampling.scaled(self.x, self.level) if branch.x is None else branch.x
        if self._is_plain(branch):
            x0 = self.known[branch.cond]
        else:
            x, sigma = self.x, self.sigma
            if branch.x is not None:
                x = self.sampling.unscaled(branch.x, level).to(self.x)
                sigma = self.sigma * 0 + self.sampling.sigma(level)
            cond = self._cond(branch.net, branch.cond)
            options = edited(self.options, self.models[branch.net], branch, maps)
            (x0,) = self._calculate(branch.net, [cond], x, sigma, options)
        rows = slice(None) if branch.samples is None else list(branch.samples)
        x0 = x0.float()[rows] if branch.x is None or branch.samples is None else x0.float()
        scaled = scaled[rows] if branch.x is None else scaled
        maps = {name: scores[rows] for name, scores in maps.items()}
        out = self.sampling.prediction.output_for_x0(scaled, x0, level)
        return Answer(out, scaled, level, self.sampling.prediction, maps)

    def _is_plain(self, branch: Branch) -> bool:
        plain = branch.net == "main" and branch.x is None
        return plain and not branch.edits and not branch.record

    def _calculate(
        self, net: str, conds: list[Any], x: Tensor, sigma: Tensor, options: Any
    ) -> list[Tensor]:
        return comfy.samplers.calc_cond_batch(self.models[net], conds, x, sigma, options)

    def _cond(self, net: str, name: str) -> Any:
        if net not in self.models:
            raise InputError(f"the guidance asks for a network {net!r}: connect a model to guide")
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


class Guider(comfy.samplers.CFGGuider):
    """Guider of a sum of guidances; its model's own CFG is not used."""

    def __init__(self, model: Any, guidance: Guidance, guide: Any = None) -> None:
        super().__init__(model)
        self.guidance, self.guide, self.memory = guidance, guide, Store()

    def inner_sample(
        self, noise: Tensor, latent_image: Tensor, device: Any, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Sample, with the guide's model loaded and given the conditions of the main one."""
        self.memory = Store()
        self.guide_conds: dict[str, Any] = {}
        if self.guide is not None:
            comfy.model_management.load_models_gpu([self.model_patcher, self.guide])
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
        evaluation = Evaluation(models, conds, x, timestep, model_options or {})
        x0, shift = evaluation.denoised(self.guidance, self.memory)
        return (x0 + shift).to(x)
