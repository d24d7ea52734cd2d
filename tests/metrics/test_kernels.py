"""Metrics against closed forms."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffsteer.metrics.frechet import Gaussian, frechet
from diffsteer.metrics.kernels import cmmd, frechet_infinity, inception_score, kid, mmd, scaled
from diffsteer.metrics.manifold import manifold
from diffsteer.metrics.moments import Moments

F64 = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def basis(d: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(normal(d, d, seed=seed))[0]


def spd(q: Tensor, values: Tensor) -> Tensor:
    s = q * values @ q.mT
    return (s + s.mT) / 2


def gaussian(cov: Tensor, mean: Tensor | None = None) -> Gaussian:
    return Gaussian(torch.zeros(len(cov), dtype=F64) if mean is None else mean, cov)


@pytest.mark.parametrize("rank", [48, 20])
def test_frechet_of_commuting_covariances(rank: int) -> None:
    """|m1 - m2|^2 + sum (sqrt d1 - sqrt d2)^2."""
    d, q = 48, basis(48)
    d1, d2 = normal(d, seed=1).square(), normal(d, seed=2).square()
    d1[rank:] = d2[rank:] = 0
    m1, m2 = normal(d, seed=3), normal(d, seed=4)
    truth = (m1 - m2).square().sum() + (d1.sqrt() - d2.sqrt()).square().sum()
    found = frechet(gaussian(spd(q, d1), m1), gaussian(spd(q, d2), m2))
    assert found == pytest.approx(truth.item(), abs=1e-11)


@pytest.mark.parametrize("rank", [200, 90])
def test_frechet_of_a_known_map(rank: int) -> None:
    """S2 = A S1 A with A positive: the distance is Tr (I - A) S1 (I - A), in any rank."""
    d = 200
    values = torch.arange(1, d + 1, dtype=F64) ** -1.5
    values[rank:] = 0
    s1, a = spd(basis(d, 1), values), spd(basis(d, 2), 0.5 + normal(d, seed=3).abs())
    s2 = a @ s1 @ a
    rest = torch.eye(d, dtype=F64) - a
    truth = (rest @ s1 @ rest).trace().item()
    assert frechet(gaussian(s1), gaussian((s2 + s2.mT) / 2)) == pytest.approx(truth, abs=1e-12)


def test_frechet_of_disjoint_supports() -> None:
    """Nothing overlaps, so both traces remain: square roots of rounding noise would show here."""
    q, values = basis(100), torch.ones(100, dtype=F64)
    s1, s2 = spd(q[:, :40], values[:40]), spd(q[:, 40:], values[40:])
    assert frechet(gaussian(s1), gaussian(s2)) == pytest.approx(100, abs=1e-11)


def test_frechet_of_equal_sets_is_zero_below_and_above_full_rank() -> None:
    for n in (20, 500):
        g = Gaussian.of(Moments.of(normal(n, 64).relu()))
        assert frechet(g, g) == pytest.approx(0, abs=1e-12)


@settings(max_examples=20)
@given(st.integers(2, 40), st.integers(2, 40), st.integers(0, 99))
def test_frechet_is_symmetric_and_turns_with_the_axes(n: int, m: int, seed: int) -> None:
    x, y, q = normal(n, 8, seed=seed), normal(m, 8, seed=seed + 100) + 1, basis(8, seed)
    a, b = Gaussian.of(Moments.of(x)), Gaussian.of(Moments.of(y))
    turned = [Gaussian.of(Moments.of(z @ q)) for z in (x, y)]
    assert frechet(a, b) == pytest.approx(frechet(b, a), abs=1e-11)
    assert frechet(a, b) == pytest.approx(frechet(*turned), abs=1e-11)


def test_what_is_no_covariance_is_refused() -> None:
    indefinite = torch.diag(torch.tensor([1.0, -0.1], dtype=F64))
    with pytest.raises(ValueError, match="eigenvalue -0.1"):
        frechet(gaussian(indefinite), gaussian(indefinite))
    with pytest.raises(ValueError, match="not symmetric"):
        gaussian(torch.tensor([[1.0, 0.5], [0.0, 1.0]], dtype=F64))
    with pytest.raises(ValueError, match="NaN"):
        gaussian(torch.full((2, 2), torch.nan, dtype=F64))
    with pytest.raises(ValueError, match="different extractors"):
        frechet(gaussian(torch.eye(2, dtype=F64)), gaussian(torch.eye(3, dtype=F64)))


def test_kid_by_hand() -> None:
    """With k = (x y + 1)^3: within {0, 1} is 1, within {0, 2} is 1, across (1 + 1 + 1 + 27) / 4."""
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [2.0]])
    assert kid(x, y, subsets=3, size=2) == pytest.approx((1 + 1 - 2 * 7.5, 0), abs=1e-14)


def test_blocks_do_not_change_kid(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(30, 7, seed=1), normal(28, 7, seed=2) * 1.1
    whole = kid(x, y, subsets=11, size=25)
    monkeypatch.setattr("diffsteer.metrics.kernels.BLOCK", 3 * 25 * 25)
    assert kid(x, y, subsets=11, size=25) == pytest.approx(whole, abs=1e-13)


def test_kid_is_unbiased() -> None:
    """Two halves of one distribution: 0 within the standard error of the mean over 40 draws."""
    x, y = normal(8000, 8, seed=1), normal(8000, 8, seed=2)
    draws = [kid(a, b, 1, 200).value for a, b in zip(x.split(200), y.split(200), strict=True)]
    mean, error = torch.tensor(draws).mean(), torch.tensor(draws).std() / len(draws) ** 0.5
    assert abs(mean) < 4 * error


def test_scaled_features_have_unit_mean_variance() -> None:
    x, y = normal(50, 6) * 1e3 + 5e3, normal(60, 6, seed=1) * 1e3 + 5e3
    a, b = scaled(x, y)
    torch.testing.assert_close(b.mean(0), torch.zeros(6, dtype=F64), atol=1e-12, rtol=0)
    assert b.var(dim=0).mean().item() == pytest.approx(1)
    ratio = torch.cdist(x, y) / torch.cdist(a, b)
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio))
    with pytest.raises(ValueError, match="all reference features are equal"):
        scaled(x, torch.ones(4, 6))


def test_mmd_of_two_points() -> None:
    for r in (1e-4, 1.0, 30.0):
        truth = -2 * math.expm1(-(r**2) / 200)
        found = mmd(torch.zeros(3, 2), torch.tensor([[r, 0.0]]), sigma=10)
        assert found == pytest.approx(truth, rel=1e-6)
    for sigma in (0.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="is no kernel width: give a number > 0"):
            mmd(torch.zeros(3, 2), torch.ones(1, 2), sigma)


def test_cmmd_of_orthogonal_embeddings_ignores_length() -> None:
    found = cmmd(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 7.0]]))
    assert found == pytest.approx(-2000 * math.expm1(-2 / 200), rel=1e-9)
    with pytest.raises(ValueError, match="no direction"):
        cmmd(torch.zeros(2, 3), torch.ones(2, 3))


@pytest.mark.parametrize(("classes", "splits"), [(4, 1), (10, 5)])
def test_inception_score_of_certain_and_of_blank_pictures(classes: int, splits: int) -> None:
    """Sure of evenly many classes: their number. Sure of nothing: 1."""
    sure = torch.eye(classes, dtype=F64).repeat(400, 1) * 200
    found = inception_score(sure, splits=1)
    assert found.value == pytest.approx(classes, abs=1e-9)
    blank = inception_score(torch.zeros(100, classes), splits)
    assert blank == pytest.approx((1, 0), abs=1e-12)


def test_frechet_infinity_removes_most_of_the_sample_bias() -> None:
    """Same distribution, so the truth is 0 and the whole distance at N is bias."""
    truth = gaussian(torch.eye(24, dtype=F64))
    x = normal(3000, 24)
    plain = frechet(Gaussian.of(Moments.of(x)), truth)
    limit = frechet_infinity(x, truth)
    assert plain > 0.05
    assert abs(limit.value) < plain / 5
    assert abs(limit.value) < 5 * limit.spread


def test_frechet_infinity_needs_enough_pictures() -> None:
    with pytest.raises(ValueError, match="96 images"):
        frechet_infinity(normal(90, 24), gaussian(torch.eye(24, dtype=F64)))


def test_manifold_by_hand() -> None:
    """Reference 0, 1, 2, 3 with k = 1: radius 1. Generated 0.5, 0.6, 9: radii 0.1, 0.1, 8.4.

    In: 0.5 and 0.6, each in the balls of 0 and 1: precision 2/3, density 4/3 over 1, coverage 2/4.
    The ball of 9 reaches down to 0.6: it holds 1, 2 and 3, so recall is 3/4.
    """
    real = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    fake = torch.tensor([[0.5], [0.6], [9.0]])
    found = manifold(fake, real, k=1)
    assert found == pytest.approx((2 / 3, 3 / 4, 4 / 3, 2 / 4), abs=1e-6)


def test_manifold_of_equal_and_of_distant_sets() -> None:
    x = normal(60, 5)
    assert manifold(x, x)[:2] == (1, 1)
    assert manifold(x, x).coverage == 1
    assert manifold(x + 100, x) == (0, 0, 0, 0)


def brute(fake: Tensor, real: Tensor, k: int) -> tuple[float, float, float, float]:
    """Naive form with whole matrices of exact differences."""

    def distances(x: Tensor, y: Tensor) -> Tensor:
        return (x[:, None] - y[None]).square().sum(dim=2)

    reach_fake, reach_real = (distances(x, x).sort(1).values[:, k] for x in (fake, real))
    cross = distances(fake, real)
    inside = (cross <= reach_real).double()
    recalled = (cross <= reach_fake[:, None]).any(0).double()
    return (
        inside.amax(1).mean().item(),
        recalled.mean().item(),
        inside.sum(1).mean().item() / k,
        inside.amax(0).mean().item(),
    )


@settings(max_examples=25)
@given(st.integers(5, 40), st.integers(5, 40), st.integers(1, 4), st.integers(0, 99))
def test_manifold_equals_the_naive_form(n: int, m: int, k: int, seed: int) -> None:
    fake, real = normal(n, 3, seed=seed), normal(m, 3, seed=seed + 100) + 0.3
    assert manifold(fake, real, k) == pytest.approx(brute(fake, real, k), abs=1e-12)


def test_blocks_do_not_change_the_manifold(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, real = normal(90, 4), normal(70, 4, seed=1) + 0.3
    whole = manifold(fake, real)
    monkeypatch.setattr("diffsteer.metrics.manifold.BLOCK", 7 * 70)
    assert manifold(fake, real) == whole


@settings(max_examples=10)
@given(st.permutations(range(20)))
def test_order_of_pictures_does_not_matter(order: list[int]) -> None:
    x, y = normal(20, 4), normal(20, 4, seed=1)
    assert manifold(x[order], y) == manifold(x, y)
    assert cmmd(x[order], y) == pytest.approx(cmmd(x, y), abs=1e-12)
    assert kid(x[order], y, 1, 20).value == pytest.approx(kid(x, y, 1, 20).value, abs=1e-12)


def test_too_few_rows_are_refused_with_numbers() -> None:
    x, y = normal(5, 3), normal(4, 3)
    with pytest.raises(ValueError, match="5 generated and 4 of the reference"):
        kid(x, y)
    with pytest.raises(ValueError, match="k=4 needs more than 4 images"):
        manifold(x, y, k=4)
    with pytest.raises(ValueError, match="5 images do not make 10 splits"):
        inception_score(x)
    with pytest.raises(ValueError, match="3 numbers, those of the reference 2"):
        manifold(x, y[:, :2])
