"""The nodes: a guider, guidance on top of CFG, zero terminal SNR, refined noise, recipes."""

import json
from typing import Any

import comfy.model_sampling
import comfy.patcher_extension
import comfy.samplers
import torch

from diffsteer import Discrete, Flow, Guidance, Recipe, grid, parse

from .guider import Evaluation, Guider, Memory
from .levels import LARGEST, Sampling
from .refine import opened, refined

CATEGORY = "diffsteer"
SPACINGS = ["trailing", "logsigma", "linspace", "leading", "karras"]
STEPS = ("INT", {"default": 25, "min": 1, "max": 1000})
SLIDERS = {"w": 6.0, "p": 3.0, "s": 0.5, "a": 2.0}
"""Names that an expression may use for numbers, with their defaults."""


def _sliders() -> dict[str, Any]:
    limits = {"min": -100.0, "max": 100.0, "step": 0.05}
    return {name: ("FLOAT", {"default": value, **limits}) for name, value in SLIDERS.items()}


def _expression(default: str) -> tuple[str, dict[str, Any]]:
    tip = "any sum of guidances; w, p, s and a are the sliders below, intervals are .within(lo, hi)"
    return "STRING", {"default": default, "multiline": True, "tooltip": tip}


def _guidance(text: str, values: dict[str, float]) -> Guidance:
    return parse(text, Guidance, named=values)  # type: ignore[type-var]


class DiffsteerGuider:
    """Any sum of guidances, for SamplerCustomAdvanced."""

    RETURN_TYPES, RETURN_NAMES = ("GUIDER", "STRING"), ("guider", "recipe")
    FUNCTION, CATEGORY = "guider", CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Sockets and widgets."""
        sockets = {"model": ("MODEL",), "positive": ("CONDITIONING",)}
        optional = {"negative": ("CONDITIONING",), "guide": ("MODEL",)}
        texts = {"guidance": _expression("CFG(w) + PAG(p)")}
        return {"required": {**sockets, **texts, **_sliders()}, "optional": optional}

    def guider(
        self, model: Any, positive: Any, guidance: str, negative: Any = None, guide: Any = None,
        **sliders: float,
    ) -> tuple[Guider, str]:  # fmt: skip
        """Make the guider, and the recipe as text."""
        chosen = _guidance(guidance, sliders)
        made = Guider(model, chosen, guide)
        conds = {"positive": positive, "negative": negative}
        made.inner_set_conds({name: value for name, value in conds.items() if value is not None})
        return made, json.dumps({"guidance": repr(chosen)})


class DiffsteerGuidance:
    """A sum of guidances on top of what KSampler does, RescaleCFG and its like included."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION, CATEGORY = "patch", CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Sockets and widgets."""
        return {"required": {"model": ("MODEL",), "guidance": _expression("PAG(p)"), **_sliders()}}

    def patch(self, model: Any, guidance: str, **sliders: float) -> tuple[Any]:
        """Add what the guidance adds to x0 after the model's own CFG."""
        chosen, memory = _guidance(guidance, sliders), Memory()

        def guided(args: dict[str, Any]) -> torch.Tensor:
            conds = {"positive": args["cond"], "negative": args["uncond"]}
            models, options = {"main": args["model"]}, args["model_options"]
            one = Evaluation(models, {"main": conds}, args["input"], args["sigma"], options)
            one.known["cond"] = args["cond_denoised"]
            if args["uncond"] is not None:
                one.known["null"] = args["uncond_denoised"]
            _, shift = one.denoised(chosen, memory)
            return args["denoised"] + shift.to(args["denoised"])

        patched = model.clone()
        patched.set_model_sampler_post_cfg_function(guided)
        return (patched,)


class DiffsteerZeroSNR:
    """A schedule that ends in pure noise, for v-prediction networks that were trained so."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION, CATEGORY = "patch", CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Sockets and widgets."""
        return {"required": {"model": ("MODEL",)}}

    def patch(self, model: Any) -> tuple[Any]:
        """Rescale the table of the model's own schedule (Lin et al. 2023, algorithm 1)."""
        own = model.get_model_object("model_sampling")
        schedule = Sampling.of(own).schedule
        if not isinstance(schedule, Discrete):
            raise ValueError("this model has no table of noise levels: zero SNR is for those of "
                             "Stable Diffusion; flows end in pure noise as they are")  # fmt: skip

        class Repaired(
            comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION
        ):
            pass

        sampling = Repaired(model.model.model_config)
        ratio = schedule.zero_snr().alphas.square()
        ratio = ((1 - ratio) / ratio).sqrt().clamp(max=LARGEST)
        sampling.set_sigmas(ratio.float())
        patched = model.clone()
        patched.add_object_patch("model_sampling", sampling)
        return (patched,)


