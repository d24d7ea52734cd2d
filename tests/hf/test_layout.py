"""Which part of a call is the noisy sample, and which arguments have a row for each."""

import diffusers
import pytest
import tiny
import torch
import zoo

from diffsteer.core.errors import InputError
from diffsteer.hf.batched_arguments import Shared, with_shared
from diffsteer.hf.families import patch_of
from diffsteer.steering import steer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pipe")


def made(name, folder, dtype=torch.float32):
    pipe = zoo.CASES[name][0](folder / name)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(dtype)


def inputs_of(network):
    """What the network is evaluated on, by its first layer."""
    seen = []
    network.conv_in.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    return seen


@pytest.mark.parametrize("name", ["MarigoldDepthPipeline", "MarigoldIntrinsicsPipeline"])
@pytest.mark.parametrize("guidance", ['SAG(0.5, on="cond")', "AutoNoise(2)"])
def test_image_latents_before_the_noisy_ones_stay(folder, name, guidance) -> None:
    """Marigold puts the image first: it is the same in every evaluation, the rest is not."""
    pipe = made(name, folder)
    call = zoo.CASES[name][1](1.0, 2)
    call["image"] = call["image"].float()
    plain = inputs_of(pipe.unet)
    zoo.steps_of(pipe, call)
    image = plain[0][:, :4]
    plain.clear()
    with steer(pipe, guidance):
        zoo.steps_of(pipe, call)
    assert len(plain) == 4 and all(torch.equal(x[:, :4], image) for x in plain)
    noisy = [x[:, 4:] for x in plain]
    assert all(not torch.equal(a, b) for a, b in zip(noisy, noisy[1:], strict=False))


def test_patches_of_layers_are_not_known() -> None:
    layered = diffusers.QwenImageLayeredPipeline
    assert patch_of(layered.__new__(layered)) is None


class ImageFirst(diffusers.StableDiffusionPipeline):
    """A pipeline of nobody's that puts two channels before the latents and one after."""

    def __call__(self, latents, num_inference_steps, generator, sign=1.0):
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            around = latents[:, :2].roll(1, dims=0), latents[:, :1] * 0 + 0.5
            x = torch.cat([around[0], latents, around[1]], dim=1)
            out = self.unet(x, t, latents.new_zeros(len(latents), 4, 32)).sample
            latents = self.scheduler.step(sign * out, t, latents).prev_sample


def test_places_that_no_pipeline_of_diffusers_has(folder) -> None:
    pipe = tiny.stable_diffusion(zoo.ddim(), folder, "StableDiffusionPipeline")
    parts = pipe.components | {"unet": zoo.unet(7)}
    pipe = ImageFirst(**parts, requires_safety_checker=False)
    call = {"latents": zoo.noise(2, 4, 8, 8).float()}
    want = zoo.steps_of(pipe, call)
    with steer(pipe, "AutoNoise(1)"):
        torch.testing.assert_close(zoo.steps_of(pipe, call), want, atol=1e-4, rtol=1e-4)
    turned = zoo.steps_of(pipe, call | {"sign": -1.0})
    with steer(pipe, "AutoNoise(1)"):
        got = zoo.steps_of(pipe, call | {"sign": -1.0})
    torch.testing.assert_close(got, turned, atol=1e-4, rtol=1e-4)
    seen = inputs_of(pipe.unet)
    with steer(pipe, "PAG(2)"), pytest.raises(InputError, match="network returns by 3, where 1"):
        zoo.steps_of(pipe, call | {"sign": 3.0})
    assert not seen


def test_a_variance_that_the_scheduler_does_not_name(folder) -> None:
    """IF's second stage takes 6 channels and returns 6: 3 are denoised, whatever scheduler."""
    pipe = made("IFSuperResolutionPipeline", folder)
    pipe.scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    call = {k: v.float() if torch.is_tensor(v) else v for k, v in zoo._if_super(4.0, 2).items()}
    want = zoo.steps_of(pipe, call)
    with steer(pipe, "CFG(4)"):
        torch.testing.assert_close(zoo.steps_of(pipe, call), want, atol=1e-4, rtol=1e-4)


