"""Weight schedules inside of guidances."""

import math

import pytest
import torch

from diffsteer import (
    APG,
    CFG,
    DDIM,
    EDM,
    PAG,
    X0,
    Auto,
    Cosine,
    Discrete,
    Flow,
    Guidance,
    Heun,
    Karras,
    V,
    cosine,
    exponential,
    grid,
    interval,
    parse,
    plan,
    ramp,
    sample,
)
from diffsteer.core.oracle import Gaussian
from diffsteer.core.parse import subclasses
from diffsteer.guidance import Denoiser, GuidanceState, Network
from diffsteer.guidance.weight_schedules import WeightSchedule

F64 = torch.float64
SD0 = Discrete.scaled_linear().zero_snr()
SCHEDULES = [ramp(1, 7), cosine(7.5, 1), exponential(2, 8.0, by="time"), interval(3, 0.3, 5.0)]


def state(level, schedule=None) -> GuidanceState:
    return GuidanceState(torch.zeros(1, 2, 4, 4, dtype=F64), level, V(), schedule=schedule)


def weights(schedule: WeightSchedule, levels, source=None) -> list[float]:
    return [schedule.at(state(level, source)) for level in levels]


def test_closed_forms_on_the_cosine_schedule() -> None:
    """There the angle is the share of time, up to the offset of 0.008 of the schedule."""
    levels = grid(SD0, 9)[:-1]
    u = [1 - 2 / math.pi * math.atan2(level.sigma, level.alpha) for level in levels]
    assert weights(ramp(1, 7), levels) == pytest.approx([1 + 6 * v for v in u], abs=1e-12)
    want = [1 + 6 * math.sin(math.pi * v / 2) ** 2 for v in u]
    assert weights(cosine(1, 7), levels) == pytest.approx(want, abs=1e-12)
    want = [2 * 4**v for v in u]
    assert weights(exponential(2, 8), levels) == pytest.approx(want, abs=1e-12)
    for made in (ramp(1, 7), cosine(1, 7), exponential(1, 7)):
        rising = weights(made, levels)
        assert rising[0] == 1 and rising == sorted(rising) and rising[-1] < 7
    even = weights(ramp(1, 7), grid(Cosine(), 6)[:-1])
    assert even == pytest.approx([1, 2, 3, 4, 5, 6], abs=0.1)


def test_by_time_is_the_share_of_the_time_of_training() -> None:
    levels = grid(SD0, 4)[:-1]
    want = [1 + 6 * (999 - t) / 999 for t in (999, 749, 499, 249)]
    assert weights(ramp(1, 7, by="time"), levels, SD0) == pytest.approx(want)
    flow = Flow()
    got = weights(ramp(0, 1, by="time"), [flow.at(t) for t in (1.0, 0.5, flow.first)], flow)
    assert got == pytest.approx([0, 0.5, 1], abs=1e-3)
    with pytest.raises(ValueError, match="give Denoiser the schedule"):
        ramp(1, 7, by="time").at(state(levels[0]))


def test_interval_is_within() -> None:
    levels = grid(SD0, 20)
    inside = interval(3, 0.3, 5.0, outside=1.5)
    for level in levels[:-1]:
        assert inside.at(state(level)) == (3 if 0.3 < level.ratio <= 5 else 1.5)
    at = [state(level) for level in levels[:-1]]
    within = [plan(CFG(3).within(0.3, 5).shift(a), a).rows for a in at]
    assert [plan(CFG(interval(3, 0.3, 5)).shift(a), a).rows for a in at] == within


def denoiser(guidance, mean=2.0, null=0.5, spread=0.7) -> Denoiser:
    """Two Gaussians of one spread, told apart by their means."""

    def call(x, level, cond):
        oracles = [Gaussian(m, spread) for m in (mean, null)]
        return torch.cat(
            [
                oracles[int(who)](row, level)
                for row, who in zip(x.split(1), cond["who"], strict=True)
            ]
        )

    conds = {name: {"who": torch.full((5,), i)} for i, name in enumerate(("cond", "null"))}
    return Denoiser({"main": Network(call)}, conds, X0(), guidance)


