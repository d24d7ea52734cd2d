"""The level ahead and the memory of a sampling: alone and in any batch, for every sampler."""

from dataclasses import dataclass, replace

import pytest
import torch

from diffsteer import (
    CFG,
    DDIM,
    CFGpp,
    Discrete,
    Eps,
    Flow,
    Guidance,
    Heun,
    Momentum,
    Sampler,
    UniPC,
    V,
    Velocity,
    grid,
    sample,
)
from diffsteer.core.level import CLEAN
from diffsteer.core.oracle import Mixture
from diffsteer.core.sampler import first_order
from diffsteer.guidance import Branch, Denoiser, Network
from diffsteer.guidance.step_memory import StepMemory, Store
from diffsteer.models.edm2.generate import Loop, generate, guided
from diffsteer.models.edm2.model import EDM2

F64 = torch.float64
SD = Discrete.scaled_linear()
SHAPE = (2, 4, 4)


def oracle(kind, means=(0.9, 0.3)) -> Network:
    """A network that knows one mixture for each condition."""

    def call(x, level, cond):
        rows = [
            kind.output_for_x0(row, Mixture(means[int(who)])(row, level), level)
            for row, who in zip(x.split(1), cond["who"], strict=True)
        ]
        return torch.cat(rows)

    return Network(call)


def denoiser(guidance, batch, kind=None, **settings) -> Denoiser:
    conds = {name: {"who": torch.full((batch,), i)} for i, name in enumerate(("cond", "null"))}
    kind = kind or V()
    return Denoiser({"main": oracle(kind)}, conds, kind, guidance, **settings)


@dataclass(frozen=True, repr=False)
class Seen(Guidance):
    """Notes what each evaluation sees: step, level, level ahead, and the count that it keeps."""

    log: list = None

    def shift(self, at):
        (answer,) = yield (Branch(),)
        count = at.memory.get("count", torch.zeros(len(at.x), dtype=F64))
        self.log.append((at.step, at.level, at.next, int(count[0])))
        at.memory["count"] = count + 1
        return torch.zeros_like(answer.x0)


@pytest.mark.parametrize("sampler", [DDIM(), DDIM(eta=1.0), Heun(schedule=SD), UniPC()], ids=repr)
def test_each_step_sees_where_it_goes_and_writes_once(sampler: Sampler) -> None:
    log: list = []
    levels = grid(SD, 5)
    for _ in range(2):  # two samplings in turn do not leak
        log.clear()
        *_, _ = sample(denoiser(Seen(log), 1), levels, SHAPE, [0], sampler)
        for step, level, ahead, count in log:
            inner = level is not levels[step]
            assert ahead is levels[step + 1] and count == step + inner
        assert [count for *_, count in log[:: sampler.evaluations]] == list(range(5))
    assert log[-1][2] is CLEAN


def test_samplings_that_alternate_do_not_leak() -> None:
    levels, shared = grid(SD, 6), denoiser(Momentum(0.5), 1)
    alone = [list(sample(shared, levels, SHAPE, [s], DDIM()))[-1].x for s in (0, 1)]
    a, b = (sample(shared, levels, SHAPE, [s], DDIM()) for s in (0, 1))
    for both in zip(a, b, strict=True):
        last = both
    assert all(torch.equal(step.x, x) for step, x in zip(last, alone, strict=True))
    unguided = list(sample(denoiser(None, 1), levels, SHAPE, [0], DDIM()))[-1].x
    assert not torch.equal(alone[0], unguided)


def test_a_loop_of_its_own_remembers_and_starts_anew() -> None:
    """`at_step` keeps memory from step to step; step 0 clears it, and so do plain calls."""
    log: list = []
    made, levels = denoiser(Seen(log), 1), grid(SD, 3)
    x = torch.zeros(1, *SHAPE)
    for _ in range(2):
        for i in range(3):
            made.at_step(i)(x, levels[i])
    assert [count for *_, count in log] == [0, 1, 2, 0, 1, 2]
    log.clear()
    for level in levels[:2]:
        made(x, level)
    assert [count for *_, count in log] == [0, 0]


def counts(made: Denoiser, walk, batch=1) -> list[int]:
    """Counts of memory along a loop: (step, time) of each evaluation that begins a step."""
    log = made.guidance.log
    log.clear()
    for step, time in walk:
        made.at_step(step)(torch.zeros(batch, *SHAPE), SD.at(time))
    return [count for *_, count in log]


