"""Refined noise in pipelines of every family: what it costs, and that it leaves no trace."""

import copy
import hashlib
import json
import pickle
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from diffsteer import CFG, Discrete, Eps, Flow, V, Velocity
from diffsteer.core.errors import InputError
from diffsteer.generate.recipe import Recipe
from diffsteer.generate.recipe_checks import require_consistent
from diffsteer.hf.network import PipelineNetwork, network_of
from diffsteer.hf.prompt_conditions import conditions, first_call
from diffsteer.refine import prompt_mismatch
from diffsteer.refine.heads import HEADS
from diffsteer.refine.hook import refine
from diffsteer.refine.metadata import found, read, require_weights
from diffsteer.refine.nlg import NLG, TrainingFreeRefiner
from diffsteer.refine.refiner import NoiseRefiner
from diffsteer.steering import steer

SD = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
    "clip_sample": False,
}
START = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a cat", "a red dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pipe")


def ddim(kind: str = "epsilon", **more: Any) -> Any:
    return diffusers.DDIMScheduler(**SD, prediction_type=kind, **more)


@pytest.fixture
def sd(folder):
    return lambda kind="epsilon": tiny.stable_diffusion(ddim(kind), folder)


def sampled(
    pipe: Any, prompt: Any = PROMPTS, steps: int = 3, scale: float = 1.0, **more: Any
) -> Any:
    more = {"latents": START, "output_type": "latent"} | more
    return pipe(prompt, num_inference_steps=steps, guidance_scale=scale, **more).images


def moved(refiner: NoiseRefiner, size: float = 0.05) -> NoiseRefiner:
    """Give an adapter weights that change something, always the same."""
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in refiner.parameters.values():
            p.copy_(size * torch.randn(p.shape, generator=draw))
    return refiner


def counted(network: Any) -> list[int]:
    """Batch sizes of the calls of a network."""
    sizes: list[int] = []
    network.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(len((*args, *kwargs.values())[0])), with_kwargs=True
    )
    first = next(m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear))
    first.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    return sizes


# ------------------------------------------------------------------ the hook, in every family


class Instead:
    """Refines any noise to other noise: sampling must then be as if it had started there."""

    null = False

    def __init__(self, other: Tensor) -> None:
        self.other, self.seen = other, []

    def __call__(self, x: Tensor, conds: Mapping[str, Any], model: PipelineNetwork) -> Tensor:
        self.seen.append(x)
        return self.other


def embedded(seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        "prompt_embeds": torch.randn(2, 7, 32, generator=draw),
        "pooled_prompt_embeds": torch.randn(2, 32, generator=draw),
    }


def family(folder: Path, name: str) -> tuple[Any, dict[str, Any]]:
    """A pipeline and how it is called."""
    text = {"prompt": PROMPTS, "guidance_scale": 1.0}
    latent = {"output_type": "latent"}
    size = {"height": 16, "width": 16}
    both = {"true_cfg_scale": 3.0, "negative_prompt": ["b"] * 2}
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    match name.partition(",")[0]:
        case "SD":
            scheduler = euler() if "Euler" in name else ddim()
            scale = {"guidance_scale": 4} if "halves" in name else {}
            return tiny.stable_diffusion(scheduler, folder), text | latent | scale
        case "SDXL":
            return tiny.sdxl(ddim(), folder), text | latent
        case "SD3":
            return tiny.sd3(flow), embedded() | latent | {"guidance_scale": 1.0}
        case "Flux":
            return tiny.flux(folder), text | latent | size | (both if "both" in name else {})
        case "PixArt":
            given = {"prompt_embeds": embedded()["prompt_embeds"], "prompt": None}
            given |= {"prompt_attention_mask": torch.ones(2, 7), "negative_prompt": None}
            given |= {"guidance_scale": 1.0, "use_resolution_binning": False}
            return tiny.pixart(ddim()), given | latent | size
        case "DiT":
            scale = 4.0 if "halves" in name else 1.0
            return tiny.dit(ddim()), {"class_labels": [3, 5], "guidance_scale": scale}
    return tiny.unconditional(ddim()), {"batch_size": 2}


def euler() -> Any:
    settings = {k: v for k, v in SD.items() if k != "clip_sample"}
    return diffusers.EulerDiscreteScheduler(**settings)


NAMES = ["SD", "SD, halves", "SD, Euler", "SDXL", "SD3", "Flux", "Flux, both", "PixArt", "DiT"]
NAMES += ["DiT, halves", "pixels"]


def results(pipe: Any, seeds: list[int], **call: Any) -> Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    if "output_type" not in call:
        call["output_type"] = "np"
    return torch.as_tensor(pipe(num_inference_steps=3, generator=generators, **call).images)


@pytest.mark.parametrize("name", NAMES)
def test_sampling_starts_from_what_noise_is_refined_to(folder: Path, name: str) -> None:
    """Noise of seeds 0 and 1, refined to that of 2 and 3, gives the samples of 2 and 3."""
    pipe, call = family(folder, name)
    want = results(pipe, [2, 3], **call)
    generators = [torch.Generator().manual_seed(seed) for seed in (2, 3)]
    start = {"generator": generators, "num_inference_steps": 3}
    whole, _ = first_call(pipe, **call | start)
    other = whole[-2:].float()
    if name == "SD, Euler":  # the network sees noise scaled by sigma / sqrt(sigma^2 + 1)
        other = other / float(
            pipe.scheduler.sigmas.max() / (pipe.scheduler.sigmas.max() ** 2 + 1) ** 0.5
        )
    instead = Instead(other)
    with steer(pipe, refiner=instead):
        got = results(pipe, [0, 1], **call)
        again = results(pipe, [0, 1], **call)
    # a + (b - a) is b up to 1e-7, which three steps of a random network grow
    torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-4)
    assert torch.equal(got, again) and len(instead.seen) == 2
    torch.testing.assert_close(instead.seen[0].std(), torch.tensor(1.0), atol=0.15, rtol=0)
    assert torch.equal(results(pipe, [2, 3], **call), want)  # nothing stays behind


