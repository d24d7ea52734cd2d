"""`diffsteer schedule`: the levels of a sampling as a table and a plot."""

from pathlib import Path

import torch

from diffsteer.core.errors import InputError, did_you_mean
from diffsteer.core.level import Level
from diffsteer.core.prediction import Eps
from diffsteer.core.schedule import EDM, NAMED, Discrete, Schedule
from diffsteer.core.spacing import grid
from diffsteer.hf.scheduler_config import kind_of, read, schedule_of, spacing_of
from diffsteer.hf.shipped import shipped_folder
from diffsteer.io.atomic import atomic_write

FAINT = 1e-3
"""alpha below which what is left of the image at the start cannot be seen in samples."""

HEAD = f"{'step':>4} {'t':>9} {'alpha':>10} {'sigma':>10} {'SNR':>11} {'sigma/alpha':>12}"


def show(source: str, steps: int, spacing: str, zero_snr: bool, plot: Path | None) -> str:
    """Table of the levels that a sampling visits, with what a reader should know of them."""
    schedule, eps, own = load(source)
    spacing = spacing or own or schedule.spacing
    if zero_snr:
        schedule = _repaired(schedule)
    levels = grid(schedule, steps, spacing)
    rows = [_row(i, level) for i, level in enumerate(levels[:-1], start=1)]
    title = f"{source}: {schedule!r}, {steps} steps, {spacing}"
    if plot is not None:
        _draw(schedule, levels, title, plot)
    notes = [*_notes(schedule, levels, eps), *([f"Plot: {plot}"] if plot else [])]
    return "\n".join([title, HEAD, *rows, _row("end", levels[-1]), "", *notes])


def load(source: str) -> tuple[Schedule, bool, str | None]:
    """Return a schedule, whether its network is known to predict epsilon, and its own spacing."""
    if source in NAMED:
        return NAMED[source](), False, None
    place = Path(shipped_folder(source))
    if not place.exists():
        raise InputError(
            f"{source!r} is neither a schedule ({', '.join(NAMED)}) nor a path nor a model that "
            f"ships{did_you_mean(source, NAMED)}: give scheduler_config.json or its folder"
        )
    config = read(place)
    schedule = schedule_of(config)
    eps = isinstance(schedule, Discrete) and kind_of(config) == Eps()
    return schedule, eps, spacing_of(config)


def _repaired(schedule: Schedule) -> Schedule:
    if isinstance(schedule, Discrete):
        return schedule.zero_snr()
    if isinstance(schedule, EDM):
        raise InputError(
            "EDM has alpha=1 at every level, so its SNR never reaches 0: raise sigma_max instead"
        )
    return schedule  # flow and continuous cosine end at zero SNR as they are


def _row(step: int | str, level: Level) -> str:
    t = f"{level.t.item():9.6g}" if step != "end" else " " * 9
    return (
        f"{step:>4} {t} {level.alpha.item():10.6f} {level.sigma.item():10.6f} "
        f"{level.snr.item():11.6g} {level.ratio.item():12.6g}"
    )


def _notes(schedule: Schedule, levels: tuple[Level, ...], eps: bool) -> list[str]:
    last, start = schedule.at(schedule.last), levels[0]
    notes = [f"SNR of the last level: {last.snr.item():.6g} (alpha {last.alpha.item():.6g})."]
    if isinstance(schedule, EDM):
        return notes
    if start.t < last.t:
        notes.append(
            f"Sampling starts at t={start.t.item():g} with pure noise, but the network expects "
            f"{start.alpha.item():.3g} of the image there: use trailing spacing."
        )
    elif start.alpha == 0:
        notes.append(
            "Sampling starts from pure noise, which a network trained on this schedule has seen."
        )
    elif start.alpha > FAINT:
        notes.append(
            f"Sampling starts from pure noise, but training left {start.alpha.item():.3g} of the "
            "image there: the network takes its mean for a hint, and samples come out of medium "
            "brightness. --zero-snr shows the repaired schedule, which takes fine-tuning."
        )
    if eps and last.alpha == 0:
        notes.append(
            "The network predicts epsilon, which cannot work at zero SNR: use v-prediction."
        )
    return notes


def _draw(schedule: Schedule, levels: tuple[Level, ...], title: str, path: Path) -> None:
    """Draw the schedule as curves and the visited levels as dots."""
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise InputError(
            f"{path} cannot be written: give the path of an image in a folder there is"
        )
    from matplotlib.figure import Figure

    times = torch.linspace(schedule.first, schedule.last, 1000, dtype=torch.float64)
    visited = [torch.stack(list(column)) for column in zip(*levels[:-1], strict=True)]
    curve, dots = schedule.at(times), Level(*visited)
    figure = Figure(figsize=(10, 4), layout="constrained")
    kind, kinds = path.suffix.lstrip(".").lower() or "png", figure.canvas.get_supported_filetypes()
    if kind not in kinds:
        raise InputError(f"{path} cannot be written: images end in .{', .'.join(sorted(kinds))}")
    left, right = figure.subplots(1, 2)
    for axes, name in ((left, "alpha"), (left, "sigma"), (right, "snr")):
        (line,) = axes.plot(curve.t, getattr(curve, name), label=name)
        axes.plot(dots.t, getattr(dots, name), "o", color=line.get_color(), markersize=4)
        axes.set_xlabel("t")
        axes.set_xscale("log" if isinstance(schedule, EDM) else "linear")
    left.set_yscale("log" if isinstance(schedule, EDM) else "linear")
    right.set_yscale("log")
    if dots.alpha[0] == 0:
        zero = f"SNR = 0 at t = {dots.t[0]:g}"
        right.axvline(dots.t[0], color="tab:red", linestyle=":", label=zero)
    left.legend()
    right.legend()
    figure.suptitle(title, fontsize=10)
    with atomic_write(path) as file:
        figure.savefig(file, format=kind, dpi=120)
