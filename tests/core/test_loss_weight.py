"""Loss weights: published values, and finite and positive at zero SNR."""

import math

import pytest
import torch

from diffsteer import (
    EDM,
    X0,
    Cosine,
    Debiased,
    Discrete,
    EDMWeight,
    Eps,
    Flow,
    MinSNR,
    Preconditioned,
    SoftMinSNR,
    Uniform,
    V,
    Velocity,
    Weight,
)
from diffsteer.core.loss_weight import FLOOR
from diffsteer.core.parse import subclasses

F64 = torch.float64
T = torch.arange(1000)
SD0 = Discrete.scaled_linear().zero_snr()


def test_uniform_is_one() -> None:
    assert torch.equal(Uniform().at(SD0.at(T), V()), torch.ones(1000, dtype=F64))


@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
def test_min_snr_is_hang_et_al(gamma: float) -> None:
    """min(SNR, gamma) / (SNR + 1), / SNR, / 1 for v, eps, x0; the floor is met after t = 980."""
    level = SD0.at(T[:980])
    snr = level.snr
    for kind, part in ((V(), snr + 1), (Eps(), snr), (X0(), torch.ones_like(snr))):
        torch.testing.assert_close(MinSNR(gamma).at(level, kind), snr.clamp(max=gamma) / part)


def test_below_the_floor_a_weight_stays() -> None:
    """At the terminal level of a zero-SNR schedule each weighs what it does at SNR 4.04e-5."""
    last = SD0.at(999)
    assert MinSNR().at(last, V()).item() == pytest.approx(FLOOR / (1 + FLOOR), rel=1e-4)
    assert MinSNR().at(last, Eps()).item() == pytest.approx(1)
    ddpm = Discrete.linear()
    assert MinSNR().at(ddpm.at(999), V()).item() == pytest.approx(FLOOR / (FLOOR + 1), rel=1e-6)


def test_soft_min_snr() -> None:
    """gamma SNR / (SNR + gamma): gamma / 2 at SNR = gamma, SNR far below, gamma far above."""
    level = EDM().at(torch.tensor([5.0**-0.5, 100.0, 1e-3], dtype=F64))
    want = torch.tensor([2.5, 1e-4 / (1 + 1e-4 / 5), 5 / (1 + 5e-6)], dtype=F64)
    torch.testing.assert_close(SoftMinSNR(5.0).at(level, X0()), want)


@pytest.mark.parametrize("s", [0.5, 1.0, 2.0])
def test_edm_weight_is_one_for_its_own_output(s: float) -> None:
    """lambda(sigma) c_out(sigma)^2 = 1 (Karras et al. 2022, table 1)."""
    level = EDM().at(torch.logspace(-3, 2, 20, dtype=F64))
    got = EDMWeight(s).at(level, Preconditioned(s))
    torch.testing.assert_close(got, torch.ones_like(got))
    sigma = level.sigma
    published = (sigma**2 + s**2) / (sigma * s) ** 2
    torch.testing.assert_close(EDMWeight(s).at(level, X0()), published)


@pytest.mark.parametrize("weight", [w() for w in subclasses(Weight)], ids=repr)
@pytest.mark.parametrize("kind", [Eps(), X0(), V(), Velocity(), Preconditioned()], ids=repr)
@pytest.mark.parametrize(
    "schedule",
    [SD0, Discrete.linear().zero_snr(), Discrete.cosine(), Cosine(), Flow(), EDM()],
    ids=repr,
)
def test_every_weight_is_finite_and_positive(weight, kind, schedule) -> None:
    level = schedule.at(torch.linspace(schedule.first, schedule.last, 997, dtype=F64))
    w = weight.at(level, kind)
    assert w.shape == level.alpha.shape and w.isfinite().all() and (w > 0).all()


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="sigma=0 has no loss"):
        MinSNR().at(Flow().at(0), V())
    for make in (MinSNR, SoftMinSNR, EDMWeight):
        for value in (0.0, -1.0, math.nan, math.inf):
            with pytest.raises(ValueError, match="must be a finite number > 0"):
                make(value)


def test_debiased_is_one_over_the_root_of_the_snr_for_eps() -> None:
    """For V it weighs the same error of x0; finite at zero SNR."""
    sd = Discrete.scaled_linear()
    level = sd.at(torch.arange(0, 900, 50, dtype=F64))
    snr = level.snr
    torch.testing.assert_close(Debiased().at(level, Eps()), snr**-0.5)
    torch.testing.assert_close(Debiased().at(level, V()), snr.sqrt() / (1 + snr))
    last = SD0.at(999)
    assert Debiased().at(last, V()) > 0 and Debiased().at(last, V()).isfinite()
    assert Debiased().at(last, Eps()).item() == pytest.approx(FLOOR**-0.5)
