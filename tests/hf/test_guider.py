"""SteerGuider in real modular pipelines, against steer on the ordinary ones."""

import copy

import diffusers
import pytest
import tiny
import torch

from diffsteer import CFG, PAG, SAG, Auto
from diffsteer.hf.guider import SteerGuider
from diffsteer.steering import steer

EULER = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PROMPTS = ["a cat", "a red dog"]
ALL = CFG(5) + PAG(3) + SAG(0.75).within(0, 2) + Auto(2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("modular")


@pytest.fixture
def pair(folder):
    """An ordinary pipeline and a modular one on the same components."""
    pipe = tiny.sdxl(diffusers.EulerDiscreteScheduler(**EULER), folder)
    modular = diffusers.StableDiffusionXLAutoBlocks().init_pipeline()
    parts = {k: v for k, v in pipe.components.items() if v is not None}
    modular.update_components(**parts, force_zeros_for_empty_prompt=True)
    modular.set_progress_bar_config(disable=True)
    return pipe, modular


START = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def ordinary(pipe, **more):
    more = {"num_inference_steps": 5, "latents": START.clone(), "output_type": "latent"} | more
    return pipe(PROMPTS, guidance_scale=2.0, height=16, width=16, **more).images


def modular_run(modular, guider, **more):
    modular.update_components(guider=guider)
    more = {"num_inference_steps": 5, "latents": START.clone(), "output_type": "latent"} | more
    return modular(prompt=PROMPTS, height=16, width=16, output="images", **more)


def counted(network):
    sizes = []
    network.conv_in.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    return sizes


def test_diffusers_own_guider_agrees(pair) -> None:
    """The two pipelines are the same one before anything is steered."""
    pipe, modular = pair
    theirs = diffusers.ClassifierFreeGuidance(guidance_scale=5.0)
    want = modular_run(modular, theirs)
    with steer(pipe, CFG(5)):
        torch.testing.assert_close(ordinary(pipe), want, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(
        modular_run(modular, SteerGuider("CFG(5)", modular.scheduler)), want, atol=1e-4, rtol=1e-5
    )


@pytest.mark.parametrize("guidance", [CFG(5) + PAG(3), CFG(5) + SAG(0.75), Auto(2), ALL], ids=repr)
def test_guiders_are_steer(pair, guidance) -> None:
    """In as many rows and passes."""
    pipe, modular = pair
    guide = copy.deepcopy(pipe.unet)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.mul_(0.9)
    sizes = counted(pipe.unet)
    with steer(pipe, guidance, guide=guide):
        want = ordinary(pipe)
    passes = sizes.copy()
    sizes.clear()
    got = modular_run(modular, SteerGuider(guidance, modular.scheduler, guide))
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-5)
    assert sizes == passes and "forward" not in modular.unet.__dict__


def test_controlnet(pair) -> None:
    """Each condition has residuals of its own, as with diffusers' guider."""
    pipe, modular = pair
    control = diffusers.ControlNetModel.from_unet(
        pipe.unet, conditioning_channels=3, conditioning_embedding_out_channels=(16, 32)
    ).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in control.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    more = {"control_image": torch.rand(1, 3, 16, 16)}
    modular.update_components(controlnet=control)
    want = modular_run(modular, diffusers.ClassifierFreeGuidance(guidance_scale=5.0), **more)
    sizes = counted(pipe.unet)
    got = modular_run(modular, SteerGuider("CFG(5)", modular.scheduler), **more)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-5)
    assert sizes == [4] * 5
    plain = modular_run(modular, diffusers.ClassifierFreeGuidance(guidance_scale=5.0))
    assert (plain - want).abs().max() > 1e-2


