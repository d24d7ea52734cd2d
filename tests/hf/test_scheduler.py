"""Our samplers inside untouched diffusers pipelines with tiny real components."""

import json
import math
import warnings
from pathlib import Path

import diffusers
import pytest
import tiny
import torch
from diffusers.schedulers import AysSchedules

from diffsteer import DDIM, DDPM, Discrete, DPMpp2M, Sampler, UniPC, V, grid
from diffsteer.core.noise import Noise
from diffsteer.core.oracle import Bright, Gaussian, antithetic
from diffsteer.core.sampler import trace
from diffsteer.hf.scheduler import SteerScheduler

F64 = torch.float64
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
ZERO = {**SD, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
SD0 = Discrete.scaled_linear().zero_snr()


def last(steps):
    *_, step = steps
    return step.x


def predict_v(pipe, data) -> list[float]:
    """Make the pipeline's network the perfect v-network of `data`; returns the times asked."""
    asked = []

    def forward(sample, timestep, *args, **kwargs):
        asked.append(float(timestep))
        level = SD0.at(float(timestep))
        v = V().output_for_x0(sample.double(), data(sample.double(), level), level)
        return (v.to(sample.dtype),)

    pipe.unet.forward = forward
    return asked


@pytest.fixture(scope="module")
def pipes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipe")
    return lambda kind, scheduler: tiny.stable_diffusion(
        scheduler, folder, f"StableDiffusion{kind}"
    )


def embeds(n: int) -> dict[str, torch.Tensor]:
    one = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(3))
    return {
        "prompt_embeds": one.expand(n, -1, -1),
        "negative_prompt_embeds": 0 * one.expand(n, -1, -1),
    }


@pytest.mark.parametrize("sampler", [DDIM(), DDPM, DPMpp2M(), UniPC()], ids=repr)
def test_brightness_in_the_pipeline(pipes, sampler) -> None:
    """0.600 +- 0.02 at 4x8x8, S = 25; the first call is at the last timestep."""
    n = 1024 if sampler == DDPM else 64
    pipe = pipes("Pipeline", SteerScheduler(**ZERO, sampler=repr(sampler)))
    asked = predict_v(pipe, Bright())
    x = pipe(
        **embeds(n),
        num_inference_steps=25,
        guidance_scale=1,
        latents=antithetic(n, (4, 8, 8)).float(),
        generator=[torch.Generator().manual_seed(i) for i in range(n)],
        output_type="latent",
    ).images
    assert asked == [999.0 - 40 * i for i in range(25)]
    assert x.mean().item() == pytest.approx(0.6, abs=0.02)


@pytest.mark.parametrize("sampler", [DDIM(), DDPM, DPMpp2M(), UniPC()], ids=repr)
def test_pipeline_equals_our_own_loop(pipes, sampler) -> None:
    """Same network, noise and guidance through the pipeline and through `trace`."""
    pipe = pipes("Pipeline", SteerScheduler(**ZERO, sampler=repr(sampler)))
    start = Noise([1, 2])(torch.empty(2, 4, 8, 8))
    cond = embeds(2)
    got = pipe(
        **cond,
        num_inference_steps=7,
        guidance_scale=4.0,
        latents=start,
        generator=[torch.Generator().manual_seed(i) for i in (5, 6)],
        output_type="latent",
    ).images

    @torch.no_grad()
    def denoise(x, level):
        c, u = (
            pipe.unet(x, int(level.t), encoder_hidden_states=cond[k]).sample
            for k in ("prompt_embeds", "negative_prompt_embeds")
        )
        return V().solve(x, u + 4.0 * (c - u), level)[0]

    want = last(trace(sampler, start, grid(SD0, 7), denoise, Noise([5, 6])))
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-5)