@pytest.mark.parametrize(
    "name", ["SD", "SD, Euler", "SDXL", "SD3", "Flux", "PixArt", "DiT", "pixels"]
)
def test_costs_one_row_more_and_is_exact_at_the_start(folder: Path, name: str) -> None:
    pipe, call = family(folder, name)
    want = results(pipe, [0, 1], **call)
    refiner = NoiseRefiner(pipe, rank=4)
    assert torch.equal(results(pipe, [0, 1], **call), want)
    calls: list[int] = []
    forward = network_of(pipe).forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))))
        return forward(*args, **kwargs)

    network_of(pipe).forward = watched
    with steer(pipe, refiner=refiner):
        same = results(pipe, [0, 1], **call)
        assert calls == [2] * (3 + 1)
        moved(refiner)
        other = results(pipe, [0, 1], **call)
    calls.clear()
    with steer(pipe, refiner=refiner, max_rows=1):
        split = results(pipe, [0, 1], **call)
        assert calls == [1, 1] + [2] * 3
    torch.testing.assert_close(split, other, atol=1e-4, rtol=1e-4)  # kernels differ by batch
    del network_of(pipe).forward
    assert torch.equal(same, want)  # the last layer's adapter starts at 0: noise stays bit for bit
    assert not torch.equal(other, want)
    assert torch.equal(results(pipe, [0, 1], **call), want)
    refiner.remove()
    assert torch.equal(results(pipe, [0, 1], **call), want)
    assert not any("lora" in name for name, _ in network_of(pipe).named_modules())


def test_rows_do_not_see_each_other(sd) -> None:
    pipe = sd()
    refiner = moved(NoiseRefiner(pipe))
    both = refine(pipe, START, PROMPTS, refiner)
    alone = torch.cat([refine(pipe, START[i : i + 1], PROMPTS[i : i + 1], refiner) for i in (0, 1)])
    torch.testing.assert_close(both, alone, atol=1e-5, rtol=1e-5)  # kernels differ by batch
    assert (both - START).abs().max() > 0.01


def test_combines_with_guidance(sd) -> None:
    """Refined noise under CFG is CFG from refined noise; 2 N + 1 rows."""
    pipe = sd()
    refiner = moved(NoiseRefiner(pipe))
    start = refine(pipe, START, PROMPTS, refiner)
    want = sampled(pipe, latents=start, scale=5.0)
    rows: list[int] = []
    first = pipe.unet.time_proj
    first.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    with steer(pipe, CFG(5), refiner=refiner):
        got = sampled(pipe, scale=2.0)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    assert rows == [2, 4, 4, 4]
    with steer(pipe, refiner=refiner):  # the pipeline guides itself
        torch.testing.assert_close(sampled(pipe, scale=5.0), want, atol=1e-4, rtol=1e-4)