@pytest.mark.parametrize(
    "anew",
    [
        [(0, 300), (1, 200)],  # image to image, at less noise than the loop was left at
        [(0, 950), (1, 900)],  # at more
        [(0, 900), (1, 100)],  # at the same
        [(2, 300), (3, 200)],  # from a step in between, counted as before
        [(4, 300), (5, 200)],  # from one that does not follow
    ],
    ids=str,
)
@pytest.mark.parametrize("left", [1, 3])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_loop_that_is_begun_anew_remembers_nothing(anew, left: int, batch: int) -> None:
    """Wherever the loop before was left, after its first step too, and in any batch."""
    network = Network(lambda x, level, cond: x)
    made = Denoiser({"main": network}, {"cond": {}}, V(), Seen([]))
    assert counts(made, [(i, 900 - i) for i in range(left)]) == [*range(left)]
    assert counts(made, anew, batch) == [0, 1]
    assert counts(made, anew, batch) == [0, 1]


def test_all_evaluations_of_a_step_are_of_one_denoiser() -> None:
    """Those after the first read and do not write, at whatever level."""
    made, x = denoiser(Seen([]), 1), torch.zeros(1, *SHAPE)
    for step in range(3):
        evaluated = made.at_step(step)
        for time in (900 - step, 500, 900 - step, 950):
            evaluated(x, SD.at(time))
    assert [count for *_, count in made.guidance.log] == [0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3]


@pytest.mark.parametrize("sampler", [DDIM(), DDIM(eta=1.0), Heun(schedule=SD), UniPC()], ids=repr)
def test_a_sample_is_the_same_in_any_batch(sampler: Sampler) -> None:
    """Alone, in a batch, in a smaller one, and split by `max_rows`, bit for bit but for SIMD."""
    guidance, levels = Momentum(0.5, decay=0.7) + CFGpp(0.6), grid(SD, 5)

    def drawn(seeds, **settings):
        made = denoiser(guidance, len(seeds), **settings)
        *_, last = sample(made, levels, SHAPE, seeds, sampler)
        return last.x

    whole = drawn([3, 1, 4, 1, 5])
    assert torch.equal(whole, drawn([3, 1, 4, 1, 5], max_rows=2))
    for split in (1, 2):
        seeds = [[3, 1, 4, 1, 5][i : i + split] for i in range(0, 5, split)]
        torch.testing.assert_close(torch.cat([drawn(s) for s in seeds]), whole)


@dataclass(frozen=True, repr=False)
class Kept(Guidance):
    """Adds what the term itself has kept: 0, then `value`."""

    value: float

    def shift(self, at):
        (answer,) = yield (Branch(),)
        known = at.memory.get("value", torch.zeros(len(at.x)))
        at.memory["value"] = torch.full((len(at.x),), self.value)
        return known[:, None, None, None].expand_as(answer.x0)


def test_each_term_of_a_sum_has_a_memory_of_its_own() -> None:
    x, level = torch.zeros(2, *SHAPE), SD.at(500)
    made = denoiser(Kept(1.0) + (Kept(2.0) + 2 * Kept(3.0)).within(0, 1e9), 2)
    base = made.at_step(0)(x, level).x0
    torch.testing.assert_close(made.at_step(1)(x, level).x0, base + 9)


def test_memory_is_a_row_for_each_sample() -> None:
    step = StepMemory(Store(), 0)
    memory, _ = step.begin(SD.at(500), (2, 3))
    memory["mean"] = torch.ones(2, 3)
    assert list(memory) == ["mean"] and len(memory) == 1
    for bad in (torch.ones(3), torch.tensor(1.0)):
        with pytest.raises(ValueError, match="a row for each of 2 samples"):
            memory["mean"] = bad
    with pytest.raises(ValueError, match="remembers 2 samples and is asked for 3"):
        replace(memory, rows=3)["mean"]
    inner, start = step.begin(SD.at(400), (2, 3))
    inner["mean"] = torch.zeros(2, 3)
    assert start == SD.at(500) and memory["mean"].all()
    del inner["mean"], memory["mean"]
    assert "mean" not in memory
    memory["mean"] = torch.ones(2, 3)
    later, _ = StepMemory(step.store, 1).begin(SD.at(300), (2, 3))
    assert "mean" in later
    shorter, _ = StepMemory(step.store, 2).begin(SD.at(200), (2, 2))
    assert "mean" not in shorter


