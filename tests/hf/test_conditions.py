"""Conditions of a step are measured anew where it is not made as the one before."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from diffsteer.core.errors import InputError
from diffsteer.hf.conditions import Part, StepParts
from diffsteer.hf.probed_calls import Call, Form
from diffsteer.hf.probes import probe
from diffsteer.hf.sample_placement import View
from diffsteer.hf.second_step import SecondStep

SHAPE = (3, 4, 5, 5)


def calls_of(x, count=2, dtype=torch.float32):
    """Calls for the prompt and for the null prompt, with channels of an image before the sample."""
    module, inputs = torch.nn.Identity(), torch.cat([torch.ones_like(x), x], dim=1)
    made = [Call(module, "x", inputs.clone(), False, {}, nullcontext) for _ in range(count)]
    for i, call in enumerate(made):
        call.probe = probe(Form(torch.Size(SHAPE), dtype, lambda x: x), second=i > 0)
    return made


def test_a_sample_without_the_frame_that_its_network_takes() -> None:
    """Beside other channels: one by itself is a batch of frames."""
    x = noise(0)
    (call,) = calls_of(x, 1)
    call.inputs, call.probe = call.inputs[:, :, None], call.probe[:, :, None]
    part = StepParts.of([call], call.probe[:, :, 0], x).parts["cond"]
    assert torch.equal(part.sample, x) and part.given.squeezed == (2,)
    part.place(call.inputs, 2 * x)
    assert torch.equal(call.inputs[:, 4:, 0], 2 * x) and (call.inputs[:, :4] == 1).all()


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 2, 2)])
def test_two_outputs_that_are_not_of_two_samples(shape) -> None:
    x = torch.ones(shape)
    call = Call(torch.nn.Identity(), "x", x, False, {"other": x + 1}, nullcontext)
    with pytest.raises(InputError, match="several outputs, which are not the tokens of two"):
        Form.of((x, x), call)


def test_a_second_sample_is_stepped_whole_after_the_first() -> None:
    """Video and sound, `(1, 4 + 2, C)`."""
    tokens, whole = torch.ones(1, 6, 3), View(run=(0, 4))
    call = Call(torch.nn.Identity(), "x", tokens, False, {}, nullcontext, "sound", (4, 2))
    part, second = Part(call, slice(0, 1), whole, whole), SecondStep("Pipe")
    some = View(dim=2, length=2, run=(0, 4))
    for bad in (replace(part, given=View()), replace(part, taken=some, given=some)):
        with pytest.raises(InputError, match="its two samples .* whole and with the same"):
            second.await_step(None, [call], {"cond": bad}, tokens, lambda: None)
    second.awaited = True
    with pytest.raises(InputError, match="did not step its second sample .sound. after its first"):
        second.end()
    second.end()


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
    with pytest.raises(InputError, match="calls its network with 3 samples to step 2, where"):
        StepParts.of(first[:1], first[0].probe, x[:2])
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
