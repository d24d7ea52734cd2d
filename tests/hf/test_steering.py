"""Steered pipelines against diffusers' own, with tiny real components."""

import accelerate
import diffusers
import pytest
import tiny
import torch
from diffusers.models.attention_processor import AttnProcessor2_0, JointAttnProcessor2_0

from diffsteer import APG, CFG, PAG, SAG, SEG, Auto, AutoDropout, AutoNoise, CFGZero, V
from diffsteer.core.errors import InputError
from diffsteer.core.noise import seeds_of
from diffsteer.hf.families import image_attention
from diffsteer.hf.scheduler import SteerScheduler
from diffsteer.hf.timesteps import timestep_schedule
from diffsteer.steering import steer

SD = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}
START = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a cat", "a red dog"]
MID = "mid_block.attentions.0.transformer_blocks.0.attn1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pipe")


@pytest.fixture
def sd(folder):
    return lambda kind="epsilon", cls="StableDiffusionPipeline": tiny.stable_diffusion(
        diffusers.DDIMScheduler(**SD, prediction_type=kind), folder, cls
    )


def sampled(pipe, prompt=PROMPTS, scale=5.0, steps=5, **more):
    more = {"latents": START, "output_type": "latent"} | more
    return pipe(prompt, num_inference_steps=steps, guidance_scale=scale, **more).images


def counted(network):
    """Batch sizes of the calls of a network, by its first layer."""
    sizes = []
    first = next(m for m in network.modules() if isinstance(m, torch.nn.Conv2d))
    first.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    return sizes


# ------------------------------------------------------------------ parity


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("scale", [1.5, 9.0])
def test_cfg_is_the_pipelines_own(sd, kind: str, scale: float) -> None:
    """Whatever scale the pipeline itself is called with, and in one pass of as many rows."""
    pipe = sd(kind)
    want = sampled(pipe, scale=5.0)
    sizes = counted(pipe.unet)
    with steer(pipe, CFG(5)):
        got = sampled(pipe, scale=scale)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-5)
    assert sizes == [4] * 5


def pag_pipeline(pipe, layer):
    made = diffusers.StableDiffusionPAGPipeline(
        **pipe.components, requires_safety_checker=False, pag_applied_layers=layer
    )
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("layer", ["mid", "down_blocks.1"])
def test_pag_is_diffusers_pag(sd, layer: str) -> None:
    pipe = sd()
    theirs = pag_pipeline(sd(), layer)
    want = sampled(theirs, pag_scale=3.0)
    sizes = counted(pipe.unet)
    with steer(pipe, CFG(5) + PAG(3, layer=layer)):
        got = sampled(pipe)
    torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-5)
    assert sizes == [6] * 5


def sag_pipeline(pipe):
    parts = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    made = diffusers.StableDiffusionSAGPipeline(
        **{name: getattr(pipe, name) for name in parts},
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def every_step(pipe, **more):
    """Latents after each step."""
    seen = []
    step = pipe.scheduler.step

    def watched(*args, **kwargs):
        out = step(*args, **kwargs)
        seen.append(out[0] if isinstance(out, tuple) else out.prev_sample)
        return out

    pipe.scheduler.step = watched
    sampled(pipe, **more)
    return torch.stack(seen)


@pytest.mark.parametrize("scale", [5.0, 1.0])
def test_sag_is_diffusers_sag_for_eps(sd, scale: float) -> None:
    """At every step; with CFG on the null branch, without on the prompt's."""
    want = every_step(sag_pipeline(sd()), scale=scale, sag_scale=0.75)
    pipe = sd()
    guidance = CFG(5) + SAG(0.75) if scale > 1 else SAG(0.75, on="cond")
    with steer(pipe, guidance):
        got = every_step(pipe, scale=scale)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-5)


