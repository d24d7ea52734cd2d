"""Intervals by resampling: against closed forms, repeated draws, and metrics of repeated rows."""

import pytest
import torch
from torch import Tensor

from diffsteer.metrics import bootstrap
from diffsteer.metrics.bootstrap import (
    frechet_resampled,
    interval,
    manifold_resampled,
    mmd_resampled,
    score_resampled,
    weights,
)
from diffsteer.metrics.comparison import compared
from diffsteer.metrics.features import Origin
from diffsteer.metrics.frechet import Gaussian, frechet
from diffsteer.metrics.kernels import cubic, inception_score, kid
from diffsteer.metrics.manifold import manifold
from diffsteer.metrics.moments import F64, Moments
from diffsteer.metrics.sampled import Sampled
from diffsteer.metrics.statistics import Statistics

ORIGIN = Origin("Any", "one", "none", "0")


def normal(n: int, d: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, d, generator=draw, dtype=F64) + shift


def repeated(x: Tensor, row: Tensor) -> Tensor:
    return x.repeat_interleave(row.to(torch.long), dim=0)


def test_weights_draw_with_replacement() -> None:
    """Each resample has n images; a count is binomial, of variance 1 - 1 / n."""
    w = weights(40, 100)
    assert w.shape == (100, 40) and (w.sum(dim=1) == 40).all()
    assert w.var().item() == pytest.approx(1 - 1 / 40, rel=0.1)
    assert torch.equal(w, weights(40, 100)) and not torch.equal(w, weights(40, 100, seed=1))


@pytest.mark.parametrize(("n", "d"), [(60, 7), (30, 50)])
def test_frechet_is_that_of_the_repeated_rows(n: int, d: int) -> None:
    """Brute force, below and above full rank; float64 root of an eigenvalue keeps 1e-7 there."""
    x, w = normal(n, d, 1, 0.7, 0.3), weights(n, 20)
    reference = Gaussian.of(Moments.of(normal(200, d, 2)))
    brute = [frechet(Gaussian.of(Moments.of(repeated(x, row))), reference) for row in w]
    found = frechet_resampled(x, reference, w)
    torch.testing.assert_close(found, torch.tensor(brute, dtype=F64), rtol=1e-6, atol=1e-6)


def test_frechet_of_one_number_has_the_closed_spread() -> None:
    """In one dimension FD = (m - mu)^2 + (s - sigma)^2.

    For normal x its variance is 4 (m - mu)^2 s^2 / n + 4 (s - sigma)^2 s^2 / (2 n) to first order.
    The spread of 1000 resamples is within 2 %, that of the sample's own moments within 10 %.
    """
    n, m, s = 2000, 1.5, 2.0
    x = normal(n, 1, 0, s, m)
    reference = Gaussian(torch.zeros(1, dtype=F64), torch.eye(1, dtype=F64))
    expected = (4 * m**2 * s**2 / n + 4 * (s - 1) ** 2 * s**2 / (2 * n)) ** 0.5
    spread = frechet_resampled(x, reference, weights(n, 1000)).std()
    assert spread.item() == pytest.approx(expected, rel=0.12)


