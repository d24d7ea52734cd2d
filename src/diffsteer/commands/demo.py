"""`diffsteer demo`; importable without torch."""

import json
from pathlib import Path


def demo(out: Path = Path("demo")) -> None:
    """Sample the pocket model in every way, side by side: pictures, a page, and figures.

    Args:
        out: Folder for grid.png, index.html and results.json.
    """
    from diffsteer import demo as pages

    pages.demo(out)
    print(pages.summary(json.loads((out / "results.json").read_text("utf-8"))))
    print(f"\n{out / 'index.html'}, {out / 'grid.png'}, {out / 'results.json'}")
