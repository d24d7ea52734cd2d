"""The command end to end on a tiny pipeline: search, and a report on other seeds."""

import json
import os
import random
import shlex
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from diffusers import DDIMScheduler
from interrupt import killed
from PIL import Image
from torch import Tensor

from diffsteer.cli.options import Features
from diffsteer.cli.tune import tune
from diffsteer.core.errors import InputError
from diffsteer.generate.generator import open_generator
from diffsteer.generate.options import EDM2Options
from diffsteer.generate.recipe import Recipe, read
from diffsteer.io.atomic import owned
from diffsteer.metrics.evaluate import FID_WEIGHTS, compare
from diffsteer.metrics.features import Custom, Origin
from diffsteer.metrics.statistics import measure
from diffsteer.models.edm2.model import EDM2
from diffsteer.tune.objective import Objective

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


def test_search_report_and_start_again(
    reference: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
    close = [c for c in ("1", "2") if c in report["recipes"]
             and report["recipes"][c]["difference"][1][0] <= 0
             <= report["recipes"][c]["difference"][1][1]]  # fmt: skip
    words = f"12 seeds cannot tell {', '.join(close)} from base: differences are known to +-"
    assert (words in page) == bool(close)
    before = (out / "report.json").read_text()
    (out / "recipes/9.json").write_text("{}")  # of an earlier, longer report
    with owned(out / "recipes"):
        tune(reference, recipe=recipe, out=out, **OPTIONS)  # nothing is left to search
    assert "another worker writes the report" in capsys.readouterr().out
    tune(reference, recipe=recipe, out=out, **OPTIONS | {"trials": 9})
    report = json.loads((out / "report.json").read_text())  # of another front
    assert len(report["trials"]) == 9 and json.loads(before)["trials"] == report["trials"][:3]
    assert {path.stem for path in (out / "recipes").glob("*.json")} == report["recipes"].keys()


def test_recipes_that_differ_in_options_of_their_network_stay_apart(
    reference: Path, tmp_path: Path
) -> None:
    """Classes and churn of an EDM2 network: their images, files, commands and figures."""
    shape = {"channel_mult": [1], "num_blocks": 1, "channels_per_head": 8}
    torch.manual_seed(0)
    net = EDM2(8, 3, 10, model_channels=8, logvar_channels=8, **shape)
    for p in net.parameters():
        torch.nn.init.normal_(p)
    net.save(tmp_path / "net")
    rivals = {"zero": {"class": 0}, "one": {"class": 1}, "churned": {"class": 1, "s_churn": 4.0}}
    for name, options in rivals.items():
        table = {"model": str(tmp_path / "net"), "steps": 2, "options": options}
        (tmp_path / f"{name}.json").write_text(json.dumps(table))
    base = Recipe(model=str(tmp_path / "net"), options=EDM2Options(label=7))
    options = OPTIONS | {"space": "steps=2..3", "show": 1, "top": 1, "metric": "precision"}
    against = tuple(tmp_path / f"{name}.json" for name in rivals)
    tune(reference, recipe=base, out=tmp_path / "tuned", against=against, **options)
    report = json.loads((tmp_path / "tuned/report.json").read_text())["recipes"]
    assert {entry["value"]["name"] for entry in report.values()} == {"precision"}
    found = {name: entry["recipe"]["options"] for name, entry in report.items()}
    assert found == {**rivals, "1": {"class": 7}}
    for name, entry in report.items():
        words = shlex.split(entry["command"])
        assert words[:3] == ["diffsteer", "sample", "--recipe"]
        repeated = read(Path(words[3]))
        assert repeated.to_dict() | repeated.to_json() == entry["recipe"]
        assert "prompts" not in json.loads(Path(words[3]).read_text()), name
    assert len(list((tmp_path / "tuned/images").iterdir())) == 4
    images = [p.read_bytes() for p in (tmp_path / "tuned/images").glob("*/000000.png")]
    assert len({*images}) == 4


INCEPTION = Origin("Inception", "2048", "tf-bilinear-299", FID_WEIGHTS)


@pytest.mark.parametrize(
    ("origin", "names"),
    [
        (INCEPTION, {"FD": "FID", "KID": "KID", "recall": "recall"}),
        (replace(INCEPTION, extractor="Mine"), {"FD": "FD-Mine", "KID": "KID-Mine"}),
    ],
)
def test_a_metric_is_found_by_the_name_that_its_features_give_it(
    origin: Origin, names: dict[str, str]
) -> None:
    extractor = Custom(lambda x: x.float().mean((2, 3)), origin)
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (2, 16, 3, 4, 4), generator=draw, dtype=torch.uint8)
    fake, real = (measure([each], 16, extractor) for each in images)
    figures = compare(fake, real)
    for metric, name in names.items():
        assert Objective(metric, real, extractor, Path("work")).figure(figures).name == name
    with pytest.raises(InputError, match="CMMD cannot be had of these features and 16 images: the"):
        Objective("CMMD", real, extractor, Path("work")).figure(figures)


