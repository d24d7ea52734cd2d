"""Null prompts of pipelines whose own guidance is off are those that they send with it on."""

import gc
import weakref
from pathlib import Path
from typing import Any

import diffusers
import pytest
import tiny
import torch
import zoo
from families.calls import first
from families.encoders import decoder, spelling, t5
from families.parts import embeds
from families.test_guidance import named
from families.tiny_image_batched import sana
from torch import Tensor

from diffsteer import steer
from diffsteer.core.errors import InputError


def sampled(pipe: Any, call: dict[str, Any], scale: float, steps: int = 2, **more: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    options = {"num_inference_steps": steps, "output_type": "latent", "generator": generator}
    name = "true_cfg_scale" if isinstance(pipe, diffusers.FluxPipeline) else "guidance_scale"
    with torch.no_grad():
        return first(pipe(**call, **{name: scale}, **options, **more))


def check(pipe: Any, call: dict[str, Any], null: str = "", **reference: Any) -> None:
    """CFG(3) with the pipeline's own guidance off is its own guidance at a scale of 3."""
    pipe.set_progress_bar_config(disable=True)
    want = sampled(pipe, call | reference, 3.0)
    with steer(pipe, "CFG(3)", null=null):
        got = sampled(pipe, call, 1.0)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(want, sampled(pipe, call, 1.0), atol=1e-2)


def text_of(family: str, **parts: Any) -> tuple[Any, dict[str, Any]]:
    """A tiny pipeline with a text encoder, and a call of it without embeddings."""
    pipe = named(family).build()
    for name, part in parts.items():
        setattr(pipe, name, part)
    call = {n: v for n, v in named(family).kwargs(pipe).items() if "prompt" not in n}
    own = {"num_inference_steps", "generator", "output_type", "guidance_scale"}
    return pipe, {n: v for n, v in call.items() if n not in own and "attention" not in n}


@pytest.mark.parametrize("instruction", [None, ["ab", "cd"]])
def test_a_template_for_the_prompt_alone(instruction: Any) -> None:
    pipe = sana()
    pipe.text_encoder = decoder("Gemma2Model", "Gemma2Config", num_hidden_layers=1)
    pipe.tokenizer = spelling(64)
    size = {"height": 256, "width": 256, "use_resolution_binning": False, "clean_caption": False}
    more = {"max_sequence_length": 12, "complex_human_instruction": instruction}
    call = {"latents": embeds(3, 1, 4, 8, 8), "prompt": "a cat", "negative_prompt": "a dog"}
    check(pipe, size | more | call)


@pytest.mark.parametrize("negative", [None, "a dog"])
def test_zeros_for_no_negative_prompt(negative: str | None) -> None:
    pipe, call = text_of("StableAudio", text_encoder=t5(), tokenizer=spelling(16))
    check(pipe, call | {"prompt": "a cat", "negative_prompt": negative})


def pixart() -> tuple[Any, dict[str, Any]]:
    base = tiny.pixart(zoo.ddim())
    config = dict(base.transformer.config) | {"caption_channels": 16}
    network = diffusers.PixArtTransformer2DModel.from_config(config).eval()
    tiny._perturb(network)
    parts = {"text_encoder": t5(), "tokenizer": spelling(16), "transformer": network}
    pipe = diffusers.PixArtSigmaPipeline(**base.components | parts)
    size = {"height": 16, "width": 16, "use_resolution_binning": False, "clean_caption": False}
    return pipe, size | {"latents": embeds(3, 1, 4, 8, 8), "max_sequence_length": 16}


def test_a_text_of_ones_own_where_the_pipelines_default_is_empty() -> None:
    pipe, call = pixart()
    check(pipe, call | {"prompt": "a cat"}, null="a dog", negative_prompt="a dog")
    check(pipe, call | {"prompt": "a cat", "negative_prompt": "a bird"}, null="a dog")


@pytest.mark.parametrize("count", [1, 2])
def test_views_of_a_panorama_in_turn(tmp_path: Path, count: int) -> None:
    """Each view of a batch comes under both conditions in turn."""
    pipe = zoo._panorama(tmp_path)
    pipe.get_views = lambda *_, **__: [(0, 8, 0, 8), (0, 8, 4, 12)]
    size = {"height": 16, "width": 24, "latents": embeds(3, 1, 4, 8, 12), "view_batch_size": count}
    check(pipe, size | {"prompt": "a cat", "negative_prompt": "a dog"})


def test_three_conditions_are_refused(tmp_path: Path) -> None:
    pipe = zoo._sdxl(tmp_path, "StableDiffusionXLInstructPix2PixPipeline", 8)
    call = {n: v for n, v in zoo.latents(1.0, 1).items() if n != "guidance_scale"}
    call |= {"image": torch.rand(1, 3, 16, 16), "latents": call["latents"].float()}
    with steer(pipe, "CFG(3)"), pytest.raises(InputError, match="calls its network with 3 rows"):
        sampled(pipe, call, 1.0)


class Named(diffusers.FluxPipeline):
    """A call that names some arguments, with other defaults."""

    def __call__(self, prompt: Any = None, height: int = 16, width: int = 16, **more: Any) -> Any:
        return super().__call__(prompt=prompt, height=height, width=width, **more)


class Unnamed(diffusers.FluxPipeline):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)


