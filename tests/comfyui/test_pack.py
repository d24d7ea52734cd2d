"""The nodes in a real ComfyUI against its own nodes, and against `steer` on the same weights."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from comfyui.conftest import patcher, unet
from diffsteer import SteerScheduler, steer
from diffsteer.core.errors import InputError

pytestmark = pytest.mark.comfyui
SLIDERS = {"w": 4.0, "p": 2.0, "s": 0.6, "a": 1.7}
STEPS = 4


def text(seed: int, rows: int = 1) -> Tensor:
    return torch.randn(rows, 5, 32, generator=torch.Generator().manual_seed(seed))


def noise(rows: int = 1) -> Tensor:
    return torch.randn(rows, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def sampled(comfy: ModuleType, guider: Any, sigmas: Tensor, rows: int = 1) -> Tensor:
    """Final latents of SamplerCustomAdvanced, Euler."""
    sampler = comfy.samplers.sampler_object("euler")
    latent = torch.zeros(rows, 4, 8, 8)
    return guider.sample(noise(rows), latent, sampler, sigmas, disable_pbar=True, seed=0)


def guider(pack: ModuleType, model: Any, guidance: str, **more: Any) -> Any:
    node = pack.NODE_CLASS_MAPPINGS["DiffsteerGuider"]()
    conds = {"positive": [[text(1), {}]], "negative": [[text(2), {}]]}
    return node.guider(model, guidance=guidance, **conds | more, **SLIDERS)[0]


def own(comfy: ModuleType, model: Any, cfg: float) -> Any:
    made = comfy.samplers.CFGGuider(model)
    made.set_conds([[text(1), {}]], [[text(2), {}]])
    made.set_cfg(cfg)
    return made


def sigmas(pack: ModuleType, model: Any) -> Tensor:
    return pack.NODE_CLASS_MAPPINGS["DiffsteerSigmas"]().sigmas(model, STEPS, "trailing")[0]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_cfg_is_that_of_comfyui(comfy: ModuleType, pack: ModuleType, prediction: str) -> None:
    model = patcher(comfy, unet(), prediction)
    nodes = sigmas(pack, model)
    ours = sampled(comfy, guider(pack, model, "CFG(w)"), nodes)
    theirs = sampled(comfy, own(comfy, model, 4.0), nodes)
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_pag_on_top_of_cfg_is_that_of_comfyui(comfy: ModuleType, pack: ModuleType) -> None:
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    model = patcher(comfy, unet())
    nodes = sigmas(pack, model)
    (theirs,) = PerturbedAttentionGuidance.execute(model, 2.0).args
    (ours,) = pack.NODE_CLASS_MAPPINGS["DiffsteerGuidance"]().patch(model, "PAG(p)", **SLIDERS)
    expected = sampled(comfy, own(comfy, theirs, 4.0), nodes)
    for out in (
        sampled(comfy, own(comfy, ours, 4.0), nodes),
        sampled(comfy, guider(pack, model, "CFG(w) + PAG(p)"), nodes),
    ):
        assert (out - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_sag_beside_cfg_is_that_of_comfyui(comfy: ModuleType, pack: ModuleType) -> None:
    from comfy_extras.nodes_sag import SelfAttentionGuidance

    model = patcher(comfy, unet())
    nodes = sigmas(pack, model)
    (theirs,) = SelfAttentionGuidance.execute(model, 0.6, 1.5).args
    expected = sampled(comfy, own(comfy, theirs, 4.0), nodes)
    out = sampled(comfy, guider(pack, model, "CFG(w) + SAG(s, sigma=1.5)"), nodes)
    assert (out - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_it_sums_with_rescale_cfg(comfy: ModuleType, pack: ModuleType) -> None:
    from comfy_extras.nodes_model_advanced import RescaleCFG

    model = patcher(comfy, unet(), "v_prediction")
    nodes = sigmas(pack, model)
    (rescaled,) = RescaleCFG().patch(model, 0.7)
    both = pack.NODE_CLASS_MAPPINGS["DiffsteerGuidance"]().patch(rescaled, "PAG(p)", **SLIDERS)[0]
    off = pack.NODE_CLASS_MAPPINGS["DiffsteerGuidance"]().patch(
        rescaled, "PAG(p)", **SLIDERS | {"p": 0.0}
    )[0]
    plain = sampled(comfy, own(comfy, rescaled, 4.0), nodes)
    assert torch.equal(sampled(comfy, own(comfy, off, 4.0), nodes), plain)
    assert (sampled(comfy, own(comfy, both, 4.0), nodes) - plain).abs().max() > 1e-3
    ours = sampled(comfy, guider(pack, model, "CFG(w).rescaled(0.7)"), nodes)
    assert (ours - plain).abs().max() <= 1e-4 * plain.abs().max()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    "guidance",
    [
        "CFG(4)",
        "CFG(4) + PAG(2)",
        "CFG(4) + SEG(2, sigma=1.0)",
        "CFG(4) + SAG(0.6)",
        "SAG(0.6, on='cond').over(1, 4)",
        "CFG(4).rescaled(0.7).within(0.1, 6)",
        "CFG(3) + Auto(1.7)",
    ],
)
def test_a_sum_is_that_of_steer(
    comfy: ModuleType, pack: ModuleType, tmp_path: Path, guidance: str, prediction: str
) -> None:
    net, weak = unet(), unet(seed=5)
    model = patcher(comfy, net, prediction)
    guide = patcher(comfy, weak, prediction) if "Auto(" in guidance else None
    ours = sampled(comfy, guider(pack, model, guidance, guide=guide), sigmas(pack, model))
    scheduler = SteerScheduler(
        prediction_type=prediction, beta_schedule="scaled_linear", beta_start=0.00085,
        beta_end=0.012, timestep_spacing="trailing", sampler="DDIM()",
    )  # fmt: skip
    pipe = tiny.stable_diffusion(scheduler, tmp_path)
    pipe.unet = net
    with steer(pipe, guidance, guide=weak if guide else None):
        expected = pipe(
            prompt_embeds=text(1), negative_prompt_embeds=text(2), latents=noise(),
            num_inference_steps=STEPS, guidance_scale=2.0, output_type="latent",
        ).images  # fmt: skip
    ours = ours * comfy_scale(comfy)
    assert (ours - expected).abs().max() <= 1e-3 * expected.abs().max()


def comfy_scale(comfy: ModuleType) -> float:
    """ComfyUI divides final latents by the scale of its format."""
    return float(comfy.latent_formats.SD15().scale_factor)


def test_zero_snr_ends_in_pure_noise_and_steps_visit_it(
    comfy: ModuleType, pack: ModuleType
) -> None:
    model = patcher(comfy, unet(), "v_prediction")
    (repaired,) = pack.NODE_CLASS_MAPPINGS["DiffsteerZeroSNR"]().patch(model)
    own_sampling, new = (m.get_model_object("model_sampling") for m in (model, repaired))
    assert float(own_sampling.sigma_max) < 15 and float(new.sigma_max) > 4000
    nodes = pack.NODE_CLASS_MAPPINGS["DiffsteerSigmas"]().sigmas(repaired, STEPS, "trailing")[0]
    assert float(nodes[0]) == float(new.sigma_max) and float(nodes[-1]) == 0
    assert torch.allclose(new.sigmas[0], own_sampling.sigmas[0], rtol=1e-4)
    out = sampled(comfy, guider(pack, repaired, "CFG(w)"), nodes)
    assert out.isfinite().all()


def test_mistakes_are_said_before_the_first_step(comfy: ModuleType, pack: ModuleType) -> None:
    model = patcher(comfy, unet())
    for guidance, reason in (
        ("cfg(w)", "did you mean 'CFG'"),
        ("CFG(w) + PAG(q)", "unknown Guidance 'q'"),
    ):
        with pytest.raises(InputError, match=reason):
            guider(pack, model, guidance)
    nodes = sigmas(pack, model)
    for guidance, more, reason in (
        ("PAG(p, layer='input.7')", {}, r"there are input.3, middle.0, output"),
        ("Auto(a)", {}, "connect a model to guide"),
        ("CFG(w)", {"negative": None}, "connect negative"),
        ("AutoDropout(a)", {}, "pipelines of diffusers"),
    ):
        with pytest.raises(InputError, match=reason):
            sampled(comfy, guider(pack, model, guidance, **more), nodes)


def test_workflows_name_nodes_and_sockets_that_exist(pack: ModuleType) -> None:
    files = sorted((Path(pack.__file__).parent / "workflows").glob("*.json"))
    assert files
    for file in files:
        for entry in json.loads(file.read_text()).values():
            node = pack.NODE_CLASS_MAPPINGS.get(entry["class_type"])
            if node is not None:
                kinds = node.INPUT_TYPES()
                names = {*kinds["required"], *kinds.get("optional", {})}
                assert set(entry["inputs"]) <= names and set(kinds["required"]) <= set(
                    entry["inputs"]
                )