def test_no_pass_has_more_rows_than_asked_for(sd) -> None:
    pipe = sd()
    refiner = moved(NoiseRefiner(pipe))
    call = {"prompt": PROMPTS, "guidance_scale": 2.0, "output_type": "latent"}
    with steer(pipe, "CFG(3)", refiner=refiner):
        want = results(pipe, [0, 1], **call)
    rows = []
    pipe.unet.conv_in.register_forward_hook(lambda _, args, out: rows.append(len(out)))
    with steer(pipe, "CFG(3)", refiner=refiner, max_rows=1):
        got = results(pipe, [0, 1], **call)
    assert rows == [1] * (2 + 3 * 4)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_strength_is_a_factor_of_the_change(sd) -> None:
    pipe = sd()
    refiner = moved(NoiseRefiner(pipe))
    change = refine(pipe, START, PROMPTS, refiner) - START
    for strength in (0.0, 0.5, -1.0):
        refiner.strength = strength
        got = refine(pipe, START, PROMPTS, refiner) - START
        torch.testing.assert_close(got, strength * change, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("rival", [True, False])
def test_strength_acts_however_a_refiner_is_given(
    sd, tmp_path: Path, rival: bool, named: bool
) -> None:
    pipe = sd()
    by: Any = NLG(1) if rival else moved(NoiseRefiner(pipe))
    start = START + 0.25 * (refine(pipe, START, PROMPTS, by) - START)
    want = sampled(pipe, latents=start)
    if named and not rival:
        by.save(tmp_path)
        by.remove()
    given = ("NLG(1)" if rival else tmp_path) if named else by
    with steer(pipe, CFG(1), refiner=given, strength=0.25):
        got = sampled(pipe, scale=2.0)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_strength_of_nothing_is_refused(sd) -> None:
    with pytest.raises(ValueError, match=r"strength=0\.5 .* with a refiner"):
        steer(sd(), "CFG(2)", strength=0.5)
    with pytest.raises(ValueError, match="strength=nan"):
        steer(sd(), refiner="NLG(1)", strength=float("nan"))


def test_what_can_do_nothing_for_a_model_is_refused_before_it_is_called(sd) -> None:
    pipe = sd("v_prediction")
    pipe.scheduler = ddim("v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    for refiner in ("NLG(1)", NLG(1)):
        with pytest.raises(ValueError, match="where the noise is known: train a NoiseRefiner"):
            steer(pipe, refiner=refiner)
    assert steer(pipe, "CFG(2)").remove() is None  # the pipeline is free


def test_a_refiner_of_ones_own_need_not_say_what_it_refuses(sd) -> None:
    class Halved(TrainingFreeRefiner):
        null = False

        def __call__(self, x: Tensor, conds: Mapping[str, Any], model: PipelineNetwork) -> Tensor:
            return x / 2

    noise, pipe = torch.randn(1, 4, 8, 8), sd()
    assert torch.equal(refine(pipe, noise, ["a cat"], Halved()), noise / 2)


@pytest.mark.parametrize("guidance", [7.5, CFG, ["CFG(2)", "PAG(1)"]])
def test_what_is_no_guidance_is_refused(sd, guidance: Any) -> None:
    with pytest.raises(ValueError, match="is no guidance: give one"):
        steer(sd(), guidance)


# ------------------------------------------------------------------ one prompt's noise for another

SWAPPED = "row 0 of this sampling starts from noise that was refined for another prompt"


@pytest.mark.parametrize("name", ["SD, halves", "SD, Euler", "SDXL", "Flux, both"])
@pytest.mark.filterwarnings("error:row")
def test_noise_of_another_prompt_warns(folder: Path, name: str) -> None:
    """Of the same prompt, alone, in any order and in half precision, there is nothing to say."""
    pipe, call = family(folder, name)
    pipe.to(torch.bfloat16) if name == "SDXL" else None
    refiner = moved(NoiseRefiner(pipe))
    size = {k: call[k] for k in ("height", "width") if k in call}
    x, _ = first_call(pipe, **call | {"guidance_scale": 1.0, "true_cfg_scale": 1.0})
    noise = refine(pipe, torch.randn_like(x), PROMPTS, refiner, **size)
    call |= {"num_inference_steps": 2}
    pipe(**call, latents=noise)
    assert "forward" not in vars(pipe.components.get("unet") or pipe.transformer)
    back = call | {"prompt": PROMPTS[::-1]}
    pipe(**back, latents=noise.flip(0))
    with pytest.warns(UserWarning, match=SWAPPED):
        pipe(**back, latents=noise)
    one = call | {"prompt": PROMPTS[1]}
    one |= {"negative_prompt": "b"} if "negative_prompt" in call else {}
    pipe(**one, latents=noise[1:])
    with pytest.warns(UserWarning, match=SWAPPED):
        pipe(**one, latents=noise[:1])
    again = refine(pipe, noise[:1], [PROMPTS[1]], refiner, **size)
    pipe(**one, latents=again)
    refiner.remove()
    pipe(**back, latents=noise)


def test_noise_that_was_refined_before_warns_and_what_was_not_changed_is_any_prompts(sd) -> None:
    pipe = sd()
    refiner = moved(NoiseRefiner(pipe))
    noise = refine(pipe, START, PROMPTS, refiner)
    with steer(pipe, refiner=refiner):
        with pytest.warns(UserWarning, match="this noise was refined before"):
            sampled(pipe, latents=noise)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sampled(pipe)
    same = refine(pipe, START + 1, PROMPTS, moved(refiner, 0.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampled(pipe, PROMPTS[::-1], latents=same)


@pytest.mark.filterwarnings("error:row")
def test_calls_that_are_not_told_apart_are_not_looked_at(sd) -> None:
    """Three conditions of the pipeline itself, and classes, which no text is of."""
    pipe = sd()
    noise = refine(pipe, START, PROMPTS, moved(NoiseRefiner(pipe)))
    parts = pipe.components | {"requires_safety_checker": False}
    other = diffusers.StableDiffusionPAGPipeline(**parts, pag_applied_layers=["mid"])
    sampled(other, PROMPTS[::-1], latents=noise, scale=3.0, pag_scale=2.0)
    dit = tiny.dit(ddim())
    refine(dit, torch.randn(2, 4, 8, 8), ["1", "2"], moved(NoiseRefiner(dit)))
    assert not prompt_mismatch.refined_before(dit.transformer, START)


@pytest.mark.filterwarnings("error:row")
def test_what_is_remembered_is_small_and_no_part_of_the_network(sd) -> None:
    """It can be copied, pickled and compiled as before, and of other lengths no text differs."""
    pipe = sd()
    pipe.unet = tiny.shallow_unet()
    noise = refine(pipe, START, PROMPTS, moved(NoiseRefiner(pipe)))
    (held,) = (w for n, w in prompt_mismatch._registries.items() if n is pipe.unet)
    sizes = [t.untyped_storage().nbytes() for row in held._rows for t in row]
    assert len(held._rows) == 2 and max(sizes) <= 2 * max(16 * 16, 4 * 8 * 8) * 4
    again = pickle.loads(pickle.dumps(pipe.unet))
    x, cond = first_call(pipe, **{"prompt": PROMPTS, "guidance_scale": 1.0})
    said = {"sample": x, "return_dict": False, **cond}
    with torch.no_grad():
        assert torch.equal(again(**said)[0], pipe.unet(**said)[0])
        assert torch.equal(copy.deepcopy(pipe.unet)(**said)[0], pipe.unet(**said)[0])
    text = torch.randn(2, 5, 32)
    pipe(prompt_embeds=text, latents=noise, guidance_scale=1.0, num_inference_steps=1)
    pipe.unet = torch.compile(pipe.unet, backend="eager", fullgraph=True)
    sampled(pipe, PROMPTS[::-1], latents=noise)


@pytest.mark.filterwarnings("error:row")
def test_steering_warns_of_noise_of_another_prompt_too(sd) -> None:
    pipe = sd()
    noise = refine(pipe, START, PROMPTS, moved(NoiseRefiner(pipe)))
    with steer(pipe, "CFG(3)"):
        sampled(pipe, scale=2.0, latents=noise)
        with pytest.warns(UserWarning, match=SWAPPED):
            sampled(pipe, PROMPTS[::-1], scale=2.0, latents=noise)
    sampled(pipe, PROMPTS[::-1])  # other noise


# ------------------------------------------------------------------ heads


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("head", ["difference", "literal", "x0"])
@pytest.mark.filterwarnings("ignore:the literal head")
def test_heads_are_what_they_say(sd, kind: str, head: str) -> None:
    """By the network's own outputs: before training, U - U, x + U and x + alpha x0(U)."""
    pipe = sd(kind)
    model, cond = PipelineNetwork.of(pipe), conditions(pipe, PROMPTS)
    level = model.terminal
    with torch.no_grad():
        out = model(START, level, cond)
    expected = {
        "difference": torch.zeros_like(START),
        "literal": out,
        "x0": float(level.alpha) * model.prediction.x0(START, out, level),
    }[head]
    got = refine(pipe, START, PROMPTS, NoiseRefiner(pipe, head=head)) - START
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("head", ["zero_init", "difference"])
def test_adapter_alone_is_the_output_less_the_rest(sd, head: str) -> None:
    """For an adapter of the last layer only, both heads that start at zero are its convolution."""
    pipe = sd()
    refiner = NoiseRefiner(pipe, head=head)
    last = refiner.part.layers["conv_out"]
    with torch.no_grad():
        last.lora_B["noise_refiner"].weight.fill_(0.1)
    seen = []
    handle = last.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    got = refine(pipe, START, PROMPTS, refiner) - START
    handle.remove()
    with torch.no_grad():
        want = last.lora_B["noise_refiner"](last.lora_A["noise_refiner"](seen[0]))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    assert len(seen) == HEADS[head].rows


@pytest.mark.parametrize("kind", [Eps(), Velocity()])
def test_literal_head_warns_where_the_output_is_the_noise(kind) -> None:
    level = Discrete.scaled_linear().at(999) if kind == Eps() else Flow().at(1.0)
    with pytest.warns(UserWarning, match="starts at 2 times its size"):
        HEADS["literal"].check(kind, level)


def test_the_warning_is_of_who_makes_the_refiner(sd) -> None:
    with pytest.warns(UserWarning, match="starts at 2 times its size") as seen:
        NoiseRefiner(sd(), head="literal").remove()
    assert [warning.filename for warning in seen] == [__file__]


@pytest.mark.filterwarnings("error")
def test_literal_head_suits_v_and_x0_needs_signal() -> None:
    HEADS["literal"].check(V(), Discrete.scaled_linear().at(999))
    with pytest.raises(ValueError, match="nothing at zero terminal SNR"):
        HEADS["x0"].check(V(), Discrete.scaled_linear().zero_snr().at(999))


# ------------------------------------------------------------------ beside a user's own adapters


def user_lora(pipe: Any, name: str) -> None:
    from peft import LoraConfig

    config = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    torch.manual_seed(len(name))  # names of different lengths
    pipe.unet.add_adapter(config, name)


def test_a_users_adapters_keep_their_state(sd) -> None:
    """Two of them, one active; before, with and after the refiner the pipeline samples the same."""
    pipe = sd()
    user_lora(pipe, "style")
    user_lora(pipe, "different")
    pipe.unet.set_adapter("style")
    want = sampled(pipe)
    needs = {n: p.requires_grad for n, p in pipe.unet.named_parameters()}
    refiner = moved(NoiseRefiner(pipe))
    assert pipe.unet.active_adapters() == ["style"]
    assert torch.equal(sampled(pipe), want)
    with steer(pipe, refiner=refiner):
        assert not torch.equal(sampled(pipe), want)
    assert torch.equal(sampled(pipe), want)
    pipe.unet.set_adapter("different")  # the user switches meanwhile
    other = sampled(pipe)
    with steer(pipe, refiner=refiner):
        sampled(pipe)
    assert torch.equal(sampled(pipe), other) and not torch.equal(other, want)
    pipe.unet.set_adapter("style")
    refiner.remove()
    assert torch.equal(sampled(pipe), want)
    assert {n for n, _ in pipe.unet.named_parameters()} == set(needs)


@pytest.mark.filterwarnings("error:Adapter")
def test_a_deleted_adapter_does_not_switch_the_refiner_on(sd) -> None:
    """peft activates another adapter in the place of a deleted one; the refiner is none to take."""
    pipe = sd()
    want = sampled(pipe)
    refiner = moved(NoiseRefiner(pipe))
    start = refine(pipe, START, PROMPTS, refiner)
    user_lora(pipe, "style")
    pipe.delete_adapters("style")
    assert torch.equal(sampled(pipe), want)
    assert torch.equal(refine(pipe, START, PROMPTS, refiner), start)
    refiner.remove()
    assert torch.equal(sampled(pipe), want)


def test_refining_sees_the_active_adapters(sd) -> None:
    """They are part of the network, on or off, as the user says."""
    pipe = sd()
    refiner = moved(NoiseRefiner(pipe))
    plain = refine(pipe, START, PROMPTS, refiner)
    user_lora(pipe, "style")
    styled = refine(pipe, START, PROMPTS, refiner)
    assert (styled - plain).abs().max() > 1e-4
    pipe.unet.disable_adapters()
    assert torch.equal(refine(pipe, START, PROMPTS, refiner), plain)


@pytest.mark.parametrize("name", ["SD", "SDXL", "SD3", "Flux", "PixArt", "DiT"])
def test_without_gradients_the_adapter_is_in_the_weights(folder: Path, name: str) -> None:
    """As peft computes it, to rounding, with no call of the adapter's layers but the last."""
    pipe, call = family(folder, name)
    lora = moved(NoiseRefiner(pipe, rank=2, alpha=3)).part
    x, cond = first_call(pipe, **call, generator=torch.Generator().manual_seed(0))
    model, seen = PipelineNetwork.of(pipe), []
    for module in lora.layers.values():
        module.lora_A["noise_refiner"].register_forward_hook(lambda m, *_: seen.append(m))
    for alone in (False, True):
        with torch.no_grad(), lora.on(alone):
            got = model(x, model.terminal, cond)
        last = lora.layers[lora.output].lora_A["noise_refiner"]
        assert seen == [last] * alone
        with lora.on(alone):
            want = model(x, model.terminal, cond)
        assert len(seen) > 5
        seen.clear()
        torch.testing.assert_close(got, want.detach(), atol=2e-5, rtol=1e-4)
    with torch.no_grad():
        off = model(x, model.terminal, cond)
    assert (got - off).abs().max() > 1e-3
    assert not any("forward" in vars(layer) for layer in lora.layers.values())


def test_layers_with_other_adapters_or_moving_weights_are_left_to_peft(sd) -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module

    pipe = sd()
    user_lora(pipe, "style")
    lora = moved(NoiseRefiner(pipe)).part
    block = lora.layers["down_blocks.0.resnets.0.conv1"]
    assert "style" in block.active_adapters  # of the network, though it is in no convolution
    add_hook_to_module(lora.layers["conv_in"].base_layer, ModelHook())
    with torch.no_grad(), lora.on():
        mine = {n for n, layer in lora.layers.items() if "forward" not in vars(layer)}
    assert mine == {n for n in lora.layers if n.endswith(("to_q", "to_v"))} | {"conv_in"}


def test_a_users_adapter_of_the_last_layer_is_no_part_of_the_change(sd) -> None:
    from peft import LoraConfig

    pipe = sd()
    config = LoraConfig(r=2, target_modules=["conv_out"], init_lora_weights=False)
    pipe.unet.add_adapter(config, "style")
    refiner = NoiseRefiner(pipe)
    assert torch.equal(refine(pipe, START, PROMPTS, refiner), START)


def test_compiled_networks_stay_compiled(sd) -> None:
    """No graph more, however often noise is refined, which is outside of them."""
    pipe = sd()
    pipe.unet = tiny.shallow_unet()
    call = {"prompt": PROMPTS, "guidance_scale": 1.0, "output_type": "latent"}
    refiner = moved(NoiseRefiner(pipe))
    with steer(pipe, refiner=refiner):
        want = results(pipe, [0, 1], **call)
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    pipe.unet = torch.compile(pipe.unet, backend=backend)
    results(pipe, [0, 1], **call)
    for scale, guidance in ((1.0, None), (2.0, "CFG(3)")):
        seen = []
        with steer(pipe, guidance, refiner=refiner):
            for _ in range(3):
                got = results(pipe, [0, 1], **call | {"guidance_scale": scale})
                seen.append(len(graphs))
        if guidance is None:
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
        # one for arguments by name, which is how steering calls, and one for twice the rows
        assert seen == [2 if guidance is None else 3] * 3


def test_threads_take_turns(sd) -> None:
    """Or each would give back the state that another had switched to."""
    pipe = sd()
    want = sampled(pipe)
    refiner = moved(NoiseRefiner(pipe))
    x, cond = first_call(pipe, prompt=PROMPTS, guidance_scale=1.0)

    def act(i: int) -> Tensor:
        with torch.no_grad(), other.part.on() if i % 2 else nullcontext():
            return refiner(x, {"cond": cond})

    alone = act(0)
    other = moved(NoiseRefiner(sd()))  # of another pipeline: what is compiled is of all threads
    with refiner.part.on(), other.part.on():  # and of the same thread, one inside the other
        pass
    copy.deepcopy(refiner)
    with ThreadPoolExecutor(2) as pool:
        for got in pool.map(act, range(8)):
            torch.testing.assert_close(got, alone)
    assert torch.equal(sampled(pipe), want)
    graphs = []
    compiled = torch.compile(torch.sin, backend=lambda g, _: graphs.append(g) or g.forward)
    compiled(START)
    assert len(graphs) == 1


def test_a_scheduler_that_a_pipeline_does_not_scale_its_noise_for_is_refused() -> None:
    pipe = tiny.dit(diffusers.EulerDiscreteScheduler())
    refiner = NoiseRefiner(pipe)
    with steer(pipe, refiner=refiner), pytest.raises(ValueError, match="DDIMScheduler"):
        pipe(class_labels=[1], num_inference_steps=2, guidance_scale=1.0)


def test_fused_or_unloaded_adapters_are_not_passed_over_in_silence(sd) -> None:
    pipe = sd()
    user_lora(pipe, "style")
    refiner = moved(NoiseRefiner(pipe))
    pipe.fuse_lora(adapter_names=["style"])
    with pytest.raises(ValueError, match="unfuse_lora"):
        refine(pipe, START, PROMPTS, refiner)
    pipe.unfuse_lora()
    refine(pipe, START, PROMPTS, refiner)
    refiner.remove()
    pipe.fuse_lora(adapter_names=["style"])
    with pytest.raises(ValueError, match="style is fused into .* unfuse_lora"):
        NoiseRefiner(pipe)
    assert pipe.unet.down_blocks[1].attentions[0].transformer_blocks[0].attn1.to_q.merged
    pipe.unfuse_lora()
    refiner = moved(NoiseRefiner(pipe))
    pipe.unload_lora_weights()
    with pytest.raises(ValueError, match="load it again"):
        refine(pipe, START, PROMPTS, refiner)
    del pipe.unet.mid_block
    refiner.remove()  # what is there still
    assert not any("lora" in name for name, _ in pipe.unet.named_modules())


def test_grouped_convolutions_are_left_out(sd) -> None:
    pipe = sd()
    conv = pipe.unet.down_blocks[0].resnets[0].conv1
    pipe.unet.down_blocks[0].resnets[0].conv1 = torch.nn.Conv2d(
        conv.in_channels, conv.out_channels, 3, padding=1, groups=4
    )
    refiner = NoiseRefiner(pipe, rank=3)
    assert "down_blocks.0.resnets.0.conv1" not in refiner.part.layers
    assert "down_blocks.0.resnets.0.conv2" in refiner.part.layers
    with pytest.raises(ValueError, match="already"):
        NoiseRefiner(pipe)


# ------------------------------------------------------------------ files and bad input


@pytest.mark.parametrize("head", ["zero_init", "difference"])
def test_load_gives_back_what_was_saved(sd, tmp_path: Path, head: str) -> None:
    pipe = sd()
    refiner = moved(NoiseRefiner(pipe, rank=3, head=head, alpha=6))
    want = refine(pipe, START, PROMPTS, refiner)
    refiner.save(tmp_path / "r", {"steps": 10})
    refiner.remove()
    other = NoiseRefiner.load(tmp_path / "r", pipe, strength=0.5)
    got = refine(pipe, START, PROMPTS, other)
    torch.testing.assert_close(got, START + 0.5 * (want - START), atol=1e-6, rtol=1e-6)
    assert json.loads((tmp_path / "r/refiner.json").read_text())["made"] == {"steps": 10}
    other.remove()
    with steer(pipe, refiner=str(tmp_path / "r")):
        torch.testing.assert_close(sampled(pipe), sampled_from(sd(), want), atol=1e-5, rtol=1e-5)
    assert not any("lora" in name for name, _ in pipe.unet.named_modules())


def sampled_from(pipe: Any, start: Tensor) -> Tensor:
    return sampled(pipe, latents=start)


def test_the_file_is_a_lora_that_peft_reads(sd, tmp_path: Path) -> None:
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    pipe = sd()
    moved(NoiseRefiner(pipe, rank=3)).save(tmp_path)
    weights = load_file(tmp_path / "refiner.safetensors")
    plain = tiny.unet()
    names = [name.removesuffix(".lora_A.weight") for name in weights if "lora_A" in name]
    inject_adapter_in_model(LoraConfig(r=3, lora_alpha=3, target_modules=names), plain, "any")
    found = set_peft_model_state_dict(plain, weights, adapter_name="any")
    assert not found.unexpected_keys
    assert not [key for key in found.missing_keys if "lora" in key]


def test_a_refiner_of_another_model_is_refused(sd, tmp_path: Path) -> None:
    pipe = sd()
    moved(NoiseRefiner(pipe)).save(tmp_path)
    other = sd()
    with torch.no_grad():
        other.unet.conv_in.weight[0, 0, 0, 0] += 0.01
    with pytest.raises(ValueError, match="other weights"), steer(other, refiner=tmp_path):
        pass
    assert not any("lora" in name for name, _ in other.unet.named_modules())
    NoiseRefiner.load(tmp_path, other, any_model=True).remove()
    with pytest.raises(ValueError, match="prediction type"):
        NoiseRefiner.load(tmp_path, sd("v_prediction"))
    zero = tiny.stable_diffusion(ddim(rescale_betas_zero_snr=True), tmp_path)
    with pytest.raises(ValueError, match="terminal alpha"):
        NoiseRefiner.load(tmp_path, zero)
    loaded = sd()
    loaded.unet.to(torch.bfloat16)
    NoiseRefiner.load(tmp_path, loaded)  # the same weights in another precision
    shallow = sd()
    shallow.unet = tiny.shallow_unet()
    with pytest.raises(ValueError, match="do not fit UNet2DConditionModel at rank .* more differ"):
        NoiseRefiner.load(tmp_path, shallow, any_model=True)
    assert not any("lora" in name for name, _ in shallow.unet.named_modules())
    with pytest.raises(ValueError, match="for a network UNet2DConditionModel, .* DiTTransformer2D"):
        NoiseRefiner.load(tmp_path, tiny.dit(ddim()))
    half = replace(read(tmp_path)[0], weights={"float16": "0"})
    with pytest.warns(UserWarning, match="in float16, this one is in bfloat16: whether they are"):
        require_weights(half, {"bfloat16": "1"}, "this")


def test_a_refiner_of_the_hub_is_that_of_its_cache(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    place, commit = tmp_path / "models--some--refiner", 40 * "0"
    files = [
        place / "snapshots" / commit / name for name in ("refiner.json", "refiner.safetensors")
    ]
    files[0].parent.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs/main").write_text(commit)
    for file in files:
        file.touch()
    assert found("some/refiner") == tuple(files)


@pytest.mark.parametrize("harm", ["cut", "missing", "other", "nothing"])
def test_broken_files_say_so(sd, tmp_path: Path, harm: str) -> None:
    NoiseRefiner(sd()).save(tmp_path)
    weights, about = tmp_path / "refiner.safetensors", tmp_path / "refiner.json"
    if harm == "cut":
        weights.write_bytes(weights.read_bytes()[:-9])
    if harm == "missing":
        about.unlink()
    if harm == "other":
        about.write_text("{}")
    error, words = {
        "cut": (ValueError, "cut short"),
        "missing": (FileNotFoundError, "has no refiner.json"),
        "other": (ValueError, "no refiner of ours"),
        "nothing": (FileNotFoundError, "neither a folder nor a hub id"),
    }[harm]
    with pytest.raises(error, match=words):
        NoiseRefiner.load(tmp_path / "gone" / "away" if harm == "nothing" else tmp_path, sd())


@pytest.mark.parametrize(
    "change",
    [
        {"rank": "2"},
        {"rank": 10**12},
        {"rank": True},
        {"alpha": 0},
        {"alpha": float("nan")},
        {"weights": []},
        {"weights": {}},
        {"terminal": {}},
        {"terminal": {"t": "a", "alpha": 1}},
        {"head": ["x"]},
        {"head": "x"},
        {"network": None},
    ],
)
def test_what_a_hostile_file_says_is_checked(sd, tmp_path: Path, change: dict[str, Any]) -> None:
    pipe = sd()
    refiner = NoiseRefiner(pipe, rank=2)
    refiner.save(tmp_path)
    refiner.remove()
    about = tmp_path / "refiner.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | change))
    with pytest.raises(ValueError):
        NoiseRefiner.load(tmp_path, pipe)
    assert not any("lora" in name for name, _ in pipe.unet.named_modules())


def test_every_entry_is_part_of_the_hash(sd, tmp_path: Path) -> None:
    """The scale of the adapter decides the images as its weights do; also in files of 0.1.0."""
    pipe, about = sd(), tmp_path / "refiner.json"
    refiner = NoiseRefiner(pipe, rank=2)
    refiner.save(tmp_path, {"steps": 10})
    refiner.remove()
    table = json.loads(about.read_text())
    for change in ({"alpha": 4}, {"head": "literal"}, {"made": {}}, {"kind": "V()"}):
        about.write_text(json.dumps(table | change))
        with pytest.raises(ValueError, match="not what was written"):
            NoiseRefiner.load(tmp_path, pipe)
    weights = hashlib.sha256((tmp_path / "refiner.safetensors").read_bytes()).hexdigest()
    hashes = []
    for alpha in (2, 4, 8):
        old = table | {"version": 1, "alpha": alpha, "sha256": weights}
        about.write_text(json.dumps(old))
        loaded = NoiseRefiner.load(tmp_path, pipe)
        hashes.append(loaded.sha256)
        loaded.remove()
    assert hashes[0] == weights and len(set(hashes)) == 3
    about.write_text(json.dumps(table | {"version": 1, "rank": 3, "sha256": weights}))
    with pytest.raises(ValueError, match=r"holds ranks \[2\], and it says 3"):
        NoiseRefiner.load(tmp_path, pipe)


def test_refined_noise_that_is_not_finite_is_refused(sd) -> None:
    pipe = sd()
    refiner = moved(NoiseRefiner(pipe))
    refiner.strength = 1e308
    with pytest.raises(ValueError, match=r"of rows \[0, 1\] is not finite: lower the strength"):
        refine(pipe, START, PROMPTS, refiner)


def test_offloaded_weights_say_when_to_load(sd, tmp_path: Path) -> None:
    from accelerate import cpu_offload

    pipe = sd()
    NoiseRefiner(pipe, rank=2).save(tmp_path)
    other = sd()
    cpu_offload(other.unet, "cpu")
    with pytest.raises(ValueError, match="is offloaded.* load the refiner first"):
        NoiseRefiner.load(tmp_path, other)


def test_a_mistyped_folder_is_not_blamed_on_the_hub_alone(sd, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    recipe = Recipe(model=str(tmp_path / "pipe"), prompt="a cat", refiner="runs/refinr")
    (tmp_path / "pipe").mkdir()
    (tmp_path / "pipe" / "model_index.json").write_text("{}")
    with pytest.raises(
        FileNotFoundError, match="no folder 'runs/refinr', .*the hub does not answer"
    ):
        require_consistent(recipe)  # before the model is loaded
    with pytest.raises(FileNotFoundError, match="runs/refinr is no folder here, and the hub"):
        NoiseRefiner.load("runs/refinr", sd())


def test_files_that_cannot_be_read_say_so(sd, tmp_path: Path) -> None:
    pipe = sd()
    refiner = NoiseRefiner(pipe, rank=2)
    with torch.no_grad():
        refiner.parameters["conv_out.lora_A.weight"][0] = float("nan")
    refiner.save(tmp_path)
    refiner.remove()
    with pytest.raises(ValueError, match="conv_out.lora_A.weight in .* not finite"):
        NoiseRefiner.load(tmp_path, pipe)
    (tmp_path / "refiner.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="copy both files"):
        NoiseRefiner.load(tmp_path, pipe)
    (tmp_path / "refiner.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="no refiner of ours"):
        NoiseRefiner.load(tmp_path, pipe)


def test_bad_input(sd, tmp_path: Path) -> None:
    pipe = sd()
    refiner = NoiseRefiner(pipe)
    for prompts, words in (
        ([], "there is no prompt"),
        (["a cat", " "], "prompt 1 is empty"),
        (["a cat"], "1 prompts for 2 rows"),
        ("ab", "'ab' is one text"),
    ):
        with pytest.raises(ValueError, match=words):
            refine(pipe, START, prompts, refiner)
    for take in (steer, lambda pipe, refiner: refine(pipe, START, PROMPTS, refiner)):
        with pytest.raises(ValueError, match="another pipeline"):
            take(sd(), refiner=refiner)
    with pytest.raises(ValueError, match="4 images for 2 prompts"):
        refine(pipe, START, PROMPTS, refiner, num_images_per_prompt=2)
    with pytest.raises(ValueError, match="no head"):
        NoiseRefiner(sd(), head="none")
    with pytest.raises(ValueError, match="rank=0"):
        NoiseRefiner(sd(), rank=0)
    with steer(pipe, refiner=refiner), pytest.raises(ValueError, match="steered already"):
        steer(pipe, CFG(2))
    picture = diffusers.StableDiffusionImg2ImgPipeline(
        **pipe.components, requires_safety_checker=False
    )
    call = {"image": torch.rand(1, 3, 16, 16), "strength": 0.5, "num_inference_steps": 4}
    with steer(picture, refiner=refiner), pytest.raises(ValueError, match="from an image"):
        picture("a cat", **call, output_type="latent")


def test_refining_takes_what_steering_takes(sd, tmp_path: Path) -> None:
    pipe = sd()
    refiner = moved(NoiseRefiner(pipe))
    refiner.save(str(tmp_path))
    expected = refine(pipe, START, PROMPTS, refiner)
    refiner.remove()
    assert refine(pipe, START, PROMPTS, tmp_path).equal(expected)
    assert refine(pipe, START, PROMPTS, "NLG(1)").equal(refine(pipe, START, PROMPTS, NLG(1)))
    with pytest.raises(ValueError, match="did you mean 'NLG'"):
        refine(pipe, START, PROMPTS, "nlg(1)")


def test_a_scheduler_of_another_schedule_is_refused(sd) -> None:
    pipe = sd("v_prediction")
    refiner = moved(NoiseRefiner(pipe))
    words = r"terminal alpha .* 0\.0682.* with .* 0\.0"
    with (
        steer(pipe, refiner=refiner, zero_snr=True),
        pytest.raises(ValueError, match=words),
    ):
        sampled(pipe)
    pipe.scheduler = ddim("epsilon")
    with steer(pipe, refiner=refiner), pytest.raises(ValueError, match="prediction type"):
        sampled(pipe)


def test_noise_is_refined_before_a_pipeline_is_steered_or_by_steering(sd) -> None:
    pipe = sd()
    refiner = moved(NoiseRefiner(pipe))
    for how in ({"guidance": "CFG(1)"}, {"refiner": refiner}):
        with steer(pipe, **how), pytest.raises(ValueError, match="steered already"):
            refine(pipe, START, PROMPTS, refiner)


class Twice(diffusers.StableDiffusionPipeline):
    """A pipeline of nobody's, whose network is given two samples for one."""

    def __call__(self, latents: Tensor) -> Tensor:
        self._guidance_scale = 1.0
        self.scheduler.set_timesteps(2)
        for t in self.progress_bar(self.scheduler.timesteps):
            both = torch.cat([latents, latents.flip(3)])
            out = self.unet(both, t, latents.new_zeros(2, 4, 32)).sample[:1]
            latents = self.scheduler.step(out, t, latents).prev_sample
        return latents


def test_more_rows_than_samples_are_refused(sd) -> None:
    pipe = Twice(**sd().components, requires_safety_checker=False)
    refiner = moved(NoiseRefiner(pipe))
    with steer(pipe, refiner=refiner), pytest.raises(ValueError, match="2 rows for 1 samples"):
        pipe(START[:1])


def test_rows_that_are_no_halves_are_refused(sd, folder: Path) -> None:
    """PAG of the pipeline itself stacks a third part, or two where it does not guide."""
    parts = sd().components | {"requires_safety_checker": False}
    pipe = diffusers.StableDiffusionPAGPipeline(**parts, pag_applied_layers=["mid"])
    refiner = moved(NoiseRefiner(pipe))
    with steer(pipe, refiner=refiner):
        for scale, words in ((3.0, "6 rows that are not the same"), (1.0, "has put PAGIdentity")):
            with pytest.raises(ValueError, match=words):
                sampled(pipe, scale=scale, pag_scale=2.0)
    assert "step" not in vars(pipe.scheduler)


def test_what_a_network_is_told_of_the_size_is_that_of_the_noise(folder: Path) -> None:
    """As the pipeline tells it in `steer`; SDXL is told of the size, Flux of places."""
    for pipe, call in (
        (tiny.sdxl(ddim(), folder), {"height": 32, "width": 16}),
        (tiny.flux(folder), {"height": 32, "width": 16}),
    ):
        refiner = moved(NoiseRefiner(pipe))
        more = {"num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "latent"} | call
        noise, _ = first_call(pipe, prompt=PROMPTS, **more)
        start = refine(pipe, noise, PROMPTS, refiner, **call)
        want = pipe(PROMPTS, latents=start, **more).images
        with steer(pipe, refiner=refiner):
            got = pipe(PROMPTS, latents=noise, **more).images
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
        with pytest.raises(ValueError, match="give the height and width"):
            refine(pipe, noise, PROMPTS, refiner)


@pytest.mark.parametrize("prk", [True, False])
def test_schedulers_with_a_least_number_of_steps(folder: Path, prk: bool) -> None:
    scheduler = diffusers.PNDMScheduler.from_config(ddim().config, skip_prk_steps=not prk)
    pipe = tiny.stable_diffusion(scheduler, folder)
    refiner = moved(NoiseRefiner(pipe))
    want = sampled(pipe, latents=refine(pipe, START, PROMPTS, refiner), steps=5)
    with steer(pipe, refiner=refiner):
        got = sampled(pipe, steps=5)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_a_broken_off_sampling_leaves_no_trace(sd) -> None:
    pipe = sd()
    want = sampled(pipe)
    refiner = moved(NoiseRefiner(pipe))
    with steer(pipe, refiner=refiner):
        refined = sampled(pipe)
        handle = pipe.unet.mid_block.register_forward_pre_hook(fails_without(refiner))
        with pytest.raises(KeyError):
            sampled(pipe)
        handle.remove()
        assert torch.equal(sampled(pipe), refined)
    assert torch.equal(sampled(pipe), want) and "step" not in vars(pipe.scheduler)


def test_after_a_broken_off_sampling_seeds_still_count(folder: Path) -> None:
    """The step that is left watched looks as the scheduler's own, which takes generators."""
    scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(ddim().config)
    pipe = tiny.stable_diffusion(scheduler, folder)
    refiner = NoiseRefiner(pipe)
    call = {"prompt": PROMPTS, "guidance_scale": 1.0}
    want = results(pipe, [0, 1], **call)
    with steer(pipe, refiner=refiner):
        handle = pipe.unet.mid_block.register_forward_pre_hook(fails_without(refiner))
        with pytest.raises(KeyError):
            results(pipe, [0, 1], **call)
        handle.remove()
        assert torch.equal(results(pipe, [0, 1], **call), want)


def fails_without(refiner: NoiseRefiner) -> Any:
    """Fails in the first call after that which refines."""

    def hook(module: Any, args: Any) -> None:
        if not next(iter(refiner.part.layers.values())).active_adapters:
            raise KeyError

    return hook


# ------------------------------------------------------------------ noise level guidance


def test_nlg_is_its_formula(sd) -> None:
    """One round by hand, with the noise that it adds drawn again from its seed."""
    from diffsteer.core.noise import Noise, seeds_of

    pipe = sd()
    model = PipelineNetwork.of(pipe)
    conds = {"cond": conditions(pipe, PROMPTS), "null": conditions(pipe, ["", ""])}
    got = refine(pipe, START, PROMPTS, NLG(rounds=1, scale=2.0))
    with torch.no_grad():
        cond, null = (model(START, model.terminal, conds[name]) for name in ("cond", "null"))
    x = START - 2 * (cond - null).clamp(-0.5, 0.5)
    x = 16 * x / x.flatten(1).norm(dim=1)[:, None, None, None]
    x = x + 0.001**0.5 * Noise(seeds_of(START))(START)
    torch.testing.assert_close(got, x, atol=1e-5, rtol=1e-5)


def test_nlg_in_a_pipeline_costs_two_rows_a_round(sd, tmp_path: Path) -> None:
    pipe = sd()
    start = refine(pipe, START, PROMPTS, NLG(2))
    want = sampled(pipe, latents=start)
    rows: list[int] = []
    pipe.unet.time_proj.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    with steer(pipe, CFG(1), refiner="NLG(2)"):
        got = sampled(pipe, scale=2.0)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    assert rows == [2] * (4 + 3)
    for text, reason in (
        ("2.5", "rounds must be a whole number >= 1, got 2.5"),
        ("True", "rounds must be a whole number >= 1, got True"),
        ("0", "rounds must be a whole number >= 1, got 0"),
        ("2, scale=1e999", "scale must be a finite number, got inf"),
        ("2, scale=True", "scale must be a finite number, got True"),
    ):
        with pytest.raises(ValueError, match=reason):
            steer(pipe, CFG(1), refiner=f"NLG({text})")
    with steer(pipe, refiner="NLG(2)"), pytest.raises(ValueError, match="null prompt"):
        sampled(pipe)
    zero = tiny.stable_diffusion(ddim("v_prediction", rescale_betas_zero_snr=True), tmp_path)
    with pytest.raises(ValueError, match="zero terminal SNR"):
        refine(zero, START, PROMPTS, NLG())


def test_a_refiner_is_saved_by_a_text_or_path_and_its_rank_is_whole(tmp_path: Path) -> None:
    pipe = tiny.unconditional(diffusers.DDIMScheduler())
    with pytest.raises(InputError, match="has no scheduler: give a pipeline"):
        NoiseRefiner(pipe.unet)
    for rank in (4.0, True):
        with pytest.raises(InputError, match="give whole numbers"):
            NoiseRefiner(pipe, rank)  # type: ignore[arg-type]
    refiner = NoiseRefiner(pipe, np.int64(2))  # type: ignore[arg-type]
    refiner.save(str(tmp_path))
    refiner.remove()
    assert NoiseRefiner.load(tmp_path, pipe).rank == 2
