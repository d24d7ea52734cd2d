"""What holds for every registered schedule, prediction type, sampler and weight."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffsteer import (
    SPACINGS,
    Ancestral,
    Discrete,
    Eps,
    Flow,
    Prediction,
    Sampler,
    Schedule,
    Weight,
    grid,
)
from diffsteer.core.oracle import Gaussian, as_network
from diffsteer.core.parse import subclasses
from diffsteer.core.sampler import trace

F64 = torch.float64
SAMPLERS = {c.__name__: c for c in subclasses(Sampler) if c is not Ancestral}
KINDS = {c.__name__: c for c in subclasses(Prediction)}
WEIGHTS = {c.__name__: c for c in subclasses(Weight)}
SCHEDULES: dict[str, Schedule] = {
    c.__name__: c() for c in subclasses(Schedule) if c is not Discrete
} | {
    "sd": Discrete.scaled_linear(),
    "sd zero": Discrete.scaled_linear().zero_snr(),
    "cosine zero": Discrete.cosine(n=50).zero_snr(),
    "shifted flow": Flow(3.0),
    "flow to data": Flow(0.3),
}
schedules = st.sampled_from(sorted(SCHEDULES)).map(SCHEDULES.__getitem__)
shares = st.floats(0, 1)


def level_at(schedule: Schedule, share: float):
    """A level of the trained range, up to the ends."""
    return schedule.at(schedule.share(torch.tensor(share)))


@given(schedules, shares, shares)
def test_noise_grows_with_time(schedule: Schedule, s: float, t: float) -> None:
    lo, hi = (level_at(schedule, share) for share in sorted((s, t)))
    assert torch.isfinite(torch.stack(list(hi))).all()
    assert 0 <= hi.alpha <= lo.alpha <= 1 + 1e-15 and 0 <= lo.sigma <= hi.sigma
    assert lo.ratio <= hi.ratio


@given(schedules, shares, st.sampled_from(sorted(SPACINGS)), st.integers(1, 12))
def test_a_time_means_one_level(schedule: Schedule, share: float, spacing: str, n: int) -> None:
    """`Schedule.at`, `Schedule.time` and `Level.t` speak of the same time, ends included."""
    ends = [schedule.at(schedule.first), schedule.at(schedule.last)]
    for level in (level_at(schedule, share), *ends, *grid(schedule, n, spacing)[:-1]):
        torch.testing.assert_close(schedule.at(level.t), level, rtol=1e-12, atol=1e-12)
        assert schedule.time(level.ratio).item() == pytest.approx(level.t.item(), rel=1e-8)
        assert schedule.first - 1e-12 <= level.t <= schedule.last + 1e-12


@given(schedules, shares)
def test_time_inverts_ratio(schedule: Schedule, share: float) -> None:
    """Compared as angles, which are finite at zero SNR."""
    level = level_at(schedule, share)
    again = schedule.at(schedule.time(level.ratio))
    assert torch.atan2(again.sigma, again.alpha).item() == pytest.approx(
        torch.atan2(level.sigma, level.alpha).item(), abs=1e-12
    )


@given(schedules, shares, st.sampled_from(sorted(KINDS)), st.integers(0, 99))
def test_solve_inverts_target(schedule: Schedule, share: float, kind: str, seed: int) -> None:
    """Rounding grows with 1 / det, the distance from the singular level."""
    level, network = level_at(schedule, share), KINDS[kind]()
    det = network.det(level).abs().item()
    x0, eps = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(seed), dtype=F64)
    x, out = level.mix(x0, eps), network.target(x0, eps, level)
    if det == 0:
        assert network == Eps()
        with pytest.raises(ValueError, match="does not fix"):
            network.solve(x, out, level)
        return
    slack = 1e-13 * (1 + level.sigma.item()) ** 2 / det
    torch.testing.assert_close(network.solve(x, out, level), (x0, eps), atol=slack, rtol=slack)


@settings(max_examples=150)
@given(
    st.sampled_from(sorted(SAMPLERS)),
    schedules,
    st.sampled_from(sorted(SPACINGS)),
    st.integers(1, 40),
    st.sampled_from(sorted(set(KINDS) - {"Eps", "X0"})),
)
def test_every_sampler_on_every_schedule(
    sampler: str, schedule: Schedule, spacing: str, n: int, kind: str
) -> None:
    """Every step is yielded, the last at CLEAN, finite and in float32."""
    levels = grid(schedule, n, spacing)
    net = as_network(Gaussian(0.6, 0.3), KINDS[kind]())
    start = levels[0].sigma * torch.randn(4, 2, generator=torch.Generator().manual_seed(n))
    steps = list(trace(SAMPLERS[sampler](), start, levels, net))
    assert [s.done for s in steps] == list(range(1, n + 1)) and steps[-1].level.sigma == 0
    x = steps[-1].x
    assert x.dtype == torch.float32 and x.isfinite().all()


@given(schedules, shares, st.sampled_from(sorted(KINDS)), st.sampled_from(sorted(WEIGHTS)))
def test_weights_are_finite_and_positive(schedule, share: float, kind: str, weight: str) -> None:
    w = WEIGHTS[weight]().at(level_at(schedule, share), KINDS[kind]())
    assert w.isfinite() and w > 0