def brightness(images: Tensor, prompts: list[str]) -> Tensor:
    """Mean of an image; a score that needs the prompt."""
    assert set(prompts) == {"a cat"}
    return images.float().mean((1, 2, 3))


def test_search_by_a_score(reference: Path, model: str, tmp_path: Path) -> None:
    """The more the better, in the search, in what is pruned, and in the report."""
    recipe, out = Recipe(model=model, width=16, height=16), tmp_path / "tuned"
    (tmp_path / "lines.txt").write_text("a cat\na cat\n")
    options = OPTIONS | {"metric": "test_tune:brightness", "trials": 6, "top": 9}
    options |= {"prompts": tmp_path / "lines.txt"}
    tune(reference, recipe=recipe, out=out, **options)
    report = json.loads((out / "report.json").read_text())
    done = [t for t in report["trials"] if t["state"] == "complete"]
    for trial in report["trials"]:
        others = [t for t in report["trials"] if t["number"] < trial["number"]]
        beaten = [t for t in others if t["nfe"] <= trial["nfe"] and t["first"] > trial["first"]]
        assert (trial["state"] == "pruned") == (len(beaten) >= 3)
    front = [t for t in done if not any(
        o["values"] != t["values"] and o["values"][0] >= t["values"][0]
        and o["values"][1] <= t["values"][1] for o in done)]  # fmt: skip
    best = {round(t["values"][0], 6) for t in front}
    names = [name for name in report["recipes"] if name != "base"]
    chosen = [report["recipes"][n]["on the seeds of the search"] for n in names]
    assert {round(value, 6) for value in chosen} == best
    entry = report["recipes"][names[-1]]
    assert entry["value"]["name"] == "score test_tune:brightness" and entry["value"]["n"] == 12
    seeds, recipe = range(12), read(out / "recipes" / f"{names[-1]}.json")
    assert recipe.prompts == ("a cat",) * 2
    words = shlex.split(entry["command"])
    assert Path(words[words.index("--prompts") + 1]).read_text() == "a cat\na cat\n"
    with open_generator(recipe) as generator:
        by_hand = brightness(generator(seeds), ["a cat"] * 12)
    assert entry["value"]["value"] == pytest.approx(by_hand.mean().item(), abs=0.1)
    assert entry["difference"][1][0] <= entry["difference"][0] <= entry["difference"][1][1]
    assert "score test_tune:brightness (higher is better)" in (out / "report.html").read_text()
    with pytest.raises(InputError, match="another search .*metric was"):
        tune(reference, recipe=recipe, out=out, **OPTIONS)


