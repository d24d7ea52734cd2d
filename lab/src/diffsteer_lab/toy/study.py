"""Study of the toy: every way of sampling, on networks of several seeds, against the truth."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from diffsteer.core.parse import parse
from diffsteer.core.prediction import Eps
from diffsteer.core.sampler import Denoise, Heun, Step, trace
from diffsteer.core.schedule import EDM
from diffsteer.core.spacing import grid
from diffsteer.guidance import Guidance
from diffsteer.guidance.denoiser import Denoiser
from diffsteer.io.progress import progress
from diffsteer_lab.toy.measure import Figures, Truth
from diffsteer_lab.toy.net import LogDensity, network
from diffsteer_lab.toy.training import Training

SCHEDULE = EDM(sigma_min=0.002, sigma_max=5.0)
STEPS = 32
ROWS_AT_ONCE = 2048
START = 1
"""Seed of the points where sampling starts; not that of the truth that is compared with."""
NETS = {
    "main": Training("A", dim=64, steps=4096),
    "guide": Training("A", dim=32, steps=512),
    "uncond": Training("AB", dim=32, steps=512),
}
"""The network, its guide of autoguidance, and that of CFG, which learned both classes."""


@dataclass(frozen=True)
class Way:
    """A way to sample.

    Attributes:
        name: For people.
        guidance: As the library writes it; empty for none.
        guide: Which of NETS it asks besides "main"; empty for none.
        truncation: Factor of the score.
    """

    name: str
    guidance: str = ""
    guide: str = ""
    truncation: float = 1.0


PLAIN = Way("no guidance")
ALONE = Way("guide alone", "Auto(0)", "guide")
AUTO = {w: Way(f"autoguidance, weight {w:g}", f"Auto({w:g})", "guide") for w in (1.5, 2, 3)}
CFG = {w: Way(f"CFG, weight {w:g}", f'Auto({w:g}, net="uncond")', "uncond") for w in (1.5, 2, 4)}
TRUNCATED = {c: Way(f"score x {c:g}", truncation=c) for c in (1.1, 1.4)}
WAYS = (PLAIN, ALONE, *AUTO.values(), *CFG.values(), *TRUNCATED.values())
FLOORS = ("exact samples", "exact score")
"""Rows without a network: other samples of the truth, and those of its own score."""


@dataclass(frozen=True)
class Row:
    """Figures of one way on one choice of networks.

    Attributes:
        way: Its name.
        main: Seed of the network; None without one.
        guide: Seed of its guide; None without one.
        figures: Of its samples.
    """

    way: str
    main: int | None
    guide: int | None
    figures: Figures


@dataclass(frozen=True, eq=False)
class Study:
    """Networks, the truth, and where sampling starts.

    Args:
        nets: By role and seed.
        truth: What to compare with; has as many samples as are made.
    """

    nets: Mapping[tuple[str, int], LogDensity]
    truth: Truth
    _made: dict[tuple[str, int | None, int | None], Tensor] = field(default_factory=dict)

    def start(self) -> tuple[Tensor, Tensor]:
        """Exact samples, not those of the truth, and the same with the most noise, `(n, 2)`.

        Every way starts at the latter.
        """
        generator = torch.Generator().manual_seed(START)
        clean = self.truth.exact.draw(len(self.truth.samples), generator)
        noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
        return clean, SCHEDULE.at(SCHEDULE.last).mix(clean, noise).float()

    def samples(self, way: Way, main: int, guide: int | None = None) -> Tensor:
        """Sample in a way, `(n, 2)`; what was made once is kept."""
        key = (way.name, main, guide)
        if key not in self._made:
            *_, last = self.trace(self.denoiser(way, main, guide), self.start()[1])
            self._made[key] = last.x
        return self._made[key]

    def denoiser(self, way: Way, main: int, guide: int | None = None) -> Denoiser:
        """The denoiser of a way, with the networks of these seeds."""
        nets = {"main": network(self.nets["main", main], way.truncation)}
        if guide is not None:
            nets[way.guide] = network(self.nets[way.guide, guide])
        guidance = parse(way.guidance, Guidance) if way.guidance else None
        return Denoiser(nets, {"cond": {}}, Eps(), guidance, max_rows=ROWS_AT_ONCE)

    @staticmethod
    def trace(denoise: Denoise, x: Tensor) -> Iterator[Step]:
        """Yield the steps from points at the most noise to samples."""
        with torch.no_grad():
            yield from trace(Heun(), x, grid(SCHEDULE, STEPS), denoise)

    def rows(self, mains: Sequence[int], guides: Sequence[int]) -> Iterator[Row]:
        """Yield the floors, then all ways on all choices of networks."""
        clean, noisy = self.start()
        *_, last = self.trace(self.truth.exact, noisy)
        for name, x in zip(FLOORS, (clean, last.x), strict=True):
            yield Row(name, None, None, self.truth.measure(x))
        for way, main, guide in choices(mains, guides):
            x = self.samples(way, main, guide)
            yield Row(way.name, main, guide, self.truth.measure(x))


def choices(mains: Sequence[int], guides: Sequence[int]) -> list[tuple[Way, int, int | None]]:
    """All ways with the seeds of their networks."""
    return [
        (way, main, guide)
        for main in mains
        for way in WAYS
        for guide in (guides if way.guide else (None,))
    ]


def trained(
    folder: Path, mains: Sequence[int], guides: Sequence[int]
) -> dict[tuple[str, int], LogDensity]:
    """Networks by role and seed; those that are in the folder are not trained again."""
    wanted = {("main", seed): NETS["main"] for seed in mains}
    wanted |= {(role, seed): NETS[role] for role in ("guide", "uncond") for seed in guides}
    how = {(role, seed): replace(one, seed=seed) for (role, seed), one in wanted.items()}
    places = {(role, seed): folder / f"{role}-{seed}" for role, seed in how}
    nets = {key: net for key, one in how.items() if (net := one.kept(places[key]))}
    todo = {key: one for key, one in how.items() if key not in nets}
    if not todo:
        return nets
    total = sum(one.steps for one in todo.values())
    with progress(total, "step") as bar:
        for key, one in todo.items():
            nets[key] = one.run(lambda: bar.update(1))
            one.keep(nets[key], places[key])
    return nets