@pytest.mark.parametrize("kind", [Named, Unnamed])
def test_a_call_of_a_subclass(tmp_path: Path, kind: type) -> None:
    pipe = kind(**tiny.flux(tmp_path).components)
    call = {"prompt": ["a cat"], "negative_prompt": ["a dog"], "height": 16, "width": 16}
    check(pipe, call | {"latents": embeds(3, 1, 16, 16), "max_sequence_length": 8})


class OfNobody(diffusers.StableDiffusionPipeline):
    """A pipeline that makes two samples of a prompt, others of none, and guides in three calls."""

    def __call__(self, prompt: str, latents: Tensor, rows: int = 2, **scales: float) -> Tensor:
        self._guidance_scale = scales.get("guidance_scale", 1.0)
        text, _ = self.encode_prompt(prompt, "cpu", 1, False)
        x, calls = latents[: 2 if prompt else rows], 3 if self._guidance_scale > 1 else 1
        self.scheduler.set_timesteps(2)
        for t in self.progress_bar(self.scheduler.timesteps if len(x) else ()):
            outs = [self.unet(x, t, text.expand(len(x), -1, -1)).sample for _ in range(calls)]
            x = self.scheduler.step(sum(outs) / calls, t, x).prev_sample
        return x


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"rows": 0}, "OfNobody did not call its network again"),
        ({"rows": 1}, "gives its network 1 samples for the null prompt and 2 for the prompt"),
        ({"guidance_scale": 1.0}, "does not send it at its first step with its own guidance on"),
    ],
)
def test_a_null_prompt_that_cannot_be_had(tmp_path: Path, more: Any, says: str) -> None:
    pipe = OfNobody(**zoo.sd(tmp_path).components, requires_safety_checker=False)
    pipe("a cat", embeds(3, 2, 4, 8, 8), **more)
    with steer(pipe, "CFG(3)"), pytest.raises(InputError, match=says):
        pipe("a cat", embeds(3, 2, 4, 8, 8), **more)


def test_a_callback_that_encodes(tmp_path: Path) -> None:
    """What it encodes is no call of the pipeline."""
    pipe = zoo.sd(tmp_path)

    def encode(pipe: Any, *_: Any) -> dict[str, Any]:
        pipe.encode_prompt(["a bird"], "cpu", 1, False)
        return {}

    call = {"prompt": ["a cat"], "negative_prompt": ["a dog"], "latents": embeds(3, 1, 4, 8, 8)}
    check(pipe, call | {"callback_on_step_end": encode})
    with steer(pipe, "CFG(3).over(1, 2)"):
        late = sampled(pipe, call | {"callback_on_step_end": encode}, 1.0)
    with steer(pipe, "CFG(3).over(1, 2)"):
        assert torch.equal(late, sampled(pipe, call, 1.0))


