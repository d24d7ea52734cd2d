"""Calls of pipelines that cannot be steered, or not as one might think, are told apart."""

from contextlib import nullcontext

import diffusers
import pytest
import tiny
import torch
from families.test_guidance import named

from diffsteer import CFG, PAG, SAG, SEG, Auto, AutoNoise, Discrete, Flow
from diffsteer.guidance.attention_edits import blur, received
from diffsteer.hf.batches import Batches, NotDivided
from diffsteer.hf.conditions import Part
from diffsteer.hf.network import PipelineNetwork
from diffsteer.hf.probed_calls import Call
from diffsteer.hf.scheduler_config import same_times
from diffsteer.steering import steer

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
START = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a cat", "a red dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pipe")


@pytest.fixture
def sd(folder):
    return lambda kind="epsilon": tiny.stable_diffusion(
        diffusers.DDIMScheduler(**SD, clip_sample=False, prediction_type=kind), folder
    )


def sampled(pipe, scale=5.0, **more):
    more = {"latents": START, "output_type": "latent", "num_inference_steps": 3} | more
    return pipe(PROMPTS, guidance_scale=scale, **more).images


def counted(network):
    sizes = []
    network.conv_in.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    return sizes


def pix2pix(pipe):
    """Three conditions a sample: prompt and image, image, nothing."""
    parts = pipe.components | {"unet": tiny.unet(in_channels=8)}
    made = diffusers.StableDiffusionInstructPix2PixPipeline(**parts, requires_safety_checker=False)
    return made, {"image": torch.rand(2, 3, 16, 16), "image_guidance_scale": 1.5}


def pag(pipe):
    made = diffusers.StableDiffusionPAGPipeline(
        **pipe.components, requires_safety_checker=False, pag_applied_layers="mid"
    )
    return made, {"pag_scale": 3.0}


@pytest.mark.parametrize("make", [pix2pix, pag])
def test_batches_that_are_not_two_halves(sd, make) -> None:
    """Three rows a sample, six for two, are no two halves of three."""
    pipe, more = make(sd())
    pipe.set_progress_bar_config(disable=True)
    sizes = counted(pipe.unet)
    with steer(pipe, CFG(5)), pytest.raises(ValueError, match="6 rows that are not the same"):
        sampled(pipe, **more)
    assert sizes == []


