"""The figure of the toy: samples of every kind, and why a guide helps, in eight panels."""

import io
from typing import IO, Any

import torch
from torch import Tensor

from diffsteer.core.level import CLEAN
from diffsteer_lab.toy.study import AUTO, CFG, PLAIN, TRUNCATED, Study, Way

Box = tuple[float, float, float, float]
"""Left, right, bottom and top."""
WHOLE: Box = (-0.58, 1.40, -0.74, 1.54)
"""The tree."""
CLOSE: Box = (0.72, 1.28, 0.19, 0.835)
"""Some of its twigs."""
NOISE = 0.03
"""Level at which the densities of the networks are compared."""
PATHS_FROM, PATHS = 0.15, 60
"""Noise at which paths begin, and how many are drawn."""
CELLS = 240
"""Places along a side at which densities are drawn."""
RATIO = 6
"""Logarithm of a ratio of densities at which its colours end."""
LAND, EDGE, INSIDE, OUTLIER = "#e9e4d6", "#b9ad8c", "#15507a", "#d1361b"
CAPTION = (
    "Beige: where 99 % of the truth lies. Blue: samples; red: samples outside of it. "
    "The last three panels enlarge the square."
)
COLOURS = 96
"""Of the image file, which is a third as large so."""


def draw(study: Study, main: int, guide: int, file: IO[bytes]) -> None:
    """Write a PNG of the samples and networks of these seeds."""
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(15.2, 8.2), layout="constrained")
    axes = figure.subplots(2, 4)
    _cloud(axes[0, 0], study, study.start()[0], "exact samples of the truth")
    for way, ax in zip((PLAIN, CFG[4], AUTO[2], TRUNCATED[1.4]), axes.flat[1:5], strict=True):
        _cloud(ax, study, study.samples(way, main, guide if way.guide else None), way.name)
    _ratio(axes[1, 1], study, main, guide)
    for way, ax in ((PLAIN, axes[1, 2]), (AUTO[2], axes[1, 3])):
        _paths(ax, study, way, main, guide if way.guide else None)
    figure.supxlabel(CAPTION, fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=88)
    with Image.open(buffer) as image:
        small = image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
        small.save(file, "PNG")


def _cloud(ax: Any, study: Study, x: Tensor, title: str) -> None:
    """Samples over the truth."""
    _land(ax, study, WHOLE)
    share = _points(ax, study, x, 0.5, 1.6)
    left, right, bottom, top = CLOSE
    ax.plot([left, right, right, left, left], [bottom, bottom, top, top, bottom], c="#444", lw=0.7)
    _frame(ax, WHOLE, title, f"outliers {share:.1f} %")


def _ratio(ax: Any, study: Study, main: int, guide: int) -> None:
    """How much likelier the main network finds a point than the guide, and where that pushes."""
    x, y, points = _places(CLOSE, CELLS)
    nets = study.nets["main", main], study.nets["guide", guide]
    sigma = torch.tensor(NOISE)
    with torch.no_grad():
        good, bad = (net(points.float(), sigma).view(CELLS, CELLS) for net in nets)
    ratio = good - bad
    ratio -= ratio[good > good.max() - 4].median()  # both lack a constant
    ax.contourf(x, y, ratio.clamp(-RATIO, RATIO), 24, cmap="RdYlBu_r", vmin=-RATIO, vmax=RATIO)
    _land(ax, study, CLOSE, fill=False)
    *_, places = _places(CLOSE, 17)
    push = nets[0].score(places.float(), sigma) - nets[1].score(places.float(), sigma)
    ax.quiver(*places.T.numpy(), *push.T.numpy(), color="#222", width=0.004)
    _frame(ax, CLOSE, "log of main over guide density", f"at sigma {NOISE:g}")


def _paths(ax: Any, study: Study, way: Way, main: int, guide: int | None) -> None:
    """How samples that end in the close-up without guidance come there."""
    _land(ax, study, CLOSE)
    left, right, bottom, top = CLOSE
    ends = study.samples(PLAIN, main)
    near = (ends > torch.tensor([left, bottom])) & (ends < torch.tensor([right, top]))
    start = study.start()[1][near.all(dim=1)][:PATHS]
    steps = study.trace(study.denoiser(way, main, guide), start)
    path = torch.stack([step.x for step in steps if step.level.sigma <= PATHS_FROM])
    ax.plot(path[..., 0].numpy(), path[..., 1].numpy(), c=INSIDE, lw=0.6, alpha=0.75)
    _points(ax, study, path[-1], 9, 9)
    _frame(ax, CLOSE, f"{way.name}, paths", f"from sigma {PATHS_FROM:g}")


def _points(ax: Any, study: Study, x: Tensor, small: float, large: float) -> float:
    """Draw samples, outliers in another colour and size; returns the percentage of these."""
    inside = study.truth.exact.log_density(x.double(), CLEAN) >= study.truth.edge
    for some, colour, size in ((inside, INSIDE, small), (~inside, OUTLIER, large)):
        ax.scatter(*x[some].T.numpy(), s=size, c=colour, linewidths=0, zorder=3)
    return 100 * (~inside).double().mean().item()


def _land(ax: Any, study: Study, box: Box, fill: bool = True) -> None:
    """Show the region of highest density that holds 99 % of the truth."""
    x, y, points = _places(box, CELLS)
    density = study.truth.exact.log_density(points.float(), CLEAN).view(CELLS, CELLS)
    edge = study.truth.edge
    if fill:
        ax.contourf(x, y, density, [edge, density.max().item() + 1], colors=[LAND])
    colour = EDGE if fill else "#222"
    ax.contour(x, y, density, [edge], colors=[colour], linewidths=0.6, linestyles="solid")


def _places(box: Box, n: int) -> tuple[Any, Any, Tensor]:
    """A grid over a box: its axes, and its points, `(n n, 2)`, row by row."""
    left, right, bottom, top = box
    x = torch.linspace(left, right, n, dtype=torch.float64)
    y = torch.linspace(bottom, top, n, dtype=torch.float64)
    points = torch.stack([part.flatten() for part in torch.meshgrid(x, y, indexing="xy")], 1)
    return x.numpy(), y.numpy(), points


def _frame(ax: Any, box: Box, title: str, note: str) -> None:
    """Set limits and title, and write something into the corner."""
    ax.set(xlim=box[:2], ylim=box[2:], aspect="equal", xticks=[], yticks=[])
    ax.set_title(title[:1].upper() + title[1:], fontsize=12)
    paper = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 2}
    at = {"ha": "right", "va": "bottom", "transform": ax.transAxes}
    ax.text(0.97, 0.03, note, fontsize=10, bbox=paper, **at)
