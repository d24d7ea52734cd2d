"""Scores beside metrics: in evaluate, compare and recipes."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import diffsteer
from diffsteer.cli.evaluate import evaluate
from diffsteer.cli.options import Features
from diffsteer.core.errors import InputError
from diffsteer.metrics.bootstrap import weights
from diffsteer.metrics.features import Custom, Origin
from diffsteer.metrics.image_scores import (
    judged,
    mean_spreads,
    means,
    named,
    resampled_means,
    scores_of,
)
from diffsteer.metrics.sampled import sampled

RGB = Custom(lambda x: x.float().mean(dim=(2, 3)), Origin("mean colour", "rgb", "none", "none"))


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's module of scores in the current folder."""
    code = """
def red(images, prompts):
    return images[:, 0].double().mean(dim=(1, 2))

def letters(images, prompts):
    return [len(prompt) for prompt in prompts]
"""
    (tmp_path / "mine_scores.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("mine_scores", None)


def images(n: int, seed: int = 0, top: int = 256) -> Tensor:
    gen = torch.Generator().manual_seed(seed)
    return torch.randint(0, top, (n, 3, 8, 8), generator=gen).byte()


def test_mean_and_interval() -> None:
    """The bootstrap of a mean: 1.96 standard errors of 400 numbers."""
    values = {"a": torch.randn(400, generator=torch.Generator().manual_seed(0)).double() + 3}
    (figure,) = means(values, {"a": "a 1234"}, "0-399", mean_spreads(values, 400))
    assert figure.name == "score a" and figure.higher_is_better and figure.origin.weights == "1234"
    assert figure.value == pytest.approx(values["a"].mean().item())
    half = (figure.interval.high - figure.interval.low) / 2
    assert half == pytest.approx(1.96 / 20, rel=0.15)
    w = weights(400, 20)
    spread = resampled_means(values, w)["score a"]
    assert spread[3] == pytest.approx((w[3].double() * values["a"]).sum().item() / 400)


def test_evaluate_in_python_scores_and_warns() -> None:
    fake, real = images(12), images(12, 1)
    with pytest.warns(UserWarning, match="too few images for precision"):
        figures = diffsteer.evaluate(fake, real, RGB, 20, ["mine_scores:red"])
    value = figures[-1]
    assert value.name == "score mine_scores:red"
    assert value.value == pytest.approx(fake[:, 0].double().mean().item())
    with pytest.warns(UserWarning, match="is given empty ones"):
        empty = judged(fake, scores_of(["mine_scores:letters"]), [])
    assert empty["mine_scores:letters"].tolist() == [0] * 12
    with pytest.raises(InputError, match="hold no prompts, which CLIPScore"):
        judged(fake, scores_of(['CLIPScore("nowhere")']), [])
    with pytest.raises(FileNotFoundError, match="no folder '/nowhere': give a transf"):
        diffsteer.evaluate(fake, real, RGB, 0, 'CLIPScore("/nowhere")', ["a"] * 12)
    with pytest.raises(InputError, match="sets of images or more by name"):
        diffsteer.compare([fake, real], real)
    with pytest.raises(InputError, match="prompts are of scores, and none is named"):
        diffsteer.evaluate(fake, real, RGB, 0, prompts=["a"] * 12)
    with pytest.raises(InputError, match="2 prompts for 12 images"):
        diffsteer.evaluate(fake, real, RGB, 0, ["mine_scores:letters"], ["a", "b"])
    with pytest.raises(InputError, match="a.npz holds statistics, and images are needed"):
        diffsteer.compare({"a": "a.npz", "b": fake}, real, extractor=RGB)


def test_compare_in_python_pairs_images() -> None:
    """A shift of every image by 10 has a difference of 10, and no spread."""
    first = images(40, 0, 200)
    sets = {"a": first, "b": first + 10}
    with pytest.warns(UserWarning, match="too few images"):
        one, two = diffsteer.compare(
            sets, images(40, 1), extractor=RGB, resamples=20, scores=["mine_scores:red"]
        )
    assert not one.differences
    value, within = two.differences["score mine_scores:red"]
    assert (value, *within) == pytest.approx((10.0, 10.0, 10.0))
    with pytest.raises(InputError, match="'a': 40, 'b': 39"):
        diffsteer.compare({"a": first, "b": first[:39]}, images(40, 1), extractor=RGB)


def test_scores_of_samples_are_kept_and_found_again(tmp_path: Path) -> None:
    calls: list[int] = []

    def make(seeds: list[int]) -> Tensor:
        calls.extend(seeds)
        return torch.cat([images(1, seed) for seed in seeds])

    def judge(made: Tensor, seeds: list[int]) -> dict[str, Tensor]:
        return {"x/y('z')": torch.tensor(seeds).double()}

    runs = [
        sampled(make, range(6), RGB, tmp_path / "work", {"a": 1}, 4, judge=judge) for _ in range(2)
    ]
    assert len(calls) == 6
    for run in runs:
        assert run.scores["x/y('z')"].tolist() == list(range(6))
        assert set(run.costs) == {"seconds"}


def test_a_function_is_known_by_its_file(tmp_path: Path) -> None:
    before = named(scores_of(["mine_scores:red", "math:sqrt"]))
    file = tmp_path / "mine_scores.py"
    file.write_text(file.read_text() + "# another\n")
    after = named(scores_of(["mine_scores:red", "math:sqrt"]))
    assert before["mine_scores:red"] != after["mine_scores:red"]
    assert all(names["mine_scores:red"].startswith("mine_scores:red ") for names in (before, after))


def test_the_command_reads_prompts_of_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    for name in ("fake", "real"):
        (tmp_path / name).mkdir()
        for i, image in enumerate(images(10, 0 if name == "fake" else 1)):
            array = image.permute(1, 2, 0).contiguous().numpy()
            Image.fromarray(array).save(tmp_path / name / f"{i:02}.png")
    small = Features(size=32, batch=4)
    with pytest.raises(InputError, match="fake hold no prompts, which CLIPScore"):
        evaluate(tmp_path / "fake", tmp_path / "real", small, score=('CLIPScore("x")',))
    (tmp_path / "prompts.txt").write_text("\n".join("a" * (i + 1) for i in range(10)))
    evaluate(
        *(tmp_path / "fake", tmp_path / "real", small),
        score=("mine_scores:letters", "mine_scores:red"),
        prompts=tmp_path / "prompts.txt",
        out=tmp_path / "out.json",
        resamples=20,
    )
    values = {
        f["name"]: f["value"] for f in json.loads((tmp_path / "out.json").read_text())["figures"]
    }
    assert values["score mine_scores:letters"] == pytest.approx(5.5)
    assert "score mine_scores:red" in capsys.readouterr().out
