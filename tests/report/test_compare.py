"""Recipes evaluated and compared from the command line's functions, on a tiny pipeline."""

import json
import re
import shutil
from collections.abc import Sequence
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import save_file

from diffsteer.cli.compare import _plain, compare, entries_of
from diffsteer.cli.evaluate import evaluate, stats
from diffsteer.cli.main import app, main
from diffsteer.cli.options import Features, Samples
from diffsteer.cli.sample import sample
from diffsteer.core.errors import InputError
from diffsteer.generate.options import ADMOptions
from diffsteer.generate.pipelines import PipelineGenerator, _loaded, open_pipeline
from diffsteer.generate.recipe import Recipe, read
from diffsteer.metrics.comparison import Compared
from diffsteer.metrics.features import Origin
from diffsteer.metrics.value import MetricValue
from diffsteer.report.compare import Result, page

SMALL = Features(size=32, batch=16, device="cpu")
SEEDS = "0-23"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recipes with and without a place for a weight, images of one, statistics of others."""
    folder = tmp_path_factory.mktemp("compare")
    said = {"model": tiny.saved(folder), "prompts": ["a cat", "<b>a dog"], "steps": 2}
    said |= {"sampler": "UniPC()"}
    recipes = {
        "plain": said,
        "cfg": said | {"guidance": "CFG(3)"},
        "sweep": said | {"guidance": "CFG({w}) + SAG(0.75)"},
    }
    for name, recipe in recipes.items():
        (folder / f"{name}.json").write_text(json.dumps(recipe))
    sample(read(folder / "cfg.json"), SEEDS, folder / "cfg", device="cpu", batch=8)
    sample(read(folder / "plain.json"), "100-139", folder / "real", device="cpu", batch=8)
    stats(folder / "real", folder / "real.npz", SMALL)
    return folder


def figures(path: Path) -> dict[str, dict[str, object]]:
    return {figure["name"]: figure for figure in json.loads(path.read_text())["figures"]}


def test_scores_of_recipes_and_of_their_images(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prompt of each image is that of its recipe; a page shows the score beside the metrics."""
    code = "def letters(images, prompts):\n    return [float(len(p)) for p in prompts]\n"
    (tmp_path / "letter_scores.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    scores, samples = ("letter_scores:letters",), Samples("0-7", 4, tmp_path / "work")
    for name, more in (("cfg.json", {"samples": samples}), ("cfg", {})):
        out = tmp_path / f"{name}-figures.json"
        more |= {"resamples": 20, "out": out, "score": scores}
        evaluate(root / name, root / "real.npz", SMALL, **more)
        # of "a cat" and "<b>a dog" in turn
        assert figures(out)["score letter_scores:letters"]["value"] == pytest.approx(6.5)
    recipes = (root / "plain.json", root / "cfg.json")
    compare(
        *(recipes, root / "real.npz"),
        features=SMALL,
        samples=samples,
        out=tmp_path / "compared",
        show=1,
        resamples=20,
        score=scores,
    )
    report = json.loads((tmp_path / "compared/report.json").read_text())
    assert report["recipes"][1]["differences"]["score letter_scores:letters"][0] == 0
    assert "score letter_scores:letters" in (tmp_path / "compared/report.html").read_text()


def test_a_recipe_and_its_pictures_have_the_same_figures(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one pass, resumed in the middle, and from a folder of PNG files; on the real extractor.

    Batches of 5 and of 8 differ by a grey level in rare pixels, which moves figures by 1e-4.
    """
    found = {}
    work = tmp_path / "work"
    for seeds in ("0-9", SEEDS):
        samples = Samples(seeds, 5, work)
        out = tmp_path / "recipe.json"
        evaluate(root / "cfg.json", root / "real.npz", SMALL, samples, out=out)
    found["recipe"] = figures(tmp_path / "recipe.json")
    evaluate(root / "cfg", root / "real.npz", SMALL, out=tmp_path / "folder.json")
    found["folder"] = figures(tmp_path / "folder.json")
    (folder,) = work.iterdir()
    assert sorted(p.name for p in folder.glob("*.npz")) == [
        "chunk-00000000000000000000.npz",
        "chunk-00000000000000000010.npz",
    ]
    for name, figure in found["recipe"].items():
        assert figure["n"] == 24 and figure["seeds"] == SEEDS
        assert found["folder"][name]["seeds"] == SEEDS
        for field in ("value", "interval", "reference_n"):
            assert figure[field] == pytest.approx(found["folder"][name][field], 1e-3, 5e-3)
    assert f"seeds {SEEDS}" in capsys.readouterr().out


def test_a_picture_is_a_recipe_of_its_prompt(root: Path, tmp_path: Path) -> None:
    samples = Samples("0-7", 8, tmp_path)
    path = root / "cfg" / "000001.png"
    evaluate(path, root / "real.npz", SMALL, samples, out=tmp_path / "out.json")
    assert figures(tmp_path / "out.json")["FD-EfficientNetLite0"]["n"] == 8
    (manifest,) = tmp_path.glob("*/manifest.json")
    key = json.loads(manifest.read_text())["key"]
    assert key["prompt"] == "<b>a dog" and key["prompts"] == []


def test_other_weights_under_the_same_name_are_other_pictures(root: Path, tmp_path: Path) -> None:
    """A model that was trained on: neither its features nor its images count with the old."""
    said = json.loads((root / "cfg.json").read_text())
    shutil.copytree(said["model"], tmp_path / "pipe")
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(said | {"model": str(tmp_path / "pipe")}))
    samples = Samples("0-3", 4, tmp_path / "work")
    evaluate(recipe, root / "real.npz", SMALL, samples, resamples=0)
    sample(read(recipe), "0", tmp_path / "png", device="cpu")
    weights = tmp_path / "pipe" / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 64  # in the mantissa
    weights.write_bytes(data)
    _loaded.cache_clear()  # as in a new process
    evaluate(recipe, root / "real.npz", SMALL, samples, resamples=0)
    assert len(list((tmp_path / "work").iterdir())) == 2
    with pytest.raises(ValueError, match=r"000000.png was made otherwise: weights was"):
        sample(read(recipe), "0-1", tmp_path / "png", device="cpu")
    sample(read(recipe), "1", tmp_path / "later", device="cpu")
    shutil.copy(tmp_path / "later" / "000001.png", tmp_path / "png")
    with pytest.raises(ValueError, match=r"000001.png was made .* than 000000.png: weights was"):
        evaluate(tmp_path / "png", root / "real.npz", SMALL)


def test_stale_pictures_are_refused_by_name(root: Path, tmp_path: Path) -> None:
    folder, reference = tmp_path / "cfg", root / "real.npz"
    shutil.copytree(root / "cfg", folder)
    shutil.copy(root / "real" / "000100.png", folder)
    with pytest.raises(
        ValueError, match=r"000100.png was made otherwise than 000000.png: guidance was 'CFG\(3\)'"
    ):
        evaluate(folder, reference, SMALL)
    (folder / "000100.png").unlink()
    evaluate(folder, reference, SMALL, recipe=root / "cfg.json", resamples=0)
    with pytest.raises(ValueError, match=r"000000.png was made otherwise than the recipe asked"):
        evaluate(folder, reference, SMALL, recipe=root / "plain.json")
    Image.new("RGB", (16, 16)).save(folder / "bare.png")
    with pytest.raises(ValueError, match=r"bare.png was .* one of them holds no recipe"):
        evaluate(folder, reference, SMALL)
    evaluate(folder, reference, SMALL, mixed=True, resamples=0)
    (folder / "bare.png").unlink()
    shutil.copy(folder / "000003.png", folder / "again.png")
    with pytest.raises(ValueError, match=r"again.png and 000003.png both have seed 3|both have"):
        evaluate(folder, reference, SMALL)


def test_another_set_of_prompts_is_another_recipe(root: Path, tmp_path: Path) -> None:
    """The images of both sets hold equal fields but for their prompts."""
    said = json.loads((root / "cfg.json").read_text())
    for i, prompts in enumerate((["a cat", "a dog"], ["a cat", "a dog", "a tree"])):
        path = tmp_path / f"{i}.json"
        path.write_text(json.dumps(said | {"prompts": prompts}))
        sample(read(path), str(i), tmp_path / "out", device="cpu")
    with pytest.raises(ValueError, match=r"000001.png was made otherwise than 000000.png: recipe"):
        evaluate(tmp_path / "out", root / "real.npz", SMALL)


class Checked(HTMLParser):
    """Collects what a page loads, and that every tag that opens closes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "data")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_compare_writes_a_page_that_loads_nothing(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["cfg", "sweep w=1", "sweep w=4"]
    paths = (root / "cfg.json", root / "sweep.json")
    for _ in range(2):  # the second time from what was measured
        samples = Samples(SEEDS, 8, tmp_path / "work")
        compare(paths, root / "real.npz", "1,4", SMALL, samples, tmp_path / "out", show=2)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    recipes = {recipe["name"]: recipe for recipe in report["recipes"]}
    assert list(recipes) == names
    rows = {name: recipe["costs"]["rows"][0] for name, recipe in recipes.items()}
    assert rows == {"cfg": 4, "sweep w=1": 6, "sweep w=4": 6}  # 2 steps of 2 or 3 rows
    evaluate(root / "cfg", root / "real.npz", SMALL, out=tmp_path / "folder.json")
    apart = figures(tmp_path / "folder.json")
    first = {figure["name"]: figure for figure in recipes["cfg"]["figures"]}
    for name, figure in first.items():
        assert figure["value"] == pytest.approx(apart[name]["value"], 1e-6, 1e-6)
        assert figure["floor"]["n"] == 20 and figure["seeds"] == SEEDS
        later = next(f for f in recipes[names[2]]["figures"] if f["name"] == name)
        value, (low, high) = recipes[names[2]]["differences"][name]
        assert value == pytest.approx(later["value"] - figure["value"])
        assert low <= value <= high
    html = (tmp_path / "out" / "report.html").read_text("utf-8")
    page = Checked()
    page.feed(html)
    assert page.open == []
    assert len(page.loaded) == 6 and all(u.startswith("data:image/png") for u in page.loaded)
    assert "url(" not in html and "@import" not in html and "<script" not in html
    assert "&lt;b&gt;a dog" in html and "<b>a dog" not in html
    for part in ("N = 24", f"seeds {SEEDS}", "real against real", *names):
        assert part in html
    told = re.findall(r"<p><b>([^<]*)</b> against cfg:\s+(?:better|worse|undecided) in ", html)
    assert told == names[1:] and html.count('tabindex="0"') == 6
    assert len(re.findall("<svg", html)) == 7  # six figures against weight, distance on recall
    assert html.count('<g class="curve">') == 6 + 2  # one sweep; both on recall
    assert html.count("guidance weight</text>") == 6 and ">recall</text>" in html
    shown = sorted((tmp_path / "out" / "pictures" / "cfg").iterdir())
    assert [p.name for p in shown] == ["000000.png", "000001.png"]
    assert "less the first's" in capsys.readouterr().out


def test_shown_images_are_those_that_were_measured_and_sampled_once(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the first run none again; later those alone that are not there; a kill loses none."""
    sampled: list[int] = []
    kill_at: list[int] = []
    generate = PipelineGenerator.__call__

    def counted(self: PipelineGenerator, seeds: Sequence[int]) -> torch.Tensor:
        if set(kill_at) & set(seeds):
            raise KeyboardInterrupt
        sampled.extend(seeds)
        return generate(self, seeds)

    monkeypatch.setattr(PipelineGenerator, "__call__", counted)
    paths = (root / "cfg.json", root / "plain.json")
    samples, out = Samples("0-9", 4, tmp_path / "work"), tmp_path / "out"

    def run() -> list[int]:
        sampled.clear()
        compare(paths, root / "real.npz", "", SMALL, samples, out, show=3, resamples=20)
        return sorted(sampled)

    kill_at.append(8)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert sorted(sampled) == list(range(8))
    kill_at.clear()
    assert run() == sorted([8, 9, *range(10)])  # the rest of the first, and the second recipe
    assert run() == []
    shown = out / "pictures" / "cfg" / "000001.png"
    before = shown.read_bytes()
    shown.unlink()
    assert run() == [1]
    again, first = (np.asarray(Image.open(each), int) for each in (shown, BytesIO(before)))
    assert np.abs(again - first).max() <= 1  # alone, not in a batch of 4: rounded otherwise


def test_bad_comparisons(root: Path, tmp_path: Path) -> None:
    cfg, sweep, plain = (root / f"{name}.json" for name in ("cfg", "sweep", "plain"))
    other = tmp_path / "other.json"
    other.write_text(json.dumps(json.loads(cfg.read_text()) | {"prompts": ["a tree"]}))
    for paths, weights, message in (
        ((cfg,), "", "one recipe is nothing to compare"),
        ((cfg, cfg), "", "named twice"),
        ((cfg, plain), "1,2", "no recipe has a place for --weights"),
        ((cfg, sweep), "", "say its numbers"),
        ((cfg, sweep), "1,x", "are no weights"),
        ((cfg, sweep), "1,1", "names a weight twice"),
        ((cfg, other), "", "other has other prompts than cfg"),
    ):
        with pytest.raises(ValueError, match=message):
            entries_of(paths, weights)
    with pytest.raises(ValueError, match=r"holds \{w\}: .diffsteer compare"):
        evaluate(sweep, root / "real.npz", SMALL, Samples("0-3", 4, tmp_path))


def test_what_one_recipe_alone_says_is_shown() -> None:
    """Options of a network, and fields that files leave out at their defaults."""
    made = [
        Recipe("m", dtype="float16", options=ADMOptions(label=0)),
        Recipe("m", lora=("x:0.5", "y"), options=ADMOptions()),
        Recipe("m", options=ADMOptions(respacing="ddim25")),
    ]
    figure = MetricValue("FD", "", 1.0, None, 4, 4, Origin("a", "b", "c", "d"))
    results = [
        Result(Compared(f"r{i}", (figure,), {}, {}), recipe, f"r{i}", None, {})
        for i, recipe in enumerate(made)
    ]
    html = page(results, "real", [], [], 20)
    rows = re.findall("<tr>(.*?)</tr>", html[html.index("<h2>Recipes") :], re.S)
    cells = [re.findall(r"<t[hd]>(?:<code>)?([^<]*)", row) for row in rows]
    assert cells == [
        ["", "dtype", "lora", "class", "respacing"],
        ["r0", "float16", "none", "0", "none"],
        ["r1", "auto", "x:0.5, y", "none", "none"],
        ["r2", "auto", "none", "none", "ddim25"],
    ]
    said = [_plain(result)["recipe"].get("options") for result in results]
    assert said == [{"class": 0}, {}, {"respacing": "ddim25"}]


def test_names_of_like_files_are_their_paths(root: Path, tmp_path: Path) -> None:
    shutil.copy(root / "plain.json", tmp_path / "cfg.json")
    entries = entries_of((root / "cfg.json", tmp_path / "cfg.json"), "")
    assert [e.name for e in entries] == [str(root / "cfg.json"), str(tmp_path / "cfg.json")]


def test_rendering_leaves_the_pipeline_as_it_was(root: Path) -> None:
    """Sweeps take the same pipeline again: no steering, counter or scheduler stays behind."""
    plain, cfg = read(root / "plain.json"), read(root / "cfg.json")
    with open_pipeline(plain, "cpu") as images:
        before = images([0, 1])
        assert images.nfe() == {"rows": 4}
    with open_pipeline(cfg, "cpu") as images:
        assert not torch.equal(images([0, 1]), before)
        assert images.nfe() == {"rows": 8} and images.nfe() == {"rows": 0}
    with open_pipeline(plain, "cpu") as images:
        assert torch.equal(images([0, 1]), before)
    pipe = images.pipe
    assert "forward" not in vars(pipe.unet) and type(pipe.scheduler).__name__ == "DDIMScheduler"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"guidance": "PAG(3, layer='nowhere')"}, "nowhere"),
        ({"guidance": "SAG(1, 'nowhere').over(1, 2)"}, "nowhere"),
        ({"guidance": "CFG(2)", "refiner": "NLG(1)", "height": 12}, "divisible by 8"),
        ({"width": 20}, "divisible by 8"),
        ({"guidance": "Auto(2)", "guide": "vae"}, "a guide of AutoencoderKL"),
        ({"refiner": "real"}, "folder without refiner.json"),
        ({"guidance": "Classifier(1)"}, "classifier"),
        ({"sampler": "DDIM()", "spacing": "karas"}, "did you mean 'karras'"),
    ],
)
def test_all_recipes_are_rehearsed_before_the_first_is_sampled(
    root: Path, tmp_path: Path, fields: dict[str, object], message: str, monkeypatch
) -> None:
    plain = json.loads((root / "plain.json").read_text())
    places = {"vae": str(Path(plain["model"]) / "vae"), "real": str(root / "real")}
    fields = {name: places.get(value, value) for name, value in fields.items()}  # type: ignore[call-overload]
    (tmp_path / "wrong.json").write_text(json.dumps(plain | fields))

    def sampled(*_: object, **__: object) -> None:
        raise AssertionError("a recipe was sampled")

    monkeypatch.setattr("diffsteer.metrics.sampled.sampled", sampled)
    samples = Samples("0-1", 2, tmp_path / "work")
    recipes = (root / "plain.json", tmp_path / "wrong.json")
    with pytest.raises(ValueError, match=message):
        compare(recipes, root / "real.npz", "", SMALL, samples, tmp_path / "out")
    assert not (tmp_path / "work").exists() and not (tmp_path / "out").exists()


def test_flags_say_how_the_models_of_recipes_are_loaded(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place of what recipes say themselves; the others of their fields stay."""
    seen = []
    monkeypatch.setattr("diffsteer.generate.generator.rehearse", lambda r, _: seen.extend(r))
    monkeypatch.setattr(
        "diffsteer.metrics.sampled.measure_recipe", lambda r, *_: 1 / seen.append(r)
    )
    recipe = json.loads((root / "cfg.json").read_text()) | {"dtype": "float16", "steps": 3}
    (tmp_path / "own.json").write_text(json.dumps(recipe))
    recipes = [str(tmp_path / "own.json"), str(root / "plain.json")]
    rest = ["--reference", str(root / "real.npz"), "--size", "32", "--device", "cpu"]
    rest += ["--work", str(tmp_path / "work")]
    loras = (str(tmp_path / "a.safetensors"), f"{tmp_path / 'b.safetensors'}:0.5")
    for name in "ab":
        weights = {f"unet.lora_{x}.weight": torch.ones(1, 1) for x in "AB"}
        save_file(weights, tmp_path / f"{name}.safetensors")
    flags = ["--dtype", "bfloat16", "--offload", "group", "--lora", loras[0], "--lora", loras[1]]
    for command, paths, expected in (
        ("evaluate", recipes[:1], [("bfloat16", "group", loras, 3)]),
        ("compare", recipes, [("bfloat16", "group", loras, n) for n in (3, 2)]),
    ):
        out = ["--out", str(tmp_path / command)] if command == "compare" else []
        seen.clear()
        with pytest.raises(TypeError, match="unsupported operand"):
            app.cli(args=[command, *paths, *rest, *out, *flags])
        loaded = [(r.dtype, r.offload, r.lora, r.steps) for r in seen]
        assert loaded[: len(expected)] == expected
        words = [command, *paths, *rest, *out, "--dtype", "auto"]
        monkeypatch.setattr("sys.argv", ["diffsteer", *words])
        with pytest.raises(TypeError, match="unsupported operand"):
            main()
        assert seen[-1].dtype == "auto"  # typed at its default, and the first says float16
        with pytest.raises(InputError, match="offload='model'"):
            app.cli(args=[command, *paths, *rest, *out, "--offload", "model"])
    with pytest.raises(InputError, match="is no recipe, of which --dtype"):
        app.cli(args=["evaluate", str(root / "cfg"), *rest, "--dtype", "float32"])
    monkeypatch.setattr("sys.argv", ["", "evaluate", str(root / "cfg"), *rest, "--offload", "none"])
    with pytest.raises(SystemExit, match="is no recipe, of which --offload"):
        main()


def test_a_rehearsal_costs_the_first_step_and_leaves_nothing(root: Path) -> None:
    with open_pipeline(read(root / "cfg.json"), "cpu") as generate:
        want = generate([0])
        generate.nfe()
        generate.rehearse()
        assert generate.nfe()["rows"] <= 4 and torch.equal(generate([0]), want)


def test_a_reference_is_measured_before_a_recipe_is_sampled(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image in it that is cut shows at once."""

    def sampled(*_: object, **__: object) -> None:
        raise AssertionError("a recipe was sampled")

    monkeypatch.setattr("diffsteer.metrics.sampled.sampled", sampled)
    shutil.copytree(root / "real", tmp_path / "real")
    path = sorted((tmp_path / "real").glob("*.png"))[-1]
    path.write_bytes(path.read_bytes()[:100])
    samples = Samples("0-1", 2, tmp_path / "work")
    with pytest.raises(ValueError, match=f"{path.name} is broken"):
        evaluate(root / "cfg.json", tmp_path / "real", SMALL, samples)
    recipes = (root / "plain.json", root / "cfg.json")
    with pytest.raises(ValueError, match=f"{path.name} is broken"):
        compare(recipes, tmp_path / "real", "", SMALL, samples, tmp_path / "out")
