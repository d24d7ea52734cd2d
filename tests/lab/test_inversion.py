"""Inversion against the closed form: on Gaussian data a DDIM step is affine, and so its inverse."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from diffsteer_lab.noise_analysis.inversion import Inversion
from torch import Tensor

from diffsteer import DDIM, EDM, Discrete, Eps, Flow, Preconditioned, V, Velocity, grid
from diffsteer.core.level import Level
from diffsteer.core.oracle import Gaussian, Mixture, as_network
from diffsteer.core.prediction import X0

SD = Discrete.scaled_linear()
CASES = [
    (SD, Eps()),
    (SD, V()),
    (SD, X0()),
    (SD.zero_snr(), V()),
    (Discrete.linear(), Eps()),
    (Flow(3.0), Velocity()),
    (EDM(), Preconditioned()),
]
NAMES = ["eps", "v", "x0", "zero SNR", "linear", "flow", "EDM"]


def data(n: int = 4, size: int = 6) -> Tensor:
    return 1.5 + torch.randn(
        n, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )


def sampled(x: Tensor, levels: Sequence[Level], denoise) -> Tensor:
    *_, end = DDIM()(x, levels, denoise)
    return end


def undone(x: Tensor, levels: Sequence[Level], oracle: Gaussian) -> Tensor:
    """The inverse of DDIM on Gaussian data: x' = k x + c (m + g (x - alpha m)) solved for x."""
    for nxt, now in pairwise(reversed(levels)):
        keep = nxt.sigma / now.sigma
        fresh = nxt.alpha - keep * now.alpha
        gain = now.alpha * oracle.std**2 / oracle.var(now)
        x = (x - fresh * oracle.mean * (1 - gain * now.alpha)) / (keep + fresh * gain)
    return x


@pytest.mark.parametrize("schedule, kind", CASES, ids=NAMES)
@pytest.mark.parametrize("std", [0.5, 2.0])
def test_iterations_reach_the_exact_inverse(schedule, kind, std: float) -> None:
    """To rounding, which the steps grow by up to r_T / r_0, 80 for EDM and 1 elsewhere."""
    oracle = Gaussian(std=std)
    denoise, levels = as_network(oracle, kind), grid(schedule, 12)
    want = undone(data(), levels, oracle)
    for averaged in (1, 3):
        got = Inversion(150, averaged)(data(), levels, denoise)
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(sampled(got, levels, denoise), data(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("schedule, kind", CASES, ids=NAMES)
def test_one_iteration_is_exact_for_data_of_unit_variance(schedule, kind) -> None:
    """Of a single number: then what is held is the same at all estimates."""
    oracle, x = Gaussian(mean=0.7, std=1.0), data(8, 1)
    levels = grid(schedule, 7)
    got = Inversion()(x, levels, as_network(oracle, kind))
    torch.testing.assert_close(got, undone(x, levels, oracle), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("schedule, kind", CASES, ids=NAMES)
@pytest.mark.parametrize("steps", [2, 5, 20])
def test_every_error_shrinks(schedule, kind, steps: int) -> None:
    """By unit variance: of 64 numbers no direction varies by more than 64, and none by less than 0.

    As the module derives it. Data that vary little are forgotten in the step that ends in data, so
    that nothing can be said of 0 itself.
    """
    x, levels = data(2, 64), grid(schedule, steps)
    for std in (0.1, 1.0, 3.0, 8.0):
        oracle = Gaussian(mean=0.0, std=std)
        denoise = as_network(oracle, kind)
        for now, nxt in pairwise(levels):
            want = undone(x, [now, nxt], oracle)
            errors = [
                (Inversion(n).step(x, now, nxt, denoise) - want).abs().max() for n in (1, 2, 3, 4)
            ]
            for before, after in pairwise(errors):
                assert after < before or after < 1e-12 * want.abs().max()


@pytest.mark.parametrize("schedule, kind", [CASES[1], CASES[5]], ids=["v", "flow"])
def test_ddim_inversion_is_of_first_order(schedule, kind) -> None:
    """Twice the steps halve what sampling from its noise misses; iterations are far below."""
    oracle = Gaussian(std=0.3)
    denoise = as_network(oracle, kind)
    errors, iterated = [], []
    for n in (50, 100, 200):
        levels = grid(schedule, n)
        for found, inversion in ((errors, Inversion()), (iterated, Inversion(6, 2))):
            x = inversion(data(), levels, denoise)
            found.append(float((sampled(x, levels, denoise) - data()).abs().max()))
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2, rel=0.25)
    assert all(b < 0.02 * a for a, b in zip(errors, iterated, strict=True))


@pytest.mark.parametrize("inversion", [Inversion(), Inversion(3, 2)])
def test_no_estimate_depends_on_how_levels_are_scaled(inversion: Inversion) -> None:
    """Levels of EDM brought to unit variance give the same noise, brought to unit variance."""
    oracle, levels = Gaussian(std=0.4), grid(EDM(), 8)
    sizes = [level.alpha.hypot(level.sigma) for level in levels]
    unit = [Level(lv.t, lv.alpha / r, lv.sigma / r) for lv, r in zip(levels, sizes, strict=True)]
    want = inversion(data(), unit, oracle) * sizes[0]
    torch.testing.assert_close(inversion(data(), levels, oracle), want, rtol=1e-12, atol=1e-12)


def test_iterations_undo_a_network_that_is_not_linear() -> None:
    denoise = as_network(Mixture(), V())
    levels = grid(SD.zero_snr(), 20)
    start = torch.randn(8, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    end = sampled(start, levels, denoise)
    back = Inversion(150)(end, levels, denoise)
    torch.testing.assert_close(sampled(back, levels, denoise), end, rtol=1e-8, atol=1e-8)
    once = Inversion()(end, levels, denoise)
    assert (sampled(once, levels, denoise) - end).abs().max() > 1e-3


def test_averages_gain_where_estimates_go_to_and_fro() -> None:
    """Along the widest direction there can be, where errors change sign and shrink slowest."""
    oracle, x = Gaussian(mean=0.0, std=32.0), data(2, 1024)
    denoise, levels = as_network(oracle, V()), grid(SD, 3)
    want = undone(x, levels, oracle)
    last, mean = (float((Inversion(6, m)(x, levels, denoise) - want).abs().max()) for m in (1, 2))
    assert mean < 0.7 * last


def test_what_cannot_be_undone() -> None:
    with pytest.raises(ValueError, match="take at least 2 steps"):
        Inversion()(data(), grid(SD.zero_snr(), 1), as_network(Gaussian(), V()))
    with pytest.raises(ValueError, match="zero terminal SNR"):
        Inversion()(data(), grid(SD.zero_snr(), 4), as_network(Gaussian(), Eps()))


@pytest.mark.parametrize("iterations, averaged", [(0, 0), (0, 1), (2, 3), (2, 0)])
def test_bad_numbers(iterations: int, averaged: int) -> None:
    with pytest.raises(ValueError, match="give at least 1 iteration"):
        Inversion(iterations, averaged)
