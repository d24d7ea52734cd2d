"""The pack against stand-ins of ComfyUI's modules, so that a change of the core shows at once.

They hold what the pack takes from ComfyUI and no more; the real one is tried by `-m comfyui`.
"""

import ast
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from diffsteer import Flow, Recipe, V, Velocity
from diffsteer.core.errors import InputError
from diffsteer.generate.recipe import read

PACK = Path(__file__).parent.parent.parent / "comfyui"
SLIDERS = {"w": 4.0, "p": 2.0, "s": 0.6, "a": 1.7}


class EPS: ...


class V_PREDICTION(EPS): ...


class X0(EPS): ...


class EDM: ...


class CONST: ...


class Table(V_PREDICTION):
    """`ModelSamplingDiscrete` of a model of v-prediction on the schedule of Stable Diffusion."""

    def __init__(self, config: Any = None) -> None:
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        ratio = (1 - betas).cumprod(0)
        self.set_sigmas(((1 - ratio) / ratio).sqrt().float())

    def set_sigmas(self, sigmas: Tensor) -> None:
        self.sigmas, self.sigma_max = sigmas, sigmas[-1]

    def timestep(self, sigma: Tensor) -> Tensor:
        return (self.sigmas.log() - sigma.log()[:, None]).abs().argmin(1)


class Model:
    """A MODEL: what is set on it, and `answer`, its x0 of a condition."""

    def __init__(self, slope: float, sampling: Any = None) -> None:
        self.slope, self.sampling = slope, sampling or Table()
        self.model = SimpleNamespace(model_config=None, model_sampling=self.sampling)
        self.model.answer = lambda cond, x: cond + slope * x
        self.post: Any = None

    def clone(self) -> "Model":
        return Model(self.slope, self.sampling)

    def get_model_object(self, name: str) -> Any:
        return {"model_sampling": self.sampling}[name]

    def add_object_patch(self, name: str, value: Any) -> None:
        self.sampling = {"model_sampling": value}[name]

    def set_model_sampler_post_cfg_function(self, function: Any) -> None:
        self.post = function


class CFGGuider:
    """ComfyUI's guider, as far as ours needs it."""

    def __init__(self, model: Model) -> None:
        self.model_patcher, self.inner_model, self.conds = model, model.model, {}

    def inner_set_conds(self, conds: dict[str, Any]) -> None:
        self.conds = conds


def answers(model: Any, conds: list[Any], x: Tensor, sigma: Tensor, options: Any) -> list[Tensor]:
    return [model.answer(cond, x) for cond in conds]


STAND_INS = {
    "lora": {},
    "model_management": {},
    "model_patcher": {"set_model_options_patch_replace": None},
    "model_sampling": {
        **{"EPS": EPS, "V_PREDICTION": V_PREDICTION, "CONST": CONST, "EDM": EDM, "X0": X0},
        **{"ModelSamplingDiscrete": Table},
    },
    "patcher_extension": {},
    "samplers": {"CFGGuider": CFGGuider, "calc_cond_batch": answers},
    "utils": {},
}
"""Modules of ComfyUI, and what of them is used here."""


@pytest.fixture(scope="module")
def pack() -> Iterator[ModuleType]:
    """The node pack, imported as from `custom_nodes`, with stand-ins for what it imports."""
    modules = {"comfy": ModuleType("comfy")}
    for name, content in STAND_INS.items():
        module = modules[f"comfy.{name}"] = ModuleType(f"comfy.{name}")
        vars(module).update(content)
        setattr(modules["comfy"], name, module)
    spec = importlib.util.spec_from_file_location(
        "stand_in_pack", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
    )
    assert spec and spec.loader
    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module
        for name in [name for name in sys.modules if name.startswith(f"{spec.name}.")]:
            del sys.modules[name]


def test_what_the_pack_takes_from_diffsteer_is_there() -> None:
    for file in PACK.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("diffsteer"):
                module = importlib.import_module(node.module)
                missing = [name.name for name in node.names if not hasattr(module, name.name)]
                assert not missing, f"{file.name}: {node.module} has no {missing}"


def test_nodes_have_the_sockets_that_workflows_and_functions_name(pack: ModuleType) -> None:
    nodes = pack.NODE_CLASS_MAPPINGS
    assert nodes.keys() == pack.NODE_DISPLAY_NAME_MAPPINGS.keys()
    assert {name.removeprefix("Diffsteer") for name in nodes} == {
        *("Guider", "Guidance", "ZeroSNR", "Refine", "Sigmas", "Recipe")
    }
    for name, node in nodes.items():
        kinds = node.INPUT_TYPES()
        given = {*kinds["required"], *kinds.get("optional", {})}
        function = getattr(node, node.FUNCTION).__code__
        count = function.co_argcount + function.co_kwonlyargcount
        rest = function.co_flags & 0x08  # sliders and texts by name
        assert set(function.co_varnames[1:count]) <= given, name
        assert rest or set(function.co_varnames[1:count]) == given, name
    for file in (PACK / "workflows").glob("*.json"):
        for entry in json.loads(file.read_text()).values():
            if (node := nodes.get(entry["class_type"])) is not None:
                kinds = node.INPUT_TYPES()
                names = {*kinds["required"], *kinds.get("optional", {})}
                assert set(kinds["required"]) <= set(entry["inputs"]) <= names, file.name


