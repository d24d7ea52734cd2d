"""SteerGuider in all modular pipelines, and in the others that have a guider."""

from typing import Any

import pytest
import torch
from torch import Tensor

from diffsteer import steer
from diffsteer.core.errors import InputError
from diffsteer.hf.guider import SteerGuider
from families import FAMILIES, MODULAR
from families.calls import first
from families.parts import WEIGHTS, TinyFamily
from families.test_guidance import close

QUICK = {"Flux2KleinBaseAutoBlocks", "HunyuanVideo15Pipeline", "QwenImageAutoBlocks", "Wan22Blocks"}
GUIDERS = ("guider", "guider_2", "audio_guider", "ocr_guider")


def named(pipeline: str) -> TinyFamily:
    return next(f for f in MODULAR + FAMILIES if f.pipeline == pipeline)


def cases() -> list[Any]:
    families = [*MODULAR, *(f for f in FAMILIES if f.pattern == "C")]
    slow = [pytest.mark.slow]
    return [
        pytest.param(f, id=f.pipeline, marks=[] if f.pipeline in QUICK else slow) for f in families
    ]


def guide(pipe: Any, guiders: dict[str, Any]) -> None:
    if hasattr(pipe, "update_components"):
        pipe.update_components(**guiders)
        return
    for name, guider in guiders.items():
        setattr(pipe, name, guider)


def sampled(family: TinyFamily, pipe: Any, guider: SteerGuider | None = None) -> Tensor:
    """Final sample with a guider of ours, or with the pipeline's own."""
    assert family.guided
    call = family.kwargs(pipe) | family.guided(pipe)
    own = {name: getattr(pipe, name) for name in GUIDERS if hasattr(pipe, name)}
    if guider is not None:
        guide(pipe, dict.fromkeys(own, guider))
    torch.manual_seed(0)
    try:
        return first(pipe(**call))
    finally:
        guide(pipe, own)


@pytest.mark.parametrize("family", cases())
def test_a_guider_is_steer(family: TinyFamily) -> None:
    pipe = family.build()
    weights = WEIGHTS[family.pattern] if family.weights == () else family.weights
    own = sampled(family, pipe)
    cfg = sampled(family, pipe, SteerGuider(f"CFG({max(weights or (4.0,))})", pipe.scheduler))
    assert close(cfg, own) == (weights is not None)
    text = "CFG(2) + AutoNoise(2, noise=0.1)"
    guided = sampled(family, pipe, SteerGuider(text))
    assert torch.equal(sampled(family, pipe), own)
    with steer(pipe, text):
        assert close(sampled(family, pipe), guided)


def test_state_of_a_pipeline_with_a_guider() -> None:
    """Networks are given back after each step; where one fails, by the next call or `disable`."""
    family = named("Flux2KleinBaseAutoBlocks")
    pipe = family.build()
    guider = SteerGuider("CFG(4)", pipe.scheduler)
    guided = sampled(family, pipe, guider)
    assert "forward" not in vars(pipe.transformer) and "step" not in vars(pipe.scheduler)
    handle = pipe.transformer.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sampled(family, pipe, guider)
    handle.remove()
    assert torch.equal(sampled(family, pipe, guider), guided)
    guider.disable()
    assert not close(sampled(family, pipe, guider), guided)


def test_errors_of_a_guider() -> None:
    family = named("Flux2KleinBaseAutoBlocks")
    pipe, other = family.build(), family.build()
    with pytest.raises(InputError, match="another than that of its SteerGuider"):
        sampled(family, pipe, SteerGuider("CFG(4)", other.scheduler))
    with steer(pipe, "CFG(2)"), pytest.raises(InputError, match="steered already"):
        sampled(family, pipe, SteerGuider("CFG(4)", pipe.scheduler))
    with pytest.raises(InputError, match="no attention layer is called 'nowhere'"):
        sampled(family, pipe, SteerGuider("PAG(1, layer='nowhere')", pipe.scheduler))