def test_sag_for_v_is_the_eps_rule_which_diffusers_misses(sd) -> None:
    """One step of a v-network, by hand from its own outputs: e + s (e - e_bar) in eps."""
    pipe, s = sd("v_prediction"), 0.75
    want = every_step(sag_pipeline(sd("v_prediction")), scale=1.0, sag_scale=s)
    outs = []
    forward = pipe.unet.forward
    pipe.unet.forward = lambda *a, **k: outs.append((k["sample"], forward(*a, **k))) or outs[-1][1]
    with steer(pipe, SAG(s, on="cond")):
        got = every_step(pipe, scale=1.0)
        schedule = timestep_schedule(pipe.scheduler)[0]
    (x, (v,)), (x_bar, (v_bar,)) = outs[:2]
    level = schedule.at(pipe.scheduler.timesteps[0])
    e, e_bar = V().solve(x, v, level)[1], V().solve(x_bar, v_bar, level)[1]
    guided = e + s * (e - e_bar)
    eps = diffusers.DDIMScheduler(**SD, prediction_type="epsilon")
    eps.set_timesteps(5)
    first = eps.step(guided, eps.timesteps[0], START).prev_sample
    torch.testing.assert_close(got[0], first, atol=1e-4, rtol=1e-4)
    assert (got[0] - want[0]).abs().max() > 1e-3  # diffusers takes the difference in v


def test_seg_with_infinite_blur_replaces_queries_by_their_mean(sd) -> None:
    """Against the same network with a processor that does it to the whole batch."""
    pipe = sd()

    class Mean(AttnProcessor2_0):
        def __call__(self, attn, hidden_states, *args, **kwargs):
            ask = attn.to_q.forward
            attn.to_q.forward = lambda h: (
                ask(h).mean(dim=1, keepdim=True).expand(-1, h.shape[1], -1)
            )
            try:
                return super().__call__(attn, hidden_states, *args, **kwargs)
            finally:
                attn.to_q.forward = ask

    x, t = START, torch.tensor(500)
    text = torch.randn(2, 16, 32)
    with torch.no_grad():
        plain = pipe.unet(x, t, text).sample
        layer = pipe.unet.get_submodule(MID)
        before, layer.processor = layer.processor, Mean()
        blurred = pipe.unet(x, t, text).sample
        layer.processor = before
        with steer(pipe, SEG(3)):
            got = pipe.unet(x, t, text).sample
    torch.testing.assert_close(got, plain + 3 * (plain - blurred), atol=1e-4, rtol=1e-3)


def test_auto_is_the_formula(sd) -> None:
    """One step: guide + w (main - guide); the guide has another size and runs once a step."""
    pipe, guide = sd(), sd()
    torch.manual_seed(9)
    guide.unet = diffusers.UNet2DConditionModel.from_config(
        pipe.unet.config, block_out_channels=(16, 32)
    ).eval()
    text, t = torch.randn(2, 16, 32), torch.tensor(500)
    with torch.no_grad():
        good, bad = (u(START, t, text).sample for u in (pipe.unet, guide.unet))
        sizes = counted(guide.unet)
        with steer(pipe, Auto(2.5), guide=guide):
            got = pipe.unet(START, t, text).sample
    torch.testing.assert_close(got, bad + 2.5 * (good - bad), atol=1e-4, rtol=1e-4)
    assert sizes == [2]


@pytest.mark.parametrize("guidance", [AutoNoise(2, noise=0.2), AutoDropout(2, p=0.3)], ids=repr)
def test_synthetic_guides(sd, guidance) -> None:
    """A sample is the same alone and in a batch, and the surroundings are as they were."""
    pipe = sd()
    plain = sampled(pipe)
    state = torch.get_rng_state()
    sizes = counted(pipe.unet)
    with steer(pipe, CFG(5) + guidance):
        got = sampled(pipe)
        assert torch.equal(sampled(pipe), got)
        alone = sampled(pipe, PROMPTS[1:], latents=START[1:])
        again = sampled(pipe, PROMPTS[1:], latents=START[1:] + 0.5)
    torch.testing.assert_close(alone, got[1:], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(got, plain, atol=1e-2) and not torch.allclose(again, alone, atol=1e-2)
    assert sizes[:10] == ([4, 2] * 5 if isinstance(guidance, AutoNoise) else [6] * 10)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in pipe.unet.modules())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_draws_the_same_noise(sd, dtype) -> None:
    """What AutoNoise adds to its input in half precision is what it adds in float32."""

    def added(dtype: torch.dtype) -> torch.Tensor:
        pipe = sd().to(dtype)
        forward, inputs = pipe.unet.forward, []
        pipe.unet.forward = lambda *a, **k: inputs.append(k["sample"].float()) or forward(*a, **k)
        with torch.no_grad(), steer(pipe, CFG(5) + AutoNoise(2, noise=0.5)):
            sampled(pipe, steps=1, latents=START.to(dtype))
        del pipe.unet.forward
        plain, noisier = inputs
        return (noisier - plain[:2]).flatten(1)

    assert torch.cosine_similarity(added(dtype), added(torch.float32)).min() > 0.95