def test_guided_x0_in_closed_form(pack: ModuleType) -> None:
    """Sums of CFG and autoguidance, whose x0 is (prompt + slope x) of each network."""
    model, guide = Model(0.5), Model(0.2)
    x, sigma = torch.randn(2, 4, 3, 3), torch.tensor([3.0, 3.0])
    node = pack.NODE_CLASS_MAPPINGS["DiffsteerGuider"]()

    def x0(guidance: str) -> Tensor:
        made, recipe = node.guider(model, 1.0, guidance, negative=-0.5, guide=guide, **SLIDERS)
        assert "CFG(4" in json.loads(recipe)["guidance"]
        made.guide_conds = {"positive": 1.0, "negative": -0.5}
        return made.predict_noise(x, sigma, {})

    prompt, null, weak = 1 + 0.5 * x, -0.5 + 0.5 * x, 1 + 0.2 * x
    cfg = null + 4 * (prompt - null)
    assert torch.allclose(x0("CFG(w)"), cfg, atol=1e-5)
    assert torch.allclose(x0("CFG(w) + Auto(a)"), cfg + 0.7 * (prompt - weak), atol=1e-5)
    assert torch.allclose(x0("CFG(w).within(5, 9)"), prompt, atol=1e-5)


def test_guidance_is_added_after_the_models_own(pack: ModuleType) -> None:
    model, node = Model(0.5), pack.NODE_CLASS_MAPPINGS["DiffsteerGuidance"]()
    x, own = torch.randn(1, 4, 3, 3), torch.randn(1, 4, 3, 3)
    (patched,) = node.patch(model, "CFG(w)", **SLIDERS)
    prompt, null = 1 + 0.5 * x, 0.5 * x
    args = {"model": patched.model, "model_options": {}, "input": x, "denoised": own}
    args |= {"sigma": torch.tensor([3.0]), "cond": 1.0, "uncond": 0.0}
    out = patched.post({**args, "cond_denoised": prompt, "uncond_denoised": null})
    assert torch.allclose(out, own + 3 * (prompt - null), atol=1e-5)


def test_schedules_and_recipes(pack: ModuleType, tmp_path: Path) -> None:
    nodes = pack.NODE_CLASS_MAPPINGS
    (repaired,) = nodes["DiffsteerZeroSNR"]().patch(Model(0.5))
    assert float(repaired.sampling.sigma_max) == 4518
    assert torch.allclose(repaired.sampling.sigmas[0], Table().sigmas[0], rtol=1e-4)
    (sigmas,) = nodes["DiffsteerSigmas"]().sigmas(repaired, 4, "trailing")
    assert sigmas.shape == (5,) and float(sigmas[0]) == 4518 and float(sigmas[-1]) == 0
    sampling = sys.modules[f"{pack.__name__}.levels"].Sampling
    terminal = sampling.of(repaired.sampling).terminal
    assert (float(terminal.alpha), float(terminal.sigma)) == (0, 1)
    assert sampling.of(Table()).prediction == V()
    flow = sampling.of(CONST())
    assert (flow.prediction, flow.schedule) == (Velocity(), Flow())
    level = flow.level(0.25)
    assert (float(level.alpha), float(level.sigma)) == (0.75, 0.25)
    kinds = nodes["DiffsteerRecipe"].INPUT_TYPES()["required"]
    values = {"model": "m", "prompt": "p", "negative": "", "sampler": "DDIM()", "steps": 7}
    values |= {"spacing": "trailing", "width": 64, "height": 64}
    assert values.keys() | {"recipe"} == kinds.keys()
    (text,) = nodes["DiffsteerRecipe"]().recipe('{"guidance": "CFG(2)"}', **values)
    (tmp_path / "recipe.json").write_text(text)
    assert read(tmp_path / "recipe.json") == Recipe(guidance="CFG(2)", **values)


def test_mistakes_are_told_before_a_step(pack: ModuleType) -> None:
    node = pack.NODE_CLASS_MAPPINGS["DiffsteerGuider"]()
    with pytest.raises(InputError, match="did you mean 'CFG'"):
        node.guider(Model(0.5), 1.0, "cfg(w)", **SLIDERS)
    made, _ = node.guider(Model(0.5), 1.0, "CFG(w)", **SLIDERS)
    with pytest.raises(InputError, match="connect negative"):
        made.predict_noise(torch.randn(1, 4, 3, 3), torch.tensor([3.0]), {})
