"""Autoguidance by the same network with other LoRA adapters."""

import copy
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import tiny
import torch
from families.test_guidance import named
from peft import LoraConfig
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from diffsteer import CFG, PAG, Auto, Guidance, parse, plan, steer
from diffsteer.core.errors import InputError
from diffsteer.core.prediction import Eps
from diffsteer.core.schedule import Discrete
from diffsteer.guidance import GuidanceState

START = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
SCALE = 0.8


def with_adapters(network: Any, *names: str) -> None:
    """Add adapters of random weights to a network."""
    for i, name in enumerate(names):
        config = LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_v"])
        network.add_adapter(config, adapter_name=name)
        generator = torch.Generator().manual_seed(i)
        for key, weight in network.named_parameters():
            if f"lora_B.{name}" in key:
                weight.data.normal_(0, 0.3, generator=generator)
    network.set_adapters(["style"], weights=[SCALE])
    network.requires_grad_(False)


@pytest.fixture
def pipe(tmp_path: Any) -> Any:
    scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False)
    made = tiny.stable_diffusion(scheduler, tmp_path)
    with_adapters(made.unet, "style", "early")
    return made


def sampled(pipe: Any, guidance: Any = None, guide: Any = None, **more: Any) -> Tensor:
    call = {"latents": START, "output_type": "latent", "num_inference_steps": 3} | more
    if guidance is None:
        return pipe(["a cat", "a red dog"], **call).images
    with steer(pipe, guidance, guide=guide):
        return pipe(["a cat", "a red dog"], **call).images


def state(network: Any) -> Any:
    layers = [m for m in network.modules() if hasattr(m, "base_layer")]
    settings = [(m.active_adapters, m.disable_adapters, dict(m.scaling)) for m in layers]
    return settings, [p.requires_grad for p in network.parameters()]


@pytest.mark.parametrize(
    ("text", "names", "weights"),
    [
        ("style@0.3", ["style"], [0.3]),
        ("style@0", ["style"], [0.0]),
        ("early", ["early"], [1.0]),
        ("style, early@-0.5", ["style", "early"], [SCALE, -0.5]),
        ("none", [], []),
    ],
)
def test_auto_is_that_of_two_networks(pipe: Any, text: str, names: Any, weights: Any) -> None:
    guide = copy.deepcopy(pipe.unet)
    guide.set_adapters(names, weights) if names else guide.disable_adapters()
    before = state(pipe.unet)
    got = sampled(pipe, f"CFG(3) + Auto(2.5, adapter='{text}')")
    assert state(pipe.unet) == before
    want = sampled(pipe, CFG(3) + Auto(2.5), guide)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert (got - sampled(pipe, CFG(3))).abs().max() > 1e-2


def most_allocated(act: Callable[[], object]) -> int:
    """Most bytes held at a time beyond what was held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        act()
    kept = most = 0
    events = (e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]")
    for event in sorted(events, key=lambda e: e.start_ns()):
        kept += event.nbytes()
        most = max(most, kept)
    return most


def test_one_network_is_held(pipe: Any) -> None:
    """Beyond network and adapters it takes what PAG takes, which has as many evaluations."""
    weights = sum(p.numel() * p.element_size() for p in pipe.unet.parameters())
    pag, auto = (
        most_allocated(lambda text=text: sampled(pipe, f"CFG(3) + {text}"))
        for text in ("PAG(2)", "Auto(2, adapter='style@0.3')")
    )
    assert auto - pag < 0.1 * weights
    copied = most_allocated(lambda: sampled(pipe, CFG(3) + Auto(2), copy.deepcopy(pipe.unet)))
    assert copied - pag > 0.5 * weights


def test_off_is_the_pipeline_bit_for_bit(pipe: Any) -> None:
    plain = sampled(pipe, CFG(3))
    assert torch.equal(sampled(pipe, CFG(3) + Auto(1, adapter="gone")), plain)
    scaled = {"cross_attention_kwargs": {"scale": 0.5}}
    once = sampled(pipe, "CFG(3) + Auto(2, adapter='style@0.3')", **scaled)
    guide = copy.deepcopy(pipe.unet)
    guide.set_adapters(["style"], [0.3])  # a scale of the call acts on the guide's as well
    twice = sampled(pipe, "CFG(3) + Auto(2)", guide, **scaled)
    torch.testing.assert_close(once, twice, atol=1e-5, rtol=1e-5)
    assert torch.equal(sampled(pipe, CFG(3)), plain)


def test_what_is_not_there_is_refused_before_the_network_runs(pipe: Any) -> None:
    calls: list[int] = []
    pipe.unet.conv_in.register_forward_pre_hook(lambda *_: calls.append(1))
    for late in (Auto(2, adapter="gone@0.5"), Auto(2, adapter="gone").over(2, 3)):
        with pytest.raises(InputError, match="no adapter 'gone' is loaded, there is early, style:"):
            sampled(pipe, CFG(3) + late)
    pipe.unet.fuse_lora(adapter_names=["style"])
    with pytest.raises(InputError, match="fused into the weights"):
        sampled(pipe, Auto(2, adapter="style@0.5"))
    pipe.unet.unfuse_lora()
    pipe.unet.delete_adapters(["style", "early"])
    with pytest.raises(InputError, match="this network has no adapters"):
        sampled(pipe, Auto(2, adapter="style"))
    assert not calls


def test_restored_after_an_error(pipe: Any) -> None:
    before = state(pipe.unet)
    calls: list[int] = []

    def broken(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            assert state(pipe.unet) != before
            raise RuntimeError("out of memory")

    pipe.unet.conv_in.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        sampled(pipe, Auto(2, adapter="none"))
    assert state(pipe.unet) == before


def test_networks_that_are_guided_at_the_scheduler_step() -> None:
    family = named("Wan")
    pipe = family.build()
    with_adapters(pipe.transformer, "style")

    def run(guidance: Any, guide: Any = None) -> Tensor:
        torch.manual_seed(0)
        with steer(pipe, guidance, guide=guide):
            return pipe(**family.kwargs(pipe) | family.guided(pipe)).frames

    guide = copy.deepcopy(pipe.transformer)
    guide.set_adapters(["style"], [0.25])
    before = state(pipe.transformer)
    got, want = run("CFG(2) + Auto(2, adapter='style@0.25')"), run("CFG(2) + Auto(2)", guide)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert (got - run("CFG(2)")).abs().max() > 1e-3
    assert state(pipe.transformer) == before


def test_texts_and_costs() -> None:
    guidance = CFG(3) + Auto(2, adapter="style@0.3") + PAG(1)
    assert parse(repr(guidance), Guidance) == guidance
    schedule = Discrete.scaled_linear()
    at = GuidanceState(torch.zeros(1, 4, 8, 8), schedule.at(torch.tensor(500.0)), Eps())
    total = plan((guidance + Auto(3, adapter="style@0.3")).shift(at), at)
    assert str(total) == "main: 4 rows in 2 passes"
    assert plan((Auto(2, adapter="a") + Auto(2, adapter="b")).shift(at), at).passes == {"main": 3}
    for text in ("", "style@", "style@much", "@0.3", "style@inf", "a,,b", 3):
        with pytest.raises(InputError, match="adapter"):
            Auto(2, adapter=text)