def test_seeds_differ_by_sample_alone() -> None:
    """Rounding, scale and batch change no seed; a thousand samples have as many."""
    x = torch.randn(1000, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    seeds = seeds_of(x)
    assert len(set(seeds)) == 1000
    for other in (x.half(), x.bfloat16(), x.double(), 14.6 * x):
        assert seeds_of(other) == seeds
    assert seeds_of(x[3:5]) == seeds[3:5]
    large = torch.randn(2, 16, 5, 64, 64, generator=torch.Generator().manual_seed(0))
    assert seeds_of(large.half()) == seeds_of(large)


def test_dropout_of_a_compiled_network(sd) -> None:
    pipe, total = sd(), CFG(5) + AutoDropout(2)
    with steer(pipe, total):
        want = sampled(pipe, steps=2)
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    with steer(pipe, total):
        torch.testing.assert_close(sampled(pipe, steps=2), want, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("t", [500, torch.tensor(500), torch.tensor([500, 500])], ids=repr)
def test_input_noise_tells_the_network(sd, t) -> None:
    """One call, by hand: the network at the risen level and its own timestep between two."""
    pipe = sd()
    seen = []
    forward = pipe.unet.forward
    pipe.unet.forward = lambda *a, **k: seen.append(k) or forward(*a, **k)
    text = torch.randn(2, 16, 32)
    with torch.no_grad(), steer(pipe, AutoNoise(3, noise=0.5)):
        got = pipe.unet(START, t, text).sample
        schedule = timestep_schedule(pipe.scheduler)[0]
    del pipe.unet.forward
    now = schedule.at(500)
    level = schedule.at(schedule.time(1.5 * now.ratio))
    told = seen[1]["timestep"]
    assert told.is_floating_point() and told.shape == torch.as_tensor(t).shape
    assert told.flatten()[0].item() == pytest.approx(level.t) and level.t != level.t.round()
    with torch.no_grad():
        good = pipe.unet(START, torch.tensor(500), text).sample
        bad = pipe.unet(seen[1]["sample"], level.t.float(), text).sample
    x0 = [
        (x - v.sigma * e) / v.alpha
        for x, v, e in ((START, now, good), (seen[1]["sample"], level, bad))
    ]
    want = good - 2 * (x0[0] - x0[1]) * now.alpha / now.sigma
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_everything_in_the_fewest_passes(sd) -> None:
    """CFG + PAG + Auto: one pass of 3 rows a sample, one of the guide; SAG one row more inside."""
    pipe, guide = sd(), sd()
    main, weak = counted(pipe.unet), counted(guide.unet)
    with steer(pipe, CFG(5) + PAG(3) + Auto(2) + SAG(0.5).within(0, 2), guide=guide):
        sampled(pipe)
    assert main == [6, 6, 6, 2, 6, 2, 6, 2] and weak == [2] * 5


# ------------------------------------------------------------------ other pipelines


@pytest.mark.parametrize(
    "cls", ["StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"]
)
def test_image_to_image_and_inpainting(sd, cls: str) -> None:
    pipe = sd(cls=cls)
    more = {"image": torch.rand(2, 3, 16, 16), "strength": 0.8, "output_type": "latent"}
    if "Inpaint" in cls:
        more |= {"mask_image": torch.ones(2, 1, 16, 16), "height": 16, "width": 16}

    def run(scale):
        generator = torch.Generator().manual_seed(0)
        return pipe(
            PROMPTS, num_inference_steps=5, guidance_scale=scale, generator=generator, **more
        ).images

    want = run(5.0)
    with steer(pipe, CFG(5)):
        torch.testing.assert_close(run(2.0), want, atol=1e-4, rtol=1e-5)
    with steer(pipe, CFG(5) + PAG(2) + SAG(0.5)):
        assert not torch.allclose(run(2.0), want, atol=1e-2)


def test_controlnet(sd) -> None:
    base = sd()
    torch.manual_seed(3)
    control = diffusers.ControlNetModel.from_unet(base.unet, conditioning_channels=3).eval()
    tiny._perturb(control)
    parts = {k: v for k, v in base.components.items() if k != "controlnet"}
    pipe = diffusers.StableDiffusionControlNetPipeline(
        **parts, controlnet=control, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    picture = torch.rand(2, 3, 64, 64)
    more = {"image": picture}
    want = sampled(pipe, **more)
    assert not torch.allclose(want, sampled(base), atol=1e-2)
    with steer(pipe, CFG(5)):
        torch.testing.assert_close(sampled(pipe, scale=2.0, **more), want, atol=1e-4, rtol=1e-5)
    with steer(pipe, CFG(5) + SAG(0.5)):
        assert sampled(pipe, **more).isfinite().all()
    with steer(pipe, PAG(2)):
        assert sampled(pipe, scale=1.0, **more).isfinite().all()
    with steer(pipe, CFG(5)), pytest.raises(ValueError, match="residual changes from step to"):
        sampled(pipe, scale=1.0, **more)  # which it makes for the prompt alone


@pytest.mark.parametrize("xl", [False, True])
def test_null_prompt_while_the_pipelines_own_guidance_is_off(sd, folder, xl: bool) -> None:
    """SDXL's base takes zeros where no negative prompt is given, and an empty text for ""."""
    pipe = tiny.sdxl(diffusers.DDIMScheduler(**SD), folder) if xl else sd()
    for more in ({}, {"negative_prompt": ["red", "green"]}, {"negative_prompt": ["", ""]}):
        want = sampled(pipe, **more)
        with steer(pipe, CFG(5)):
            torch.testing.assert_close(sampled(pipe, scale=1.0, **more), want, atol=1e-4, rtol=1e-5)
    with steer(pipe, CFG(5), null="red"):
        own = sampled(pipe, scale=1.0)
        torch.testing.assert_close(own, sampled(pipe, scale=1.0, negative_prompt=["red"] * 2))
        assert not torch.allclose(own, sampled(pipe, scale=1.0, negative_prompt=["green"] * 2))


def test_sdxl(folder) -> None:
    pipe = tiny.sdxl(diffusers.EulerDiscreteScheduler(**{k: SD[k] for k in list(SD)[:4]}), folder)
    want = sampled(pipe)
    with steer(pipe, CFG(5)):
        torch.testing.assert_close(sampled(pipe, scale=2.0), want, atol=1e-4, rtol=1e-5)
    theirs = diffusers.StableDiffusionXLPAGPipeline(**pipe.components, add_watermarker=False)
    theirs.set_progress_bar_config(disable=True)
    want = sampled(theirs, pag_scale=3.0)
    pipe.unet.set_attn_processor(AttnProcessor2_0())
    with steer(pipe, CFG(5) + PAG(3)):
        torch.testing.assert_close(sampled(pipe), want, atol=1e-3, rtol=1e-5)
    with steer(pipe, CFG(5) + SAG(0.75)):  # Euler, SDXL: diffusers has neither
        assert sampled(pipe).isfinite().all()


@pytest.mark.parametrize("cls", ["DDIMPipeline", "DDPMPipeline"])
def test_unconditional(cls: str) -> None:
    """No prompt, no null half: SAG works on the one branch there is, CFG is refused."""
    pipe = tiny.unconditional(diffusers.DDIMScheduler(clip_sample=False), cls)

    def run():
        generator = torch.Generator().manual_seed(0)
        return torch.tensor(
            pipe(batch_size=2, num_inference_steps=4, generator=generator, output_type="np").images
        )

    plain = run()
    with steer(pipe, SAG(0.8, on="cond")):
        assert not torch.equal(run(), plain)
    with steer(pipe, SAG(0.8, on="cond").over(7, 9)):
        assert torch.equal(run(), plain)
    with steer(pipe, CFG(3)), pytest.raises(ValueError, match="asks for the condition 'null'"):
        run()
    assert torch.equal(run(), plain)


def test_dit() -> None:
    """The prompt's half comes first there, and learned variances pass through."""
    pipe = tiny.dit(diffusers.DDIMScheduler(clip_sample=False))

    def run(scale):
        generator = torch.Generator().manual_seed(0)
        more = {"num_inference_steps": 4, "generator": generator, "output_type": "np"}
        return torch.tensor(pipe([1, 7], guidance_scale=scale, **more).images)

    want = run(4.0)
    with steer(pipe, CFG(4)):
        torch.testing.assert_close(run(2.0), want, atol=1e-4, rtol=1e-5)
    with steer(pipe, PAG(2, layer="transformer_blocks.1")):
        torch.testing.assert_close(run(1.0), run(2.0), atol=1e-4, rtol=1e-5)
        assert not torch.allclose(run(1.0), want, atol=1e-3)
    with steer(pipe, CFG(4), max_rows=1):
        torch.testing.assert_close(run(2.0), want, atol=1e-4, rtol=1e-5)
    with steer(pipe, Auto(2), guide=tiny.dit(None)):
        torch.testing.assert_close(run(1.0), run(2.0), atol=1e-4, rtol=1e-5)


def embeds(n, width=32, **names):
    gen = torch.Generator().manual_seed(1)
    return {name: torch.randn(n, *shape, generator=gen) for name, shape in names.items()}


def test_sd3() -> None:
    """Flow matching: CFG and CFG-Zero* in velocity."""
    pipe = tiny.sd3(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    prompt = embeds(
        2,
        prompt_embeds=(6, 32),
        negative_prompt_embeds=(6, 32),
        pooled_prompt_embeds=(32,),
        negative_pooled_prompt_embeds=(32,),
    )
    want = sampled(pipe, None, **prompt)
    with steer(pipe, CFG(5)):
        got = sampled(pipe, None, scale=2.0, **prompt)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-5)
    with steer(pipe, CFGZero(5)):
        assert sampled(pipe, None, **prompt).isfinite().all()
    with steer(pipe, PAG(5)):  # "mid" is the middle layer
        middle = sampled(pipe, None, **prompt)
    with steer(pipe, PAG(5, layer="transformer_blocks.1")):
        assert torch.equal(sampled(pipe, None, **prompt), middle)
    theirs = diffusers.StableDiffusion3PAGPipeline(
        **{
            k: v
            for k, v in pipe.components.items()
            if k not in ("image_encoder", "feature_extractor")
        },
        pag_applied_layers=["transformer_blocks.1"],
    )
    theirs.set_progress_bar_config(disable=True)
    want = sampled(theirs, None, pag_scale=3.0, **prompt)
    pipe.transformer.set_attn_processor(JointAttnProcessor2_0())
    with steer(pipe, CFG(5) + PAG(3, layer="transformer_blocks.1")):
        got = sampled(pipe, None, **prompt)
    torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-5)
    with steer(
        pipe, CFG(5) + SAG(0.5, layer="transformer_blocks.0") + SEG(2, layer="transformer_blocks.1")
    ):
        assert sampled(pipe, None, **prompt).isfinite().all()


def test_pixart() -> None:
    pipe = tiny.pixart(diffusers.DPMSolverMultistepScheduler())
    prompt = embeds(2, prompt_embeds=(6, 32), negative_prompt_embeds=(6, 32)) | {
        "prompt_attention_mask": torch.ones(2, 6),
        "negative_prompt_attention_mask": torch.ones(2, 6),
    }
    run = {"use_resolution_binning": False, "height": 16, "width": 16, "negative_prompt": None}
    want = sampled(pipe, None, **prompt, **run)
    with steer(pipe, CFG(5)):
        got = sampled(pipe, None, scale=2.0, **prompt, **run)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-5)
    with steer(pipe, CFG(5) + PAG(2, layer="transformer_blocks.1") + APG(2)):
        assert not torch.allclose(sampled(pipe, None, **prompt, **run), want, atol=1e-3)


# ------------------------------------------------------------------ as it was, and how it is used


def state(pipe):
    network = pipe.unet
    hooks = [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in network.modules()]
    return sorted(network.__dict__), hooks, network.attn_processors


def test_restored_after_use_and_after_an_error(sd) -> None:
    pipe = sd()
    want, before = sampled(pipe), state(pipe)
    with steer(pipe, CFG(5) + PAG(3) + SAG(0.5)):
        sampled(pipe)
    assert torch.equal(sampled(pipe), want) and state(pipe) == before
    layer = pipe.unet.get_submodule(MID)
    handle = layer.to_out[0].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), steer(pipe, CFG(5) + PAG(3)):
        sampled(pipe)
    handle.remove()
    assert torch.equal(sampled(pipe), want) and state(pipe) == before
    kept = steer(pipe, "CFG(5)")
    with pytest.raises(ValueError, match="steered already"):
        steer(pipe, CFG(5))
    kept.remove()
    kept.remove()
    assert torch.equal(sampled(pipe), want) and state(pipe) == before


