"""The demo in two steps a picture: files, figures, and what it draws."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from diffsteer_lab import demo
from PIL import Image

from diffsteer.cli.main import main
from diffsteer.hf.load import load
from diffsteer.io.sheet import GAP, LABEL, LINE


def test_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short = demo.replace(demo.BASE, steps=2)
    for name in ("GUIDANCES", "SCHEDULES"):
        rows = [
            demo.replace(row, recipe=demo.replace(row.recipe, steps=short.steps))
            for row in getattr(demo, name)
        ]
        monkeypatch.setattr(demo, name, tuple(rows))
    monkeypatch.setattr("sys.argv", ["diffsteer", "demo", "--out", str(tmp_path)])
    main()
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    rows = {one["name"]: one["figures"]["rows"] for one in results}
    assert len(rows) == len(demo.GUIDANCES) + len(demo.SCHEDULES)
    assert (rows["no guidance"], rows["CFG"], rows["CFG + SAG"], rows["PAG"]) == (2, 4, 6, 4)
    guide = [one["figures"].get("rows of the guide") for one in results]
    assert [g for g in guide if g] == [2]
    assert re.search(r"autoguidance +\d+ of \d+ +\d of 8 +4 ", capsys.readouterr().out)
    assert rows["refined noise"] == 3 and rows["guidance in a LoRA"] == 2
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width == LABEL + 8 * (128 + 2 * GAP)
        assert grid.height > len(rows) * (128 + 2 * GAP) + 2 * LINE  # two lines of prompts
        assert np.asarray(grid.convert("L"))[:, :LABEL].min() < 100
    page = (tmp_path / "index.html").read_text("utf-8")
    assert page.count("<img") == 8 * len(rows)
    assert 'src="http' not in page and "Still to come" not in page


def test_models_of_runs_take_the_place_of_those_that_ship() -> None:
    rows = {row.name: row.recipe for row in demo.GUIDANCES}
    assert demo.located(rows["CFG"], None) is rows["CFG"]
    auto = demo.located(rows["autoguidance"], Path("runs"))
    assert (auto.model, auto.guide) == ("runs/critters/model", "runs/critters-guide/model/unet")
    refined = demo.located(rows["refined noise"], Path("runs"))
    assert refined.refiner == "runs/critters-refiner/model"
    lora = demo.located(rows["guidance in a LoRA"], Path("runs"))
    assert (lora.lora, lora.guide, lora.refiner) == (("runs/critters-agd/model",), "", "")


def test_models_that_are_not_there_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffsteer.io.extensions._installed", lambda _: ())
    with pytest.raises(ModuleNotFoundError, match="'critters' belongs to diffsteer-lab"):
        load("critters", None)
    with pytest.raises(ModuleNotFoundError, match="'pocket-eps' belongs to diffsteer-lab"):
        load("pocket-eps", None)  # a name of version 0.1.0