class DiffsteerRefine:
    """Refined noise in place of guidance or beside it, for any sampler that starts from noise."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION, CATEGORY = "patch", CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Sockets and widgets."""
        tip = 'folder or hub id of a refiner for this model, or "NLG(20)", which needs no training'
        texts = {"refiner": ("STRING", {"default": "NLG(20)", "tooltip": tip})}
        limits = {"default": 1.0, "min": 0.0, "max": 2.0, "step": 0.05}
        other = {"default": False, "tooltip": "also for a fine-tuned model, or one with a LoRA"}
        numbers = {"strength": ("FLOAT", limits), "any_model": ("BOOLEAN", other)}
        return {"required": {"model": ("MODEL",), **texts, **numbers}}

    def patch(self, model: Any, refiner: str, strength: float, any_model: bool) -> tuple[Any]:
        """Refine the noise of every sampling of the model, for its positive prompt."""
        patched, kind = model.clone(), comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE
        if patched.get_wrappers(kind, CATEGORY):
            raise ValueError("this model refines its noise already: leave one of the nodes out")
        wrapper = refined(opened(refiner, any_model), strength)
        patched.add_wrapper_with_key(kind, CATEGORY, wrapper)
        return (patched,)


class DiffsteerSigmas:
    """Sigmas of a spacing; trailing visits the last timestep, which zero terminal SNR needs."""

    RETURN_TYPES = ("SIGMAS",)
    FUNCTION, CATEGORY = "sigmas", CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Sockets and widgets."""
        return {"required": {"model": ("MODEL",), "steps": STEPS, "spacing": (SPACINGS,)}}

    def sigmas(self, model: Any, steps: int, spacing: str) -> tuple[torch.Tensor]:
        """Sigmas from the model's most noise down to 0, (steps + 1,)."""
        own = model.get_model_object("model_sampling")
        sampling = Sampling.of(own)
        if isinstance(sampling.schedule, Flow):
            raise ValueError("flow models have shifts of their own: take ComfyUI's scheduler")
        if sampling.schedule is None:
            raise ValueError("this model has no table of noise levels: take ComfyUI's scheduler")
        levels = grid(sampling.schedule, steps, spacing)
        ratios = [min(float(level.ratio), float(own.sigma_max)) for level in levels]
        return (torch.tensor(ratios),)


class DiffsteerRecipe:
    """Recipe of an image as JSON, which `diffsteer sample --recipe` takes, and `compare`."""

    RETURN_TYPES, RETURN_NAMES = ("STRING",), ("recipe",)
    FUNCTION, CATEGORY = "recipe", CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Sockets and widgets."""
        text = ("STRING", {"default": "", "multiline": True})
        model = {
            "default": "",
            "tooltip": "what diffsteer knows the model by: hub id, folder, file",
        }
        sampler = {"tooltip": "DDIM() is euler of ComfyUI, UniPC() uni_pc, DPMpp2M() dpmpp_2m"}
        size = ("INT", {"default": 0, "min": 0, "max": 16384})
        values = {
            "recipe": ("STRING", {"forceInput": True, "tooltip": "of diffsteer guider"}),
            "model": ("STRING", model),
            "prompt": text,
            "negative": text,
            "sampler": (["DDIM()", "UniPC()", "DPMpp2M()", "Heun()"], sampler),
            "spacing": (SPACINGS,),
            "steps": STEPS,
            "width": size,
            "height": size,
        }
        return {"required": values}

    def recipe(self, recipe: str, **values: Any) -> tuple[str]:
        """Add what the guider does not know to its recipe."""
        made = Recipe(**json.loads(recipe), **values)
        return (json.dumps(made.to_json(), indent=2, ensure_ascii=False),)


NODES = {
    "DiffsteerGuider": (DiffsteerGuider, "diffsteer guider"),
    "DiffsteerGuidance": (DiffsteerGuidance, "diffsteer guidance"),
    "DiffsteerZeroSNR": (DiffsteerZeroSNR, "diffsteer zero terminal SNR"),
    "DiffsteerRefine": (DiffsteerRefine, "diffsteer refine noise"),
    "DiffsteerSigmas": (DiffsteerSigmas, "diffsteer sigmas"),
    "DiffsteerRecipe": (DiffsteerRecipe, "diffsteer recipe"),
}
