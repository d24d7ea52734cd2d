"""What holds for every registered guidance: sums, cost, off values, batches."""

from dataclasses import replace
from itertools import combinations_with_replacement
from math import inf

import pytest
import torch

from diffsteer import (
    ADG,
    APG,
    CFG,
    FBG,
    FDG,
    ICG,
    MAMBO,
    NAG,
    PAG,
    S2,
    SAG,
    SEG,
    SLG,
    SMC,
    STG,
    SWG,
    TCFG,
    TPG,
    TSG,
    Adaptive,
    Auto,
    AutoDropout,
    AutoNoise,
    CFGNorm,
    CFGpp,
    CFGRenorm,
    CFGZero,
    Classifier,
    Discrete,
    DynamicThreshold,
    FreSca,
    Guidance,
    Momentum,
    RectifiedCFGpp,
    SelfGuidance,
    V,
    grid,
    parse,
    plan,
)
from diffsteer.core.noise import number
from diffsteer.core.parse import subclasses
from diffsteer.core.sampler import first_order
from diffsteer.guidance import Answer, GuidanceState, run
from diffsteer.guidance.step_memory import StepMemory, Store

F64 = torch.float64
SD = Discrete.scaled_linear()
LEVELS = grid(SD, 4)
WRAPPERS = {"Sum", "Scaled", "Within", "Over", "Rescaled", "Clamped"}
ON: list[Guidance] = [
    *(CFG(5.0), APG(4.0, parallel=0.2, norm=3.0, momentum=-0.5), CFGZero(3.0), CFGpp(0.6)),
    *(PAG(3.0), SEG(3.0), SAG(0.75), Auto(2.0), AutoDropout(2.0, p=0.2), AutoNoise(2.0)),
    *(Classifier(1.5), Momentum(0.4, decay=0.8), SMC(4.0, gain=0.05), Adaptive(5.0, agree=0.5)),
    *(MAMBO(6.0), TCFG(5.0), CFGNorm(4.0), CFGRenorm(4.0), DynamicThreshold(9.0, percentile=0.9)),
    *(ADG(4.0), FDG(3.0, 6.0), FreSca(4.0, cutoff=2), RectifiedCFGpp(2.0), FBG(0.9)),
    *(SelfGuidance(2.0), TSG(2.0), ICG(3.0), SWG(2.0)),
    NAG(4.0),
    *(SLG(2.8), STG(1.0, mode="attention"), S2(0.25), TPG(3.0), Auto(2.0, adapter="style@0.3")),
]
OFF: list[Guidance | None] = [
    *(CFG(1.0), APG(1.0, momentum=-0.5), CFGZero(1.0), None),  # CFG++ is never off
    *(PAG(0.0), SEG(0.0), SAG(0.0), Auto(1.0), AutoDropout(1.0), AutoNoise(1.0)),
    *(Classifier(0.0), Momentum(0.0), SMC(1.0), Adaptive(1.0)),
    *(MAMBO(1.0), TCFG(1.0), CFGNorm(1.0), CFGRenorm(1.0), DynamicThreshold(1.0)),
    *(ADG(1.0), FDG(1.0, 1.0), FreSca(1.0, high=1.0), RectifiedCFGpp(0.0), FBG(1.0)),
    *(SelfGuidance(0.0), TSG(1.0), ICG(1.0), SWG(1.0)),
    NAG(0.0),
    *(SLG(0.0), STG(0.0), S2(0.0), TPG(0.0), Auto(1.0, adapter="style@0.3")),
]


class Networks:
    """Networks that answer every branch by a function of its own, row by row."""

    def __init__(self, at: GuidanceState) -> None:
        self.at, self.rows = at, dict.fromkeys((), 0)

    def __call__(self, branches) -> list[Answer]:
        return [self.answer(branch) for branch in branches]

    def answer(self, branch) -> Answer:
        x = self.at.x if branch.x is None else branch.x
        if branch.x is None and branch.samples is not None:
            x = x[list(branch.samples)]
        level = branch.level or self.at.level
        drop = branch.dropout and branch.dropout.p
        edits = tuple((name, type(edit)) for name, edit in branch.edits)
        inside = branch.cond, branch.net, edits, drop, branch.adapter, bool(branch.unrelated)
        inside = *inside, branch.second
        key = (*inside, round(level.t.item(), 9))
        a = number(repr(key).encode()) / 2**64
        out = torch.sin((1 + a) * x + 6 * a) + a * x.roll(1, -1)
        maps = dict.fromkeys(branch.record, 1 + x[:, 0].sin())
        self.rows[branch.net] = self.rows.get(branch.net, 0) + len(x) * (
            1 if branch.second is None else 2
        )
        return Answer(out, x, level, self.at.prediction, maps)


