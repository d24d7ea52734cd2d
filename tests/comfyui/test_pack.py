"""The nodes in a real ComfyUI against its own nodes, and against `steer` on the same weights."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from comfyui.conftest import PIPELINES, as_comfyui, patcher, transformer, unet
from diffsteer import NoiseRefiner, SteerScheduler, steer
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
        "CFG(4) + AutoNoise(2, noise=0.5)",
        "CFG(4) + SelfGuidance(1)",
        "CFG(4) + TSG(2)",
        "CFG(3).within(0.1, 6) + SWG(0.4)",
        "CFG(3) + SLG(2)",
        "SLG(2, layer='all') + STG(1)",
        "ICG(3)",
        "NAG(4, alpha=0.5)",
        "CFG(2) + NAG(3, tau=1.5)",
    ],
)
def test_a_sum_is_that_of_steer(
    comfy: ModuleType, pack: ModuleType, tmp_path: Path, guidance: str, prediction: str
) -> None:
    net, weak = unet(), unet(seed=5)
    model = patcher(comfy, net, prediction)
    guide = patcher(comfy, weak, prediction) if "Auto(" in guidance else None
    ours = sampled(comfy, guider(pack, model, guidance, guide=guide), sigmas(pack, model))
    pipe = pipeline(net, tmp_path, prediction)
    with steer(pipe, guidance, guide=weak if guide else None):
        expected = latents(pipe)
    ours = ours * comfy_scale(comfy)
    between = any(name in guidance for name in ("AutoNoise", "SelfGuidance", "TSG"))
    limit = 1e-2 if between else 1e-3  # ComfyUI rounds times to whole timesteps
    assert (ours - expected).abs().max() <= limit * expected.abs().max()


CATALOGUE = (
    *("APG(3)", "CFGZero(3)", "CFGpp(0.6)", "RectifiedCFGpp(2)", "FDG(2, 4)", "FreSca(1.2, 1.1)"),
    *("SMC(3)", "Adaptive(3)", "FBG()", "MAMBO(3)", "TCFG(3)", "ADG(3)", "CFGNorm(3)"),
    *("CFGRenorm(3)", "DynamicThreshold(3)", "CFG(3) + Momentum(0.5)", "CFG(ramp(1, 7))"),
)


def test_the_catalogue_is_that_of_steer(
    comfy: ModuleType, pack: ModuleType, tmp_path: Path
) -> None:
    """What looks ahead, remembers, or bounds what others do; in one sampling each."""
    net = unet()
    model, pipe = patcher(comfy, net, "v_prediction"), pipeline(net, tmp_path, "v_prediction")
    nodes = sigmas(pack, model)
    apart = {}
    for guidance in CATALOGUE:
        ours = sampled(comfy, guider(pack, model, guidance), nodes) * comfy_scale(comfy)
        with steer(pipe, guidance):
            expected = latents(pipe)
        apart[guidance] = float((ours - expected).abs().max() / expected.abs().max())
    assert all(value <= 1e-3 for value in apart.values()), apart


def pipeline(net: Any, folder: Path, prediction: str, **schedule: Any) -> Any:
    """Stable Diffusion of diffusers around a UNet, on the schedule of ComfyUI's models."""
    scheduler = SteerScheduler(
        prediction_type=prediction, beta_schedule="scaled_linear", beta_start=0.00085,
        beta_end=0.012, timestep_spacing="trailing", sampler="DDIM()", **schedule,
    )  # fmt: skip
    pipe = tiny.stable_diffusion(scheduler, folder)
    pipe.unet = net
    return pipe


def latents(pipe: Any, rows: int = 1) -> Tensor:
    """Final latents of a pipeline, as ComfyUI's samplers give them."""
    return pipe(
        prompt_embeds=text(1).expand(rows, -1, -1), latents=noise(rows),
        negative_prompt_embeds=text(2).expand(rows, -1, -1),
        num_inference_steps=STEPS, guidance_scale=2.0, output_type="latent",
    ).images  # fmt: skip