def test_mistakes_are_refused_before_a_model_is_loaded(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loads(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("diffsteer.generate.generator.open_generator", loads)
    recipe, rival, like = Recipe(model="critters"), tmp_path / "cfg.json", tmp_path / "1.json"
    like.write_text('{"model": "critters"}')
    rival.write_text('{"model": "critters", "guidance": "CFG(2)"}')
    for name in ("other", "video"):
        (tmp_path / name).mkdir()
    (tmp_path / "video/model_index.json").write_text('{"_class_name": "WanPipeline"}')
    shutil.copy(rival, tmp_path / "other")
    for options, reason in (
        ({"report_seeds": "105-120"}, "serve both to search and to report"),
        ({"metric": "beauty"}, "metric must be one of FD"),
        ({"metric": "test_tune:beauty"}, "no attribute 'beauty'; write MODULE:FUNCTION"),
        ({"space": "CFG(w), w=1..4, step=1..3"}, "did you mean 'steps'"),
        ({"space": "CFG(2).over(a, 3), a=4..6"}, "over"),
        ({"space": "CFG(2), sampler=UniPC(), spacing=trailing|banana"}, "spacing=banana: no spac"),
        ({"space": "CFG(2), refiner=none|nowhere, sampler=UniPC()"}, "no model 'nowhere'"),
        ({"space": "CFG(w), w=1|2|x"}, "w=x: "),
        ({"recipe": replace(recipe, prompt="a cat"), "against": (rival,)}, "has other prompts"),
        ({"against": (rival, tmp_path / "other" / "cfg.json")}, "give each a name of its own"),
        ({"against": (like,)}, "1 to 2 are those of the front: give each a name"),
        ({"storage": "somewhere"}, "neither a URL of a database"),
        ({"top": 0}, "top=0"),
        ({"recipe": Recipe(model=str(tmp_path / "video"))}, "makes video, and what is measured"),
        (
            {"recipe": replace(recipe, offload="model"), "features": Features(device="cpu")},
            "leave --offload out",
        ),
        ({"first": 1}, "first must be in"),
    ):
        with pytest.raises((InputError, FileNotFoundError), match=reason):
            tune(reference, out=tmp_path / "out", **OPTIONS | {"recipe": recipe} | options)
    assert not (tmp_path / "out").exists()


FEWEST = OPTIONS | {
    "space": "CFG(w), w=1..4, steps=1..2",
    "seeds": "100-103",
    "first": 2,
    "report_seeds": "0-3",
    "show": 1,
    "top": 1,
}


@pytest.mark.slow
def test_a_search_killed_at_random_moments_goes_on(reference: Path, tmp_path: Path) -> None:
    """All trials are finished, none is lost twice, and the base has the value that it had.

    One kill falls into each twentieth of a run, and half of them on one that was killed before.
    """
    pipe = tiny.stable_diffusion(DDIMScheduler(clip_sample=False), tmp_path)
    pipe.unet = tiny.shallow_unet()
    pipe.save_pretrained(tmp_path / "pipe")
    recipe = Recipe(model=str(tmp_path / "pipe"), prompt="a cat", width=16, height=16)
    out = tmp_path / "tuned"

    def act() -> None:
        tune(reference, recipe=recipe, out=out, **FEWEST)

    act()
    base = json.loads((out / "report.json").read_text())["recipes"]["base"]
    shutil.rmtree(out)
    start, draw, kills = time.monotonic(), random.Random(0), 0
    act()
    length = time.monotonic() - start
    moments = [(i + draw.random()) / 20 for i in draw.sample(range(20), 20)]
    shutil.rmtree(out)
    while kills < 20:
        fresh = not out.exists()
        hit = killed(act, moments[kills] * length)
        kills += hit
        length *= 0.9 if fresh and not hit else 1  # a machine that has become faster
        if draw.random() < 0.5:  # or killed again before it ends
            act()
            report = json.loads((out / "report.json").read_text())
            assert len(report["trials"]) == FEWEST["trials"], kills
            assert report["recipes"]["base"] == base, kills
            assert {p.stem for p in (out / "recipes").glob("*.json")} == {*report["recipes"]}
            parts = [p for p in out.rglob("*.part") if out / "measured" not in p.parents]
            assert not [*parts, *out.rglob(".*.owner")]  # of a lost trial one may stay
            shutil.rmtree(out)
    print(f"tune: killed {kills} times within {length:.1f} s, {os.times().children_user:.0f} CPU s")