def test_image_to_image(pipes) -> None:
    """From strength 0.6: our noise on the image, then our steps from there."""
    pipe = pipes("Img2ImgPipeline", SteerScheduler(**ZERO, sampler="UniPC()"))
    asked = predict_v(pipe, Gaussian(0.6, 0.3))
    image = torch.rand(2, 4, 8, 8)
    run = {"num_inference_steps": 10, "strength": 0.6, "guidance_scale": 1, "output_type": "latent"}
    got = pipe(**embeds(2), image=image, generator=torch.Generator().manual_seed(0), **run).images
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    levels = grid(SD0, 10)[4:]
    assert asked == [level.t for level in levels[:-1]]
    want = last(trace(UniPC(), levels[0].mix(image, noise), levels, Gaussian(0.6, 0.3)))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_inpainting(pipes) -> None:
    """What is kept comes out as it went in; what is new is of the data, from pure noise."""
    pipe = pipes("InpaintPipeline", SteerScheduler(**ZERO, sampler="DPMpp2M()"))
    predict_v(pipe, Gaussian(0.6, 0.3))
    image, mask = torch.rand(8, 4, 8, 8), torch.zeros(8, 1, 16, 16)
    mask[..., 8:] = 1
    pipe._encode_vae_image = lambda *_, **__: image
    got = pipe(
        **embeds(8),
        image=torch.rand(8, 3, 16, 16),
        mask_image=mask,
        height=16,
        width=16,
        num_inference_steps=25,
        strength=1.0,
        guidance_scale=1,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
    ).images
    torch.testing.assert_close(got[..., :4], image[..., :4])
    new = got[..., 4:]
    assert new.mean().item() == pytest.approx(0.6, abs=4 * 0.3 / math.sqrt(new.numel()))
    assert new.std().item() == pytest.approx(0.3, rel=0.15)  # 25 steps lose 10 %


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_latents(dtype) -> None:
    """Latents that are rounded at each step keep the brightness within 0.007."""
    scheduler = SteerScheduler(**ZERO)
    scheduler.set_timesteps(25)
    x = antithetic(256, (4, 8, 8)).to(dtype)
    for t in scheduler.timesteps:
        level = SD0.at(float(t))
        v = V().output_for_x0(x.double(), Bright()(x.double(), level), level).to(dtype)
        x = scheduler.step(v, t, x).prev_sample
        assert x.dtype == dtype
    assert x.double().mean().item() == pytest.approx(0.6, abs=0.007)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype) -> None:
    """A step computes in float32: half precision loses what its output is rounded by, no more."""
    x, v = torch.randn(2, 2, 4, 8, 8).to(dtype).unbind()
    low, high = SteerScheduler(**ZERO), SteerScheduler(**ZERO)
    for scheduler in (low, high):
        scheduler.set_timesteps(10)
    want = high.step(v.float(), 499, x.float()).prev_sample.to(dtype)
    assert torch.equal(low.step(v, 499, x).prev_sample, want)


def test_timesteps_on_a_device_are_not_read() -> None:
    """After the first step they are counted; a meta tensor holds no number that could be read."""
    x, v = torch.randn(2, 1, 4, 8, 8).unbind()
    runs = []
    for device in ("cpu", "meta"):
        scheduler = SteerScheduler(**ZERO, sampler="UniPC()")
        scheduler.set_timesteps(3)
        state = scheduler.step(v, scheduler.timesteps[0], x).prev_sample
        for t in scheduler.timesteps[1:]:
            state = scheduler.step(v, t.to(device), state).prev_sample
        runs.append(state)
    assert torch.equal(*runs)
    scheduler.set_timesteps(3)
    scheduler.set_begin_index(1)
    scheduler.step(v, scheduler.timesteps[1].to("meta"), x)
    assert scheduler.step_index == 2
    scheduler.set_timesteps(5)
    assert scheduler.step_index is None and scheduler.begin_index is None


def test_save_and_load(pipes, tmp_path: Path) -> None:
    """A pipeline with our scheduler is saved and loaded as any other; samples are bit-identical."""
    scheduler = SteerScheduler(**ZERO, sampler="UniPC()", timestep_spacing="logsigma")
    pipe = pipes("Pipeline", scheduler)
    pipe.save_pretrained(tmp_path)
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert isinstance(again.scheduler, SteerScheduler)
    assert {k: v for k, v in again.scheduler.config.items() if k[0] != "_"} == {
        k: v for k, v in scheduler.config.items() if k[0] != "_"
    }
    run = {"num_inference_steps": 4, "output_type": "latent", "latents": torch.randn(1, 4, 8, 8)}
    assert torch.equal(pipe("a cat", **run).images, again("a cat", **run).images)
    config = json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())
    assert SteerScheduler.from_config(config).sampler == UniPC()


VP = """DDIM DDIMParallel DDPM DDPMParallel DEISMultistep DPMSolverMultistep DPMSolverSinglestep
EulerAncestralDiscrete EulerDiscrete HeunDiscrete KDPM2Discrete PNDM UniPCMultistep"""


