"""Learning curves of a run as an image, `curves.png`."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from diffsteer.io.atomic import atomic_write

MISSING = "curves.png is left out, which matplotlib draws: pip install 'diffsteer[plot]'"
UNPLOTTED = {"images", "images_per_second"}


def can_draw() -> bool:
    """Whether matplotlib is there."""
    return find_spec("matplotlib") is not None


def draw_curves(path: Path, lines: Sequence[Mapping[str, float]], title: str) -> None:
    """Draw each value of metrics.jsonl by the count of images, where it spans a decade by log.

    Args:
        path: The PNG file.
        lines: At least one, with "images" and the same names.
        title: Above all curves.
    """
    from matplotlib.figure import Figure

    names = [name for name in lines[-1] if name not in UNPLOTTED]
    figure = Figure(figsize=(7, 1 + 1.6 * len(names)), layout="constrained")
    figure.suptitle(title)
    rows = figure.subplots(len(names), sharex=True, squeeze=False)[:, 0]
    for axes, name in zip(rows, names, strict=True):
        points = [(line["images"], line[name]) for line in lines if name in line]
        axes.plot(*zip(*points, strict=True), "o-" if len(points) < 30 else "-", markersize=3)
        axes.set_ylabel({"rate": "learning rate", "gradient": "gradient norm"}.get(name, name))
        axes.grid(color="#e4e4e4")
        if 0 < min(values := [y for _, y in points]) < max(values) / 10:
            axes.set_yscale("log")
    rows[-1].set_xlabel("images")
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=100, metadata={"Software": None})