def test_max_rows(sd) -> None:
    """One row a pass gives the same, up to rounding of kernels."""
    pipe = sd()
    total = CFG(5) + PAG(3) + SAG(0.5)
    with steer(pipe, total):
        want = sampled(pipe, steps=3)
    sizes = counted(pipe.unet)
    with steer(pipe, total, max_rows=1):
        torch.testing.assert_close(sampled(pipe, steps=3), want, atol=1e-4, rtol=1e-5)
    assert set(sizes) == {1}


def test_attention_kwargs_reach_every_branch(sd) -> None:
    pipe, seen = sd(), []
    forward = pipe.unet.forward
    pipe.unet.forward = lambda *a, **k: seen.append(k["cross_attention_kwargs"]) or forward(*a, **k)
    with steer(pipe, CFG(5) + SAG(0.5)):
        sampled(pipe, steps=2, cross_attention_kwargs={"scale": 0.3})
    assert seen == [{"scale": 0.3}] * 4
    del pipe.unet.forward


@pytest.mark.parametrize(
    "total",
    [CFG(5), CFG(5) + PAG(3) + SAG(0.5), AutoNoise(2), CFG(5) + AutoDropout(2)],
    ids=repr,
)
def test_lora_scale_reaches_every_branch(sd, total) -> None:
    """A real LoRA at the scale of the call is the same LoRA with that weight for good."""
    peft = pytest.importorskip("peft")
    pipe = sd()
    plain = sampled(pipe, steps=3)
    layers = peft.LoraConfig(
        r=4, lora_alpha=4, target_modules=["to_q", "to_v"], init_lora_weights=False
    )
    torch.manual_seed(0)
    pipe.unet.add_adapter(layers, "wild")
    scaled = {"steps": 3, "cross_attention_kwargs": {"scale": 0.3}}
    own = sampled(pipe, **scaled)
    with steer(pipe, total):
        got = sampled(pipe, **scaled)
        whole = sampled(pipe, steps=3)
    if total == CFG(5):
        torch.testing.assert_close(got, own, atol=1e-4, rtol=1e-5)
    pipe.unet.set_adapters("wild", 0.3)
    with steer(pipe, total):
        want = sampled(pipe, steps=3)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-5)
    assert (got - whole).abs().max() > 1e-2 and (got - plain).abs().max() > 1e-2


