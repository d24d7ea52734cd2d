"""What a network was trained for, against perfect networks of known data."""

import pytest
import torch

from diffsteer import X0, Cosine, Discrete, Eps, Flow, V, Velocity
from diffsteer.core.identify import brightness_gain, kind_of_network, noise_slope
from diffsteer.core.oracle import Bright

SD, SHAPE = Discrete.scaled_linear(), (4, 8, 8)


def network(kind, oracle=None):
    oracle = oracle or Bright()
    return lambda x, level: kind.output_for_x0(x, oracle(x, level), level)


def bright(n: int = 8) -> torch.Tensor:
    gen = torch.Generator().manual_seed(1)
    b = 0.6 + 0.3 * torch.randn(n, 1, 1, 1, generator=gen)
    return b + 0.2 * torch.randn(n, *SHAPE, generator=gen)


@pytest.mark.parametrize("schedule", [SD, SD.zero_snr(), Cosine(), Flow()], ids=repr)
@pytest.mark.parametrize("kind", [Eps(), X0(), V(), Velocity()], ids=repr)
def test_kind_from_five_passes_and_eight_samples(kind, schedule) -> None:
    asked = []

    def watched(x, level):
        asked.append(level)
        return network(kind)(x, level)

    assert kind_of_network(watched, schedule, bright()) == kind and len(asked) == 5


def test_noise_is_no_answer() -> None:
    with pytest.raises(ValueError, match="explained by no prediction type alone"):
        kind_of_network(lambda x, level: torch.zeros_like(x), SD, bright())


@pytest.mark.parametrize(
    ("kind", "schedule", "slope"),
    [(Eps(), SD, 1), (Velocity(), SD, 1), (V(), SD, 0), (X0(), SD, 0), (V(), SD.zero_snr(), 0)],
)
def test_slope_without_data(kind, schedule, slope: int) -> None:
    """Within 0.1: SD's v is alpha eps - sigma x0 with alpha = 0.07 at the end."""
    got = noise_slope(network(kind), schedule, torch.empty(16, *SHAPE))
    assert got == pytest.approx(slope, abs=0.1)


@pytest.mark.parametrize("side", [8, 64])
def test_brightness_gain(side: int) -> None:
    """Wiener gain alpha s^2 / (alpha^2 s^2 + sigma^2 / D) of the mean, 12.8 at 4x64x64, or 0."""
    like = torch.empty(2, 4, side, side)
    last, size = SD.at(999), 4 * side**2
    var = 0.3**2 + 0.2**2 / size
    want = last.alpha * var / (last.alpha**2 * var + last.sigma**2 / size)
    assert brightness_gain(Bright(), SD, like) == pytest.approx(want.item(), rel=1e-4)
    assert brightness_gain(Bright(), SD.zero_snr(), like) == pytest.approx(0, abs=1e-6)