@pytest.mark.parametrize("name", VP.split())
@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_takes_every_vp_config(name: str, beta_schedule: str) -> None:
    """Same alphas as the scheduler it came from; float32 products there, hence 1e-5."""
    theirs = getattr(diffusers, f"{name}Scheduler")(
        beta_schedule=beta_schedule, prediction_type="v_prediction"
    )
    ours = SteerScheduler.from_config(theirs.config)
    assert ours.config.prediction_type == "v_prediction"
    spacing = theirs.config.get("timestep_spacing", "trailing")  # one of them has none
    assert ours.config.timestep_spacing == spacing
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod, atol=1e-6, rtol=2e-5)


def test_keeps_what_the_config_says() -> None:
    theirs = diffusers.EulerDiscreteScheduler(
        **SD, timestep_spacing="leading", steps_offset=1, use_karras_sigmas=False
    )
    ours = SteerScheduler.from_config(theirs.config)
    theirs.set_timesteps(20)
    ours.set_timesteps(20)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    karras = diffusers.DPMSolverMultistepScheduler(**SD, use_karras_sigmas=True)
    assert SteerScheduler.from_config(karras.config).config.timestep_spacing == "karras"
    override = SteerScheduler.from_config(karras.config, timestep_spacing="linspace")
    assert override.config.timestep_spacing == "linspace"
    betas = torch.linspace(1e-4, 0.02, 50).tolist()
    trained = diffusers.DDIMScheduler(num_train_timesteps=50, trained_betas=betas)
    assert len(SteerScheduler.from_config(trained.config)) == 50
    assert SteerScheduler.from_config(trained.config).config.clip_sample  # in force there, so here


def test_the_spacing_survives_every_save(tmp_path: Path) -> None:
    """Said, changed in a dict, filled in, saved by either: what the config says is what is used."""
    old = diffusers.DDIMScheduler(**{**SD, "prediction_type": "v_prediction"})
    said = SteerScheduler.from_config({**old.config, "timestep_spacing": "linspace"})
    assert said.config.timestep_spacing == "linspace"
    old.save_pretrained(tmp_path)
    for config in (old.config, diffusers.DDIMScheduler.from_pretrained(tmp_path).config):
        assert SteerScheduler.from_config(config).config.timestep_spacing == "leading"
    assert SteerScheduler.from_pretrained(tmp_path).config.timestep_spacing == "leading"
    ours = SteerScheduler(**ZERO)
    for cls in (diffusers.DDIMScheduler, diffusers.DPMSolverMultistepScheduler):
        theirs = cls.from_config(ours.config)
        assert theirs.config.timestep_spacing == "trailing"
        assert theirs.config.rescale_betas_zero_snr


def test_a_sampler_that_asks_twice_is_caught() -> None:
    class Asks(Sampler):
        def step(self, x, now, nxt, denoise, past, noise):
            return denoise(denoise(x, now), nxt), x

    scheduler = SteerScheduler(**ZERO, sampler="Asks()")
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match="asks twice a step"):
        scheduler.step(torch.randn(1, 4), 999, torch.randn(1, 4))


def test_clip_sample() -> None:
    scheduler = SteerScheduler(clip_sample=True, clip_sample_range=0.5, prediction_type="sample")
    scheduler.set_timesteps(1)
    x = torch.randn(1, 3, 4, 4)
    got = scheduler.step(3 * torch.ones_like(x), 999, x).prev_sample
    torch.testing.assert_close(got, torch.full_like(x, 0.5))


def test_noise_and_velocity() -> None:
    scheduler = SteerScheduler(**ZERO)
    x0, eps = torch.randn(2, 3, 4, 8, 8).unbind()
    t = torch.tensor([0, 500, 999])
    level = SD0.at(t)
    noisy = scheduler.add_noise(x0, eps, t)
    torch.testing.assert_close(noisy, level.mix(x0, eps))
    assert torch.equal(noisy[2], eps[2])
    torch.testing.assert_close(scheduler.get_velocity(x0, eps, t), V().target(x0, eps, level))
    assert torch.equal(scheduler.get_velocity(x0, eps, t)[2], -x0[2])
    one = scheduler.add_noise(x0, eps, torch.tensor([999]))
    assert torch.equal(one, eps)
    assert torch.equal(scheduler.scale_model_input(x0, 3), x0)
    assert scheduler.init_noise_sigma == 1 and len(scheduler) == 1000


