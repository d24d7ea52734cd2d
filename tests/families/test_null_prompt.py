"""Null prompts of pipelines that do not send one, against their own guidance and the algebra."""

from typing import Any

import pytest
import torch
from torch import Tensor

from diffsteer import steer
from diffsteer.core.errors import InputError
from families import FAMILIES, MODULAR
from families.calls import first
from families.parts import WEIGHTS, TinyFamily
from families.test_guidance import UNKNOWN, close, named, own

BROKEN = {
    "AnyFlow": "puts a negative prompt into the batch without guidance as well",
    "StableCascadePrior": "the same",
}
"""Pipelines that cannot be called with their guidance off and a negative prompt."""
REFUSED = {
    "GlmImage": "kv_caches changes from step to step",
    "QwenImage21": "keeps keys and values",
    "StableVideoDiffusion": "neither sends nor encodes",
}
"""Pipelines whose null prompt cannot be told from outside."""
QUICK = {"ErnieImage", "HunyuanVideo15", "Kandinsky5T2V", "Wan-two", "ZImage"}


def cases() -> list[Any]:
    families = [f for f in FAMILIES if f.guided]
    left = [f for f in families if f.name.partition("-")[2] not in {**BROKEN, **UNKNOWN}]
    slow = [pytest.mark.slow]
    return [
        pytest.param(f, id=f.name, marks=[] if f.name.partition("-")[2] in QUICK else slow)
        for f in left
    ]


def unguided(family: TinyFamily, **more: Any) -> tuple[Any, dict[str, Any]]:
    """A pipeline and a call of it with its own guidance off, and a negative prompt."""
    assert family.guided
    pipe = family.build()
    guided = family.guided(pipe)
    negative = {name: value for name, value in guided.items() if "negative" in name}
    torch.manual_seed(0)
    return pipe, family.kwargs(pipe) | negative | more


@pytest.mark.parametrize("family", cases())
def test_guidance_that_the_pipeline_does_not_compute(family: TinyFamily) -> None:
    weights = WEIGHTS[family.pattern] if family.weights == () else family.weights
    pipe, call = unguided(family)
    with steer(pipe, f"CFG({max(weights or (4.0,))})"):
        if reason := REFUSED.get(family.name.partition("-")[2]):
            with pytest.raises(InputError, match=reason):
                pipe(**call)
            return
        steered = first(pipe(**call))
    assert weights is None or close(steered, own(family))


def sampled(pipe: Any, guidance: str, null: str = "", **call: Any) -> Tensor:
    with steer(pipe, guidance, null=null):
        return first(pipe(**call | {"generator": torch.Generator().manual_seed(0)}))


def test_a_text_of_ones_own_is_the_null_prompt() -> None:
    """One Euler step is affine in the output, so 4 c - 3 n holds of the samples as well."""
    pipe, call = unguided(named("ErnieImage"), num_inference_steps=1, prompt=["a cat"])
    call |= {"negative_prompt": None}
    cat = sampled(pipe, "CFG(1)", **call)
    dog = sampled(pipe, "CFG(1)", **call | {"prompt": ["a dog in snow"]})
    assert not close(cat, dog)
    steered = sampled(pipe, "CFG(4)", "a dog in snow", **call)
    assert close(steered, 4 * cat - 3 * dog)
    negative = sampled(pipe, "CFG(4)", **call | {"negative_prompt": ["a dog in snow"]})
    assert torch.equal(negative, steered)
    assert not close(sampled(pipe, "CFG(4)", **call), steered)
    assert torch.equal(sampled(pipe, "CFG(1)", **call), cat)


def test_each_prompt_of_a_batch_has_a_null_prompt() -> None:
    pipe, call = unguided(named("ErnieImage"))
    latents = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(2))
    prompts = ["a cat", "a dog"]
    call |= {"latents": latents.clone(), "negative_prompt": None}
    both = sampled(pipe, "CFG(4)", **call | {"prompt": prompts})
    for i, text in enumerate(prompts):
        alone = call | {"prompt": [text], "latents": latents[i : i + 1].clone()}
        assert close(both[i : i + 1], sampled(pipe, "CFG(4)", **alone))
    call |= {"num_inference_steps": 1}
    one, each = (
        sampled(pipe, "CFG(4)", **call | {"prompt": prompts, "negative_prompt": negative})
        for negative in ("a bird", ["a bird"] * 2)
    )
    assert torch.equal(one, each)


def test_what_cannot_encode_a_null_prompt() -> None:
    flux2 = next(f for f in FAMILIES if f.pipeline == "Flux2Pipeline")
    pipe = flux2.build()
    with steer(pipe, "CFG(2)"), pytest.raises(InputError, match="has no text_encoder to encode it"):
        pipe(**flux2.kwargs(pipe))
    modular = next(f for f in MODULAR if f.pipeline == "Krea2AutoBlocks")
    pipe = modular.build()
    with steer(pipe, "CFG(2)"), pytest.raises(InputError, match="neither sends nor encodes"):
        pipe(**modular.kwargs(pipe))
