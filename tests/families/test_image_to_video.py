"""Videos from an image, which stands in the place of some frames or tokens of the sample."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from diffsteer import steer
from diffsteer.core.errors import InputError
from families.calls import first
from families.parts import embeds, image, network, pipeline, prompt, sampling, wan_vae
from families.test_guidance import close
from families.tiny_video_audio import ltx2, ltx2_cfg, ltx2_kwargs
from families.tiny_video_batched import ltx
from families.tiny_video_separate import WAN, unipc

MASK = "prompt_attention_mask"


def wan_of_5b() -> tuple[Any, dict[str, Any]]:
    """Wan 2.2 of 5B: the first frame is the image, of time 0."""
    pipe = pipeline(
        "WanImageToVideoPipeline",
        transformer=network("WanTransformer3DModel", **WAN),
        vae=wan_vae(),
        scheduler=unipc(),
        expand_timesteps=True,
    )
    size = {"height": 32, "width": 32, "num_frames": 9, "guidance_scale": 4.0}
    return pipe, {**size, "image": image(), **prompt(1), **prompt(2, "negative_")}


def ltx_from_image() -> tuple[Any, dict[str, Any]]:
    """LTX: the scheduler steps all frames but the first, and the network sees their tokens."""
    pipe = pipeline(
        "LTXImageToVideoPipeline", transformer=ltx().transformer, scheduler=ltx().scheduler
    )
    latents = embeds(5, 1, 3 * 2 * 2, 4)
    size = {"height": 64, "width": 64, "num_frames": 17, "guidance_scale": 4.0, "latents": latents}
    return pipe, {**size, **prompt(1, mask=MASK), **prompt(2, "negative_", mask=MASK)}


def ltx_with_conditions() -> tuple[Any, dict[str, Any]]:
    """LTX: an image in the middle, whose tokens have a time of their own."""
    vae = network(
        "AutoencoderKLLTXVideo",
        latent_channels=4,
        block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
    )
    parts = {"transformer": ltx().transformer, "scheduler": ltx().scheduler, "vae": vae}
    pipe = pipeline("LTXConditionPipeline", **parts)
    size = {"height": 64, "width": 64, "num_frames": 17, "guidance_scale": 4.0}
    condition = {"image": image(0, 64), "frame_index": 8, "strength": 0.7}
    return pipe, {**size, **condition, **prompt(1, mask=MASK), **prompt(2, "negative_", mask=MASK)}


def ltx2_from_image() -> tuple[Any, dict[str, Any]]:
    """LTX-2: the same of the first of two samples."""
    base = ltx2()
    names = ("scheduler", "transformer", "connectors", "vae", "audio_vae")
    parts = {name: getattr(base, name) for name in names}
    pipe = pipeline("LTX2ImageToVideoPipeline", **parts)
    own = ("num_inference_steps", "generator", "output_type")
    call = {k: v for k, v in (ltx2_kwargs(pipe) | ltx2_cfg(pipe)).items() if k not in own}
    return pipe, call | {"image": image(0, 64), "image_crf": 0}


CASES = [wan_of_5b, ltx_from_image, ltx2_from_image]
each = pytest.mark.parametrize("case", CASES)
Case = Callable[[], tuple[Any, dict[str, Any]]]


def sampled(pipe: Any, call: dict[str, Any], guidance: str = "", **more: Any) -> Tensor:
    if not guidance:
        return first(pipe(**sampling(**call)))
    with steer(pipe, guidance, **more):
        return first(pipe(**sampling(**call)))


@pytest.mark.parametrize("case", [*CASES, ltx_with_conditions])
def test_cfg_is_the_pipelines_own(case: Case) -> None:
    pipe, call = case()
    own = sampled(pipe, call)
    assert close(sampled(pipe, call, "CFG(4)"), own)
    assert not close(sampled(pipe, call, "CFG(1)"), own)
    assert torch.equal(sampled(pipe, call), own)


@each
def test_the_image_is_kept(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """No guidance gives the network another image, or tells it that the image has noise."""
    pipe, call = case()
    name = "image" if "image" in call else "latents"
    own, forward = sampled(pipe, call, "CFG(1)"), pipe.transformer.forward
    seen: list[tuple[Tensor, Tensor]] = []

    def noted(*args: Any, **kwargs: Any) -> Any:
        x, times = kwargs["hidden_states"], kwargs["timestep"]
        seen.append((x[:, :, 0] if x.ndim == 5 else x[:, :4], times.flatten(1)[:, :4]))
        return forward(*args, **kwargs)

    monkeypatch.setattr(pipe.transformer, "forward", noted)
    for guidance in ("PAG(2)", "AutoNoise(2, noise=0.1)", "SLG(2)", "CFG(4).rescaled(0.7)"):
        assert not close(sampled(pipe, call, guidance), own), (name, guidance)
    image_tokens, _ = seen[0]
    for tokens, times in seen:
        assert torch.equal(tokens, image_tokens[:1].expand_as(tokens))
        assert not times.any()


def test_conditions_with_noise_of_their_own() -> None:
    """Tokens of a condition inside of the sample would get noise as well: no other noise level."""
    pipe, call = ltx_with_conditions()
    with pytest.raises(InputError, match="it is not certain how"):
        sampled(pipe, call, "AutoNoise(2, noise=0.1)")
    with pytest.raises(InputError, match="it is not certain how"):
        sampled(pipe, call | {"frame_index": 0, "strength": 1.0}, "AutoNoise(2, noise=0.1)")
