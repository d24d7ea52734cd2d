"""Conversions between prediction types, exact at every level, zero SNR included."""

import pytest
import torch

from diffsteer import (
    EDM,
    X0,
    Cosine,
    Discrete,
    Eps,
    Flow,
    Level,
    Preconditioned,
    V,
    Velocity,
)
from diffsteer.core.level import CLEAN
from diffsteer.core.prediction import Prediction

F64 = torch.float64
KINDS = [Eps(), X0(), V(), Velocity(), Preconditioned(0.5), Preconditioned(1.0)]
SD0 = Discrete.scaled_linear().zero_snr()


def pair(dtype=F64, n=4):
    gen = torch.Generator().manual_seed(0)
    return torch.randn(2, n, 3, 8, 8, generator=gen, dtype=F64).to(dtype).unbind()


@pytest.mark.parametrize("kind", KINDS, ids=repr)
@pytest.mark.parametrize("t", [0, 500, 998, 999])
def test_conversions(kind, t: int) -> None:
    """target -> solve returns x0 and eps; at t = 998 alpha is 4e-4, so 1e-16 becomes 3e-13."""
    level = SD0.at(t)
    x0, eps = pair()
    if kind == Eps() and t == 999:
        return
    got = kind.solve(level.mix(x0, eps), kind.target(x0, eps, level), level)
    torch.testing.assert_close(got[0], x0, atol=1e-11, rtol=0)
    torch.testing.assert_close(got[1], eps, atol=1e-11, rtol=0)
    again = kind.output_for_x0(level.mix(x0, eps), x0, level)
    torch.testing.assert_close(again, kind.target(x0, eps, level), atol=1e-11, rtol=0)


@pytest.mark.parametrize("schedule", [Cosine(), Flow(), EDM()], ids=repr)
@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_conversions_with_a_level_each(schedule, kind) -> None:
    x0, eps = pair()
    level = schedule.at(torch.tensor([0.01, 0.3, 0.6, 0.99], dtype=F64))
    got = kind.solve(level.mix(x0, eps), kind.target(x0, eps, level), level)
    torch.testing.assert_close(got, (x0, eps), atol=1e-12, rtol=0)


def test_definitions() -> None:
    """v = alpha eps - sigma x0, which is -x0 at zero SNR; the flow's velocity is eps - x0."""
    x0, eps = pair()
    level, last = SD0.at(400), SD0.at(999)
    assert torch.equal(Eps().target(x0, eps, level), eps)
    assert torch.equal(X0().target(x0, eps, level), x0)
    torch.testing.assert_close(V().target(x0, eps, level), level.alpha * eps - level.sigma * x0)
    assert torch.equal(V().target(x0, eps, last), -x0)
    torch.testing.assert_close(Velocity().target(x0, eps, Flow().at(0.3)), eps - x0)


def test_edm_preconditioning() -> None:
    """Karras et al. 2022, table 1, with alpha = 1; and -V for unit data on a VP schedule."""
    s, sigma = 0.5, torch.tensor(3.0, dtype=F64)
    level, (x0, eps) = EDM().at(sigma), pair()
    c_skip, c_out = s**2 / (sigma**2 + s**2), sigma * s / (sigma**2 + s**2).sqrt()
    x = level.mix(x0, eps)
    torch.testing.assert_close(Preconditioned(s).target(x0, eps, level), (x0 - c_skip * x) / c_out)
    vp = SD0.at(700)
    torch.testing.assert_close(Preconditioned(1.0).target(x0, eps, vp), -V().target(x0, eps, vp))


@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.float16, torch.bfloat16])
def test_noise_is_untouched_at_zero_snr(dtype) -> None:
    x0, eps = pair(dtype)
    for level in (SD0.at(999), SD0.at(torch.full((4,), 999)), Flow().at(1)):
        x = level.mix(x0, eps)
        assert x.dtype == dtype and torch.equal(x, eps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_small_levels(dtype) -> None:
    """sigma at t = 0 is 0.029: taken from 1 - alpha^2 in bf16 it would be 0."""
    x0, eps = pair(dtype)
    got = SD0.at(torch.zeros(4)).mix(torch.zeros_like(x0), eps)
    want = SD0.at(0).sigma.item() * eps.double()
    torch.testing.assert_close(got.double(), want, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_levels_of_rows_follow_the_sample_to_its_device() -> None:
    x = torch.empty(4, 3, 8, 8, device="meta", dtype=torch.float16)
    got = SD0.at(torch.tensor([0, 1, 2, 999])).mix(x, x)
    assert (got.device, got.dtype) == (x.device, x.dtype)


def test_eps_at_zero_snr_names_the_cure() -> None:
    x0, eps = pair()
    with pytest.raises(
        ValueError, match="Eps output does not fix x0 at alpha=0.*predicts v or velocity"
    ):
        Eps().solve(eps, eps, SD0.at(999))
    with pytest.raises(ValueError, match="X0 output does not fix eps at sigma=0"):
        X0().solve(x0, x0, CLEAN)

    class Sum(Prediction):
        def coefficients(self, alpha, sigma):
            return torch.ones_like(alpha), torch.ones_like(alpha)

    with pytest.raises(ValueError, match="Sum output fixes neither x0 nor eps at Level"):
        Sum().solve(x0, x0, Flow().at(0.5))
    with pytest.raises(ValueError, match="no noise at sigma=0"):
        V().output_for_x0(x0, x0, CLEAN)
    with pytest.raises(ValueError, match="data already at sigma=0, so no output can move it"):
        V().output_shift(x0, CLEAN)


def test_wrong_shapes() -> None:
    x0, eps = pair()
    level = SD0.at(500)
    with pytest.raises(ValueError, match=r"returned shape \(4, 6, 8, 8\).*learned variances"):
        V().solve(x0, torch.cat([eps, eps], dim=1), level)
    for act in (V().target, lambda a, b, lv: lv.mix(a, b)):
        with pytest.raises(ValueError, match="give both one shape"):
            act(x0, eps[:2], level)
    three = Level(*(torch.ones(3, dtype=F64) for _ in range(3)))
    with pytest.raises(ValueError, match="give one level for all rows"):
        three.mix(x0, eps)
    with pytest.raises(ValueError, match="eps has dtype torch.uint8: scale pixels to floats"):
        level.mix(x0, eps.to(torch.uint8))
    with pytest.raises(ValueError, match="sigma_data"):
        Preconditioned(-1.0)
