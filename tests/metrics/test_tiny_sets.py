"""Metrics of very few images: values and intervals in range and in order, or a reason."""

import math
from collections.abc import Iterator
from itertools import product

import pytest
import torch
from torch import Tensor

from diffsteer.metrics import bootstrap
from diffsteer.metrics.bootstrap import interval
from diffsteer.metrics.evaluate import cautions, compare, omitted, possible, spreads
from diffsteer.metrics.features import Origin
from diffsteer.metrics.frechet import Gaussian, frechet
from diffsteer.metrics.manifold import manifold
from diffsteer.metrics.moments import Moments
from diffsteer.metrics.statistics import Statistics

RAW = Origin("Inception", "64", "none", "0")
SCALED = Origin("Mean", "colour", "none", "0")
EMBEDDED = Origin("CLIP", "image-embedding", "none", "0")
LOGITS = Origin("Mean", "logits", "none", "0")
REASONS = ("have no covariance: give at least 2", "an embedding is 0 and has no direction")


def sets(n: int) -> Iterator[Tensor]:
    """Features of n images: different, of one image, of two, with a constant, large, all 0."""
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(n))
    yield x
    yield x[:1].repeat(n, 1)
    yield torch.cat([x[: n // 2], x[:1].repeat(n - n // 2, 1)])
    yield torch.cat([x[:, :1], torch.ones(n, 2)], 1)
    yield 1e5 + 1e3 * x
    yield torch.zeros(n, 3)


def statistics(x: Tensor, origin: Origin) -> Statistics:
    return Statistics(origin, Gaussian.of(Moments.of(x)), len(x), x)


@pytest.mark.parametrize("origin", [RAW, EMBEDDED, LOGITS], ids=lambda o: o.layer)
def test_few_images_have_ordered_figures_in_range_or_a_reason(origin: Origin) -> None:
    kinds = set()
    for n, m in product((1, 2, 8, 11), (3, 9)):
        for x, y in product(sets(n), sets(m)):
            try:
                fake, real = statistics(x, origin), statistics(y, origin)
                figures = compare(fake, real, spread=spreads(fake, real, 20))
            except ValueError as error:
                assert any(reason in str(error) for reason in REASONS), error
                continue
            omitted(fake, real)
            for figure in figures:
                kinds.add(figure.name)
                low, high = figure.interval or (figure.value, figure.value)
                assert math.isfinite(low) and math.isfinite(high)
                assert low <= figure.value <= high
                if figure.name.startswith("FD-infinity"):  # an extrapolation, which says so
                    assert ("below 0" in figure.detail) == (figure.value < 0)
                else:
                    assert possible(figure.name).low <= low and high <= possible(figure.name).high
    expected = {"IS-Mean"} if origin is LOGITS else {"precision", "recall", "density", "coverage"}
    assert expected <= kinds


@pytest.mark.parametrize("linear_from", [0, 512])
def test_one_image_repeated_has_a_finite_distance(
    monkeypatch: pytest.MonkeyPatch, linear_from: int
) -> None:
    """To first order too, where all eigenvalues are 0; the mean of 32 equal rows is exact."""
    monkeypatch.setattr(bootstrap, "LINEAR_FROM", linear_from)
    reference = Gaussian(torch.zeros(3), torch.eye(3))
    fake = torch.tensor([[1.0, -2.0, 0.5]]).repeat(32, 1)
    resampled = bootstrap.frechet_resampled(fake, reference, bootstrap.weights(32, 20))
    expected = frechet(statistics(fake, RAW).gaussian, reference)
    assert resampled.tolist() == pytest.approx([expected] * 20)


def test_an_interval_holds_the_value_though_all_but_a_few_resamples_agree() -> None:
    """The 97.5 % quantile of a skewed sample lies below its mean: 0 to -2.5e-05, for coverage."""
    skewed = torch.cat([torch.zeros(199), torch.tensor([0.005])])
    for sign in (1, -1):
        low, high = interval(0.25, sign * skewed)
        assert low <= 0.25 <= high


def test_one_image_a_split_is_no_inception_score() -> None:
    """Sure and different predictions score as many classes as there are images."""
    x = 50 * torch.eye(8)
    (figure,) = compare(statistics(x, LOGITS), statistics(x, LOGITS))
    assert figure.detail == "1 splits" and figure.value == pytest.approx(8)


def test_a_reference_of_one_image_has_no_kernel_distance_and_says_so() -> None:
    x = next(sets(9))
    fake, real = statistics(x, SCALED), statistics(x[:1].repeat(9, 1), SCALED)
    figures = compare(fake, real, spread=spreads(fake, real, 20))
    assert [f.name for f in figures][:1] == ["FD-Mean"] and len(figures) == 5
    assert any(note.startswith("KID: all features") for note in omitted(fake, real))


def test_too_few_images_are_named() -> None:
    few, many = (statistics(torch.randn(n, 3), SCALED) for n in (3, 200))
    assert any("3 images leave a covariance of 3" in note for note in cautions(few, many))
    some = statistics(torch.randn(20, 3), SCALED)
    assert [note.split(":")[0] for note in cautions(some, many)] == [
        "precision, recall, density, coverage"
    ]
    assert cautions(many, many) == ()
    logits = statistics(torch.randn(200, 30), LOGITS)
    (note,) = cautions(logits, logits)
    assert "20 images of a split cannot show more than 20 of 30 classes" in note


def test_distances_that_overflow_are_refused_not_counted_as_outside() -> None:
    x = 1e25 * next(sets(9))
    with pytest.raises(ValueError, match=r"overflow torch\.float32"):
        manifold(x, x)
    assert manifold(x.double(), x.double()).precision == 1