def test_skipped_layers_of_sd3() -> None:
    """Its pipeline calls the network again for the prompts alone."""
    pipe = tiny.sd3(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    shapes = {"prompt_embeds": (6, 32), "pooled_prompt_embeds": (32,)}
    prompt = {n + k: torch.randn(2, *v) for k, v in shapes.items() for n in ("", "negative_")}
    more = {"skip_guidance_layers": [0], "skip_layer_guidance_stop": 0.9, "latents": START}
    with steer(pipe, CFG(5)), pytest.raises(ValueError, match="skipped layers"):
        pipe(num_inference_steps=4, guidance_scale=5.0, output_type="latent", **prompt, **more)


def test_a_guide_that_predicts_something_else(sd) -> None:
    pipe = sd()
    before = dict(pipe.unet.__dict__)
    with pytest.raises(ValueError, match="guide's scheduler says prediction_type='v_prediction'"):
        steer(pipe, Auto(2), guide=sd("v_prediction"))
    assert pipe.unet.__dict__ == before


def test_a_guide_of_another_schedule(sd) -> None:
    """Other betas or zero terminal SNR are refused; another solver of the same betas is not."""
    pipe, guide = sd(), sd()
    config = pipe.scheduler.config
    for changes in ({"beta_end": 0.02}, {"rescale_betas_zero_snr": True}):
        guide.scheduler = diffusers.DDIMScheduler.from_config(config, **changes)
        with pytest.raises(ValueError, match="other noise at the same timestep"):
            steer(pipe, Auto(2), guide=guide)
    guide.scheduler = diffusers.EulerDiscreteScheduler.from_config(config)
    with steer(pipe, Auto(2), guide=guide):
        pass
    assert same_times(Flow(3.0), Flow()) and not same_times(Flow(), Discrete.linear())


@pytest.mark.parametrize("total", [PAG(3), SEG(2, sigma=1.0), CFG(5) + PAG(3) + SAG(0.5)], ids=repr)
def test_gradients(sd, total) -> None:
    """Those of a steered network are those of a small change of its sample."""
    pipe = sd()
    pipe._guidance_scale = 5.0
    pipe.unet.double()
    gen = torch.Generator().manual_seed(1)
    text = torch.randn(4, 16, 32, generator=gen, dtype=torch.float64)
    way = torch.randn(2, 4, 8, 8, generator=gen, dtype=torch.float64)

    def loss(x):
        return pipe.unet(torch.cat([x, x]), torch.tensor(500), text).sample[:2].square().sum()

    with steer(pipe, total):
        x = START.double().requires_grad_()
        (slope,) = torch.autograd.grad(loss(x), x)
        with torch.no_grad():
            up, down = (loss(x + s * way) for s in (1e-6, -1e-6))
    assert (slope * way).sum().item() == pytest.approx((up - down).item() / 2e-6, rel=1e-4)


def test_under_autocast(sd) -> None:
    """Networks compute in bfloat16 then, guidance as before: maps and blurs have every bit."""
    gen = torch.Generator().manual_seed(0)
    image, q, k = (torch.randn(2, 4, 8, 8, generator=gen) for _ in range(3))
    blurred, seen = blur(image, 1.0, 9), received(q, k)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(blur(image, 1.0, 9), blurred)
        assert torch.equal(received(q, k), seen)
    for total in (SAG(0.75), SEG(2, sigma=1.0), CFG(5) + PAG(3) + SAG(0.5).rescaled(0.7)):
        pipe = sd()
        with steer(pipe, total):
            plain = sampled(pipe)
            with torch.autocast("cpu", torch.bfloat16):
                half = sampled(pipe)
        assert half.dtype == plain.dtype
        # three steps of a network with 8 bits of precision, guided by factors up to 5
        assert (half - plain).std() < 0.1 * plain.std()


def test_after_a_call_that_failed(sd) -> None:
    """A scale of None breaks the pipeline's own property, which must not break the next call."""
    pipe = sd()
    with pytest.raises(TypeError):
        sampled(pipe, scale=None)
    with steer(pipe, CFG(5)):
        assert sampled(pipe).isfinite().all()


def test_networks_without_attention() -> None:
    pipe = tiny.unconditional(diffusers.DDIMScheduler())
    pipe.unet = diffusers.UNet2DModel(
        sample_size=16,
        block_out_channels=(32,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        add_attention=False,
    )
    with steer(pipe, PAG(3)), pytest.raises(ValueError, match="there are none in this network"):
        pipe(num_inference_steps=2)


def test_schedulers_of_edm(sd) -> None:
    """As Playground v2.5 has one."""
    pipe = sd()
    pipe.scheduler = diffusers.EDMEulerScheduler()
    own = sampled(pipe, scale=5.0)
    with steer(pipe, CFG(5)):
        torch.testing.assert_close(sampled(pipe), own, atol=1e-4, rtol=1e-4)
    with steer(pipe, AutoNoise(2, noise=0.1)):
        assert (sampled(pipe) - own).abs().max() > 1e-2


def test_features_of_a_controlnet_and_a_guide_of_another_size(sd) -> None:
    pipe = sd()
    control = diffusers.ControlNetModel.from_unet(pipe.unet, conditioning_channels=3).eval()
    parts = pipe.components | {"controlnet": control}
    pipe = diffusers.StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    small = diffusers.UNet2DConditionModel.from_config(
        pipe.unet.config, block_out_channels=(16, 32)
    )
    sizes, more = counted(pipe.unet), {"image": torch.rand(2, 3, 64, 64)}
    with steer(pipe, Auto(2), guide=small), pytest.raises(ValueError, match="guide of another"):
        sampled(pipe, **more)
    assert sizes == []
    with steer(pipe, CFG(5) + Auto(2), guide=tiny.unet()):
        assert sampled(pipe, **more).isfinite().all()


def test_blocks_compiled_in_place(sd) -> None:
    """Edits reach layers inside of blocks that are compiled one by one."""
    pipe, total = sd(), CFG(5) + PAG(3) + SAG(0.5)
    with steer(pipe, total):
        want = sampled(pipe)
    pipe.unet.compile_repeated_blocks(backend="eager")
    with steer(pipe, total):
        torch.testing.assert_close(sampled(pipe), want, atol=1e-4, rtol=1e-5)


class Emptying(torch.nn.Module):
    """A network that takes residuals out of the list that it is given, as HunyuanDiT does."""

    config = {"in_channels": 4}

    def forward(self, sample, residuals, kept):
        kept["seen"] = True
        return sample + residuals.pop()


def test_what_a_call_was_given_stays_as_it_was() -> None:
    net, x, one = Emptying(), torch.zeros(2, 4, 8, 8), torch.ones(2, 4, 8, 8)
    residuals, kept = [one], {"inner": [one]}
    call = Call.read(net, {"sample": x, "residuals": residuals, "kept": kept})
    net(x, residuals, kept)  # as the pipeline calls it
    kept["inner"].append(0)
    for _ in range(2):
        assert torch.equal(call.evaluated(x, call.arguments, None), one)
    assert call.arguments == {"residuals": [one], "kept": {"inner": [one]}}
    assert call.arguments["residuals"][0] is one


@pytest.mark.parametrize("guided", [True, False])
def test_a_loop_of_ones_own_after_a_call_of_the_pipeline(sd, guided: bool) -> None:
    """What the pipeline declared for its last call is not asked."""
    text = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(3))

    def loop(pipe):
        pipe.scheduler.set_timesteps(3)
        x = START[:1]
        with torch.no_grad(), steer(pipe, PAG(3)):
            for t in pipe.scheduler.timesteps:
                rows = torch.cat([x, x]) if guided else x
                out = pipe.unet(rows, t, encoder_hidden_states=text[-len(rows) :]).sample
                null, cond = out.chunk(2) if guided else (out, out)
                x = pipe.scheduler.step(null + 5 * (cond - null), t, x).prev_sample
        return x

    want = loop(sd())
    for scale in (1.0, 7.0):
        pipe = sd()
        sampled(pipe, scale)
        assert torch.equal(loop(pipe), want)


def test_each_sample_under_all_conditions_in_turn(sd) -> None:
    """Rows of a loop of one's own are answered in their order; what is not stepped is refused."""
    text = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(3))
    pipe = sd()
    pipe.scheduler.set_timesteps(3)
    t = pipe.scheduler.timesteps[0]
    with torch.no_grad(), steer(pipe, PAG(3)):
        halves = pipe.unet(START.repeat(2, 1, 1, 1), t, text.repeat_interleave(2, 0)).sample
        turns = pipe.unet(START.repeat_interleave(2, 0), t, text.repeat(2, 1, 1)).sample
        torch.testing.assert_close(turns, halves[:2].repeat_interleave(2, 0))
        with pytest.raises(ValueError, match="does not give its scheduler what its network answ"):
            pipe.scheduler.step(halves[:2] + START, t, START)


