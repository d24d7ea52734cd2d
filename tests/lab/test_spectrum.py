"""Bands of noise against closed forms: Parseval, exact ends, partition, counts done by hand."""

import math

import pytest
import torch
from diffsteer_lab.noise_analysis.spectrum import (
    BINS,
    REACH,
    TENTHS,
    Spectra,
    band,
    counts,
    in_bands,
    magnitudes,
    radius,
    rings,
    swapped,
)
from torch import Tensor

SIZES = [(8, 8), (16, 16), (9, 15), (12, 32), (2, 2)]


def noise(h: int, w: int, seed: int = 0, n: int = 3) -> Tensor:
    return torch.randn(n, 4, h, w, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", SIZES)
def test_bands_hold_all_energy_once(size: tuple[int, int]) -> None:
    """Parseval: over all bands, squares of the transform add up to those of the noise."""
    x = noise(*size)
    for edges in (TENTHS, rings(*size), (0.0, 0.3, 1.0)):
        sums = in_bands(magnitudes(x).square(), edges).sum(dim=1)
        torch.testing.assert_close(sums, x.double().square().flatten(1).sum(1), rtol=1e-12, atol=0)
        assert counts(*size, edges).sum() == size[0] * size[1]


@pytest.mark.parametrize("size", SIZES)
def test_bands_of_noise_add_up_to_it(size: tuple[int, int]) -> None:
    x = noise(*size).double()
    parts = [
        swapped(torch.zeros_like(x), x, a, b) for a, b in zip(TENTHS, TENTHS[1:], strict=False)
    ]
    torch.testing.assert_close(sum(parts), x, rtol=0, atol=1e-13)


@pytest.mark.parametrize("size", SIZES)
def test_swapping_is_exact_at_both_ends(size: tuple[int, int]) -> None:
    """In float32 bit for bit: the transform is in float64, whose error rounding takes away."""
    x, other = noise(*size), noise(*size, seed=1)
    assert torch.equal(swapped(x, other, 0, 1), other)
    for low in (0.0, 0.3, 1.0):
        assert torch.equal(swapped(x, other, low, low), x)


def test_swapping_takes_one_band_and_leaves_the_rest() -> None:
    x, other = noise(16, 16).double(), noise(16, 16, seed=1).double()
    got = torch.fft.fft2(swapped(x, other, 0.2, 0.4))
    held = band(16, 16, 0.2, 0.4)
    assert 0 < held.sum() < 256
    torch.testing.assert_close(got, torch.where(held, torch.fft.fft2(other), torch.fft.fft2(x)))


def test_counts_by_hand() -> None:
    """Frequencies within 3 % of the corner's: whole numbers with x^2 + y^2 < (0.03 N / sqrt 2)^2.

    8 x 8 in tenths: x^2 + y^2 of x, y in -4..3 from 0.32 k^2 on, k = 0..9. 8 = (2, 2) is the edge
    of the sixth and in it, which leaves the fifth empty.
    """
    edges = (0.0, 0.03, 1.0)
    assert [int(counts(n, n, edges)[0]) for n in (64, 96, 128)] == [5, 13, 21]
    assert counts(8, 8, TENTHS).tolist() == [1, 4, 4, 12, 0, 16, 8, 14, 4, 1]


def test_radius_is_that_of_whole_numbers() -> None:
    r = radius(16, 16)
    assert r[0, 0] == 0 and r[8, 8] == 1
    assert r[3, 4] == pytest.approx(5 / math.sqrt(128), abs=1e-15)
    assert torch.equal(r[1:], r[1:].flip(0)) and torch.equal(r[:, 1:], r[:, 1:].flip(1))


@pytest.mark.parametrize("low, high", [(-0.1, 1), (0.5, 0.2), (0, 1.5), (float("nan"), 1)])
def test_bad_edges(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="give 0 <= low <= high <= 1"):
        band(8, 8, low, high)


@pytest.mark.parametrize("size", range(1, 40, 3))
def test_no_ring_is_empty(size: int) -> None:
    for other in (size, 2 * size, 7):
        assert (counts(size, other, rings(size, other)) > 0).all()


def test_a_wave_is_in_its_ring_alone() -> None:
    """x + 3 cos(2 pi 5 j / 32): two frequencies of magnitude 3 sqrt(32 * 32) / 2."""
    x = noise(32, 32)
    wave = 3 * torch.cos(2 * torch.pi * 5 / 32 * torch.arange(32, dtype=torch.float64))
    found = Spectra(32, 32)
    found.add(x.double(), x.double() + wave)
    means = [m.value for m in found.difference()]
    size = counts(32, 32, found.edges)
    at = 5 / math.sqrt(512)
    place = next(i for i, edge in enumerate(found.edges[1:]) if at < edge)
    want = [0.0] * len(means)
    want[place] = 2 * 48 / int(size[place])
    assert means == pytest.approx(want, abs=1e-9)
    assert found.energy() == pytest.approx([0.0] * 2 + [1.0] + [0.0] * 7, abs=1e-12)
    assert found.size() == pytest.approx(3 / math.sqrt(2))


def test_gaussian_noise_has_the_spectrum_that_it_should() -> None:
    """|x - x'| of unit Gaussians: |F| is of two normal numbers of variance 1, so pi/2 its square.

    And | |F(x)| - |F(x')| |, of two Rayleigh numbers of scale 1/sqrt 2: sqrt(pi) (sqrt 2 - 1) is
    the mean of the absolute difference of independent Rayleigh(1) numbers, by their distribution.
    Elements: normal of variance 2, folded. 400 x 4 x 40 numbers a ring leave 1 %.
    """
    found = Spectra(16, 16)
    found.add(noise(16, 16, 0, 400), noise(16, 16, 1, 400))
    for ring in range(1, 7):  # others hold frequencies that are real
        assert found.difference()[ring].value == pytest.approx(math.sqrt(math.pi / 2), rel=0.02)
        gap = math.sqrt(math.pi) * (math.sqrt(2) - 1) / math.sqrt(2)
        assert found.magnitude()[ring].value == pytest.approx(gap, rel=0.03)
        low, high = found.difference()[ring].interval
        assert low < math.sqrt(math.pi / 2) < high or high - low < 0.02
    width = REACH / BINS
    histogram = torch.tensor(found.histogram(), dtype=torch.float64)
    edges = torch.arange(BINS + 1, dtype=torch.float64) * width
    want = torch.special.erf(edges / 2).diff() / width
    torch.testing.assert_close(histogram, want, atol=0.01, rtol=0)
    assert found.energy() == pytest.approx((counts(16, 16, TENTHS) / 256).tolist(), abs=0.01)


def test_parts_add_up() -> None:
    x, y = noise(8, 8, 0, 6), noise(8, 8, 1, 6)
    whole, parted = Spectra(8, 8), Spectra(8, 8)
    whole.add(x, y)
    for i in range(0, 6, 4):
        parted.add(x[i : i + 4], y[i : i + 4])
    assert whole.difference() == parted.difference() and whole.magnitude() == parted.magnitude()
    assert whole.histogram() == pytest.approx(parted.histogram())
    assert whole.energy() == pytest.approx(parted.energy())
