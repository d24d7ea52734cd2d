"""Whether the lowest band of refined noise carries the result."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from diffsteer.metrics.bootstrap import Estimate, Interval
from diffsteer_lab.noise_analysis.experiments import band_name, bands
from diffsteer_lab.noise_analysis.spectrum import TENTHS, band

FAINT = 0.001
"""Share of what another noise moves the result below which refining does nothing to speak of."""


@dataclass(frozen=True)
class Verdict:
    """Whether the lowest band of refined noise carries the result, by the numbers.

    "yes" where the interval of the share that it carries lies above one half, "no" where it lies
    below, else "undecided", as where refining moves the result by less than `FAINT`. The share is 1
    less the squared distance to the fully refined result that is left when this band alone is
    refined, over the distance when nothing is.

    Attributes:
        space: In which distances are taken.
        moved: Squared distance of the fully refined result from the unrefined one, over that of
            what another noise gives.
        answer: As above.
        band: The lowest band that there is.
        carried: The share.
        energy: Share of the refiner's change that lies in this band.
        coefficients: How many frequencies it holds.
        of: How many there are.
        rival: The band with the largest share among the other tenths.
        rival_carried: Its share.
    """

    space: str
    moved: Estimate
    answer: str
    band: str
    carried: Estimate
    energy: float
    coefficients: int
    of: int
    rival: str
    rival_carried: Estimate

    def __str__(self) -> str:
        return (
            f"Does the lowest band carry the result? {self.answer.capitalize()}, in {self.space}: "
            f"radii {self.band}, {self.coefficients} of {self.of} frequencies a channel and "
            f"{self.energy:.0%} of the change, carry {share(self.carried)} of it; of the other "
            f"tenths, {self.rival} carries most, {share(self.rival_carried)}. Refining moves the "
            f"result by {100 * self.moved.value:.2g}% of what another noise does"
            + ", too little to say what carries it"
            * self.faint
        )

    @property
    def faint(self) -> bool:
        """Whether refining moves the result by next to nothing."""
        return self.moved.interval.high < FAINT


def verdicts(
    ratios: dict[str, dict[str, Estimate]],
    moved: dict[str, Estimate],
    energy: Sequence[float],
    h: int,
    w: int,
) -> list[Verdict]:
    """A verdict for each space.

    Args:
        ratios: Distances of bands, of `Results.ratios`.
        moved: Of refining all of the noise, by space.
        energy: Of the change, of `Spectra.energy`.
        h: Height of the noise.
        w: Its width.
    """
    tenths = [(low, high) for low, high in bands(h, w) if (low, high) in set(pairwise(TENTHS))]
    names = [band_name(*edges) for edges in tenths]
    coefficients = int(band(h, w, *tenths[0]).sum())
    spaces = [s for s in moved if all(s in ratios[name] for name in names)]
    made = []
    for space in spaces:
        first, *others = (_carried(ratios[name][space]) for name in names)
        best = max(range(len(others)), key=lambda i: others[i].value)
        low, high = first.interval
        answer = "yes" if low > 0.5 else "no" if high < 0.5 else "undecided"
        about = names[0], first, energy[0], coefficients, h * w, names[1 + best], others[best]
        verdict = Verdict(space, moved[space], answer, *about)
        made.append(replace(verdict, answer="undecided") if verdict.faint else verdict)
    return made


def _carried(distance: Estimate) -> Estimate:
    low, high = distance.interval
    return Estimate(1 - distance.value, Interval(1 - high, 1 - low))


def share(carried: Estimate) -> str:
    """A share as people read it."""
    low, high = carried.interval
    return f"{carried.value:.0%} ({low:.0%} to {high:.0%})"
