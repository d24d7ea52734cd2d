"""Conditions of a step are measured anew where it is not made as the one before."""

from contextlib import nullcontext

import pytest
import torch

from diffsteer.core.errors import InputError
from diffsteer.hf.conditions import StepParts
from diffsteer.hf.probed_calls import Call, Form, probe

SHAPE = (3, 4, 5, 5)


def calls_of(x, count=2, dtype=torch.float32):
    """Calls for the prompt and for the null prompt, with channels of an image before the sample."""
    module, inputs = torch.nn.Identity(), torch.cat([torch.ones_like(x), x], dim=1)
    made = [Call(module, "x", inputs.clone(), False, {}, nullcontext) for _ in range(count)]
    for i, call in enumerate(made):
        call.probe = probe(Form(torch.Size(SHAPE), dtype, lambda x: x), second=i > 0)
    return made


def noise(seed):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def output(calls, scale=4.0, sign=1.0):
    cond, null = (call.probe.float() for call in calls)
    return sign * (null + scale * (cond - null))


def test_a_step_made_alike_has_the_same_parts_of_its_own_calls() -> None:
    x, y = noise(0), noise(1)
    first, then = calls_of(x), calls_of(y)
    for call in (*first, *then):
        call.module = first[0].module
    before = StepParts.of(first, output(first), x)
    now = before.next(then, output(then), y)
    assert [part.call for part in now.parts.values()] == then and now.folding is before.folding
    assert all(torch.equal(part.sample, y) for part in now.parts.values())
    halved = before.next(then, output(then), 2 * y)  # scaled for the network
    assert [part.taken for part in halved.parts.values()] == [before.parts["cond"].taken] * 2


def test_a_step_made_otherwise_is_measured_anew() -> None:
    x, y = noise(0), noise(1)
    first = calls_of(x)
    before = StepParts.of(first, output(first), x)
    negative = before.next(first, output(first, sign=-1.0), x)
    assert [part.sign for part in negative.parts.values()] == [-1.0, -1.0]
    turned = before.next(first, output(first, scale=-4.0), x)
    assert turned.parts["cond"].call is first[1]
    alone = before.next(first[:1], first[0].probe, x)
    assert list(alone.parts) == ["cond"]
    with pytest.raises(InputError, match="no run of channels"):
        before.next(first, output(first), y)
    with pytest.raises(InputError, match="does not give its scheduler"):
        before.next(first, y, x)


@pytest.mark.parametrize("scale", [0.0, 0.3, 0.7])
def test_a_scale_that_does_not_show_the_null_prompt_is_refused(scale: float) -> None:
    """At scales below 1 no condition has a negative share; at 1 both calls are in their order."""
    x = noise(0)
    calls = calls_of(x)
    with pytest.raises(InputError, match="leave its own scale of guidance above 1"):
        StepParts.of(calls, output(calls, scale), x)
    assert StepParts.of(calls, output(calls, 1.0), x).parts["null"].call is calls[1]
    assert StepParts.of(calls, output(calls, 1.2), x).parts["null"].call is calls[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_small_share_of_the_sample_is_seen_in_any_precision(dtype: torch.dtype) -> None:
    """EDM's x0 at high noise: the sample is a hundredth of it, about what bfloat16 rounds."""
    x = 80 * noise(0)
    calls = calls_of(x, dtype=dtype)
    x0 = 0.5 * output(calls)
    cond = StepParts.of(calls, x0 + 4e-5 * x, x).parts["cond"]
    assert cond.held == pytest.approx(4e-5, rel=1e-2) and cond.scale == pytest.approx(0.5, rel=1e-2)
    assert StepParts.of(calls, 2 * x0, x).parts["cond"].held == 0