def test_a_transformer_takes_guidance_and_skips_blocks_as_comfyui_does(
    comfy: ModuleType, pack: ModuleType
) -> None:
    from comfy_extras.nodes_slg import SkipLayerGuidanceDiT

    model, g = transformer(comfy), torch.Generator().manual_seed(0)
    x = torch.randn(1, 16, 8, 8, generator=g)
    pooled = {"pooled_output": torch.randn(1, 32, generator=g)}
    conds = {name: [[text(i), pooled]] for i, name in enumerate(("positive", "negative"), 1)}

    def image(patched: Any, guidance: str = "") -> Tensor:
        if guidance:
            made = pack.NODE_CLASS_MAPPINGS["DiffsteerGuider"]().guider(
                patched, guidance=guidance, **conds, **SLIDERS
            )[0]
        else:
            made = comfy.samplers.CFGGuider(patched)
            made.set_conds(*conds.values())
            made.set_cfg(4.0)
        sampler, levels = comfy.samplers.sampler_object("euler"), torch.linspace(1, 0, STEPS + 1)
        return made.sample(x, 0 * x, sampler, levels, disable_pbar=True, seed=0)

    plain = image(model)
    assert (image(model, "CFG(w)") - plain).abs().max() <= 1e-4 * plain.abs().max()
    (theirs,) = SkipLayerGuidanceDiT.execute(model, 2.0, 0.0, 1.0, "1", "").args
    expected = image(theirs)
    (ours,) = pack.NODE_CLASS_MAPPINGS["DiffsteerGuidance"]().patch(
        model, "SLG(2, layer='joint_blocks.1')", **SLIDERS
    )
    for out in (image(ours), image(model, "CFG(w) + SLG(2, layer='joint_blocks.1')")):
        assert (out - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert (expected - plain).abs().max() > 1e-2 * plain.abs().max()
    for guidance in ("ICG(3)", "S2(1, share=0.5, layer='all')"):
        assert image(model, guidance).isfinite().all()
        assert (image(model, guidance) - image(model, "CFG(1)")).abs().max() > 1e-3
    for guidance, reason in (("NAG(2)", "a UNet"), ("PAG(2)", "it is no UNet")):
        with pytest.raises(InputError, match=reason):
            image(model, guidance)


def comfy_scale(comfy: ModuleType) -> float:
    """ComfyUI divides final latents by the scale of its format."""
    return float(comfy.latent_formats.SD15().scale_factor)


@pytest.mark.parametrize("guidance", ["AutoNoise(2, noise=0.5)", "S2(2, layer='all')", "ICG(3)"])
def test_each_image_of_a_batch_has_the_noise_of_its_own_seed(
    comfy: ModuleType, pack: ModuleType, guidance: str
) -> None:
    model = patcher(comfy, unet())
    nodes = sigmas(pack, model)
    sampler = comfy.samplers.sampler_object("euler")

    def images(x: Tensor) -> Tensor:
        made = guider(pack, model, guidance)
        return made.sample(x, 0 * x, sampler, nodes, disable_pbar=True, seed=0)

    both = images(noise(2))
    alone = images(noise(2)[1:])
    assert (both[1:] - alone).abs().max() <= 1e-4 * alone.abs().max()


def with_lora(model: Any, seed: int) -> Any:
    """The same MODEL with a LoRA, as ComfyUI's loader gives it."""
    from comfy.sd import load_lora_for_models

    g = torch.Generator().manual_seed(seed)
    name = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_v"
    sides = {"lora_down": (2, 64), "lora_up": (64, 2)}
    lora = {f"{name}.{s}.weight": torch.randn(*n, generator=g) for s, n in sides.items()}
    return load_lora_for_models(model, None, lora, 1.0, 0.0)[0]


def test_auto_by_the_same_model_with_a_lora_is_that_by_a_second_model(
    comfy: ModuleType, pack: ModuleType
) -> None:
    """ComfyUI loads one of two clones at a time: the guide's weights have to be put there."""
    main, twin = patcher(comfy, unet()), patcher(comfy, unet())
    nodes = sigmas(pack, main)
    for model, guide, other in (
        (main, with_lora(main, 0), with_lora(twin, 0)),
        (with_lora(main, 0), main, twin),
        (with_lora(main, 0), with_lora(main, 1), with_lora(twin, 1)),
    ):
        expected = sampled(comfy, guider(pack, model, "CFG(w) + Auto(a)", guide=other), nodes)
        out = sampled(comfy, guider(pack, model, "CFG(w) + Auto(a)", guide=guide), nodes)
        assert (out - expected).abs().max() <= 1e-5 * expected.abs().max()
        off = sampled(comfy, guider(pack, model, "CFG(w)"), nodes)
        assert (out - off).abs().max() > 1e-2 * off.abs().max()
        again = sampled(comfy, guider(pack, model, "CFG(w) + Auto(a)", guide=guide), nodes)
        assert torch.equal(out, again)


def refine(pack: ModuleType, model: Any, refiner: str, strength: float = 1.0) -> Any:
    node = pack.NODE_CLASS_MAPPINGS["DiffsteerRefine"]()
    return node.patch(model, str(refiner), strength, False)[0]


def trained(pipe: Any, head: str, folder: Path) -> Path:
    """A refiner with random weights, saved."""
    made = NoiseRefiner(pipe, rank=2, head=head, alpha=3)
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in made.parameters.values():
            weight.copy_(0.1 * torch.randn(weight.shape, generator=g))
    made.save(folder)
    made.remove()
    return folder


@pytest.mark.parametrize("head", ["zero_init", "difference", "literal", "x0"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.filterwarnings("ignore:the literal head adds")
def test_refined_noise_is_that_of_steer(
    comfy: ModuleType, pack: ModuleType, tmp_path: Path, head: str, prediction: str
) -> None:
    pipe = pipeline(unet(), tmp_path, prediction)
    folder = trained(pipe, head, tmp_path / "refiner")
    plain = patcher(comfy, unet(), prediction)
    nodes = sigmas(pack, plain)
    model = refine(pack, plain, str(folder), 0.8)
    ours = sampled(comfy, guider(pack, model, "CFG(w)"), nodes) * comfy_scale(comfy)
    refiner = NoiseRefiner.load(folder, pipe, strength=0.8)
    with steer(pipe, "CFG(4)", refiner=refiner):
        expected = latents(pipe)
    assert (ours - expected).abs().max() <= 1e-3 * expected.abs().max()
    off = sampled(comfy, guider(pack, plain, "CFG(w)"), nodes) * comfy_scale(comfy)
    assert (ours - off).abs().max() > 1e-2 * off.abs().max()


@pytest.mark.parametrize("head", ["zero_init", "difference"])
@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_refined_noise_of_a_transformer_is_that_of_steer(
    comfy: ModuleType, pack: ModuleType, tmp_path: Path, name: str, head: str
) -> None:
    pipe = PIPELINES[name](tmp_path)
    model = as_comfyui(comfy, pipe.transformer, name)
    folder = trained(pipe, head, tmp_path / "refiner")
    g = torch.Generator().manual_seed(0)
    x, pooled = torch.randn(1, 16, 8, 8, generator=g), torch.randn(1, 32, generator=g)
    packed = pipe._pack_latents(x, *x.shape) if name == "flux" else x
    more = {"guidance_scale": 1.0} if name == "sd3" else {}
    with steer(pipe, refiner=NoiseRefiner.load(folder, pipe, strength=0.8)):
        expected = pipe(
            prompt_embeds=text(1), pooled_prompt_embeds=pooled, latents=packed, height=16,
            width=16, num_inference_steps=STEPS, output_type="latent", **more,
        ).images  # fmt: skip
    expected = pipe._unpack_latents(expected, 16, 16, 2) if name == "flux" else expected

    def image(patched: Any) -> Tensor:
        made = comfy.samplers.CFGGuider(patched)
        made.set_conds(*[[[text(1), {"pooled_output": pooled}]]] * 2)
        made.set_cfg(1.0)
        sampler, levels = comfy.samplers.sampler_object("euler"), pipe.scheduler.sigmas
        out = made.sample(x, 0 * x, sampler, levels, disable_pbar=True, seed=0)
        return model.model.process_latent_in(out)

    ours, off = image(refine(pack, model, str(folder), 0.8)), image(model)
    assert (ours - expected).abs().max() <= 1e-3 * expected.abs().max()
    assert (ours - off).abs().max() > 1e-2 * off.abs().max()
    with torch.no_grad():
        model.model.diffusion_model.final_layer.linear.bias += 1
    with pytest.raises(InputError, match="other weights"):
        image(refine(pack, model, str(folder)))


def test_noise_is_refined_without_training_and_under_a_lora(
    comfy: ModuleType, pack: ModuleType, tmp_path: Path
) -> None:
    pipe = pipeline(unet(), tmp_path, "epsilon")
    plain = patcher(comfy, unet())
    nodes = sigmas(pack, plain)
    ours = sampled(comfy, guider(pack, refine(pack, plain, "NLG(3)"), "CFG(w)"), nodes)
    with steer(pipe, "CFG(4)", refiner="NLG(3)"):
        expected = latents(pipe)
    assert (ours * comfy_scale(comfy) - expected).abs().max() <= 1e-3 * expected.abs().max()

    folder = trained(pipe, "zero_init", tmp_path / "refiner")
    before, after = (
        sampled(comfy, guider(pack, model, "CFG(w)"), nodes)
        for model in (
            with_lora(refine(pack, plain, str(folder)), 0),
            refine(pack, with_lora(plain, 0), str(folder)),
        )
    )
    assert torch.equal(before, after)


def test_mistakes_about_refiners(
    comfy: ModuleType, pack: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = pipeline(unet(), tmp_path, "epsilon")
    folder = str(trained(pipe, "zero_init", tmp_path / "refiner"))
    for model, reason in (
        (patcher(comfy, unet(), "v_prediction"), "prediction type"),
        (patcher(comfy, unet(seed=5)), "other weights"),
    ):
        nodes = sigmas(pack, model)
        with pytest.raises(InputError, match=reason):
            sampled(comfy, guider(pack, refine(pack, model, folder), "CFG(w)"), nodes)
    model = refine(pack, patcher(comfy, unet()), folder)
    with pytest.raises(ValueError, match="already"):
        refine(pack, model, folder)
    module = sys.modules[f"{pack.__name__}.refine"]
    metadata, weights = module.read(folder)
    other = replace(metadata, network="PixArtTransformer2DModel"), weights
    monkeypatch.setattr(module, "read", lambda _: other)
    with pytest.raises(InputError, match="takes refiners of Stable Diffusion 1, 2, XL and 3 and"):
        refine(pack, patcher(comfy, unet()), folder)
    small = replace(metadata, head="low_frequency"), weights
    monkeypatch.setattr(module, "read", lambda _: small)
    with pytest.raises(InputError, match="low_frequency network, which ComfyUI does not run"):
        refine(pack, patcher(comfy, unet()), folder)
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError, match="neither a folder nor a hub id"):
        refine(pack, patcher(comfy, unet()), "nowhere")
    sampler, image = comfy.samplers.sampler_object("euler"), torch.ones(1, 4, 8, 8)
    with pytest.raises(InputError, match="starts from an image"):
        made = guider(pack, model, "CFG(w)")
        made.sample(noise(), image, sampler, nodes, disable_pbar=True, seed=0)


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
        ("CFG(w) + NAG(a)", {"negative": None}, "connect negative"),
        ("SLG(a, layer='input.7')", {}, "there are input.3.0, mid.0, output"),
        ("TPG(a, 'mid')", {}, "shuffled tokens"),
    ):
        with pytest.raises(InputError, match=reason):
            sampled(comfy, guider(pack, model, guidance, **more), nodes)
