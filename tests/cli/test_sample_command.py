"""`diffsteer sample`: the order of its help, the recipe and the sheet that it writes, progress."""

import re
from pathlib import Path

import pytest
import tiny
from PIL import Image

from diffsteer.cli.main import main
from diffsteer.generate.recipe import Recipe, read, recipe_of
from diffsteer.io import progress

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
