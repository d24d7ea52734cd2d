"""Skipped and shuffled blocks of real networks of random weights, beside diffusers' hooks."""

from functools import partial
from typing import Any

import pytest
import torch
from diffusers import LayerSkipConfig, SmoothedEnergyGuidanceConfig, apply_layer_skip
from diffusers.hooks.smoothed_energy_guidance_utils import _apply_smoothed_energy_guidance_hook
from families.calls import first
from families.test_guidance import close, named, require_steerable, sampled
from families.test_tiny import guidable
from torch import Tensor

from diffsteer import CFG, PAG, SEG, SLG, STG, steer
from diffsteer.core.errors import InputError

BLOCK = {"Wan": "blocks", "LTX": "transformer_blocks", "CogVideoX": "transformer_blocks"}
"""Stacks of networks that diffusers' hook skips; it swaps image and text where a block returns the
text first (Flux, SD3, Qwen-Image)."""


def steered(family: Any, pipe: Any, guidance: Any, guide: Any = None) -> Tensor:
    """What a family's pipeline samples with a guidance, from the same noise each time."""
    torch.manual_seed(0)
    call = family.kwargs(pipe) | family.guided(pipe)
    with steer(pipe, guidance, guide=guide):
        return first(pipe(**call))


@pytest.mark.parametrize("name", list(BLOCK))
def test_difference_is_that_of_diffusers_hook(name: str) -> None:
    """SLG against a guide whose block diffusers skips, over a whole sampling."""
    family, layer = named(name), f"{BLOCK[name]}.0"
    pipe, guide = family.build(), family.build().transformer
    apply_layer_skip(guide, LayerSkipConfig([0], fqn=BLOCK[name]))
    run = partial(steered, family, pipe)

    theirs = run("CFG(3) + Auto(3)", guide)
    torch.testing.assert_close(run(CFG(3) + SLG(2, layer)), theirs, atol=1e-4, rtol=1e-4)
    assert (theirs - run(CFG(3))).abs().max() > 1e-3
    assert torch.equal(run(STG(2, layer)), run(SLG(2, layer)))
    attention = run(STG(2, f"{layer}.attn1", "attention"))
    assert torch.equal(attention, run(PAG(2, f"{layer}.attn1")))


@pytest.mark.parametrize("sigma", [1.0, 30.0])
def test_blurred_queries_are_those_of_diffusers_hook(sigma: float) -> None:
    """SEG against a guide whose queries diffusers blurs, which takes their mean below 9999.9."""
    family, layer = named("PixArtAlpha"), "transformer_blocks.0.attn1"
    pipe, guide = family.build(), family.build().transformer
    blurred = SmoothedEnergyGuidanceConfig([0], fqn="transformer_blocks")
    _apply_smoothed_energy_guidance_hook(guide, blurred, sigma)
    run = partial(steered, family, pipe)

    theirs = run("CFG(3) + Auto(3)", guide)
    torch.testing.assert_close(run(CFG(3) + SEG(2, layer=layer)), theirs, atol=1e-4, rtol=1e-4)
    assert (theirs - run(CFG(3))).abs().max() > 1e-3


def test_stable_diffusion_3() -> None:
    """Skip-layer guidance of the pipeline itself, in the same steps."""
    family = named("StableDiffusion3")
    pipe = family.build()
    more = {"guidance_scale": 3.0, "num_inference_steps": 5}
    skip = {"skip_guidance_layers": [0], "skip_layer_guidance_scale": 2.8}
    skip |= {"skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 0.6}
    theirs = first(pipe(**family.kwargs(pipe) | family.guided(pipe) | more | skip))
    with steer(pipe, CFG(3) + SLG(2.8, "transformer_blocks.0").over(1, 3)):
        ours = first(pipe(**family.kwargs(pipe) | family.guided(pipe) | more))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


CACHED = ("QwenImage21",)
UNKNOWN_PLACES = (
    *("HunyuanVideoFramepack", "Latte", "ErnieImage", "QwenImageEdit", "FluxKontext"),
)


@pytest.mark.slow
@guidable
def test_every_network(family: Any) -> None:
    """Blocks are found in every network; those that join a text may not tell where the image is."""
    require_steerable(family)
    name = family.name.partition("-")[2]
    if name in CACHED:
        with pytest.raises(InputError, match="keeps a cache"):
            sampled(family, "SLG(2)")
        return
    off = sampled(family, "CFG(1)")
    assert not close(sampled(family, "SLG(2)"), off)
    assert close(sampled(family, "SLG(0) + TPG(0) + S2(0)"), off)
    assert not close(sampled(family, "S2(2, share=0.5)"), off)
    if name in UNKNOWN_PLACES:
        with pytest.raises(
            InputError, match=r"are not known|cannot be told apart|was measured with"
        ):
            sampled(family, "TPG(2)")
    elif family.network not in ("PriorTransformer", "Kandinsky3UNet"):  # of one token
        assert not close(sampled(family, "TPG(2)"), off)


@pytest.mark.parametrize("name", ["Wan", "StableDiffusion"])
def test_a_block_that_is_not_there(name: str) -> None:
    """Refused before the network answers."""
    family = named(name)
    pipe = family.build()
    calls: list[int] = []
    network = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    for late in (SLG(2, "blocks.77"), SLG(2, "blocks.77").over(1, 2)):
        with steer(pipe, CFG(2) + late):
            if name == "StableDiffusion":  # elsewhere one call tells the form of the output
                next(network.children()).register_forward_pre_hook(lambda *_: calls.append(1))
            with pytest.raises(InputError, match="no block with attention is called 'blocks.77'"):
                pipe(**family.kwargs(pipe) | family.guided(pipe))
    assert not calls


def test_a_sample_is_the_same_alone() -> None:
    """What is drawn depends on the sample's own noise: a batch of two equals two single ones."""
    family = named("StableDiffusion")
    pipe = family.build()
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    call = {"num_inference_steps": 3, "output_type": "latent", "guidance_scale": 2.0}
    with steer(pipe, "CFG(2) + S2(2, share=0.5) + TPG(2)"):
        both = pipe(["a cat", "a dog"], latents=x, **call).images
        for i, prompt in enumerate(("a cat", "a dog")):
            alone = pipe(prompt, latents=x[i : i + 1], **call).images
            torch.testing.assert_close(alone[0], both[i], atol=1e-4, rtol=1e-4)
