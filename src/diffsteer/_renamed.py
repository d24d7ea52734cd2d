"""Import paths of version 0.1.0, each with a deprecation warning.

`import diffsteer.hf.steer` finds `diffsteer.steering` by `MODULES`; names that changed inside of a
module are in `NAMES`.
"""

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODULES = {
    "diffsteer.attention": "diffsteer.guidance.attention_taps",
    "diffsteer.branch": "diffsteer.guidance.queries",
    "diffsteer.checkpoints": "diffsteer.models",
    "diffsteer.checkpoints.adm": "diffsteer.models.adm.checkpoint",
    "diffsteer.checkpoints.edm2": "diffsteer.models.edm2.snapshot",
    "diffsteer.checkpoints.posthoc": "diffsteer.models.edm2.posthoc",
    "diffsteer.denoiser": "diffsteer.guidance.denoiser",
    "diffsteer.ema": "diffsteer.core.power_ema",
    "diffsteer.eval": "diffsteer.metrics",
    "diffsteer.eval.features": "diffsteer.metrics.features",
    "diffsteer.eval.sampling": "diffsteer.metrics.sampled",
    "diffsteer.hf.adm": "diffsteer.models.adm.unet2d",
    "diffsteer.hf.guiders": "diffsteer.hf.guider",
    "diffsteer.hf.pocket": "diffsteer.hf.load",
    "diffsteer.hf.steer": "diffsteer.steering",
    "diffsteer.identify": "diffsteer.core.identify",
    "diffsteer.level": "diffsteer.core.level",
    "diffsteer.nets": "diffsteer.models",
    "diffsteer.nets.adm": "diffsteer.models.adm.unet",
    "diffsteer.nets.adm_flags": "diffsteer.models.adm.flags",
    "diffsteer.nets.edm2": "diffsteer.models.edm2.model",
    "diffsteer.nets.edm2_sample": "diffsteer.models.edm2.generate",
    "diffsteer.oracle": "diffsteer.core.oracle",
    "diffsteer.prediction": "diffsteer.core.prediction",
    "diffsteer.recipe": "diffsteer.generate.recipe",
    "diffsteer.refine.best": "diffsteer.metrics.best_of_n",
    "diffsteer.refine.inversion": "diffsteer_lab.noise_analysis.inversion",
    "diffsteer.refine.msd": "diffsteer.train.refiner.msd",
    "diffsteer.refine.pipeline": "diffsteer.refine.hook",
    "diffsteer.render": "diffsteer.generate.pipelines",
    "diffsteer.sampler": "diffsteer.core.sampler",
    "diffsteer.schedule": "diffsteer.core.schedule",
    "diffsteer.spacing": "diffsteer.core.spacing",
    "diffsteer.text": "diffsteer.core.parse",
    "diffsteer.toy": "diffsteer_lab.toy",
    "diffsteer.toy.tree": "diffsteer_lab.toy.tree",
    "diffsteer.train.data": "diffsteer.train.stream",
    "diffsteer.train.own": "diffsteer.train.captioned_images",
    "diffsteer.weight": "diffsteer.core.loss_weight",
}
_GUIDANCE = (
    *("Answer", "Branch", "Denoiser", "GuidanceState", "Network", "Plan", "Queries"),
    *("class_gradient", "lockstep", "rescale", "rescale_centred", "run"),
)
_EDITS = ("BlurQuery", "Edit", "Identity", "blur", "received")
_QUERIES = {
    "Asking": "diffsteer.guidance:Queries",
    "Point": "diffsteer.guidance:GuidanceState",
    "together": "diffsteer.guidance:lockstep",
}
NAMES = {
    "diffsteer": {
        **{name: f"diffsteer.guidance:{name}" for name in _GUIDANCE},
        **_QUERIES,
        "CLEAN": "diffsteer.core.level:CLEAN",
        "Denoised": "diffsteer.core.sampler:Denoised",
        "Kind": "diffsteer:Prediction",
        "Noise": "diffsteer.core.noise:Noise",
        "Step": "diffsteer.core.sampler:Step",
        "trace": "diffsteer.core.sampler:trace",
    },
    "diffsteer.attention": {name: f"diffsteer.guidance.attention_edits:{name}" for name in _EDITS},
    "diffsteer.branch": {
        **_QUERIES,
        "Plan": "diffsteer.guidance.cost:Plan",
        "plan": "diffsteer.guidance.cost:plan",
    },
    "diffsteer.recipe": {
        "digest": "diffsteer.io.hashing:digest",
        "recalled": "diffsteer.generate.recipe:recipe_of_png",
        "seeds_of": "diffsteer.io.seeds:parse_seeds",
    },
    "diffsteer.hf.pocket": {"pipeline": "diffsteer.hf.load:load"},
    "diffsteer.render": {
        "Rendering": "diffsteer.generate.pipelines:PipelineGenerator",
        "rendering": "diffsteer.generate.pipelines:open_pipeline",
        "rendering_by": "diffsteer.generate.pipelines:configured",
    },
    "diffsteer.oracle": {"Gaussians": "diffsteer_lab.toy.mixture:Gaussians"},
    "diffsteer.prediction": {"Kind": "diffsteer:Prediction"},
    "diffsteer.train.data": {"Emoji": "diffsteer_lab.emoji:Emoji"},
}
"""From old names to MODULE:NAME, by the module in which they were."""


def renamed(module: str, name: str) -> Any:
    """Find a name of the last version."""
    if f"{module}.{name}" in MODULES:
        return importlib.import_module(f"{module}.{name}")
    where, _, new = NAMES[module][name].partition(":")
    warnings.warn(f"{module}.{name} is {where}.{new} now", DeprecationWarning, stacklevel=3)
    return getattr(importlib.import_module(where), new)


class _Loader(Loader):
    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        old, new = module.__name__, MODULES[module.__name__]
        warnings.warn(f"{old} is {new} now", DeprecationWarning, stacklevel=6)
        target = importlib.import_module(new)

        def find(name: str) -> Any:
            if name.startswith("__") or name not in NAMES.get(old, {}):
                return getattr(target, name)
            return renamed(old, name)

        module.__dict__.update(__doc__=target.__doc__, __getattr__=find, __path__=[])


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, _Loader()) if fullname in MODULES else None


def install() -> None:
    """Let import statements find what was renamed, after all other finders."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
