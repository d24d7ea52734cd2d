"""What trainings share."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from diffsteer.io.atomic import atomic_write
from diffsteer.train import loop


@pytest.fixture(autouse=True)
def quick_curves(request: pytest.FixtureRequest) -> Iterator[None]:
    """Write what curves show as text, but for one test: matplotlib takes 0.2 s to draw them."""

    def written(path: Path, lines: Sequence[Mapping[str, float]], title: str) -> None:
        plotted = [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]
        with atomic_write(path) as file:
            file.write(json.dumps([title, plotted]).encode())

    with pytest.MonkeyPatch.context() as patch:
        if "drawn_curves" not in request.fixturenames:
            patch.setattr(loop, "draw_curves", written)
        yield


@pytest.fixture
def drawn_curves() -> None:
    """Let matplotlib draw them."""