def test_steps_out_of_turn_forget_the_past() -> None:
    """A second-order sampler must not take another step's past for its own."""
    a, b = (SteerScheduler(**ZERO, sampler="DPMpp2M()") for _ in range(2))
    for s in (a, b):
        s.set_timesteps(10)
    x, v = torch.randn(2, 1, 4, 8, 8).unbind()
    a.step(v, 999, x)
    a.step(2 * v, 899, x)
    got = a.step(v, 499, x, return_dict=False)[0]
    assert torch.equal(got, b.step(v, 499, x, return_dict=False)[0])
    assert a.step_index == 6


LIES = [
    ({**SD, "rescale_betas_zero_snr": True}, "'epsilon' with zero terminal SNR cannot be"),
    ({**ZERO, "prediction_type": "velocity"}, "prediction_type='velocity' is not known"),
    ({**ZERO, "prediction_type": "flow_prediction"}, "does not belong to a variance-preserving"),
    ({**ZERO, "beta_schedule": "sigmoid"}, "beta_schedule='sigmoid' is not known"),
    (
        {**ZERO, "timestep_spacing": "even"},
        "timestep_spacing='even' is not known: there are trailing",
    ),
    ({**ZERO, "trained_betas": [0.1, 0.2]}, "2 trained_betas do not fit num_train_timesteps=1000"),
    ({**ZERO, "sampler": "Heun()"}, "evaluates the network 2 times a step"),
    ({**ZERO, "sampler": "Nope()"}, "unknown Sampler 'Nope'; there are .*DDIM"),
    ({**ZERO, "sampler": "().__class__"}, "unknown .__class__"),
    ({**ZERO, "rescale_betas_zero_snr": "false"}, "rescale_betas_zero_snr='false' is a str"),
    ({**ZERO, "num_train_timesteps": 1000.7}, "num_train_timesteps=1000.7 is a float"),
    ({**ZERO, "steps_offset": -1}, "steps_offset=-1 must be >= 0"),
    ({**ZERO, "clip_sample_range": -1.0}, "clip_sample_range=-1.0 must be > 0"),
    ({**SD, "beta_end": None}, "beta_end=None is a NoneType"),
    ({**SD, "prediction_type": ["v_prediction"]}, "is a list: give str"),
    ({"_class_name": "DDIMInverseScheduler", **SD}, "goes from data to noise"),
    ({"_class_name": "RePaintScheduler", **SD}, "back and forth"),
    (dict(diffusers.IPNDMScheduler().config), "has no betas"),
    (None, "maps settings to values"),
    ({**SD, "beta_start": -1.0}, "betas from -1.0 to 0.012 make no schedule"),
    ({"_class_name": "LCMScheduler", **SD}, "distilled network"),
    ({**SD, "thresholding": True}, "thresholding=True cannot be honoured"),
    ({**SD, "use_beta_sigmas": True}, "use_beta_sigmas=True cannot be honoured"),
    ({**SD, "snr_shift_scale": 3.0}, "snr_shift_scale=3.0 cannot be honoured"),
    ({**SD, "variance_type": "learned_range"}, "also predicts its variance"),
    ({**SD, "sigma_max": 20.0}, "sigma_max=20.0 cannot be honoured"),
    (dict(diffusers.FlowMatchEulerDiscreteScheduler().config), "has no betas"),
    (dict(diffusers.EDMEulerScheduler().config), "has no betas"),
    (dict(diffusers.CogVideoXDDIMScheduler().config), "snr_shift_scale=3.0 cannot be honoured"),
]


