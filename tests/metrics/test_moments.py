"""Moments: numpy's numbers in any grouping, and over processes."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from interrupt import together

from diffsteer.io.distributed import launched
from diffsteer.metrics.moments import Moments

F64 = torch.float64


def features(n: int, d: int = 16, seed: int = 0) -> torch.Tensor:
    """Means from 0 to 5 with spread 1, where sums of squares lose digits."""
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return x + torch.linspace(0, 5, d, dtype=F64)


def merged(x: torch.Tensor, cuts: list[int]) -> Moments:
    total = Moments.empty(x.shape[1])
    for part in x.tensor_split(cuts):
        total = total + Moments.of(part)
    return total


def same(a: Moments, b: Moments, tolerance: float = 1e-12) -> None:
    """Equal to `tolerance` of the largest entry: entries near 0 carry the rounding of others."""
    assert a.n == b.n
    for x, y in ((a.mean, b.mean), (a.scatter, b.scatter)):
        torch.testing.assert_close(x, y, rtol=0, atol=tolerance * max(1.0, y.abs().max().item()))


def test_merged_moments_equal_numpy() -> None:
    x = features(2001, 128)
    m = merged(x, list(range(0, 2001, 37)))
    assert m.n == 2001
    cov = np.cov(x.numpy(), rowvar=False)
    assert np.abs(m.mean.numpy() - x.numpy().mean(0)).max() < 1e-12
    assert np.abs(m.cov.numpy() - cov).max() < 1e-12 * np.abs(cov).max()


def test_a_large_common_offset_costs_no_more_than_it_must() -> None:
    """Offset 1e6 leaves 10 digits of float64; sums of squares would leave 4."""
    x = features(500)
    m = merged(x + 1e6, [100, 333])
    torch.testing.assert_close(m.cov, Moments.of(x).cov, rtol=0, atol=1e-9)


@settings(max_examples=40)
@given(st.lists(st.integers(0, 60), max_size=5), st.integers(0, 2**16))
def test_any_grouping_gives_the_same(cuts: list[int], seed: int) -> None:
    x = features(60, 5, seed)
    same(merged(x, sorted(cuts)), Moments.of(x))


@settings(max_examples=40)
@given(*(st.integers(0, 9) for _ in range(3)))
def test_addition_is_associative_with_an_identity(i: int, j: int, k: int) -> None:
    a, b, c = (Moments.of(features(n, 4, seed)) for n, seed in ((i, 1), (j, 2), (k, 3)))
    same((a + b) + c, a + (b + c))
    same(a + Moments.empty(4), a, tolerance=0)
    same(Moments.empty(4) + a, a, tolerance=0)
    same(a + b, b + a)


@settings(max_examples=20)
@given(st.permutations(range(12)))
def test_order_does_not_matter(order: list[int]) -> None:
    x = features(12, 3)
    same(Moments.of(x[order]), Moments.of(x))


def reduce_two(folder: Path) -> None:
    with launched():
        rank = dist.get_rank()
        for i, sizes in enumerate(([130, 0], [30, 100])):  # one without work is ordinary
            m = Moments.of(features(130).split(sizes)[rank]).reduced()
            torch.save((m.n, m.mean, m.scatter), folder / f"{i}-{rank}.pt")


def test_two_processes_reduce_to_the_whole(tmp_path: Path) -> None:
    together(2, lambda: reduce_two(tmp_path))
    whole = Moments.of(features(130))
    files = list(tmp_path.glob("*.pt"))
    assert len(files) == 4
    for file in files:
        same(Moments(*torch.load(file)), whole)


def test_alone_reduction_changes_nothing() -> None:
    m = Moments.of(features(3))
    assert m.reduced() is m


def test_bad_features_are_refused_by_name() -> None:
    x = features(4, 3)
    x[2, 1] = torch.nan
    with pytest.raises(ValueError, match="image 2 are not finite"):
        Moments.of(x)
    with pytest.raises(ValueError, match="one row of floats"):
        Moments.of(torch.zeros(4, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="3 and of 4 numbers"):
        Moments.empty(3) + Moments.empty(4)
    with pytest.raises(ValueError, match="1 images have no covariance"):
        _ = Moments.of(features(1)).cov