def test_a_network_of_more_channels_than_are_denoised(sd) -> None:
    parts = sd().components | {"unet": tiny.unet(in_channels=9)}
    pipe = diffusers.StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    network, inputs = PipelineNetwork.of(pipe), torch.randn(2, 9, 8, 8)
    text = torch.randn(2, 5, 32)
    with torch.no_grad():
        want = pipe.unet(inputs, 500, text).sample
        told = {"timestep": torch.tensor(500), "encoder_hidden_states": text}
        level = network.schedule.at(torch.tensor(500.0).double())
        got = network(inputs[:, :4], level, network.condition(told, inputs))
    torch.testing.assert_close(got, want)
    with pytest.raises(ValueError, match="LTXVideo.* can be guided by steer.pipe, guidance. alone"):
        PipelineNetwork.of(named("LTX").build())


def test_what_devices_without_autocast_compute() -> None:
    x = torch.ones(1, 2, 4, 4, device="meta")
    call = Call.read(Emptying(), {"sample": x, "residuals": x, "kept": None})
    with call.autocast():
        assert blur(x, 1.0, 3).shape == x.shape and received(x, x).shape == (1, 4)


@pytest.mark.parametrize("other", [None, 0.001, 1.0])
def test_rows_are_told_from_those_of_another_condition(other: float | None) -> None:
    """By a quarter of their distance, where a call has other rows and texts of frames."""
    x, text = torch.ones(1, 4, 8, 8), torch.zeros(4, 5, 3)
    answered = x if other is None else torch.cat([x, x + other])
    call = Call.read(Emptying(), {"sample": answered, "residuals": text, "kept": None})
    assert call.frames_apart
    part, batches = Part(call, slice(1)), Batches(None)
    near = (x * 1.0005, pytest.raises(NotDivided) if other == 0.001 else nullcontext())
    far = (x + 0.009, pytest.raises(NotDivided))
    for out, expected in (near, far):
        with expected:
            batches._compare(part, answered, out)
