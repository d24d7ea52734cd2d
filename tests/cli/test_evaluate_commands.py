"""The two commands, end to end on small folders."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffsteer.cli.evaluate import evaluate, stats
from diffsteer.cli.main import main
from diffsteer.cli.options import Features
from diffsteer.core.errors import InputError

SMALL = Features(size=32, batch=16)


def folder(path: Path, n: int, seed: int, spread: int = 255) -> Path:
    """Pictures of two flat halves in random colours."""
    rng = np.random.RandomState(seed)
    path.mkdir()
    for i in range(n):
        picture = np.empty((32, 32, 3), dtype=np.uint8)
        picture[:16], picture[16:] = rng.randint(0, spread + 1, (2, 3))
        Image.fromarray(picture).save(path / f"{i:03}.png")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    folder(root / "real", 32, seed=0)
    folder(root / "good", 20, seed=1)
    folder(root / "dark", 20, seed=2, spread=100)
    stats(root / "real", root / "real.npz", SMALL)
    return root


def test_evaluate_prints_and_writes_every_metric(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {}
    for name in ("good", "dark"):
        evaluate(data / name, data / "real.npz", SMALL, out=data / f"{name}.json")
        content = json.loads((data / f"{name}.json").read_text())
        values[name] = {f["name"]: f["value"] for f in content["figures"]}
        assert len(content["reference"]["sha256"]) == 64
    printed = capsys.readouterr()
    *_, line = (row for row in printed.out.splitlines() if row.startswith("FD-Efficient"))
    value, low, to, high, n, reference_n, *floor = line.split()[1:]
    assert to == "to" and float(low) < float(value) < float(high)
    assert float(value) == pytest.approx(values["dark"]["FD-EfficientNetLite0"], rel=1e-4)
    assert (n, reference_n, floor[-1]) == ("20", "32", "16")
    assert "FID" not in printed.out
    assert "EfficientNetLite0, layer block10, resize bicubic-antialias-" in printed.out
    assert "20 RGB 32x32" in printed.err
    assert values["good"]["FD-EfficientNetLite0"] < values["dark"]["FD-EfficientNetLite0"]
    assert values["good"]["coverage"] > values["dark"]["coverage"]


def test_a_folder_serves_as_its_own_statistics(data: Path) -> None:
    evaluate(data / "real", data / "real", SMALL, out=data / "real.json")
    found = {f["name"]: f["value"] for f in json.loads((data / "real.json").read_text())["figures"]}
    assert found["FD-EfficientNetLite0"] == pytest.approx(0, abs=1e-9)
    assert found["precision"] == found["recall"] == found["coverage"] == 1


def test_another_layer_or_size_than_the_reference_raises_before_work(data: Path) -> None:
    with pytest.raises(ValueError, match="layer 'head', .* has 'block10'"):
        evaluate(data / "good", data / "real.npz", Features(layer="head", size=32))
    with pytest.raises(ValueError, match="bicubic-antialias-224"):
        evaluate(data / "good", data / "real.npz")


def test_what_cannot_end_well_is_refused_before_work(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reference that is not there and too few resamples, which are used after hours of work."""

    def works(*_: object) -> None:
        raise AssertionError("pictures were measured")

    monkeypatch.setattr("diffsteer.cli.evaluate.measured", works)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        evaluate(data / "good", data / "nowhere", SMALL)
    folder(data / "single", 1, seed=3)
    with pytest.raises(ValueError, match="single holds 1 image, .* at least 2"):
        evaluate(data / "good", data / "single", SMALL)
    for resamples in (-1, 19):
        with pytest.raises(ValueError, match=f"resamples={resamples}"):
            evaluate(data / "good", data / "real.npz", SMALL, resamples=resamples)
    recipe, lines = data / "recipe.json", data / "lines.txt"
    recipe.write_text('{"model": "critters", "prompt": "a red critter"}')
    lines.write_text("a red critter\n")
    for pictures, prompts, message in (
        (recipe, lines, "is a recipe, which has prompts: leave --prompts out"),
        (data / "good", lines, "prompts are of scores, and none is named"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate(pictures, data / "real.npz", SMALL, prompts=prompts)
    with pytest.raises(FileNotFoundError, match="absent"):
        evaluate(data / "good", data / "real.npz", SMALL, recipe=data / "absent.json")


def test_options_that_do_not_belong_to_the_extractor_are_refused() -> None:
    for features, words in (
        (Features(checkpoint="somewhere"), "EfficientNetLite0 takes no --checkpoint: .* --size"),
        (Features("Inception", noise_mask=16), "Inception takes no --noise-mask"),
        (Features("CLIP", layer="x"), "CLIP takes no --layer: .* it takes --checkpoint"),
        (Features("DINOv2"), "DINOv2 has many weights: .*--checkpoint.*facebook/dinov2-large"),
    ):
        with pytest.raises(InputError, match=words):
            features.build()
    with pytest.raises(ValueError, match="batch=0"):
        Features(batch=0)


def test_the_commands_import_without_torch() -> None:
    code = (
        "import sys, diffsteer.cli.evaluate\n"
        "assert not {'torch', 'numpy', 'PIL', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("good", ["--seeds", "0-9"], "is no recipe, of which --seeds would say"),
        ("good", ["--at-once", "8", "--work", "w"], "is no recipe, of which --at-once, --work"),
        ("good", ["--mixed", "--recipe", "r.json"], "leave out it, or --mixed"),
        ("real.npz", [], "real.npz holds statistics, and images are needed"),
        ("r.json", ["--mixed"], "is a recipe, and --recipe and --mixed say which images"),
        ("r.json", ["--recipe", "r.json"], "is a recipe, and --recipe and --mixed say which"),
        ("r.json", ["--prompts", "lines.txt"], "which has prompts"),
    ],
)
def test_what_evaluate_does_not_take(
    data: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: list[str], message: str
) -> None:
    """Also where they are typed at their defaults."""
    monkeypatch.chdir(data)
    (data / "r.json").write_text('{"model": "nowhere"}')
    words = ["diffsteer", "evaluate", name, "--reference", "real.npz", "--size", "32", *options]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match=message):
        main()