def sd3():
    """An ordinary pipeline, a modular one on the same components, and a call of both."""
    pipe = tiny.sd3(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    gen = torch.Generator().manual_seed(1)
    shapes = {"prompt_embeds": (2, 6, 32), "pooled_prompt_embeds": (2, 32)}
    call = {name: torch.randn(shape, generator=gen) for name, shape in shapes.items()}
    call |= {f"negative_{n}": torch.randn(s, generator=gen) for n, s in shapes.items()}
    blocks = diffusers.StableDiffusion3AutoBlocks()
    blocks.sub_blocks.pop("text_encoder")
    modular = blocks.init_pipeline()
    modular.update_components(transformer=pipe.transformer, vae=pipe.vae, scheduler=pipe.scheduler)
    modular.set_progress_bar_config(disable=True)
    call |= {"num_inference_steps": 4, "height": 16, "width": 16, "output_type": "latent"}
    return pipe, modular, call


def test_stable_diffusion_3() -> None:
    """Flow matching, with layers by name."""
    pipe, modular, call = sd3()
    first, second = "transformer_blocks.0", "transformer_blocks.1"
    guidance = CFG(5) + PAG(3, layer=second) + SAG(0.5, layer=first)
    with steer(pipe, guidance):
        want = pipe(None, latents=START.clone(), guidance_scale=2.0, **call).images
    modular.update_components(guider=SteerGuider(guidance, modular.scheduler))
    got = modular(latents=START.clone(), output="images", **call)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-5)


def test_the_call_of_a_prompt_is_the_first() -> None:
    """As pipelines with a ControlNet ask for its guess mode."""
    guider, said = SteerGuider("CFG(5)"), []
    for _ in range(2):
        guider.prepare_models(None)
        said.append(guider.is_conditional)
    assert said == [True, False]


def test_disabled() -> None:
    pipe, modular, call = sd3()
    want = pipe(None, latents=START.clone(), guidance_scale=1.0, **call).images
    guider = SteerGuider("CFG(5)", modular.scheduler)
    modular.update_components(guider=guider)
    guider.disable()
    assert guider.num_conditions == 1
    got = modular(latents=START.clone(), output="images", **call)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    guider.enable()
    assert (modular(latents=START.clone(), output="images", **call) - want).abs().max() > 1e-2


def test_saved_and_copied(pair, tmp_path) -> None:
    """The config is text; what is no text is set anew."""
    pipe, modular = pair
    guider = SteerGuider(CFG(5) + 2 * PAG(3.0), modular.scheduler, pipe.unet, max_rows=2)
    guider.save_pretrained(tmp_path)
    read = SteerGuider.from_pretrained(tmp_path)
    assert (read.guidance, read.max_rows, read.scheduler) == (guider.guidance, 2, None)
    copied = guider.new(max_rows=3)
    assert (copied.guidance, copied.max_rows) == (guider.guidance, 3)
    assert copied.scheduler is modular.scheduler and copied.guide is pipe.unet
    assert guider.get_state()["num_conditions"] == 2 and "PAG" in repr(guider)


def test_as_it_was_after_an_error(pair) -> None:
    pipe, modular = pair
    guider = SteerGuider(CFG(5) + PAG(3), modular.scheduler)
    want = modular_run(modular, guider)
    handle = pipe.unet.mid_block.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        modular_run(modular, guider)
    handle.remove()
    assert "forward" not in pipe.unet.__dict__
    assert torch.equal(modular_run(modular, guider), want)


def test_errors(pair) -> None:
    pipe, modular = pair
    calls = counted(pipe.unet)
    with pytest.raises(ValueError, match="another than that of its SteerGuider"):
        modular_run(modular, SteerGuider("CFG(5)", copy.copy(modular.scheduler)))
    with pytest.raises(ValueError, match="unknown Guidance"):
        SteerGuider("XYZ(5)")
    with pytest.raises(ValueError, match="for pipelines of diffusers: it was called from none"):
        SteerGuider("CFG(5)").prepare_inputs({})
    with steer(pipe, CFG(5)), pytest.raises(ValueError, match="steered already"):
        modular_run(modular, SteerGuider("CFG(5)", modular.scheduler))
    with pytest.raises(ValueError, match="no attention layer is called 'nowhere'"):
        modular_run(modular, SteerGuider(PAG(3, layer="nowhere"), modular.scheduler))
    with pytest.raises(ValueError, match="asks for a network 'guide'"):
        modular_run(modular, SteerGuider(Auto(3), modular.scheduler))
    with pytest.raises(ValueError, match="the guide takes 9 channels"):
        modular_run(modular, SteerGuider(Auto(3), modular.scheduler, tiny.unet(in_channels=9)))
    assert calls == [] and "forward" not in pipe.unet.__dict__