@pytest.mark.parametrize("guidance", ["CFG(3)", "CFG(3).over(1, 2)"])
def test_features_of_a_controlnet_are_refused_before_a_step(tmp_path: Path, guidance: str) -> None:
    base = tiny.stable_diffusion(zoo.ddim(), tmp_path)
    control = diffusers.ControlNetModel.from_unet(base.unet, conditioning_channels=3).eval()
    tiny._perturb(control)
    parts = {n: v for n, v in base.components.items() if n != "controlnet"}
    pipe = diffusers.StableDiffusionControlNetPipeline(
        **parts, controlnet=control, requires_safety_checker=False
    )
    steps: list[int] = []
    call = {"prompt": ["a cat"], "image": torch.rand(1, 3, 64, 64)}
    call |= {"latents": embeds(3, 1, 4, 8, 8)}
    call |= {"callback_on_step_end": lambda pipe, i, *_: steps.append(i) or {}}
    with steer(pipe, guidance), pytest.raises(InputError, match="residual changes from step to"):
        sampled(pipe, call, 1.0)
    assert steps == []


@pytest.mark.parametrize("name", ["Wan", "Flux2Klein", "ZImage"])
@pytest.mark.parametrize("kind", ["first token", "beginning"])
def test_a_null_prompt_much_like_the_prompt(name: str, kind: str) -> None:
    """A value that dwarfs all others in both, or a null prompt that the prompt begins with."""
    family = named(name)
    assert family.guided
    outputs = []
    for on in (True, False):
        pipe = family.build()
        guided = family.guided(pipe)
        call = family.kwargs(pipe) | {n: v for n, v in guided.items() if on or "negative" in n}
        texts = [call["prompt_embeds"], call["negative_prompt_embeds"]]
        texts = [t[0] if isinstance(t, list) else t for t in texts]
        prompt, negative = (t.clone() for t in texts)
        if kind == "first token":
            prompt[..., 0, 0] = negative[..., 0, 0] = 1e4
        else:
            negative = prompt[..., :2, :].clone()
        for key, value in (("prompt_embeds", prompt), ("negative_prompt_embeds", negative)):
            call[key] = [value] if isinstance(call[key], list) else value
        torch.manual_seed(0)
        with steer(pipe, "CFG(4)"):
            outputs.append(first(pipe(**call)))
        torch.manual_seed(0)
        with steer(pipe, "CFG(1)"):
            none = first(pipe(**call))
    torch.testing.assert_close(*outputs, atol=1e-4, rtol=1e-4)
    assert (outputs[0] - none).abs().max() > 1e-2


def test_an_encoder_of_ones_own(tmp_path: Path) -> None:
    """A method that a user has set on the pipeline itself."""
    pipe = zoo.sd(tmp_path)
    own = pipe.encode_prompt

    def encode(*args: Any, **kwargs: Any) -> Any:
        return tuple(None if part is None else 2 * part for part in own(*args, **kwargs))

    pipe.encode_prompt = encode
    call = {"prompt": ["a cat"], "negative_prompt": ["a dog"], "latents": embeds(3, 1, 4, 8, 8)}
    check(pipe, call)
    assert pipe.encode_prompt is encode


def test_nothing_of_a_call_stays(tmp_path: Path) -> None:
    pipe = zoo.sd(tmp_path)
    text = torch.randn(1, 16, 32)
    kept = weakref.ref(text)
    call = {"latents": embeds(3, 1, 4, 8, 8), "negative_prompt_embeds": embeds(4, 1, 16, 32)}
    with steer(pipe, "CFG(3)"):
        sampled(pipe, call | {"prompt_embeds": text}, 1.0)
        del text
        gc.collect()
        assert kept() is None


def test_a_condition_without_a_share_in_bfloat16() -> None:
    """DreamLite sends both at any scale; at 1 the null prompt has no share, and any place fits."""
    family = named("DreamLite")
    assert family.guided
    pipe = family.build()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.to(torch.bfloat16)
    call = family.kwargs(pipe) | family.guided(pipe)

    def run(scale: float, guidance: str) -> Tensor:
        torch.manual_seed(0)
        call["generator"] = torch.Generator().manual_seed(0)
        with steer(pipe, guidance):
            return first(pipe(**call | {"guidance_scale": scale})).float()

    want, got, none = run(4.0, "CFG(4)"), run(1.0, "CFG(4)"), run(4.0, "CFG(1)")
    assert (got - want).abs().max() < 0.2 * (none - want).abs().max()  # rounding, at most