def states(x, seeds, store=None):
    """The states of a sampling in turn, each after the step that was taken."""
    store = store or Store()
    for step, (now, nxt) in enumerate(zip(LEVELS, LEVELS[1:], strict=False)):
        memory, start = StepMemory(store, step).begin(now, x.shape)
        at = GuidanceState(x, now, V(), step, SD, seeds, nxt, memory, start)
        x = first_order(x, (yield at), now, nxt)
        yield x


def sampled(g: Guidance, x, seeds, log=None):
    """Sample with the networks above; returns the sample and notes what each step costs."""
    walk = states(x, seeds)
    for at in walk:
        networks = Networks(at)
        base, shift = run(g.guided(at), networks)
        if log is not None:
            log.append((networks.rows, plan(g.guided(bare(at)), bare(at)).rows))
        x = walk.send(base.x0 + shift)
    return x


def bare(at: GuidanceState) -> GuidanceState:
    """One sample that remembers nothing, as plans are made."""
    fresh = GuidanceState(at.x[:1], at.level, at.prediction)
    return replace(at, x=at.x[:1], seeds=at.seeds[:1], memory=fresh.memory)


X = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0), dtype=F64)
SEEDS = (7, 8, 9)


def test_every_registered_guidance_is_here() -> None:
    classes = {c for c in subclasses(Guidance) if c.__module__.startswith("diffsteer.guidance")}
    assert {c.__name__ for c in classes} == {type(g).__name__ for g in ON} | WRAPPERS
    assert [type(off) for off in OFF if off] == [type(on) for on in ON if type(on) is not CFGpp]


@pytest.mark.parametrize("g", ON, ids=repr)
def test_a_sample_alone_is_the_sample_in_a_batch(g: Guidance) -> None:
    """Its memory and its seeds are its own, at every step; split and resumed in other batches."""
    whole = sampled(g, X, SEEDS)
    alone = [sampled(g, X[i : i + 1], SEEDS[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(torch.cat(alone), whole, rtol=1e-9, atol=1e-9)
    turned = sampled(g, X.flip(0), SEEDS[::-1])
    torch.testing.assert_close(turned.flip(0), whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("g", ON, ids=repr)
def test_it_guides_and_costs_what_plan_says(g: Guidance) -> None:
    log: list = []
    x = sampled(g, X, SEEDS, log)
    assert x.isfinite().all()
    assert (x - sampled(0 * g, X, SEEDS)).abs().max() > 1e-3
    for rows, planned in log:
        most = {net: 3 * n for net, n in planned.items()}
        if isinstance(g, Adaptive):
            assert rows["main"] <= most["main"]
        else:
            assert rows == most


@pytest.mark.parametrize("g", [g for g in OFF if g], ids=repr)
def test_an_off_value_is_unguided_and_costs_nothing(g: Guidance) -> None:
    log: list = []
    assert torch.equal(sampled(g, X, SEEDS, log), sampled(0 * g, X, SEEDS))
    assert all(rows == {"main": 3} for rows, _ in log)
    assert torch.equal(sampled(g + CFG(3), X, SEEDS), sampled(CFG(3), X, SEEDS))


def first(g: Guidance):
    """Shift of the first step, and what it costs."""
    at = next(states(X, SEEDS))
    networks = Networks(at)
    return run(g.shift(at), networks), networks.rows


def test_sums_commute_and_cost_what_plan_says() -> None:
    """All pairs: the shifts add, in any order, in the evaluations that the plan counts."""
    at = bare(next(states(X, SEEDS)))
    shifts = {g: first(g)[0] for g in ON}
    for a, b in combinations_with_replacement(ON, 2):
        both, rows = first(a + b)
        torch.testing.assert_close(both, shifts[a] + shifts[b], rtol=1e-12, atol=1e-12)
        assert torch.equal(both, first(b + a)[0])
        single = plan((a + b).shift(at), at).rows
        assert rows == {net: 3 * n for net, n in single.items()}, (a, b)


@pytest.mark.parametrize("g", [g for g in ON if "momentum" in repr(g).lower()] + [SMC(4.0), FBG()])
def test_terms_of_a_sum_remember_for_themselves(g: Guidance) -> None:
    twice = sampled(0.5 * g + 0.5 * g, X, SEEDS)
    torch.testing.assert_close(twice, sampled(g, X, SEEDS), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("g", ON, ids=repr)
def test_text_round_trip(g: Guidance) -> None:
    for value in (g, 2 * g + CFG(2.0), (g + g).within(0.3, inf).rescaled(0.7)):
        assert parse(repr(value), Guidance) == value