def test_an_output_that_is_never_stepped_from(folder) -> None:
    """Noise stands for the answer until the scheduler tells which channels are the sample."""
    pipe = tiny.stable_diffusion(zoo.ddim(), folder, "StableDiffusionPipeline")
    pipe.unet = zoo.unet(9)
    x, words = torch.randn(1, 9, 8, 8), torch.randn(1, 4, 32)
    with pytest.raises(InputError, match="not scheduler.step"), steer(pipe, "PAG(2)"):
        pipe.unet(x, 500, words)
    with pytest.raises(ZeroDivisionError), steer(pipe, "PAG(2)"):
        pipe.unet(x, 500, words)
        raise ZeroDivisionError
    assert "forward" not in vars(pipe.unet) and "step" not in vars(pipe.scheduler)


def test_the_same_noise_twice_is_no_guidance(folder) -> None:
    """A pipeline that does not say whether it guides: what it steps tells."""
    pipe = made("PixArtAlphaPipeline", folder)
    call = {k: v.float() if torch.is_tensor(v) else v for k, v in zoo._pixart_call(1.0, 2).items()}
    call["latents"] = call["latents"][:1].repeat(2, 1, 1, 1)
    want = zoo.steps_of(pipe, call)
    with steer(pipe, "PAG(0, layer='transformer_blocks.1')"):
        torch.testing.assert_close(zoo.steps_of(pipe, call), want, atol=1e-4, rtol=1e-4)
    pipe = made("StableDiffusionPipeline", folder)
    call = {"prompt": zoo.PROMPTS[:2], "guidance_scale": 1.0, "latents": call["latents"]}
    want = zoo.steps_of(pipe, call)
    with steer(pipe, "PAG(0)"):
        torch.testing.assert_close(zoo.steps_of(pipe, call), want, atol=1e-4, rtol=1e-4)


def test_arguments_with_a_row_for_each_sample() -> None:
    """By what the network takes them for; what its processors take is theirs alone."""
    x = torch.zeros(2, 3)
    cond = {"encoder_hidden_states": x, "timestep": x[0, :1], "class_labels": None}
    cond |= {"added_cond_kwargs": {"image_embeds": [x, x]}, "mid_block_additional_residual": x[:1]}
    kwargs = {"ip_adapter_masks": x, "gligen": {"boxes": x}, "scale": 0.3, "bias": x[:1]}
    got = with_shared(zoo.unet(), cond | {"cross_attention_kwargs": kwargs}, 2)
    shared = {k for k, v in (got | got["cross_attention_kwargs"]).items() if isinstance(v, Shared)}
    assert shared == {"timestep", "mid_block_additional_residual", "ip_adapter_masks", "bias"}
    with pytest.raises(InputError, match="bias of shape .2, 3. may hold a row"):
        with_shared(zoo.unet(), {"cross_attention_kwargs": {"bias": x}}, 2)
    with pytest.raises(InputError, match="image_embeds has 2 rows in a call of 4"):
        with_shared(zoo.unet(), {"added_cond_kwargs": {"image_embeds": [x]}}, 4)


@pytest.mark.parametrize("guidance", ["CFG(5).over(1, 4)", "CFG(5).within(0, 1)", "AutoNoise(2)"])
def test_epsilon_at_zero_terminal_snr(folder, guidance) -> None:
    """Refused at the first call, also where the guidance acts later or never."""
    pipe = made("StableDiffusionPipeline", folder)
    seen, call = inputs_of(pipe.unet), zoo.CASES["StableDiffusionPipeline"][1](5.0, 2)
    call["latents"] = call["latents"].float()
    with steer(pipe, guidance):
        zoo.steps_of(pipe, call)
        seen.clear()
        pipe.scheduler = zoo.ddim(rescale_betas_zero_snr=True, timestep_spacing="trailing")
        with pytest.raises(InputError, match="does not fix x0 at alpha=0"):
            zoo.steps_of(pipe, call)
    assert not seen


