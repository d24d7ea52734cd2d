"""The command end to end on a tiny pipeline: search, and a report on other seeds."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from diffsteer.cli.options import Features
from diffsteer.cli.tune import tune
from diffsteer.core.errors import InputError
from diffsteer.generate.recipe import Recipe, read

SPACE = "CFG(w), w=1..4, steps=1..3"
OPTIONS = {
    "space": SPACE,
    "seeds": "100-111",
    "first": 9,
    "report_seeds": "0-11",
    "trials": 3,
    "show": 2,
    "top": 2,
    "resamples": 20,
    "features": Features(size=32, batch=16),
}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    rng = np.random.RandomState(0)
    for i in range(24):
        Image.fromarray(rng.randint(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.saved(tmp_path_factory.mktemp("model")))


def test_search_report_and_start_again(reference: Path, model: str, tmp_path: Path) -> None:
    out, recipe = tmp_path / "tuned", Recipe(model=model, prompt="a cat", width=16, height=16)
    tune(reference, recipe=recipe, out=out, **OPTIONS)
    report = json.loads((out / "report.json").read_text())
    assert len(report["trials"]) == 3
    assert list(report["recipes"])[0] == "base"
    names = [name for name in report["recipes"] if name != "base"]
    for name in names:
        entry = report["recipes"][name]
        assert entry["value"]["n"] == 12 and entry["value"]["seeds"] == "0-11"
        low, high = entry["difference"][1]
        assert low <= entry["difference"][0] <= high
        words = shlex.split(entry["command"])
        assert words[:3] == ["diffsteer", "sample", model] and "--guidance" in words
        repeated = read(out / "recipes" / f"{name}.json")
        assert repeated.to_dict() == entry["recipe"]
        steps, scale = repeated.steps, float(repeated.guidance[4:-1])
        assert entry["nfe"] == steps * (2 if scale != 1 else 1)
    assert Image.open(out / "front.png").size[0] > 300
    page = (out / "report.html").read_text()
    assert "seeds 0-11" in page and page.count("<svg") == 2 and page.count("data:image/png") >= 4
    before = (out / "report.json").read_text()
    tune(reference, recipe=recipe, out=out, **OPTIONS)  # nothing is left to search
    assert (out / "report.json").read_text() == before


def test_mistakes_are_refused_before_a_model_is_loaded(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loads(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("diffsteer.generate.generator.open_generator", loads)
    recipe = Recipe(model="pocket")
    for options, reason in (
        ({"report_seeds": "105-120"}, "serve both to search and to report"),
        ({"metric": "beauty"}, "metric must be one of FD"),
        ({"space": "CFG(w), w=1..4, step=1..3"}, "did you mean 'steps'"),
        ({"space": "CFG(2).over(a, 3), a=4..6"}, "over"),
        ({"top": 0}, "top=0"),
        ({"first": 1}, "first must be in"),
    ):
        with pytest.raises(InputError, match=reason):
            tune(reference, recipe=recipe, out=tmp_path / "out", **OPTIONS | options)
    assert not (tmp_path / "out").exists()