@pytest.mark.parametrize(
    ("kind", "schedule"),
    [(Eps(), SD), (V(), SD.zero_snr()), (Velocity(), Flow()), (Velocity(), Flow(3.0))],
    ids=repr,
)
@pytest.mark.parametrize("scale", [0.0, 0.6, 1.0])
def test_cfgpp_is_ddim_with_the_noise_of_the_null(kind, schedule, scale: float) -> None:
    levels = grid(schedule, 7)
    x = levels[0].sigma * torch.randn(3, *SHAPE, dtype=F64)
    *_, got = DDIM()(x, levels, denoiser(CFGpp(scale), 3, kind))
    for now, nxt in zip(levels, levels[1:], strict=False):
        cond, null = (Mixture(m)(x, now) for m in (0.9, 0.3))
        eps = (x - now.alpha * null) / now.sigma
        x = nxt.alpha * (null + scale * (cond - null)) + nxt.sigma * eps
    torch.testing.assert_close(got, x, rtol=0, atol=1e-10)


def test_cfgpp_weighs_all_evaluations_of_a_step_alike() -> None:
    """A Heun step with CFGpp is one with CFG of the weight of that step."""
    levels = grid(SD, 4)
    now, nxt = levels[1:3]
    weight = 0.6 * nxt.alpha * now.sigma / (nxt.alpha * now.sigma - now.alpha * nxt.sigma)
    x = torch.randn(1, *SHAPE, dtype=F64)
    step = [now, nxt, CLEAN]
    ahead = denoiser(CFGpp(0.6), 1, levels=step).at_step(0)
    fixed = denoiser(CFG(weight.item()), 1).at_step(0)
    steps = [
        Heun().step(
            x, now, nxt, lambda x, level, made=made: made(x, level).x0, [], torch.randn_like
        )
        for made in (ahead, fixed)
    ]
    torch.testing.assert_close(*steps, rtol=0, atol=1e-12)


def test_momentum_is_the_mean_of_earlier_predictions() -> None:
    levels, scale, decay = grid(SD, 6), 0.4, 0.8
    x = torch.randn(2, *SHAPE, dtype=F64)
    *_, got = DDIM()(x, levels, denoiser(Momentum(scale, decay=decay), 2))
    mean = None
    for now, nxt in zip(levels, levels[1:], strict=False):
        x0 = Mixture(0.9)(x, now)
        mean = x0 if mean is None else mean
        moved, mean = x0 + scale * (x0 - mean), (1 - decay) * x0 + decay * mean
        x = first_order(x, moved, now, nxt)
    torch.testing.assert_close(got, x, rtol=0, atol=1e-10)


def test_the_loop_of_edm2_remembers_and_looks_ahead() -> None:
    """Its Heun evaluates each step but the last twice; the second sees and does not write."""
    log: list = []
    net = EDM2(8, 2, 0, 8, [1], 1, [], 8, logvar_channels=8).eval()
    generate(net, [0], Seen(log), loop=Loop(4), dtype=F64)
    assert [count for *_, count in log] == [0, 1, 1, 2, 2, 3, 3]
    times = Loop(4).times(F64)
    assert [ahead.sigma for _, _, ahead, _ in log] == [times[i] for i in (1, 1, 2, 2, 3, 3, 4)]


@pytest.mark.parametrize("loop", [Loop(3), Loop(1), Loop(3, s_churn=2.0)], ids=repr)
def test_the_loop_of_edm2_begins_anew(loop: Loop) -> None:
    """The same denoiser in turn, in other batches; the second evaluation of a step reads."""
    log: list = []
    net = EDM2(8, 2, 0, 8, [1], 1, [], 8, logvar_channels=8).eval()
    denoise = guided(net, None, {"cond": {}}, Seen(log), times=loop.times(F64))
    for batch in (1, 2, 2):
        log.clear()
        x = torch.zeros(batch, *net.shape, dtype=F64)
        loop(x, denoise, lambda x=x: x)
        assert [count for *_, count in log] == [(i + 1) // 2 for i in range(2 * loop.steps - 1)]


def test_a_step_of_known_levels_tells_its_evaluations_apart() -> None:
    made, levels, x = denoiser(Seen([]), 1, levels=grid(SD, 3)), grid(SD, 3), torch.zeros(1, *SHAPE)
    for _ in range(2):
        made.guidance.log.clear()
        for step in range(3):
            for level in (levels[step], SD.at(levels[step].t - 1)):
                made.at_step(step)(x, level)
        assert [count for *_, count in made.guidance.log] == [0, 1, 1, 2, 2, 3]
