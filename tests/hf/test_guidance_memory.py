"""The level ahead and the memory of guidances in pipelines, on every way that they are called."""

from dataclasses import dataclass

import diffusers
import pytest
import tiny
import torch

from diffsteer import CFG, Guidance
from diffsteer.guidance import Branch
from diffsteer.hf.guider import SteerGuider
from diffsteer.steering import steer

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
START = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True, repr=False)
class Seen(Guidance):
    """Notes step, timestep, the one ahead, and how many evaluations were kept in memory."""

    log: list = None

    def shift(self, at):
        (answer,) = yield (Branch(),)
        if not at.memory.inner or at.start is not None:  # a dry run keeps nothing
            count = at.memory.get("count", torch.zeros(len(at.x)))
            self.log.append((at.step, at.level.t.item(), at.next.t.item(), int(count[0])))
            at.memory["count"] = count + 1
        return torch.zeros_like(answer.x0)


def run(pipe, prompts=("a cat", "a red dog"), **more):
    more = {"num_inference_steps": 4, "guidance_scale": 2.0, "output_type": "latent"} | more
    return pipe(list(prompts), height=16, width=16, **more).images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("memory")


@pytest.mark.parametrize("name", ["DDIMScheduler", "HeunDiscreteScheduler"])
def test_steered_pipelines(folder, name: str) -> None:
    """The second evaluation of a Heun step reads the memory and does not write."""
    pipe = tiny.stable_diffusion(getattr(diffusers, name)(**SD), folder)
    log: list = []
    with steer(pipe, Seen(log)):
        for _ in range(2):
            log.clear()
            run(pipe, latents=START.clone())
    times = pipe.scheduler.timesteps.tolist()
    twice = len(times) > 4
    assert [step for step, *_ in log] == ([0, 0, 1, 1, 2, 2, 3] if twice else [0, 1, 2, 3])
    assert [count for *_, count in log] == ([0, 1, 1, 2, 2, 3, 3] if twice else [0, 1, 2, 3])
    first = {step: t for step, t, *_ in reversed(log)}
    assert [ahead for _, _, ahead, _ in log] == [first.get(step + 1, 0.0) for step, *_ in log]


@pytest.mark.parametrize("guide", ["guider", "step"])
def test_modular_pipelines(folder, guide: str) -> None:
    """With our guider, and guided at the scheduler's step."""
    pipe = tiny.sdxl(diffusers.EulerDiscreteScheduler(**SD), folder)
    modular = diffusers.StableDiffusionXLAutoBlocks().init_pipeline()
    parts = {k: v for k, v in pipe.components.items() if v is not None}
    modular.update_components(**parts, force_zeros_for_empty_prompt=True)
    log: list = []
    call = {"num_inference_steps": 4, "height": 16, "width": 16, "output": "images"}
    call |= {"prompt": ["a cat"] * 2, "latents": START.clone(), "output_type": "latent"}
    if guide == "guider":
        modular.update_components(guider=SteerGuider(Seen(log), modular.scheduler))
        for _ in range(2):
            log.clear()
            modular(**call)
    else:
        with steer(modular, Seen(log)):
            for _ in range(2):
                log.clear()
                modular(**call)
    times = [*modular.scheduler.timesteps.tolist(), 0.0]
    assert [(step, count) for step, *_, count in log] == [(i, i) for i in range(4)]
    assert [ahead for _, _, ahead, _ in log] == pytest.approx(times[1:], abs=1e-3)


def test_a_sample_alone_is_the_sample_in_a_batch(folder) -> None:
    pipe = tiny.stable_diffusion(diffusers.DDIMScheduler(**SD), folder)
    prompts = ("a cat", "a red dog")
    stateful = "CFG(3) + Momentum(0.5, decay=0.7) + 0.5 * APG(3, momentum=-0.5) + 0.5 * FBG()"
    with steer(pipe, stateful):
        both = run(pipe, prompts, latents=START.clone())
        alone = [run(pipe, [p], latents=START[i : i + 1].clone()) for i, p in enumerate(prompts)]
    torch.testing.assert_close(torch.cat(alone), both, atol=1e-4, rtol=1e-4)
    with steer(pipe, CFG(3)):
        assert (run(pipe, prompts, latents=START.clone()) - both).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["DDIMScheduler", "HeunDiscreteScheduler"])
def test_each_view_of_a_panorama_remembers_for_itself(folder, name: str) -> None:
    """Panorama copies the state of its scheduler for each view, and begins anew at each call."""
    scheduler = getattr(diffusers, name)(**SD)
    pipe = tiny.stable_diffusion(scheduler, folder, "StableDiffusionPanoramaPipeline")
    log: list = []
    wide = torch.cat([START, START], dim=-1)
    with steer(pipe, Seen(log)):
        for _ in range(2):
            log.clear()
            pipe("a cat", height=16, width=1024, latents=wide.repeat(1, 1, 1, 32)[:1, ..., :512],
                 num_inference_steps=2, guidance_scale=2.0, output_type="latent")  # fmt: skip
    views = len(log) // (3 if "Heun" in name else 2)
    assert views > 1
    counts = [count for *_, count in log]
    assert counts == [0] * views + [1] * (len(log) - views)
    assert [step for step, *_ in log][::views] == ([0, 0, 1] if "Heun" in name else [0, 1])