def test_first_order_agrees_with_resampling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features of many numbers take a linearised distance: the same spread, resample by resample.

    Second-order terms, of the size of the bias that intervals are free of anyway, are left out.
    """
    x, w = normal(1500, 20, 3, 0.8, 0.3), weights(1500, 200)
    reference = Gaussian.of(Moments.of(normal(3000, 20, 4)))
    exact = frechet_resampled(x, reference, w)
    monkeypatch.setattr(bootstrap, "LINEAR_FROM", 10)
    linear = frechet_resampled(x, reference, w)
    value = frechet(Gaussian.of(Moments.of(x)), reference)
    assert linear.mean().item() == pytest.approx(value, rel=0.01)
    assert linear.std().item() == pytest.approx(exact.std().item(), rel=0.05)
    assert torch.corrcoef(torch.stack([exact, linear]))[0, 1] > 0.98


def test_kernel_distance_is_that_of_all_pairs_of_different_pictures() -> None:
    """The double sum by hand; over many resamples its mean is KID itself, without bias."""
    n, x, y = 25, normal(25, 4, 5, 0.8), normal(25, 4, 6)
    w, pairs, of_y = weights(n, 2000), cubic(x, x), cubic(y, y)
    pairs.fill_diagonal_(0)
    rest = of_y.fill_diagonal_(0).sum() / (n * (n - 1))
    found = mmd_resampled(x, y, cubic, w)
    for row, value in zip(w[:20].to(F64), found, strict=False):
        expected = row @ pairs @ row / (n - 1) ** 2 + rest - 2 * row @ cubic(x, y).mean(dim=1) / n
        assert value.item() == pytest.approx(expected.item(), rel=1e-9)
    noise = 4 * found.std().item() / 2000**0.5
    assert found.mean().item() == pytest.approx(kid(x, y, 1, n).value, abs=noise)


def test_shares_count_what_was_drawn() -> None:
    """Weight 1 gives precision and density themselves; weight 0 takes an image out of both."""
    x, y = normal(60, 3, 7), normal(80, 3, 8, 1.2)
    plain, counted = manifold(x, y, 3), manifold_resampled(x, y, 3, torch.ones(1, 60))
    assert counted.precision.item() == pytest.approx(plain.precision, abs=1e-12)
    assert counted.density.item() == pytest.approx(plain.density, abs=1e-12)
    half = torch.cat([torch.full((1, 30), 2.0), torch.zeros(1, 30)], dim=1)
    inside = manifold_resampled(x, y, 3, half)
    reach = torch.cdist(y, y).topk(4, largest=False).values[:, 3]
    hits = torch.cdist(x[:30], y) <= reach
    assert inside.precision.item() == pytest.approx(hits.any(dim=1).double().mean().item())
    assert inside.density.item() == pytest.approx(hits.sum().item() / (3 * 30))


def test_score_is_that_of_the_repeated_rows() -> None:
    logits, w = normal(30, 5, 9, 3.0), weights(30, 20)
    for row, value in zip(w, score_resampled(logits, w), strict=True):
        expected = inception_score(repeated(logits, row), splits=1).value
        assert value.item() == pytest.approx(expected, rel=1e-9)


def test_the_spread_is_that_of_other_seeds() -> None:
    """Against the standard deviation over 150 independent sets of 300 images, 6 numbers each.

    All agree within 25 %: 6 % is the noise of 150 draws, the rest that of one set. Weights would
    leave coverage a third too narrow here, since they never empty a ball of two images as often
    as other seeds do.
    """
    y = normal(600, 6, 10)
    reference = Gaussian.of(Moments.of(y))

    def figures(x: Tensor) -> list[float]:
        distance = frechet(Gaussian.of(Moments.of(x)), reference)
        return [distance, kid(x, y, 1, 300).value, *manifold(x, y, 3)]

    draws = [normal(300, 6, 100 + i, 0.8, 0.4) for i in range(150)]
    true = torch.tensor([figures(x) for x in draws], dtype=F64).std(dim=0)
    w = weights(300, 200)
    spreads = [
        [frechet_resampled(x, reference, w), mmd_resampled(x, y, cubic, w),
         *manifold_resampled(x, y, 3, w)]
        for x in draws[:5]
    ]  # fmt: skip
    found = torch.tensor([[v.std() for v in each] for each in spreads]).mean(dim=0) / true
    assert all(0.75 < ratio < 1.25 for ratio in found.tolist())


def test_recall_and_coverage_are_measured_on_parts_of_any_sizes() -> None:
    """Parts of a share of both sets, large enough for a neighbour; the same for all sets.

    A set far from the reference has neither in any part, and so no spread.
    """
    for n, m in ((8, 8), (9, 200), (200, 9), (1200, 1500)):
        x, y, w = normal(n, 3, 1), normal(m, 3, 2), weights(n, 20)
        found = manifold_resampled(x, y, 3, w)
        assert found.recall.shape == found.coverage.shape == (20,)
        assert torch.equal(found.coverage, manifold_resampled(x, y, 3, w).coverage)
        assert m < n or found.coverage.abs().max() > 0  # 200 images are in all balls of 9
        far = manifold_resampled(x + 100, y, 3, w)
        assert far.recall.abs().max() == far.coverage.abs().max() == 0


def test_an_interval_lies_around_the_value() -> None:
    """Resampled values are shifted: repetition moves their mean, not the figure."""
    low, high = interval(5.0, torch.linspace(10, 12, 201))
    assert (low, high) == pytest.approx((5 - 0.95, 5 + 0.95))


def samples(x: Tensor, seeds: range = range(300)) -> Sampled:
    statistics = Statistics(ORIGIN, Gaussian.of(Moments.of(x)), len(x), x)
    return Sampled(tuple(seeds), statistics, {"seconds": torch.arange(len(x), dtype=F64)})


def test_pairing_takes_out_what_the_seeds_share() -> None:
    """Equal sets differ by 0 exactly; a shift of the same noise, less than other noise does."""
    x, y = normal(300, 4, 11), normal(500, 4, 12)
    real = Statistics(ORIGIN, Gaussian.of(Moments.of(y)), 500, y)
    sets = {"a": x, "same": x.clone(), "near": x + 0.05, "other": normal(300, 4, 13) + 0.05}
    first, same, near, other = compared({k: samples(v) for k, v in sets.items()}, real)
    assert first.differences == {}
    for value, (low, high) in same.differences.values():
        assert value == low == high == 0
    assert first.costs["seconds"] == (149.5, 74.75, 224.25)
    name = first.figures[0].name
    paired, unpaired = (
        one.differences[name].interval.high - one.differences[name].interval.low
        for one in (near, other)
    )
    assert paired < unpaired / 3
    value, (low, high) = near.differences[name]
    assert low < value < high
    assert value == pytest.approx(near.figures[0].value - first.figures[0].value)


def test_other_seeds_or_lost_features_are_refused() -> None:
    x = normal(300, 4, 11)
    real = samples(x).statistics
    with pytest.raises(ValueError, match="b has other seeds than a"):
        compared({"a": samples(x), "b": samples(x, range(1, 301))}, real)
    with pytest.raises(ValueError, match="keeps features of a part"):
        compared({"a": Sampled(tuple(range(301)), real, {})}, real)
    with pytest.raises(ValueError, match="resamples=19: give >= 20"):
        weights(10, 19)
