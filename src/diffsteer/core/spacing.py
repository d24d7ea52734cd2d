"""Which levels a sampler visits.

A spacing is a function from a schedule and a number of steps to decreasing times. Those of the
discrete schedules follow Lin et al. 2023, table 2, https://arxiv.org/abs/2305.08891, in exact
integer arithmetic: floating point adds a node after t = 0 for 62 of the step counts 1..1000.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral

import torch
from torch import Tensor

from diffsteer.core.errors import InputError, brief, did_you_mean
from diffsteer.core.fields import PositiveFinite, check_fields, is_whole, offers
from diffsteer.core.level import CLEAN, Level
from diffsteer.core.schedule import Discrete, Schedule

F64 = torch.float64
Spacing = Callable[[Schedule, int], Tensor]


def trailing(schedule: Schedule, n: int) -> Tensor:
    """Start at the last level and divide time evenly down to data; the right choice at zero SNR."""
    if isinstance(schedule, Discrete):
        size = _size(schedule, n)
        return _whole([Fraction(size * (n - i), n) for i in range(n)])
    return schedule.shifted(torch.arange(n, 0, -1, dtype=F64) / n * schedule.last)


def leading(schedule: Schedule, n: int) -> Tensor:
    """Start a whole step below the last level, never visiting it: Stable Diffusion as shipped."""
    if isinstance(schedule, Discrete):
        stride = _size(schedule, n) // n
        return torch.arange(n - 1, -1, -1, dtype=F64) * stride
    return schedule.share(torch.arange(n - 1, -1, -1, dtype=F64) / n)


def linspace(schedule: Schedule, n: int) -> Tensor:
    """Both ends of the trained range and even steps between; one step visits the last level."""
    span = max(n - 1, 1)
    if isinstance(schedule, Discrete):
        size = _size(schedule, n)
        return _whole([size - Fraction((size - 1) * i, span) for i in range(n)])
    return schedule.share(torch.linspace(1, 0, n, dtype=F64))


def logsigma(schedule: Schedule, n: int) -> Tensor:
    """The last level, then even steps in log(sigma / alpha).

    Spends more steps on high noise, where the mean brightness of large latents is decided: with few
    steps it keeps more of its spread than `trailing` does. Of two steps at zero SNR the second is
    next to the last level, which is one step in effect: take four and more.
    """
    return _by_ratio(schedule, n, lambda ratio: ratio.log(), lambda log: log.exp())


@dataclass(frozen=True)
class Karras:
    """The last level, then even steps in (sigma / alpha)^(1 / rho).

    Args:
        rho: Emphasis on low noise, > 0; 1 is even in sigma.

    Source: Karras et al. 2022, eq. 5, https://arxiv.org/abs/2206.00364.
    """

    rho: PositiveFinite = 7.0

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, schedule: Schedule, n: int) -> Tensor:
        """Return `n` decreasing times."""
        rho = self.rho
        return _by_ratio(schedule, n, lambda ratio: ratio ** (1 / rho), lambda root: root**rho)


@dataclass(frozen=True)
class Table:
    """Levels of a published table, even steps between them in log(sigma / alpha) for other counts.

    On a schedule of another range than the table's, its steps are stretched to that range.

    Args:
        ratios: sigma / alpha of the table, from most to least noise; the last is not visited.
    """

    ratios: tuple[float, ...]

    def __call__(self, schedule: Schedule, n: int) -> Tensor:
        """Return `n` decreasing times."""
        logs = torch.tensor(self.ratios, dtype=F64).log()
        at = torch.linspace(0, len(logs) - 1, n + 1, dtype=F64)[1:-1]
        low = at.floor().long()
        nodes = torch.lerp(logs[low], logs[(low + 1).clamp(max=len(logs) - 1)], at - low)
        lo, hi = (math.log(ratio) for ratio in schedule.span())
        nodes = lo + (nodes - logs[-1]) / (logs[0] - logs[-1]) * (hi - lo)
        times = schedule.time(nodes.exp())
        if isinstance(schedule, Discrete):  # a table of timesteps, but for rounding
            times = torch.where((times - times.round()).abs() < 1e-6, times.round(), times)
        return torch.cat([torch.tensor([schedule.last], dtype=F64), times])


def _of_timesteps(*timesteps: int) -> Table:
    """Table of timesteps of Stable Diffusion."""
    return Table(tuple(Discrete.scaled_linear().at(torch.tensor(timesteps)).ratio.tolist()))


AYS_SVD = (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002)
SPACINGS: dict[str, Spacing] = {
    "trailing": trailing,
    "leading": leading,
    "linspace": linspace,
    "logsigma": logsigma,
    "karras": Karras(),
    "ays-sd": _of_timesteps(999, 850, 736, 645, 545, 455, 343, 233, 124, 24, 0),
    "ays-sdxl": _of_timesteps(999, 845, 730, 587, 443, 310, 193, 116, 53, 13, 0),
    "ays-svd": Table(AYS_SVD),
}
"""Spacings that have a name; "ays" are those of Align Your Steps for Stable Diffusion 1.5, XL and
Stable Video Diffusion at 10 steps (Sabour et al. 2024, https://arxiv.org/abs/2404.14507)."""


def grid(schedule: Schedule, n: int, spacing: str | Spacing | None = None) -> tuple[Level, ...]:
    """Levels of a sampling of `n` steps: `n` from most to least noise, then CLEAN.

    Args:
        schedule: Of the network.
        n: Number of steps, >= 1; at most the number of timesteps for the spacings on integers.
        spacing: A name of `SPACINGS`, a `Karras(rho)`, or a function of your own; None for what
            suits the schedule: "karras" for EDM, else "trailing".
    """
    if isinstance(n, bool) or not isinstance(n, Integral) or n < 1:
        raise InputError(f"{n!r} sampling steps cannot be: give a whole number of at least 1")
    if not offers(schedule, "at"):
        raise InputError(f"{brief(schedule)} is no schedule: give one, such as Flow() or EDM()")
    spacing = schedule.spacing if spacing is None else spacing
    if isinstance(spacing, str):
        if spacing not in SPACINGS:
            hint = did_you_mean(spacing, SPACINGS)
            raise InputError(
                f"no spacing is called {spacing!r}{hint}: there are {', '.join(SPACINGS)}"
            )
        spacing = SPACINGS[spacing]
    if isinstance(spacing, type) or not callable(spacing):
        raise InputError(
            f"{brief(spacing)} is no spacing: give a name, Karras(rho), or a function of schedule "
            "and number of steps"
        )
    times = torch.as_tensor(spacing(schedule, n), dtype=F64)
    if times.shape != (n,):
        raise InputError(f"the spacing gave times of shape {tuple(times.shape)} for {n} steps")
    if not (times.diff() < 0).all():
        i = int((~(times.diff() < 0)).nonzero()[0])
        raise InputError(
            f"the spacing gave t={times[i]:g} and then t={times[i + 1]:g}: "
            "each must lie below the one before"
        )
    levels = tuple(Level(*level) for level in zip(*schedule.at(times), strict=True))
    if levels[-1].sigma == 0:
        raise InputError(f"the last of {n} levels, t={times[-1]:g}, has no noise left to remove")
    return (*levels, CLEAN)


def respaced(schedule: Discrete, text: str | int) -> tuple[Level, ...]:
    """Levels of a sampling as `timestep_respacing` of ADM and IDDPM says them, then CLEAN.

    Args:
        schedule: Of the network.
        text: "250" for that many steps over all timesteps, both ends visited; "10,15,20" for as
            many in each of equal parts of them, the least noisy first, 0 for none; "ddim25" for 25
            steps from t = 0 on at one whole stride; "" for every timestep.
    """
    text = str(text) if is_whole(text) else text
    if not isinstance(schedule, Discrete) or not isinstance(text, str):
        raise InputError(
            f"{brief(text)} on {brief(schedule)}: timestep_respacing is a text, such as "
            '"250", on a Discrete schedule'
        )
    size = len(schedule.alphas)
    times = _strided(size, text) if text.startswith("ddim") else _sections(size, text or str(size))
    if not times:
        raise InputError(f"timestep_respacing={text!r} visits no timestep")
    return grid(schedule, len(times), lambda *_: torch.tensor(times[::-1], dtype=F64))


def _count(text: str, whole: str) -> int:
    if not text.strip().isdecimal():
        raise InputError(f'timestep_respacing={whole!r}: write "250", "10,15,20" or "ddim25"')
    return int(text)


def _strided(size: int, text: str) -> list[int]:
    """Multiples of the whole stride that gives so many steps."""
    n = _count(text[len("ddim") :], text)
    for stride in range(1, size):
        if len(range(0, size, stride)) == n:
            return list(range(0, size, stride))
    raise InputError(f"{text!r}: no whole stride visits {n} of {size} timesteps")


def _sections(size: int, text: str) -> list[int]:
    """Even steps in each of equal parts; sums are rounded as in the official code, halves to even.

    Strides are added up in floating point, since that decides halves and published samples with it.
    """
    counts = [_count(part, text) for part in text.split(",")]
    times, start = [], 0
    for i, count in enumerate(counts):
        length = size // len(counts) + (i < size % len(counts))
        if count > length:
            raise InputError(f"{text!r}: {count} steps do not fit on {length} of {size} timesteps")
        stride, at = (length - 1) / (count - 1) if count > 1 else 1.0, 0.0
        for _ in range(count):
            times.append(start + round(at))
            at += stride
        start += length
    return times


def _size(schedule: Discrete, n: int) -> int:
    size = len(schedule.alphas)
    if n > size:
        raise InputError(
            f"{n} steps do not fit on {size} trained timesteps: take at most {size}, "
            'or a spacing between timesteps ("logsigma", Karras())'
        )
    return size


def _whole(steps: list[Fraction]) -> Tensor:
    """Times of steps counted from 1 as in the paper, halves rounded to even, all in integers."""
    return torch.tensor([round(step) - 1 for step in steps], dtype=F64)


def _by_ratio(
    schedule: Schedule, n: int, warp: Callable[[Tensor], Tensor], unwarp: Callable[[Tensor], Tensor]
) -> Tensor:
    """Times evenly spaced in warp(sigma / alpha), with the last level in front at zero SNR."""
    last = torch.tensor([schedule.last], dtype=F64)
    span = schedule.span()
    if span[0] == 0:
        raise InputError(
            "the first trained level has no noise, so its sigma/alpha has no logarithm"
        )
    lo, hi = (warp(torch.tensor(r, dtype=F64)).item() for r in span)
    nodes = torch.linspace(hi, lo, n - 1, dtype=F64)
    if schedule.at(schedule.last).alpha > 0:
        nodes = torch.linspace(hi, lo, n, dtype=F64)[1:]
    return torch.cat([last, schedule.time(unwarp(nodes))])


def times_of(schedule: Schedule, sigmas: Sequence[float] | str) -> Tensor:
    """Times at which sigma / alpha has given values, or those of a table, `(steps,)`, float64.

    Args:
        schedule: Of the network.
        sigmas: From most to least, > 0, with or without a 0 at the end, which is the data; or the
            name of a table.
    """
    if isinstance(sigmas, str):
        tables = {name: made for name, made in SPACINGS.items() if isinstance(made, Table)}
        if sigmas not in tables:
            raise InputError(f"no table is called {sigmas!r}: there are {', '.join(tables)}")
        return tables[sigmas](schedule, len(tables[sigmas].ratios) - 1)
    ratios = torch.as_tensor(sigmas, dtype=torch.float64)
    if ratios.ndim == 1 and len(ratios) and ratios[-1] == 0:
        ratios = ratios[:-1]
    if ratios.ndim != 1 or not len(ratios) or not (ratios > 0).all():
        raise InputError(f"sigmas must be sigma / alpha > 0, from most to least, got {sigmas}")
    lo, hi = schedule.span()  # published tables are rounded past both ends
    ends = (ratios < 1.001 * hi) & (ratios > 0.999 * lo)
    return schedule.time(torch.where(ends, ratios.clamp(lo, hi), ratios))
