"""The demo on tiny models in place of the trained ones: files, figures, and what it draws."""

import json
from pathlib import Path

import pytest
from PIL import Image
from tiny import stable_diffusion, unet

from diffsteer import demo
from diffsteer.cli import main


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers import DDIMScheduler

    folder = tmp_path_factory.mktemp("models")
    pipe = stable_diffusion(DDIMScheduler(beta_schedule="scaled_linear"), folder)
    for name in ("pocket", "pocket-eps"):
        pipe.save_pretrained(folder / name / "model")
    unet().save_pretrained(folder / "pocket-guide" / "model" / "unet")
    return folder


def test_demo(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = demo.replace(demo.BASE, steps=2)
    for name in ("GUIDANCES", "SCHEDULES"):
        rows = [
            demo.replace(row, recipe=demo.replace(row.recipe, steps=short.steps))
            for row in getattr(demo, name)
        ]
        monkeypatch.setattr(demo, name, tuple(rows))
    argv = ["diffsteer", "demo", "--out", str(tmp_path), "--models", str(models)]
    monkeypatch.setattr("sys.argv", argv)
    main()
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    rows = {one["name"]: one["figures"]["rows"] for one in results}
    assert len(rows) == len(demo.GUIDANCES) + len(demo.SCHEDULES)
    assert (rows["no guidance"], rows["CFG"], rows["CFG + SAG"], rows["PAG"]) == (2, 4, 6, 4)
    guide = [one["figures"].get("rows of the guide") for one in results]
    assert [g for g in guide if g] == [2]
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (8 * (16 + 2), len(rows) * (16 + 2))
    page = (tmp_path / "index.html").read_text("utf-8")
    assert page.count("<img") == 8 * len(rows)
    assert 'src="http' not in page and "Still to come" not in page


def test_models_that_are_not_there_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffsteer.hf.pocket.files", lambda _: tmp_path)
    with pytest.raises(ValueError, match="holds no weights of 'pocket'"):
        demo.demo(tmp_path / "out")
