"""Averages of weights: profiles against quadrature, updates and reconstructions in closed form."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from diffsteer.core.power_ema import WIDEST, PowerEMA, decay, gamma, inner, weights

WIDTHS = {0.05: 16.972, 0.10: 6.937, 0.15: 3.558, 0.20: 1.826, 0.25: 0.720, 0.01: 96.99}


def sigma_rel(g: float) -> float:
    """Closed form of the paper."""
    return math.sqrt((g + 1) / ((g + 2) ** 2 * (g + 3)))


def profile(count: float, g: float, tau: np.ndarray) -> np.ndarray:
    return np.where(tau <= count, (g + 1) / count * (np.minimum(tau, count) / count) ** g, 0)


def quadrature(ends: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of Gauss-Legendre between the ends; tau = u^4 smooths the power at 0."""
    u, w = np.polynomial.legendre.leggauss(60)
    roots = [0.0, *(end**0.25 for end in sorted(set(ends)))]
    at, by = [], []
    for lo, hi in zip(roots[:-1], roots[1:], strict=True):
        r = (hi + lo) / 2 + (hi - lo) / 2 * u
        at.append(r**4)
        by.append((hi - lo) / 2 * w * 4 * r**3)
    return np.concatenate(at), np.concatenate(by)


@pytest.mark.parametrize("sigma", WIDTHS)
def test_exponents_of_the_paper(sigma: float) -> None:
    assert gamma(sigma) == pytest.approx(WIDTHS[sigma], rel=5e-4)  # printed digits


@given(st.floats(1e-4, WIDEST))
def test_gamma_inverts_sigma_rel(sigma: float) -> None:
    assert sigma_rel(gamma(sigma)) == pytest.approx(sigma, rel=1e-12)
    roots = np.roots([1, 7, 16 - sigma**-2, 12 - sigma**-2])
    # a polynomial solver errs by 1e-15 of its greatest coefficient, sigma^-2
    assert gamma(sigma) == pytest.approx(max(0, roots.real.max()), rel=1e-9, abs=1e-12)


@given(st.floats(0, 100))
def test_sigma_rel_is_the_spread_of_the_profile(g: float) -> None:
    tau, w = quadrature([1.0])
    p = profile(1.0, g, tau) * w
    mean = (p * tau).sum()
    assert p.sum() == pytest.approx(1, abs=1e-10)
    assert sigma_rel(g) == pytest.approx(math.sqrt((p * (tau - mean) ** 2).sum()), rel=1e-8)


@given(st.floats(0.1, 8), st.floats(0, 40), st.floats(0.1, 8), st.floats(0, 40))
def test_inner_products_against_quadrature(s: float, f: float, t: float, g: float) -> None:
    tau, w = quadrature([s, t])
    assert inner((s, f), (t, g)) == pytest.approx(
        (w * profile(s, f, tau) * profile(t, g, tau)).sum(), rel=1e-10
    )
    assert inner((s, f), (t, g)) == pytest.approx(inner((t, g), (s, f)), rel=1e-13)


def test_weights_are_the_least_squares_of_profiles() -> None:
    stored = [(t, gamma(s)) for t in (2.0, 4.0, 6.0, 8.0) for s in (0.05, 0.10)]
    target = (8.0, gamma(0.15))
    tau, w = quadrature([t for t, _ in stored])
    table = np.stack([profile(t, g, tau) for t, g in stored], 1) * np.sqrt(w)[:, None]
    best, *_ = np.linalg.lstsq(table, profile(*target, tau) * np.sqrt(w), rcond=None)
    np.testing.assert_allclose(weights(stored, target).numpy(), best / best.sum(), atol=1e-10)


def test_what_is_stored_is_found_again() -> None:
    stored = [(t, gamma(s)) for t in (1e6, 2e6, 3e6) for s in (0.05, 0.10)]
    for i, one in enumerate(stored):
        torch.testing.assert_close(
            weights(stored, one), torch.eye(len(stored), dtype=torch.float64)[i], atol=1e-9, rtol=0
        )


def test_weights_do_not_depend_on_the_unit_of_time() -> None:
    def at(unit: float) -> torch.Tensor:
        stored = [(t * unit, gamma(s)) for t in range(1, 9) for s in (0.05, 0.10)]
        return weights(stored, (8 * unit, gamma(0.07)))

    torch.testing.assert_close(at(1.0), at(2.0**23), atol=1e-9, rtol=0)


