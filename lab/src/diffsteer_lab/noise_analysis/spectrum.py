"""Noise by spatial frequency: bands, what they hold, and noise with a band of other noise.

The radius of a frequency is its length over that of the highest one, the corner of the transform:
0 is the mean of a channel, 1 the checkerboard. A band holds radii from its lower edge up to, and
without, its upper one, but for 1, which belongs to the band that ends there.
"""

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.metrics.bootstrap import Estimate
from diffsteer_lab.noise_analysis.results import means

F64 = torch.float64
TENTHS = tuple(i / 10 for i in range(11))
"""Edges of the bands that the paper swaps."""
REACH, BINS = 5.0, 50
"""Histograms of absolute differences run from 0 to REACH: 4 in 10,000 of Gaussian ones leave it."""


def radius(h: int, w: int) -> Tensor:
    """Radius of each frequency, `(h, w)` as `fft2` lays them out, float64 in [0, 1]."""
    y, x = torch.fft.fftfreq(h, dtype=F64), torch.fft.fftfreq(w, dtype=F64)
    squares = y[:, None].square() + x.square()
    relative: Tensor = (squares / squares.max().clamp(min=1e-300)).sqrt()
    return relative


def band(h: int, w: int, low: float, high: float) -> Tensor:
    """Which frequencies a band holds, bool `(h, w)`.

    Raises:
        ValueError: the edges are not 0 <= low <= high <= 1.
    """
    if not 0 <= low <= high <= 1:
        raise InputError(f"a band from {low} to {high}: give 0 <= low <= high <= 1")
    r = radius(h, w)
    return (r >= low) & ((r < high) | ((high == 1) & (low < 1)))


def swapped(x: Tensor, other: Tensor, low: float, high: float) -> Tensor:
    """`x` with one band of `other`, both `(B, C, H, W)`; channel by channel.

    Exact at both ends: bit for bit `x` for a band that holds nothing, `other` for all of them.

    Source: Ahn et al. 2024, appendix E.2, https://arxiv.org/abs/2412.03895.
    """
    inside = band(x.shape[-2], x.shape[-1], low, high).to(x.device)
    change = torch.fft.fft2(other.to(F64) - x.to(F64)) * inside
    mixed: Tensor = (x.to(F64) + torch.fft.ifft2(change).real).to(x.dtype)
    return mixed


def magnitudes(x: Tensor) -> Tensor:
    """Absolute values of the transform, `(B, C, H, W)`, float64; orthonormal: it keeps energy."""
    magnitude: Tensor = torch.fft.fft2(x.to(F64), norm="ortho").abs()
    return magnitude


def counts(h: int, w: int, edges: tuple[float, ...]) -> Tensor:
    """How many frequencies lie in each band between neighbouring edges, `(bands,)`."""
    return in_bands(torch.ones(1, 1, h, w, dtype=F64), edges)[0].long()


def in_bands(values: Tensor, edges: tuple[float, ...]) -> Tensor:
    """Sum over channels and the frequencies of each band, `(B, bands)`.

    Args:
        values: One a frequency, `(B, C, H, W)`.
        edges: Rising from 0 to 1.
    """
    h, w = values.shape[-2:]
    inner = torch.tensor(edges[1:-1], dtype=F64)
    place = torch.bucketize(radius(h, w), inner, right=True).flatten()
    sums = torch.zeros(len(values), len(edges) - 1, dtype=values.dtype)
    return sums.index_add(1, place, values.sum(dim=1).flatten(1))


def rings(h: int, w: int) -> tuple[float, ...]:
    """Edges of rings so thin that the longer side has no more of them, and none is empty."""
    n = max(max(h, w) // 2, 1)
    return tuple(i / n for i in range(n + 1))


class Spectra:
    """Spectra of the difference of noise and what became of it, gathered part by part.

    Args:
        h: Height of the noise.
        w: Its width.

    Attributes:
        edges: Of the rings.
    """

    def __init__(self, h: int, w: int) -> None:
        self.edges = rings(h, w)
        self._size = counts(h, w, self.edges)
        self._rows: dict[str, list[Tensor]] = {"difference": [], "magnitude": [], "energy": []}
        self._histogram = torch.zeros(BINS, dtype=F64)
        self._elements = 0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take noise and what became of it, both `(B, C, H, W)`."""
        gap, per = y.to(F64) - x.to(F64), x.shape[1] * self._size
        whole = magnitudes(gap)
        apart = (magnitudes(y) - magnitudes(x)).abs()
        self._rows["difference"].append(in_bands(whole, self.edges) / per)
        self._rows["magnitude"].append(in_bands(apart, self.edges) / per)
        self._rows["energy"].append(in_bands(whole.square(), TENTHS))
        self._histogram += torch.histc(gap.abs(), BINS, 0, REACH)
        self._elements += gap.numel()

    def difference(self) -> list[Estimate]:
        """Mean |F(y - x)| in each ring."""
        return means(torch.cat(self._rows["difference"]))

    def magnitude(self) -> list[Estimate]:
        """Mean | |F(y)| - |F(x)| | in each ring."""
        return means(torch.cat(self._rows["magnitude"]))

    def energy(self) -> list[float]:
        """Share of the energy of y - x in each tenth; they add up to 1, or are 0 where y is x."""
        sums = torch.cat(self._rows["energy"]).sum(dim=0)
        shares: list[float] = (sums / sums.sum().clamp(min=1e-300)).tolist()
        return shares

    def size(self) -> float:
        """Root mean square of y - x."""
        total = torch.cat(self._rows["energy"]).sum() / self._elements
        return float(total.sqrt())

    def histogram(self) -> list[float]:
        """Density of |y - x| by element, in BINS bins from 0 to REACH."""
        density: list[float] = (self._histogram / (self._elements * REACH / BINS)).tolist()
        return density
