"""`diffsteer demo`; importable without torch."""

import json
from pathlib import Path


def demo(out: Path = Path("demo"), models: Path | None = None) -> None:
    """Sample the critter model in every way, side by side: images, a page, and figures.

    Args:
        out: Folder for grid.png, index.html and results.json.
        models: Folder of the runs of the presets critters-*, such as runs; empty for the models
            that ship.
    """
    from diffsteer.io.atomic import require_writable

    require_writable(out)
    from diffsteer_lab import demo as pages

    pages.demo(out, models)
    print(pages.summary(json.loads((out / "results.json").read_text("utf-8"))))
    print(f"\n{out / 'index.html'}, {out / 'grid.png'}, {out / 'results.json'}")