def test_attention_slicing(sd) -> None:
    pipe = sd()
    total = CFG(5) + PAG(3) + SAG(0.5)
    with steer(pipe, total):
        want = sampled(pipe)
    pipe.enable_attention_slicing(1)
    before = dict(pipe.unet.attn_processors)
    with steer(pipe, total):
        torch.testing.assert_close(sampled(pipe), want, atol=1e-4, rtol=1e-5)
    assert pipe.unet.attn_processors == before


def test_compiled(sd) -> None:
    """A compiled network stays compiled where nothing is tapped; taps are never lost."""
    pipe = sd()
    total = CFG(5) + PAG(3).within(0, 1) + SAG(0.5)
    with steer(pipe, total):
        want = sampled(pipe)
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    with steer(pipe, total):
        torch.testing.assert_close(sampled(pipe), want, atol=1e-4, rtol=1e-5)
    in_place = sd()
    in_place.unet.compile(backend="eager")
    with pytest.raises(ValueError, match="compiled in place"):
        steer(in_place, CFG(5))


@pytest.mark.parametrize("how", ["weights", "model", "groups"])
def test_offloaded(sd, how: str) -> None:
    """Hooks that bring weights or the whole network when it is called, also those of the guide."""
    pipe, guide = sd(), sd()
    total = CFG(5) + PAG(3) + Auto(2) + SAG(0.5)
    with steer(pipe, total, guide=guide):
        want = sampled(pipe)
    cpu = torch.device("cpu")
    for network in (pipe.unet, guide.unet):
        if how == "weights":
            accelerate.cpu_offload(network, execution_device=cpu)
        elif how == "model":
            accelerate.cpu_offload_with_hook(network, execution_device=cpu)
        else:
            network.enable_group_offload(cpu, offload_type="leaf_level")
    before = pipe.unet.__dict__.get("forward")
    with steer(pipe, total, guide=guide):
        torch.testing.assert_close(sampled(pipe), want, atol=1e-5, rtol=1e-5)
    assert pipe.unet.__dict__.get("forward") is before