def test_layers_of_grounded_objects_and_of_frames() -> None:
    """Attention of other tokens than those of one image is left out."""
    from diffusers.models.attention import GatedSelfAttentionDense
    from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel

    from diffsteer.hf.families import image_attention

    network = zoo.unet(attention_type="gated")
    assert any(isinstance(m, GatedSelfAttentionDense) for m in network.modules())
    names = image_attention(network)
    assert names and not any("fuser" in name for name in names)
    network.mid_block.add_module("temporal", TransformerTemporalModel(4, 16, in_channels=64))
    assert image_attention(network).keys() == names.keys()


class Merged:
    """Attention of means of three tokens each, as processors that merge tokens compute it."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **kwargs):
        x = hidden_states[:, :15].unflatten(1, (5, 3)).mean(dim=2)
        q, k, v = (
            part(x).unflatten(2, (attn.heads, -1)).transpose(1, 2)
            for part in (attn.to_q, attn.to_k, attn.to_v)
        )
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        out = attn.to_out[0](out.transpose(1, 2).flatten(2)).repeat_interleave(3, dim=1)
        return torch.cat([out, hidden_states[:, 15:]], dim=1)


def test_layers_of_other_sizes_than_halvings(folder) -> None:
    """PAG and a mean of all queries need no height and width; maps and blurs do, and say so."""
    pipe = made("StableDiffusionPipeline", folder)
    call = zoo.CASES["StableDiffusionPipeline"][1](1.0, 2)
    call["latents"] = call["latents"].float()
    layer = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    layer.set_processor(Merged())
    plain = zoo.steps_of(pipe, call)
    for guidance in ("PAG(3)", "SEG(3)"):
        with steer(pipe, guidance):
            assert (zoo.steps_of(pipe, call)[-1] - plain[-1]).abs().max() > 1e-4
    for guidance in ("SEG(3, sigma=1.0)", 'SAG(0.5, on="cond")'):
        with (
            steer(pipe, guidance),
            pytest.raises(InputError, match="5 tokens, of which neither height"),
        ):
            zoo.steps_of(pipe, call)


def test_latents_of_zeros_are_refused_for_what_they_are(folder) -> None:
    """They are in every channel of the input; before an evaluation."""
    pipe = made("StableDiffusionPipeline", folder)
    seen = inputs_of(pipe.unet)
    call = zoo.text(4.0, 2) | {"latents": torch.zeros(2, 4, 8, 8)}
    with steer(pipe, "CFG(4)"), pytest.raises(InputError, match="a sample of zeros"):
        zoo.steps_of(pipe, call)
    assert not seen


def test_image_to_image_without_a_step(folder) -> None:
    pipe = made("StableDiffusionImg2ImgPipeline", folder)
    call = zoo.image(4.0, 2) | {"strength": 0.1}
    with steer(pipe, "CFG(4)"), pytest.raises(InputError, match="leaves no step of image to image"):
        zoo.steps_of(pipe, call, steps=3)
    assert "get_timesteps" not in vars(pipe)


def test_refined_noise_is_added_to_the_scheduler_s_sample(folder) -> None:
    """A refiner alone expects the noisy channels first, and finds them elsewhere."""
    from diffsteer.refine.hook import started_from

    pipe = made("MarigoldDepthPipeline", folder)
    call = zoo.CASES["MarigoldDepthPipeline"][1](1.0, 2)
    call["image"] = call["image"].float()
    refused = pytest.raises(InputError, match="puts other channels before its noise")
    with refused, started_from(pipe, torch.randn(2, 4, 8, 8)):
        zoo.steps_of(pipe, call)
    assert "step" not in vars(pipe.scheduler)
