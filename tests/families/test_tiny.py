"""Tiny pipelines of all families sample, depend on all inputs, and call as their table says."""

import re
from functools import cache
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from families import FAMILIES, MODULAR, measure
from families.calls import Call, Record, first, recorded
from families.parts import BATCHES, WEIGHTS, TinyFamily
from families.unreached import UNREACHED

NETWORK = re.compile(r"(?!.*ControlNet)\w*(UNet|Transformer|DiT|UVit)(\w*Model)?")


def marked(families: tuple[TinyFamily, ...]) -> list[Any]:
    slow = [pytest.mark.slow]
    return [pytest.param(f, id=f.name, marks=slow if f.slow else []) for f in families]


ALL = marked(FAMILIES)
each = pytest.mark.parametrize("family", ALL + marked(MODULAR))
guidable = pytest.mark.parametrize("family", [p for p in ALL if p.values[0].guided])
with_guidance = pytest.mark.parametrize(
    "family", marked(tuple(f for f in FAMILIES + MODULAR if f.guided))
)


@cache
def built(family: TinyFamily) -> Any:
    return family.build()


def sampled(family: TinyFamily, guided: bool = False) -> tuple[Tensor, Record]:
    pipe = built(family)
    kwargs = family.kwargs(pipe)
    if guided and family.guided:
        kwargs |= family.guided(pipe)
    torch.manual_seed(0)  # the autoencoders of some pipelines sample without the generator
    with recorded(pipe, family.network) as record:
        out = pipe(**kwargs)
    return first(out), record


@cache
def plain(family: TinyFamily) -> tuple[Tensor, Record]:
    return sampled(family)


def moved(value: Any) -> Any:
    """Another value of an argument."""
    if isinstance(value, list | tuple):
        return type(value)(moved(v) for v in value)
    if isinstance(value, Tensor):
        return (value * 0.7 + 0.1).to(value.dtype)
    return value * 0.7 + 0.1


def change(call: Call, name: str) -> float:
    other = call.again(**{name: moved(call.kwargs[name])})
    return float((other - call.out).abs().max())


def test_no_network_is_forgotten() -> None:
    """A new network of diffusers has to be built tiny, or named with a reason."""
    names = {name for name in dir(diffusers) if NETWORK.fullmatch(name)}
    known = {f.network for f in FAMILIES + MODULAR} | {name for name, _ in UNREACHED}
    assert len(names) > 70
    assert names <= known


@pytest.mark.slow
@each
def test_samples(family: TinyFamily) -> None:
    sample, _ = plain(family)
    assert sample.isfinite().all()
    assert sample.std() > 1e-2
    assert torch.equal(sample, sampled(family)[0])


@pytest.mark.slow
@each
def test_output_depends_on_sample_and_time(family: TinyFamily) -> None:
    _, record = plain(family)
    call = record.calls[0]
    assert change(call, family.sample or next(iter(call.kwargs))) > 1e-3
    assert change(call, family.time.split(" = ")[0]) > 1e-3


@each
def test_calls(family: TinyFamily) -> None:
    _, record = plain(family)
    assert measure.time(record) == family.time
    assert measure.output(record) == family.output


@with_guidance
def test_guidance(family: TinyFamily) -> None:
    sample, record = sampled(family, guided=True)
    assert sample.isfinite().all()
    assert (sample - plain(family)[0]).abs().max() > 1e-3
    outputs = measure.conditions(plain(family)[1], record)
    assert all((outputs[0] - other).abs().max() > 1e-3 for other in outputs[1:])
    assert measure.batches(plain(family)[1], record) == (family.batches or BATCHES[family.pattern])
    assert measure.contexts(record) == family.contexts
    assert measure.components(record) == family.components
    expected = WEIGHTS[family.pattern] if family.weights == () else family.weights
    assert measure.weights(plain(family)[1], record) == pytest.approx(expected, abs=1e-2)