@pytest.mark.parametrize(("config", "says"), LIES, ids=lambda v: v if isinstance(v, str) else "")
def test_a_config_that_cannot_be_honoured_raises(config, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SteerScheduler.from_config(config)


def test_an_offset_past_the_last_timestep() -> None:
    made = SteerScheduler(timestep_spacing="leading", steps_offset=1)
    made.set_timesteps(999)
    with pytest.raises(ValueError, match="steps_offset=1 moves the first of 1000 .* past the") as e:
        made.set_timesteps(1000)
    assert len(str(e.value)) < 200


def test_bad_use() -> None:
    scheduler = SteerScheduler(**ZERO)
    x = torch.randn(1, 4, 8, 8)
    with pytest.raises(ValueError, match="call set_timesteps"):
        scheduler.step(x, 999, x)
    for n in (0, 1001):
        with pytest.raises(ValueError, match="steps"):
            scheduler.set_timesteps(n)
    with pytest.raises(ValueError, match="give one of num_inference_steps"):
        scheduler.set_timesteps()
    with pytest.raises(ValueError, match="must lie below"):
        scheduler.set_timesteps(timesteps=[1, 500])
    scheduler.set_timesteps(timesteps=[999, 400])
    with pytest.raises(ValueError, match="timestep 500 is none of the 2"):
        scheduler.step(x, 500, x)
    with pytest.raises(ValueError, match="learned variances"):
        scheduler.step(torch.cat([x, x], 1), 999, x)
    with pytest.raises(ValueError, match="no timestep is left to start from"):
        scheduler.add_noise(x, x, torch.tensor([]))
    with pytest.raises(ValueError, match="has no setting sampIer"):
        SteerScheduler.from_config(ZERO, sampIer="DDIM()")


def test_eta_belongs_to_the_sampler(pipes) -> None:
    """DDIM pipelines pass 0 unasked; another value has to be the sampler's own."""
    pipe = pipes("Pipeline", SteerScheduler(**ZERO, sampler="DDIM(eta=0.5)"))
    run = {"num_inference_steps": 2, "output_type": "latent"}
    pipe("a cat", **run)
    pipe("a cat", eta=0.5, **run)
    with pytest.raises(ValueError, match="eta=1.0 contradicts"):
        pipe("a cat", eta=1.0, **run)
    plain = tiny.unconditional(diffusers.DDIMScheduler(), "DDIMPipeline")
    plain.scheduler = SteerScheduler(
        sampler="DDIM()", clip_sample=True
    )  # it replaces others at start
    made = plain(
        num_inference_steps=3, output_type="np", generator=torch.Generator().manual_seed(0)
    )
    assert made.images.shape == (1, 16, 16, 3)


def test_leading_at_zero_snr_warns() -> None:
    with pytest.warns(UserWarning, match="never visits the last timestep"):
        SteerScheduler(**ZERO, timestep_spacing="leading")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SteerScheduler(**ZERO)


def test_custom_sigmas() -> None:
    """Levels of exactly these sigma / alpha, with or without the 0 at the end, as diffusers has."""
    sigmas = AysSchedules["StableDiffusionSigmas"]
    made = SteerScheduler(**SD)
    made.set_timesteps(sigmas=sigmas)
    levels = made._levels
    assert [level.ratio.item() for level in levels[:-1]] == pytest.approx(sigmas[:-1], rel=3e-5)
    assert [level.ratio.item() for level in levels[1:-1]] == pytest.approx(sigmas[1:-1])
    euler = diffusers.EulerDiscreteScheduler.from_config(made.config)
    euler.set_timesteps(sigmas=sigmas)
    torch.testing.assert_close(made.timesteps.float(), euler.timesteps.float(), atol=0.5, rtol=0)
    before = made.timesteps.clone()
    made.set_timesteps(sigmas=torch.tensor(sigmas[:-1]))
    torch.testing.assert_close(made.timesteps, before)
    for bad, match in (
        ([5.0, 0.0, 1.0], "> 0, from most to least"),
        ([1.0, 5.0], "below the one before"),
        ([200.0, 1.0], "sigma"),
        ([], "> 0, from most to least"),
        ("ays-sd15", "no table is called 'ays-sd15': there are ays-sd, ays-sdxl, ays-svd"),
    ):
        with pytest.raises(ValueError, match=match):
            made.set_timesteps(sigmas=bad)
    with pytest.raises(ValueError, match="give one of"):
        made.set_timesteps(10, sigmas=sigmas)
    made.set_timesteps(sigmas="ays-sd")
    assert made.timesteps.tolist() == AysSchedules["StableDiffusionTimesteps"]


def test_a_table_of_align_your_steps_by_name() -> None:
    made = SteerScheduler(**SD, timestep_spacing="ays-sdxl")
    made.set_timesteps(10)
    assert made.timesteps.tolist() == AysSchedules["StableDiffusionXLTimesteps"]
    assert made.timesteps.dtype == torch.int64
