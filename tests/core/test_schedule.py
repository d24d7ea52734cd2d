"""Noise schedules against the published numbers and their own definitions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffsteer import EDM, Cosine, Discrete, Flow, Level, grid
from diffsteer.core.schedule import LogSigma

F64 = torch.float64
DISCRETE = {
    "linear": Discrete.linear(),
    "cosine": Discrete.cosine(),
    "scaled_linear": Discrete.scaled_linear(),
}


@pytest.mark.parametrize(
    ("name", "snr", "alpha"),
    [
        ("linear", 4.035993e-05, 0.006353),
        ("cosine", 2.428735e-09, 4.928220e-05),
        ("scaled_linear", 0.004682, 0.068265),
    ],
)
def test_table_1(name: str, snr: float, alpha: float) -> None:
    """Lin et al. 2023, table 1; its digits come from float32 cumulative products, hence 2e-4."""
    last = DISCRETE[name].at(999)
    assert last.snr.item() == pytest.approx(snr, rel=2e-4)
    assert last.alpha.item() == pytest.approx(alpha, rel=2e-4)


def test_equation_10() -> None:
    last = Discrete.scaled_linear().at(999)
    assert last.alpha.item() == pytest.approx(0.068265, abs=5e-7)
    assert last.sigma.item() == pytest.approx(0.997667, abs=5e-7)


@pytest.mark.parametrize("name", DISCRETE)
def test_zero_snr(name: str) -> None:
    """Exactly 0 at the end, unchanged at the start, monotone, affine between, idempotent."""
    before, after = DISCRETE[name].alphas, DISCRETE[name].zero_snr()
    a = after.alphas
    assert a[-1] == 0 and after.at(999).alpha == 0 and after.at(999).sigma == 1
    assert a[0].item() == pytest.approx(before[0].item(), abs=1e-15)
    assert (a.diff() < 0).all()
    # algorithm 1, once more in its own words
    ref = before.clone()
    ref -= ref[-1].item()
    ref *= before[0].item() / ref[0].item()
    torch.testing.assert_close(a, ref, atol=1e-15, rtol=0)
    assert after.betas[-1] == 1 and after.betas.isfinite().all() and (after.betas > 0).all()
    torch.testing.assert_close(after.zero_snr().alphas, a, atol=1e-15, rtol=0)
    torch.testing.assert_close(Discrete.from_betas(after.betas).alphas, a, atol=1e-12, rtol=0)


def test_rescaled_values() -> None:
    """Further values of the rescaled schedules, computed apart from this code."""
    sd = Discrete.scaled_linear().zero_snr()
    assert sd.alphas[998].item() == pytest.approx(4.436e-4, rel=2e-4)
    assert sd.at(998).ratio.item() == pytest.approx(2254, abs=0.5)
    assert sd.alphas[899].item() == pytest.approx(0.05507, abs=5e-6)
    assert Discrete.linear().zero_snr().at(998).ratio.item() == pytest.approx(15406, abs=0.5)
    cosine = Discrete.cosine(max_beta=1.0).zero_snr()
    assert cosine.at(998).ratio.item() == pytest.approx(641.7, abs=0.05)
    assert cosine.betas[998].item() == pytest.approx(0.75, abs=1e-3)


@pytest.mark.parametrize("name", DISCRETE)
def test_at_whole_times_is_the_table(name: str) -> None:
    """The angle returns what the table says, up to rounding of sin and cos."""
    schedule = DISCRETE[name]
    level = schedule.at(torch.arange(1000))
    torch.testing.assert_close(level.alpha, schedule.alphas, atol=4e-16, rtol=4e-16)
    torch.testing.assert_close(level.sigma**2 + level.alpha**2, torch.ones(1000, dtype=F64))
    sigma = (1 - schedule.alphas**2).sqrt()
    torch.testing.assert_close(level.sigma, sigma, atol=1e-12, rtol=0)  # 1 - a^2 cancels near a = 1


@given(st.floats(0, 998.999))
def test_between_timesteps(t: float) -> None:
    """Between timesteps alpha stays between its neighbours, on the unit circle."""
    schedule = Discrete.scaled_linear().zero_snr()
    a, level = schedule.alphas, schedule.at(t)
    i = math.floor(t)
    assert a[i + 1] - 1e-15 <= level.alpha <= a[i] + 1e-15
    assert (level.alpha**2 + level.sigma**2).item() == pytest.approx(1, abs=1e-15)


def test_a_table_may_begin_clean() -> None:
    """alpha = 1 means sigma = 0 exactly; sampling cannot stop there to ask the network."""
    schedule = Discrete(torch.linspace(1, 0, 11, dtype=F64))
    first, last = schedule.at(0), schedule.at(10)
    assert (first.alpha, first.sigma) == (1, 0) and (last.alpha, last.sigma) == (0, 1)
    assert len(grid(schedule, 5)) == 6
    for n, spacing in ((11, "trailing"), (5, "linspace"), (5, "logsigma")):
        with pytest.raises(ValueError, match="no noise"):
            grid(schedule, n, spacing)


def test_continuous_ends_are_exact() -> None:
    for schedule in (Cosine(), Flow(), Flow(3.0)):
        noise, data = schedule.at(1), schedule.at(0)
        assert (noise.alpha, noise.sigma) == (0, 1) and (data.alpha, data.sigma) == (1, 0)


def test_flow_shift() -> None:
    """Esser et al. 2024, eq. 23; what the network sees is sigma."""
    u = torch.linspace(1, 0, 11, dtype=F64)[:-1]
    level = Level(*map(torch.stack, zip(*grid(Flow(3.0), 10)[:-1], strict=True)))
    torch.testing.assert_close(level.t, 3 * u / (1 + 2 * u))
    torch.testing.assert_close(level.sigma, level.t)
    torch.testing.assert_close(level.alpha, 1 - level.t)
    assert Flow(3.0).at(0.75) == Flow().at(0.75)  # a shift moves nodes, not levels


@pytest.mark.parametrize(
    ("alphas", "says"),
    [
        ([0.9, math.nan, 0.1], r"alphas\[1\] is not finite"),
        ([0.9, 0.95, 0.1], r"alphas\[0\]=0.9 and alphas\[1\]=0.95"),
        ([0.9, 0.9, 0.1], "must decrease"),
        ([1.1, 0.5], r"\[0, 1\]"),
        ([0.5, -0.1], r"\[0, 1\]"),
        ([0.5], "N >= 2"),
        ([[0.5, 0.4]], "N >= 2"),
    ],
)
def test_bad_alphas(alphas: list[float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Discrete(torch.tensor(alphas))


@pytest.mark.parametrize("betas", [[0.1, math.nan], [0.1, -0.1], [0.1, 1.5], [0.0, 0.1]])
def test_bad_betas(betas: list[float]) -> None:
    with pytest.raises(ValueError, match=r"betas\[\d\]=.* is no variance share"):
        Discrete.from_betas(torch.tensor(betas))


def test_bad_times_and_ratios() -> None:
    for schedule, t in (
        (Discrete.linear(), 1000),
        (Discrete.linear(), -1),
        (Flow(), 1.5),
        (EDM(), -1),
    ):
        with pytest.raises(ValueError, match="outside of this schedule"):
            schedule.at(t)
        with pytest.raises(ValueError, match="outside of this schedule"):
            schedule.at(math.nan)
        with pytest.raises(ValueError, match="is no noise level"):
            schedule.time(-1.0)
    with pytest.raises(ValueError, match="outside of this schedule"):
        Discrete.linear().time(1e6)


@pytest.mark.parametrize(
    "make",
    [
        *(lambda: Flow(0.0), lambda: Flow(math.nan), lambda: EDM(1.0, 0.5)),
        lambda: LogSigma(sigma_min=1.0, sigma_max=0.5),
    ],
)
def test_bad_parameters(make) -> None:
    with pytest.raises(ValueError, match="shift|sigma_min"):
        make()