def test_one_step_after_another_begins_anew(folder) -> None:
    pipe = tiny.stable_diffusion(diffusers.DDIMScheduler(**SD), folder)
    log: list = []
    with steer(pipe, Seen(log)):
        for _ in range(2):
            run(pipe, latents=START.clone(), num_inference_steps=1)
    assert [count for *_, count in log] == [0, 0]


@torch.no_grad()
def test_a_loop_of_ones_own_begins_anew(folder) -> None:
    """Fewer steps, image to image at less noise, another batch; Heun's second evaluation reads."""
    pipe = tiny.stable_diffusion(diffusers.HeunDiscreteScheduler(**SD), folder)
    log: list = []
    text = pipe.encode_prompt(["a cat"], "cpu", 1, True)[0]
    with steer(pipe, Seen(log)):
        for steps, skipped, batch in [(3, 0, 1), (2, 0, 1), (2, 2, 2), (2, 2, 1), (1, 0, 2)]:
            log.clear()
            pipe.scheduler.set_timesteps(steps)
            pipe.scheduler.set_begin_index(skipped)
            x = START[:batch].repeat(2, 1, 1, 1)[:batch]
            for t in pipe.scheduler.timesteps[skipped:]:
                out = pipe.unet(
                    pipe.scheduler.scale_model_input(torch.cat([x, x]), t),
                    t,
                    torch.cat([text, text]).repeat_interleave(batch, 0),
                ).sample
                x = pipe.scheduler.step(out.chunk(2)[1], t, x).prev_sample
            evaluations = 2 * steps - 1 - skipped
            assert [count for *_, count in log] == [(i + 1) // 2 for i in range(evaluations)]


@torch.no_grad()
def test_cfgpp_weighs_both_evaluations_of_a_heun_step_alike(folder) -> None:
    """By lambda / (1 - r' / r), with r = sigma / alpha at the start of the step, r' at its end."""
    pipe = tiny.stable_diffusion(diffusers.HeunDiscreteScheduler(**SD), folder)
    with steer(pipe, "CFGpp(0.6)"):
        got = run(pipe, latents=START.clone())
    texts = torch.cat(pipe.encode_prompt(["a cat", "a red dog"], "cpu", 1, True)[::-1])
    pipe.scheduler.set_timesteps(4)
    x, sigmas = START * pipe.scheduler.init_noise_sigma, pipe.scheduler.sigmas
    for i, t in enumerate(pipe.scheduler.timesteps):
        start = i - i % 2  # the second evaluation of a step is at the level that it goes to
        weight = 0.6 / (1 - sigmas[start + 1] / sigmas[start])
        both = pipe.scheduler.scale_model_input(torch.cat([x, x]), t)
        null, cond = pipe.unet(both, t, texts).sample.chunk(2)
        x = pipe.scheduler.step(null + weight * (cond - null), t, x).prev_sample
    torch.testing.assert_close(got, x, atol=1e-4, rtol=1e-4)


def test_the_catalogue_on_a_pipeline(folder) -> None:
    """Adaptive guidance evaluates less; crops are refused where they would fail."""
    pipe = tiny.stable_diffusion(diffusers.DDIMScheduler(**SD), folder)
    sizes: list = []
    pipe.unet.conv_in.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    with steer(pipe, "Adaptive(3, agree=0.0)"):
        run(pipe, latents=START.clone())
    assert sum(sizes) < 16
    sizes.clear()
    with steer(pipe, "SWG(2) + CFG(ramp(1, 7)) + FBG() + RectifiedCFGpp(2) + TSG(2) + FDG(2, 4)"):
        assert run(pipe, latents=START.clone()).isfinite().all()
    flow = tiny.sd3(diffusers.FlowMatchEulerDiscreteScheduler())
    call = {"prompt_embeds": torch.zeros(1, 4, 32), "pooled_prompt_embeds": torch.zeros(1, 32)}
    call |= {f"negative_{name}": value for name, value in call.items()}
    with steer(flow, "SWG(2).over(1, 2)"), pytest.raises(ValueError, match="asks about crops"):
        flow(None, num_inference_steps=2, height=16, width=16, output_type="latent", **call)


def test_independent_condition_guidance_on_a_pipeline_of_classes() -> None:
    pipe, seen = tiny.dit(diffusers.DDIMScheduler(clip_sample=False)), []
    layer = pipe.transformer.transformer_blocks[0].norm1.emb.class_embedder
    layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].tolist()))
    with steer(pipe, "ICG(3)"):
        pipe(class_labels=[1, 3], num_inference_steps=2, guidance_scale=4.0, output_type="np")
    assert all(rows[:2] == [1, 3] and rows[2] != 1 and rows[3] != 3 for rows in seen)
    assert all(0 <= k < pipe.transformer.config.num_embeds_ada_norm for rows in seen for k in rows)
