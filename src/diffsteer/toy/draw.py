"""The figure of the toy: samples of every kind, and why a guide helps, in eight panels."""

import io
from typing import IO, Any

import torch
from torch import Tensor

from diffsteer.level import CLEAN
from diffsteer.schedule import EDM
from diffsteer.toy.study import AUTO, CFG, PLAIN, TRUNCATED, Study, Way

WHOLE = (-0.58, 1.40, -0.74, 1.54)
"""Left, right, bottom and top of the tree."""
CLOSE = (0.72, 1.28, 0.19, 0.835)
"""The same of some twigs."""
NOISE = 0.03
"""Level at which the densities of the networks are compared."""
PATHS_FROM, PATHS = 0.15, 60
"""Noise at which paths begin, and how many are drawn."""
CELLS = 240
"""Places along a side at which densities are drawn."""
LAND, EDGE, INSIDE, OUTLIER, PATH = "#e9e4d6", "#b9ad8c", "#15507a", "#d1361b", "#15507a"
COLOURS = 96
"""Of the picture file, which is a third as large so."""


def draw(study: Study, main: int, guide: int, file: IO[bytes]) -> None:
    """Write a PNG of the samples and networks of these seeds."""
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(15.2, 8.2), layout="constrained")
    axes = figure.subplots(2, 4)
    clean, noisy = study.start()
    _cloud(axes[0, 0], study, clean, "The truth: exact samples of class A")
    shown = [(PLAIN, axes[0, 1]), (CFG[4], axes[0, 2]), (AUTO[2], axes[0, 3])]
    shown.append((TRUNCATED[1.4], axes[1, 0]))
    for way, ax in shown:
        _cloud(ax, study, study.samples(way, main, guide if way.guide else None), _title(way))
    _ratio(axes[1, 1], study, main, guide)
    for way, ax in ((PLAIN, axes[1, 2]), (AUTO[2], axes[1, 3])):
        _paths(ax, study, way, main, guide)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=88)
    with Image.open(buffer) as picture:
        small = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
        small.save(file, "PNG", optimize=True)


def _title(way: Way) -> str:
    if way.truncation != 1:
        return f"Naive truncation: score x {way.truncation:g}"
    return {"": "No guidance", "uncond": f"CFG, weight {way.name.split()[-1]}"}.get(
        way.guide, f"Autoguidance, weight {way.name.split()[-1]}"
    )


def _cloud(ax: Any, study: Study, x: Tensor, title: str) -> None:
    """Samples on the region that holds 99 % of the truth, outliers in another colour."""
    _land(ax, study, WHOLE)
    inside = study.truth.exact.log_density(x.double(), CLEAN) >= study.truth.edge
    for some, colour, size in ((inside, INSIDE, 0.5), (~inside, OUTLIER, 1.6)):
        ax.scatter(*x[some].T.numpy(), s=size, c=colour, linewidths=0)
    share = 100 * (~inside).double().mean().item()
    _frame(ax, WHOLE, title, f"outliers {share:.1f} %")
    left, right, bottom, top = CLOSE
    ax.plot([left, right, right, left, left], [bottom, bottom, top, top, bottom], c="#444", lw=0.7)


def _ratio(ax: Any, study: Study, main: int, guide: int) -> None:
    """How much likelier the main network finds a point than the guide, and where that pushes."""
    x, y, points = _places(CLOSE, CELLS)
    nets = study.nets["main", main], study.nets["guide", guide]
    sigma = torch.tensor(NOISE)
    with torch.no_grad():
        good, bad = (net(points.float(), sigma).view(CELLS, CELLS) for net in nets)
    ratio = good - bad
    ratio -= ratio[good > good.max() - 4].median()  # both lack a constant
    ax.contourf(x, y, ratio.clamp(-6, 6), 24, cmap="RdYlBu_r", vmin=-6, vmax=6)
    exact = study.truth.exact.log_density(points, EDM().at(NOISE)).view(CELLS, CELLS)
    ax.contour(x, y, exact, [exact.max().item() - 3], colors="k", linewidths=0.8)
    u, v, places = _places(CLOSE, 17)
    push = torch.stack([net.score(places.float(), sigma) for net in nets]).diff(dim=0)[0]
    ax.quiver(*places.T.numpy(), *push.T.numpy(), color="#222", width=0.004)
    _frame(ax, CLOSE, "Main density over guide density", f"sigma {NOISE:g}")


def _paths(ax: Any, study: Study, way: Way, main: int, guide: int) -> None:
    """The last part of the way of samples that end in the close-up."""
    seed = guide if way.guide else None
    _land(ax, study, CLOSE)
    left, right, bottom, top = CLOSE
    ends = study.samples(PLAIN, main)
    near = (ends > torch.tensor([left, bottom])) & (ends < torch.tensor([right, top]))
    start = study.start()[1][near.all(dim=1)][:PATHS]
    steps = list(study.trace(study.denoiser(way, main, seed), start))
    path = torch.stack([step.x for step in steps if step.level.sigma <= PATHS_FROM])
    ax.plot(path[..., 0].numpy(), path[..., 1].numpy(), c=PATH, lw=0.6, alpha=0.75)
    inside = study.truth.exact.log_density(path[-1].double(), CLEAN) >= study.truth.edge
    for some, colour in ((inside, INSIDE), (~inside, OUTLIER)):
        ax.scatter(*path[-1][some].T.numpy(), s=9, c=colour, linewidths=0, zorder=3)
    _frame(
        ax, CLOSE, f"Paths, {_title(way)[0].lower()}{_title(way)[1:]}", f"from sigma {PATHS_FROM:g}"
    )


def _land(ax: Any, study: Study, box: tuple[float, float, float, float]) -> None:
    """The region of highest density that holds 99 % of the truth."""
    x, y, points = _places(box, CELLS)
    density = study.truth.exact.log_density(points.float(), CLEAN).view(CELLS, CELLS)
    ax.contourf(x, y, density, [study.truth.edge, 99], colors=[LAND])
    ax.contour(x, y, density, [study.truth.edge], colors=[EDGE], linewidths=0.5)


def _places(box: tuple[float, float, float, float], n: int) -> tuple[Any, Any, Tensor]:
    """A grid over a box: its axes, and its points, `(n n, 2)`, row by row."""
    left, right, bottom, top = box
    x = torch.linspace(left, right, n, dtype=torch.float64)
    y = torch.linspace(bottom, top, n, dtype=torch.float64)
    points = torch.stack([part.flatten() for part in torch.meshgrid(x, y, indexing="xy")], 1)
    return x.numpy(), y.numpy(), points


def _frame(ax: Any, box: tuple[float, float, float, float], title: str, said: str) -> None:
    ax.set(xlim=box[:2], ylim=box[2:], aspect="equal", xticks=[], yticks=[])
    ax.set_title(title, fontsize=12)
    ax.text(0.97, 0.03, said, ha="right", va="bottom", transform=ax.transAxes, fontsize=10)
