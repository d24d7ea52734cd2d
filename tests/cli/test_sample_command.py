"""`diffsteer sample`: the order of its help, the recipe and the sheet that it writes, progress."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from PIL import Image

from diffsteer.cli.main import main
from diffsteer.cli.sample import _merged
from diffsteer.core.errors import InputError
from diffsteer.generate.options import EDM2, ADMOptions, EDM2Options
from diffsteer.generate.recipe import Recipe, read, recipe_of
from diffsteer.io import progress
from diffsteer.models.edm2.loop_settings import Loop

MAIN = ["--prompt", "--negative", "--guidance", "--sampler", "--steps", "--width", "--height"]
MAIN += ["--seeds", "--out", "--recipe"]


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.saved(tmp_path_factory.mktemp("model"))


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr("sys.argv", ["diffsteer", "sample", *map(str, words)])
    main()


def test_ten_options_come_first_and_all_fields_of_a_recipe_are_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, "--help")
    text = capsys.readouterr().out
    first = text[text.index("--help") : text.index("run options")]
    assert re.findall(r"(?m)^\W*(--[a-z-]+) [A-Z]", first) == MAIN
    assert (
        'diffsteer sample critters --prompt "a purple critter"' in text[: text.index("positional")]
    )
    names = {"settings": "set"}
    for name in Recipe().__dataclass_fields__.keys() - {"model", "options"}:
        assert f"--{names.get(name, name).replace('_', '-')}" in text
    advanced = text[text.index("advanced-preset options") :]
    assert all(flag in advanced for flag in ("--preset", "--respacing", "--rho"))
    assert not any(flag in first for flag in ("--preset", "--respacing", "--rho"))


def test_what_is_typed_is_what_is_sampled(
    pipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [pipe, "--prompt", "a cat", "--guidance", "CFG(2)", "--steps", 2, "--seeds", "0-2"]
    words += ["--dtype", "float32", "--set", "eta=0.5", "--set", "guidance_rescale=0.0"]
    files = ["--save", tmp_path / "r.json", "--sheet", tmp_path / "s.png", "--device", "cpu"]
    run(monkeypatch, *words, *files, "--out", tmp_path / "a")
    recipe = Recipe(pipe, prompt="a cat", guidance="CFG(2)", steps=2, dtype="float32")
    settings = ("eta=0.5", "guidance_rescale=0.0")
    wanted = Recipe(**{**vars(recipe), "settings": settings})
    assert read(tmp_path / "r.json") == wanted and recipe_of(tmp_path / "a/000002.png")[0] == wanted
    sheet = Image.open(tmp_path / "s.png")
    image = Image.open(tmp_path / "a/000000.png")
    assert sheet.width > 3 * image.width
    cells = [sheet.crop((x, y, x + 16, y + 16)) for x in range(160, 180) for y in range(40)]
    assert image.tobytes() in {cell.tobytes() for cell in cells}
    assert "loading" in capsys.readouterr().err
    run(monkeypatch, "--recipe", tmp_path / "r.json", "--seeds", 1, "--out", tmp_path / "b")
    again, first = (Image.open(tmp_path / side / "000001.png") for side in "ba")
    assert again.tobytes() == first.tobytes()


RECIPE = {"guidance": "CFG(3)", "negative": "a dog", "sampler": "UniPC()", "steps": 3}
RECIPE |= {"spacing": "karras", "dtype": "float16", "offload": "model", "width": 64, "prompt": "x"}
DEFAULTS = {"--steps": 25, "--guidance": "", "--negative": "", "--prompt": "", "--width": 0}
DEFAULTS |= {"--spacing": "trailing", "--dtype": "auto", "--offload": "none"}


@pytest.fixture
def followed(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """Recipes that would be sampled."""
    seen: list[Recipe] = []

    def stop(recipe: Recipe) -> None:
        seen.append(recipe)
        raise InputError("seen")

    monkeypatch.setattr("diffsteer.generate.recipe_checks.require_consistent", stop)
    return seen


@pytest.mark.parametrize("flag", DEFAULTS)
def test_an_option_typed_at_its_default_replaces_what_the_recipe_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, followed: list[Recipe], flag: str
) -> None:
    name, value = flag[2:], DEFAULTS[flag]
    (tmp_path / "r.json").write_text(json.dumps({"model": "critters", **RECIPE}))
    for words in ([flag, value], [f"{flag}={value}"]):
        with pytest.raises(SystemExit, match="seen"):
            run(monkeypatch, "--recipe", tmp_path / "r.json", *words)
        wanted = Recipe("critters", **{**RECIPE, name: value})
        assert followed.pop() == wanted


def test_a_seed_typed_at_its_default_replaces_that_of_the_image(
    pipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [pipe, "--steps", 1, "--seeds", 7, "--device", "cpu", "--out", tmp_path]
    run(monkeypatch, *words)
    run(monkeypatch, "--recipe", tmp_path / "000007.png", "--out", tmp_path / "same")
    run(monkeypatch, "--recipe", tmp_path / "000007.png", "--seeds=0", "--out", tmp_path / "other")
    assert [p.name for p in (tmp_path / "same").glob("*.png")] == ["000007.png"]
    assert [p.name for p in (tmp_path / "other").glob("*.png")] == ["000000.png"]
    for words in (["--seeds", 0], ["--steps", 25], ["--guidance", ""]):
        with pytest.raises(SystemExit, match="--from repeats an image as it was"):
            run(monkeypatch, "--from", tmp_path / "000007.png", *words, "--out", tmp_path / "none")
    with pytest.raises(SystemExit, match="a preset says model and recipe"):
        run(monkeypatch, "--preset", "edm2-img64-s-fid", "--steps", 25)


def test_processes_share_no_sheet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="--sheet shows images of one process: leave it out"):
        run(monkeypatch, "critters", "--sheet", "s.png")


def test_options_of_a_network_replace_those_of_the_recipe_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, followed: list[Recipe]
) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net/config.json").write_text(json.dumps({"format": EDM2}))
    own = {"class": 3, "s_churn": 2.0, "rho": 5.0, "precision": "official-bit"}
    table = {"model": str(tmp_path / "net"), "options": own}
    (tmp_path / "r.json").write_text(json.dumps(table))
    said = EDM2Options(3, "official-bit", Loop(s_churn=2.0, rho=5.0))
    for words, expected in (
        ([], said),
        (["--steps", 25], said),
        (["--rho", 7], replace(said, loop=Loop(s_churn=2.0))),
        (["--s-churn", 0, "--class", 4], replace(said, label=4, loop=Loop(rho=5.0))),
        (["--class", "None"], replace(said, label=None)),
        (["--precision", ""], replace(said, precision="")),
    ):
        with pytest.raises(SystemExit, match="seen"):
            run(monkeypatch, "--recipe", tmp_path / "r.json", *words)
        assert followed.pop().options == expected


@pytest.mark.parametrize(
    ("own", "words", "strength"),
    [
        ({"image": "a.png", "strength": 0.5}, ["--image", "b.png"], 0.5),
        ({"image": "a.png", "strength": 0.5}, ["--image", "b.png", "--strength", "None"], None),
        ({}, ["--image", "b.png"], None),
        ({"refiner": "NLG(20)", "strength": 0.5}, ["--strength", 1], 1.0),
    ],
)
def test_the_strength_of_a_recipe_stays_unless_another_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, followed: list[Recipe], own: dict[str, object],
    words: list[object], strength: float | None,
) -> None:  # fmt: skip
    (tmp_path / "r.json").write_text(json.dumps({"model": "critters", **own}))
    with pytest.raises(SystemExit, match="seen"):
        run(monkeypatch, "--recipe", tmp_path / "r.json", *words)
    assert followed.pop().strength == strength


SAMPLER = {"sampler": "UniPC()", "spacing": "karras"}


@pytest.mark.parametrize(
    ("own", "words", "wanted"),
    [
        (SAMPLER, ["--spacing", "logsigma"], {**SAMPLER, "spacing": "logsigma"}),
        (SAMPLER, ["--zero-snr"], {**SAMPLER, "zero_snr": True}),
        ({**SAMPLER, "zero_snr": True}, ["--no-zero-snr"], SAMPLER),
        ({**SAMPLER, "zero_snr": True}, ["--sampler", ""], {}),
        ({"lora": ["a", "b"], "settings": ["eta=1"]}, ["--lora", "", "--set", ""], {}),
        ({"lora": ["a", "b"]}, ["--lora", "c"], {"lora": ["c"]}),
        ({"guidance": "Auto(2)", "guide": "g"}, ["--guidance", ""], {}),
        ({"refiner": "NLG(20)", "strength": 0.5}, ["--refiner", ""], {}),
        (
            {"image": "a.png", "strength": 0.5},
            ["--refiner", ""],
            {"image": "a.png", "strength": 0.5},
        ),
        ({"image": "a.png", "mask": "m.png", "strength": 0.5}, ["--image", ""], {}),
        (
            {"image": "a.png", "strength": 0.5},
            ["--image=", "--refiner", "NLG(20)", "--strength", 0.7],
            {"refiner": "NLG(20)", "strength": 0.7},
        ),
        ({"prompts": ["a", "b"]}, ["--prompt", "c"], {"prompt": "c"}),
    ],
)
def test_an_option_switches_off_what_the_recipe_says_and_what_belongs_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, followed: list[Recipe],
    own: dict[str, object], words: list[object], wanted: dict[str, object],
) -> None:  # fmt: skip
    (tmp_path / "r.json").write_text(json.dumps({"model": "critters", **own}))
    with pytest.raises(SystemExit, match="seen"):
        run(monkeypatch, "--recipe", tmp_path / "r.json", *words)
    assert followed.pop() == Recipe("critters", **wanted)  # type: ignore[arg-type]


def test_lines_of_progress_say_what_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 4.0, 12.0, 15.0, 40.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.progress(8) as bar:
        for _ in range(4):
            bar.update(2)
    assert capsys.readouterr().err.splitlines() == [
        "4 of 8 images, 12 s left",
        "8 of 8 images, 0 s left",
    ]
    monkeypatch.undo()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.progress(8) as bar:
        bar.update(8)
    assert re.search(r"100%.* 8/8 .*image/s", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("guidance", "left"),
    [
        ("", {}),
        ("CFG(2)", {}),
        ("SAG(1)", {"official_head_split": True}),
        ("Classifier(2)", {"classifier": "c"}),
    ],
)
def test_options_of_adm_end_with_the_guidance_that_they_are_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guidance: str, left: dict[str, object]
) -> None:
    """Their flags have no other way to switch them off."""
    monkeypatch.chdir(Path(__file__).parents[1] / "compat/data")
    options = ADMOptions(official_head_split=True, classifier="c")
    recipe = Recipe("models/adm", guidance="SAG(1) + Classifier(1)", options=options)
    (tmp_path / "r.json").write_text(json.dumps(recipe.to_json()))
    made, _ = _merged(tmp_path / "r.json", {"guidance": guidance})
    assert made == replace(recipe, guidance=guidance, options=ADMOptions(**left))  # type: ignore[arg-type]