# ------------------------------------------------------------------ zero terminal SNR


def test_zero_snr_is_the_scheduler_by_hand(sd) -> None:
    """The same samples, from the last timestep on, and the old scheduler back as it was."""
    pipe = sd("v_prediction")
    old, registered = pipe.scheduler, dict(pipe.config)
    plain, before = sampled(pipe), dict(old.__dict__)
    with steer(pipe, CFG(5), zero_snr=True):
        assert pipe.scheduler.alphas_cumprod[-1] == 0
        got = sampled(pipe)
        assert pipe.scheduler.timesteps[0] == 999
    assert pipe.scheduler is old and dict(pipe.config) == registered
    assert {k: v for k, v in old.__dict__.items() if k != "timesteps"} == {
        k: v for k, v in before.items() if k != "timesteps"
    }
    assert torch.equal(sampled(pipe), plain)
    pipe.scheduler = SteerScheduler.from_config(
        old.config, rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    torch.testing.assert_close(sampled(pipe), got, atol=1e-4, rtol=1e-5)  # the pipeline's own CFG
    with steer(pipe, zero_snr=True):
        assert torch.equal(sampled(pipe), sampled(pipe))
    assert not torch.allclose(got, plain, atol=1e-2)


def test_zero_snr_is_put_back_after_an_error(sd) -> None:
    pipe = sd("v_prediction")
    old, before = pipe.scheduler, state(pipe)
    with pytest.raises(ZeroDivisionError), steer(pipe, CFG(5), zero_snr=True):
        raise ZeroDivisionError
    assert pipe.scheduler is old and state(pipe) == before
    with pytest.raises(ValueError, match="no network that can be steered"):
        steer(
            type("Pipe", (), {"unet": torch.nn.Linear(1, 1), "scheduler": old})(),
            CFG(2),
            zero_snr=True,
        )
    assert pipe.scheduler is old


def test_zero_snr_where_it_has_no_meaning(sd) -> None:
    pipe = sd("epsilon")
    before = state(pipe)
    with pytest.raises(ValueError, match="pure noise and epsilon says nothing about the image"):
        steer(pipe, CFG(5), zero_snr=True)
    assert state(pipe) == before
    flow = tiny.sd3(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    with pytest.raises(ValueError, match="zero SNR by construction"):
        steer(flow, CFG(5), zero_snr=True)
    with pytest.raises(ValueError, match="has no scheduler"):
        steer(pipe.unet, CFG(5), zero_snr=True)
    with pytest.raises(ValueError, match="nothing to steer by"):
        steer(pipe)
    with pytest.raises(ValueError, match="a guide does nothing without a guidance"):
        steer(pipe, guide=pipe, zero_snr=True)


# ------------------------------------------------------------------ bad input


def test_errors_before_the_first_call(sd) -> None:
    pipe = sd()
    calls = counted(pipe.unet)
    says = f"no attention layer is called 'nowhere'.*{MID}"
    with steer(pipe, CFG(5) + PAG(3, layer="nowhere")), pytest.raises(ValueError, match=says):
        sampled(pipe)
    with steer(pipe, Auto(2)), pytest.raises(ValueError, match="asks for a network 'guide'"):
        sampled(pipe)
    late = [PAG(3, layer="nowhere").within(0, 1), Auto(2).over(3, 4)]
    late += [f"{name}(ramp(0, 3), layer='nowhere')" for name in ("PAG", "SLG", "STG", "S2", "TPG")]
    late += ["SEG(cosine(0, 3), layer='nowhere')", "SAG(ramp(0, 1), 'nowhere', on='cond')"]
    late += ["Auto(ramp(1, 2), adapter='gone')"]
    for guidance in late:  # nor after some steps that ask for less
        says = "no (attention layer|block)|asks for|adapters"
        with steer(pipe, guidance), pytest.raises(ValueError, match=says):
            sampled(pipe, scale=1.0)
    with steer(pipe, CFG(5)), pytest.raises(ValueError, match=r"write .rescaled\(phi\)"):
        sampled(pipe, guidance_rescale=0.7)
    assert calls == []


def test_guides_that_do_not_fit(sd) -> None:
    pipe = sd()
    with pytest.raises(ValueError, match="the guide takes 9 channels"):
        steer(pipe, Auto(2), guide=tiny.unet(in_channels=9))
    with pytest.raises(ValueError, match="text of width 16"):
        steer(pipe, Auto(2), guide=tiny.unet(width=16))
    with pytest.raises(ValueError, match="no network that can be steered"):
        steer(torch.nn.Linear(1, 1), CFG(2))
    with pytest.raises(ValueError, match="neither a unet nor a transformer"):
        steer(object(), CFG(2))
    with pytest.raises(ValueError, match="unknown .__class__"):
        steer(pipe, "CFG(5).__class__")


def test_a_tap_that_is_never_hit_raises(sd) -> None:
    pipe = sd()

    class Other:
        def __call__(self, attn, hidden_states, *args, **kwargs):
            return hidden_states

    pipe.unet.get_submodule(MID).processor = Other()
    with steer(pipe, PAG(3)), pytest.raises(ValueError, match="ran without scaled_dot_product"):
        sampled(pipe)


@pytest.mark.parametrize("case", ["AutoDropout(2)", "PAG(3)"])
def test_what_no_network_can_answer_is_refused_before_it_is_asked(sd, case: str) -> None:
    """No dropout layer, or an attention processor of diffusers that taps do not reach."""
    pipe = sd()
    if case == "AutoDropout(2)":
        for module in pipe.unet.modules():
            for name, child in module.named_children():
                if isinstance(child, torch.nn.Dropout):
                    setattr(module, name, torch.nn.Identity())
    else:
        processor = diffusers.models.attention_processor.CustomDiffusionAttnProcessor
        pipe.unet.get_submodule(MID).processor = processor(False, False)
    sizes = counted(pipe.unet)
    reason = "no dropout layer" if "Dropout" in case else "ran without scaled_dot_product"
    with steer(pipe, case), pytest.raises(ValueError, match=reason):
        sampled(pipe)
    assert sizes == []


def test_layers(sd) -> None:
    assert MID in image_attention(sd().unet)
    assert not any("attn2" in name for name in image_attention(sd().unet))


def test_a_removed_steering_is_not_entered_again(sd) -> None:
    """It would sample without guidance."""
    steering = steer(sd(), "CFG(3)")
    with steering:
        pass
    with pytest.raises(InputError, match="was removed: call steer again"), steering:
        pass


@pytest.mark.parametrize(
    "given",
    [
        {"guidance": [CFG(3)]},
        {"guidance": CFG},
        {"guidance": 3.0},
        {"guidance": "CFG(3)", "max_rows": 2.0},
        {"guidance": "CFG(3)", "max_rows": "1"},
        {"refiner": "NLG(20)", "max_rows": 0},
        {"guidance": "CFG(3)", "strength": None},
        {"refiner": 3},
    ],
    ids=str,
)
def test_what_cannot_steer_is_named_before_sampling(sd, given) -> None:
    pipe = sd()
    with pytest.raises(InputError, match="give a|give one|must be a number"):
        steer(pipe, **given)
    steer(pipe, "CFG(3)").remove()