def test_a_ramp_equals_the_integral() -> None:
    """CFG with w(sigma) between N(m, c^2) and N(n, c^2) ends at n + (m - n) I.

    With x = sqrt(c^2 + sigma^2) z the mean of z obeys dz = -c^0 M sigma (c^2 + sigma^2)^(-3/2)
    dsigma, M = n + w (m - n), so that I = c int w sigma (c^2 + sigma^2)^(-3/2) dsigma.
    """
    m, n, c, hi = 2.0, 0.5, 0.7, 80.0
    z = torch.linspace(-2, 2, 5, dtype=F64)[:, None]
    made = ramp(1, 7)
    *_, x = Heun()(hi * z, grid(EDM(sigma_max=hi), 400, Karras(7)), denoiser(CFG(made)))
    sigma = torch.logspace(-6, math.log10(hi), 20_001, dtype=F64)
    w = torch.tensor([1 + 6 * (1 - 2 / math.pi * math.atan(s)) for s in sigma], dtype=F64)
    mean = n + w * (m - n)
    integral = torch.trapezoid(mean * sigma * (c**2 + sigma**2) ** -1.5, sigma)
    want = c * (hi / math.hypot(c, hi) * z + integral)
    torch.testing.assert_close(x, want, atol=5e-3, rtol=0)


@pytest.mark.parametrize("made", SCHEDULES, ids=repr)
def test_text_round_trip_in_any_weight(made: WeightSchedule) -> None:
    for g in (
        CFG(made),
        APG(made, parallel=made, norm=2.5),
        Auto(made) + PAG(made, layer="mid"),
        made * PAG(3.0),
        CFG(made).rescaled(interval(0.7, 1, 5, outside=0.2)).within(0.3, 5.0).clamped(made),
    ):
        assert parse(repr(g), Guidance) == g
    assert repr(CFG(ramp(1, 7))) == "CFG(ramp(1, 7))"
    assert parse("CFG(ramp(1, 7))", Guidance) == CFG(ramp(1, 7))
    assert {type(s).__name__ for s in SCHEDULES} == {
        c.__name__ for c in subclasses(WeightSchedule) if not c.__name__.startswith("_")
    }


def test_a_constant_ramp_is_the_number() -> None:
    levels = grid(SD0, 5)
    outs = []
    for g in (CFG(3.0), CFG(ramp(3.0, 3.0)), ramp(1.5, 1.5) * CFG(2 * 2 / 3 + 1)):
        *_, last = sample(denoiser(g), levels, (2,), range(5), DDIM())
        outs.append(last.x)
    assert torch.equal(outs[0], outs[1])
    torch.testing.assert_close(outs[0], outs[2])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("CFG(ramp(1, inf))", "stop must be a finite number, got inf"),
        ("CFG(ramp(-1e999, 2))", "start must be a finite number"),
        ("CFG(ramp(nan, 2))", "nan is not finite"),
        ("CFG(exponential(0, 2))", "start must be a finite number > 0"),
        ("CFG(ramp(1, 2, by='step'))", 'by must be "angle" or "time"'),
        ("CFG(interval(3, 5, 1))", "lo must be below hi, got 5 and 1"),
        ("CFG(rmap(1, 7))", r"unknown Guidance 'rmap' \(did you mean 'ramp'\?\)"),
        ("CFG(sawtooth(1, 7))", "cosine, exponential, interval, ramp"),
        ("ramp(1, 7)", "is a ramp, not a Guidance"),
        ("PAG(3, layer=ramp(1, 2))", "PAG: layer takes no weight schedule, got ramp"),
        ("CFGZero(3, zero=ramp(1, 2))", "zero takes no weight schedule"),
        ("CFG(3).within(ramp(1, 2), 3)", "lo must be a number, got ramp"),
        ("Within(CFG(3), ramp(1, 2), 3)", "lo must be a number, got ramp"),
        ("AutoDropout(2, p=ramp(0.1, 1.5))", "p must be a share"),
        ("CFG(3).rescaled(ramp(0.5, 2))", r"phi must be in \[0, 1\], got 2"),
    ],
)
def test_bad_schedules_are_refused_before_anything_is_evaluated(text: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        parse(text, Guidance)