def walk(steps: int, batch: int, *sigmas: float) -> tuple[PowerEMA, list[torch.Tensor]]:
    """Averages over a random walk of weights, and the walk."""
    gen = torch.Generator().manual_seed(0)
    p = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    ema, seen = PowerEMA([("p", p)], sigmas), []
    for i in range(steps):
        p.data += torch.randn(4, generator=gen, dtype=torch.float64)
        seen.append(p.detach().clone())
        ema.update((i + 1) * batch, batch)
    return ema, seen


def test_an_average_weighs_by_the_integral_of_its_profile() -> None:
    ema, seen = walk(50, 32, 0.05, 0.20)
    ends = torch.arange(51, dtype=torch.float64) / 50
    for i, g in enumerate(ema.gammas):
        share = (ends ** (g + 1)).diff()
        torch.testing.assert_close(
            ema.snapshot(i)["p"], share @ torch.stack(seen), atol=1e-12, rtol=1e-12
        )


def test_a_length_that_was_not_tracked_is_reconstructed() -> None:
    tracked, snapshots, stored = (0.05, 0.10), [], []
    gen = torch.Generator().manual_seed(1)
    p = nn.Parameter(torch.zeros(64, dtype=torch.float64))
    ema = PowerEMA([("p", p)], (*tracked, 0.08))
    for i in range(4096):
        p.data += torch.randn(64, generator=gen, dtype=torch.float64)
        ema.update(i + 1, 1)
        if (i + 1) % 256 == 0:
            snapshots += [ema.snapshot(k)["p"] for k in range(2)]
            stored += [(i + 1, ema.gammas[k]) for k in range(2)]
    made = weights(stored, (4096, gamma(0.08))) @ torch.stack(snapshots)
    true = ema.snapshot(2)["p"]
    near = min((s - true).norm() for s in snapshots[-2:])
    assert (made - true).norm() < 0.02 * near  # 0.4 % measured; no single snapshot comes close


def test_the_first_update_is_a_copy() -> None:
    net = nn.Linear(3, 2)
    ema = PowerEMA(net.named_parameters())
    net.weight.data += 1
    ema.update(8, 8)
    for i in range(2):
        for name, value in net.named_parameters():
            assert torch.equal(ema.snapshot(i)[name], value) and ema.snapshot(i)[name] is not value


def test_half_precision_is_averaged_in_float32() -> None:
    p = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    ema = PowerEMA([("p", p)], (0.1,))
    ema.update(10**6, 10**6)
    p.data += 1
    for i in range(1, 4):
        ema.update(10**6 + i, 1)  # moves by 2e-5, which bfloat16 cannot hold
    g = ema.gammas[0]
    moved = 1 - (10**6 / (10**6 + 3)) ** (g + 1)
    assert ema.snapshot(0)["p"].item() - 1 == pytest.approx(moved, abs=3e-7)


def test_resumes_exactly() -> None:
    ema, _ = walk(5, 8, 0.05, 0.10)
    other, _ = walk(9, 8, 0.05, 0.10)
    other.load_state_dict(ema.state_dict())
    for i in range(2):
        assert torch.equal(ema.snapshot(i)["p"], other.snapshot(i)["p"])
    with pytest.raises(ValueError, match=r"other widths: 1/p has shape .*\[4\]\) among"):
        walk(1, 1, 0.05)[0].load_state_dict(ema.state_dict())
    for name, shape in (("q", 4), ("p", 5)):
        with pytest.raises(ValueError, match=r"another network, .*: 0/p has shape .*\[4\]\) among"):
            PowerEMA([(name, torch.zeros(shape))]).load_state_dict(ema.state_dict())


def test_bad_input() -> None:
    for sigma in (0, -0.1, 0.3, math.nan):
        with pytest.raises(ValueError, match="no width of an average"):
            gamma(sigma)
    with pytest.raises(ValueError, match="count includes the batch"):
        decay(8, 16, 1.0)
    with pytest.raises(ValueError, match="give some, once"):
        weights([(1, 1.0), (1, 1.0)], (1, 2.0))
    with pytest.raises(ValueError, match="give some, once"):
        weights([], (1, 2.0))
    with pytest.raises(ValueError, match="no average ends"):
        weights([(0, 1.0)], (1, 2.0))
    with pytest.raises(ValueError, match="comes twice"):
        PowerEMA([("p", torch.zeros(1)), ("p", torch.zeros(1))])
    with pytest.raises(ValueError, match="there is no average"):
        PowerEMA([("p", torch.zeros(1, dtype=torch.int64))])
