"""Experiments on refined noise: exact on a linear sampler, then through a pipeline and its page."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny
import torch
from diffsteer_lab.cli.analyse import _extractor
from diffsteer_lab.noise_analysis.analysis import Analysis, analyse, planned
from diffsteer_lab.noise_analysis.baselines import BEST, NUDGED
from diffsteer_lab.noise_analysis.experiment import noise_experiment
from diffsteer_lab.noise_analysis.experiments import (
    FULLY,
    GUIDED,
    KEPT,
    RANDOM,
    REFINED,
    UNREFINED,
    band_name,
    bands,
    partners,
    slerp,
)
from diffsteer_lab.noise_analysis.files import numbers, write
from diffsteer_lab.noise_analysis.inversion import INVERSIONS, Inversion
from diffsteer_lab.noise_analysis.results import Samples, ratio
from diffsteer_lab.noise_analysis.spectrum import TENTHS, radius, swapped
from diffsteer_lab.noise_analysis.trajectory import ALL, LAYOUT, TEACHER, images_of
from PIL import Image
from torch import Tensor

from diffsteer.cli.main import main
from diffsteer.core.noise import Noise
from diffsteer.generate.from_noise import sample_from_noise
from diffsteer.generate.pipelines import configured, open_pipeline
from diffsteer.generate.recipe import Recipe
from diffsteer.hf.load import load
from diffsteer.hf.network import network_replaced
from diffsteer.hf.scheduler import SteerScheduler
from diffsteer.io.sheet import GAP, LABEL, LINE
from diffsteer.metrics.best_of_n import STRIDE
from diffsteer.metrics.efficientnet import EfficientNetLite0
from diffsteer.refine.hook import refine
from diffsteer.refine.nlg import NLG
from diffsteer.refine.refiner import NoiseRefiner

PROMPTS = ("red cat", "red dog", "green trees", "small green tree")


class Linear:
    """A subject whose sampling is a filter by frequency: what bands carry is known exactly.

    Refining adds a pattern of its prompt in some bands; guided images are those of the pattern
    in all of them. Rivals add half of it. A step takes a row, with guidance two; refining one.
    Step k of n predicts the share k / n of the end, and guided ones the share 1.
    """

    guided, weights, shape = True, "w", (2, 16, 16)

    def __init__(self, *changed: tuple[float, float], strength: float = 1.0) -> None:
        self.recipe = Recipe("m", prompts=PROMPTS, guidance="CFG(2)", strength=strength, steps=4)
        self.changed, self.by, self.pictures, self.spent = changed, None, 0, 0.0

    def progress(self, n: int) -> None:
        self.pictures += n

    def nfe(self) -> dict[str, float]:
        spent, self.spent = self.spent, 0.0
        return {"rows": spent}

    def refuses(self, rival: Any) -> str:
        return ""

    def text(self, seed: int) -> str:
        return self.recipe.for_seed(seed).prompt

    def noise(self, seeds: Sequence[int]) -> Tensor:
        return Noise(seeds)(torch.empty(len(seeds), *self.shape)).double()

    def pattern(self, texts: Sequence[str]) -> Tensor:
        return 0.5 * self.noise([1000 + sum(map(ord, text)) for text in texts])

    def refined(self, noise: Tensor, texts: Sequence[str], rival: Any = None) -> Tensor:
        self.spent += len(noise) * (1 if rival is None else 2 * rival.rounds)
        if rival is not None:
            return noise + self.pattern(texts) / 2
        got = noise
        for low, high in self.changed:
            got = swapped(got, noise + self.recipe.strength * self.pattern(texts), low, high)
        return got

    def draw(self, noise: Tensor, texts: Sequence[str], path: bool = False) -> Samples:
        gain = 2 - radius(16, 16)
        latents = torch.fft.ifft2(torch.fft.fft2(noise) * gain).real
        self.progress(len(noise))
        self.spent += len(noise) * self.recipe.steps
        steps = self.recipe.steps
        way = tuple(latents * k / steps for k in range(1, steps + 1)) if path else ()
        return Samples(latents, self.decoded(latents, texts), latents.mean((2, 3)), way)

    def decoded(self, latents: Tensor, texts: Sequence[str]) -> Tensor:
        pictures = (127.5 + 20 * latents).clamp(0, 255).to(torch.uint8)
        return torch.cat([pictures, pictures[:, :1]], 1)

    def teach(self, noise: Tensor, texts: Sequence[str], path: bool = False) -> Samples:
        self.spent += len(noise) * self.recipe.steps
        drawn = self.draw(noise + self.pattern(texts), texts, path)
        return replace(drawn, path=(drawn.latents,) * len(drawn.path))

    def inverted(self, latents: Tensor, texts: Sequence[str], inversion: Any) -> Any:
        back = torch.fft.ifft2(torch.fft.fft2(latents) / (2 - radius(16, 16))).real
        return back, latents * (1 + 0.1 / inversion.iterations)


def studied(*changed: tuple[float, float], **more: Any) -> Analysis:
    return analyse(Linear(*changed), range(6), count=12, batch=4, show=2, **more)


def latents(found: Analysis, experiment: str) -> dict[str, float]:
    return {n: s["latents"].value for n, s in found.results.ratios(experiment).items()}


def brightness(pictures: Tensor, texts: list[str]) -> Tensor:
    return pictures.double().mean((1, 2, 3))


@pytest.fixture(scope="module")
def whole() -> Analysis:
    """Of a refiner that changes all frequencies alike."""
    return studied((0.0, 1.0), score=brightness)


# ------------------------------------------------------------------ what is known exactly


def test_bands_carry_their_share_of_the_energy(whole: Analysis) -> None:
    """A filter keeps bands apart, so that each takes its own energy off the distance: Parseval."""
    study = Linear((0.0, 1.0))
    gap = torch.fft.fft2(study.pattern([study.text(s) for s in range(6)]))
    energy = (gap * (2 - radius(16, 16))).abs().square()
    found = latents(whole, "bands")
    assert len(found) == len(bands(16, 16)) > 12
    for name, left in found.items():
        low, high = (float(edge) for edge in name.split(" to "))
        held = (radius(16, 16) >= low) & ((radius(16, 16) < high) | (high == 1))
        share = float(energy[..., held].sum() / energy.sum())
        assert left == pytest.approx(1 - share, abs=1e-12)
    tenths = [found[band_name(*edges)] for edges in pairwise(TENTHS)]
    assert sum(1 - left for left in tenths) == pytest.approx(1, abs=1e-12)


def test_a_refiner_of_low_frequencies_gets_yes_and_one_of_high_ones_no(whole: Analysis) -> None:
    for changed, answer, carried in (
        ([(0.0, 0.1)], "yes", 1.0),
        ([(0.3, 1.0)], "no", 0.0),
        ([(0.9, 1.0)], "no", 0.0),
    ):
        verdict = studied(*changed).verdicts[0]
        assert verdict.space == "latents" and verdict.answer == answer
        assert verdict.carried.value == pytest.approx(carried, abs=1e-12)
        assert verdict.energy == pytest.approx(carried, abs=1e-12)
        assert (verdict.coefficients, verdict.of) == (5, 256)
        assert f"carry the result? {answer.capitalize()}, in latents" in str(verdict)
    assert studied((0.9, 1.0)).verdicts[0].rival == "0.9 to 1"
    assert {v.space: v.answer for v in whole.verdicts}["latents"] == "no"


def test_a_refiner_that_does_next_to_nothing_is_undecided() -> None:
    """Of the low frequencies alone, which would be a yes, but by a thirtieth of the change."""
    study = Linear((0.0, 0.1), strength=1 / 30)
    found = analyse(study, range(6), count=12, batch=4, show=2).verdicts[0]
    gain, noise = (2 - radius(16, 16)), study.noise([*range(6), *(s + STRIDE for s in range(6))])
    here = study.pattern([study.text(s) for s in range(6)]) / 30
    low = swapped(torch.zeros_like(here), here, 0, 0.1)
    moved, other = (
        float((torch.fft.fft2(x) * gain).abs().square().sum()) for x in (low, noise[6:] - noise[:6])
    )
    assert found.moved.value == pytest.approx(moved / other, rel=1e-9) and found.faint
    assert found.answer == "undecided" and found.carried.value == pytest.approx(1)
    assert "too little to say" in str(found)
    assert not studied((0.0, 0.1)).verdicts[0].faint


def test_an_interval_across_one_half_is_undecided() -> None:
    """Half of the seeds carry all in the lowest band, the others nothing."""

    class Split(Linear):
        def refined(self, noise: Tensor, texts: Sequence[str], rival: Any = None) -> Tensor:
            low = swapped(noise, noise + self.pattern(texts), 0, 0.1)
            high = swapped(noise, noise + self.pattern(texts) / 7, 0.1, 1)
            lows = torch.tensor(["cat" in t or "trees" in t for t in texts])
            return torch.where(lows[:, None, None, None], low, high)

    assert analyse(Split(), range(6), 4, 4, 0).verdicts[0].answer == "undecided"


def test_redrawing_keeps_what_it_says(whole: Analysis) -> None:
    """Bands that are kept below and above a radius: their distances add up to 1, by Parseval."""
    found = latents(whole, "redraw")
    for cut in KEPT:
        pair = found[band_name(0, cut)], found[band_name(cut, 1)]
        assert sum(pair) == pytest.approx(1, abs=1e-12) and pair[0] > pair[1] * (cut < 0.5)


def test_strength_scales_the_distance_by_its_square(whole: Analysis) -> None:
    """And to the guided image, which is at strength 1 here, it is (1 - s)^2."""
    change, teacher = latents(whole, "strength: change"), latents(whole, "strength: teacher")
    assert list(change) == ["0", "0.25", "0.5", "0.75", "1", "1.5", "2"]
    for name in change:
        assert change[name] == pytest.approx(float(name) ** 2, abs=1e-12)
        assert teacher[name] == pytest.approx((1 - float(name)) ** 2, abs=1e-12)
    scores = whole.results.numbers("strength: score")
    assert [*scores] == [*change, GUIDED] and scores["1"].value == scores[GUIDED].value
    swept = analyse(Linear((0.0, 1.0), strength=0.5), range(2), 4, 2, 0)
    assert [*latents(swept, "strength: change")] == [f"{float(n) / 2:g}" for n in change]
    for name, left in latents(swept, "strength: teacher").items():
        assert left == pytest.approx((1 - float(name)) ** 2, abs=1e-12)


def test_swapped_prompts(whole: Analysis) -> None:
    """Sampling ignores the prompt here: the layout is the first prompt's, whatever is asked for."""
    layout, result = latents(whole, "prompts: layout"), latents(whole, "prompts: result")
    assert [*layout] == ["similar", "unrelated", "unrelated, guided", "empty"]
    assert [*result] == ["similar", "unrelated"]
    assert all(layout[n] == 0 for n in ("similar", "unrelated", "empty"))
    assert min(result.values()) > 1  # two patterns are further apart than one is from none


def test_inversion_pairs(whole: Analysis) -> None:
    """The inverse of the guided image is noise and pattern: what refining makes."""
    assert [*whole.spectra] == [RANDOM, REFINED, *INVERSIONS]
    sizes = [each.size() for each in whole.spectra.values()]
    assert sizes[0] == pytest.approx(2**0.5, rel=0.02)
    study = Linear()
    patterns = [study.pattern([study.text(s) for s in range(n)]) for n in (12, 6, 6)]
    assert sizes[1:] == pytest.approx([float(p.square().mean().sqrt()) for p in patterns])
    errors = whole.results.numbers("round trip")
    wanted = [0.1 / inversion.iterations for inversion in INVERSIONS.values()]
    assert [e.value for e in errors.values()] == pytest.approx(wanted)


def test_predictions_on_the_way_to_their_end_and_to_the_guided_one(whole: Analysis) -> None:
    """The share k / n of the end leaves (1 - k / n)^2 of its square, in each band alike."""
    known = {
        str(k): {UNREFINED: (1 - k / 4) ** 2, FULLY: (1 - k / 4) ** 2, GUIDED: 0.0}
        for k in range(1, 5)
    }
    for experiment in (ALL, LAYOUT):
        found = whole.results.ratios(experiment)
        assert [*found] == ["1", "2", "3", "4"]
        for step, by_way in known.items():
            got = {way: value.value for way, value in found[step].items()}
            assert got == pytest.approx(by_way, abs=1e-12)
    study = Linear((0.0, 1.0))
    texts = [study.text(seed) for seed in range(6)]
    plain, end = (f(study.noise(range(6)), texts).latents for f in (study.draw, study.teach))
    for step, by_way in whole.results.ratios(TEACHER).items():
        left = (plain * int(step) / 4 - end).square().sum() / end.square().sum()
        want = known[step] | {UNREFINED: float(left)}
        assert {w: v.value for w, v in by_way.items()} == pytest.approx(want, abs=1e-12)


def test_the_layout_is_what_the_lowest_tenth_says() -> None:
    """A network that knows all low frequencies and no others from the first step on."""

    class Low(Linear):
        def draw(self, noise: Tensor, texts: Sequence[str], path: bool = False) -> Samples:
            drawn = super().draw(noise, texts, path)
            x = drawn.latents
            low = swapped(torch.zeros_like(x), x, 0, 0.1)
            return replace(drawn, path=(low,) * len(drawn.path))

    results = analyse(Low((0.0, 1.0)), range(2), 4, 2, 0).results
    assert results.ratios(LAYOUT)["1"][FULLY].value == pytest.approx(0, abs=1e-12)
    assert 0.8 < results.ratios(ALL)["1"][FULLY].value < 1


def test_pictures_on_the_way_are_those_of_the_first_seeds(whole: Analysis) -> None:
    """Parts of one seed each, more shown than a part holds: none twice, none missing."""
    other = analyse(Linear((0.0, 1.0)), range(6), 12, batch=1, show=2)
    study = Linear((0.0, 1.0))
    texts = [study.text(seed) for seed in range(2)]
    drawn = study.draw(study.noise(range(2)), texts, path=True)
    for found in (whole, other):
        kept = found.results.images[images_of(UNREFINED)]
        assert [*kept] == ["step 1", "step 2", "end"]
        for name, x0 in zip(kept, (drawn.path[0], drawn.path[1], drawn.latents), strict=True):
            want = study.decoded(x0, texts).permute(0, 2, 3, 1).numpy()
            assert (np.stack([np.asarray(each.image) for each in kept[name]]) == want).all()


def test_rivals_are_where_they_are_known_to_be(whole: Analysis) -> None:
    """Half of the pattern is half of the way to the guided image, a quarter of the square."""
    found = latents(whole, "rivals: teacher")
    known = {UNREFINED: 1.0, FULLY: 0.0, GUIDED: 0.0, NUDGED: 0.25}
    assert found == pytest.approx(known, abs=1e-12)
    rows = {name: n.value for name, n in whole.results.numbers("rivals: rows").items()}
    assert rows == {UNREFINED: 4, FULLY: 5, GUIDED: 8, NUDGED: 4 + 40, BEST: 16}
    assert whole.left_out == {} and not whole.results.numbers("rivals: rows of the guide")


def test_the_best_of_the_draws_is_the_greatest_of_each_seed(whole: Analysis) -> None:
    study = Linear()
    every = []
    for k in range(4):  # four prompts, so that candidates are 2^20 apart
        seeds = [seed + k * 2**20 for seed in range(6)]
        every.append(study.draw(study.noise(seeds), PROMPTS).images)
    scores = torch.stack([brightness(pictures, [""] * 6) for pictures in every])
    found = whole.results.numbers("rivals: score")
    assert found[BEST].value == pytest.approx(float(scores.amax(0).mean()), rel=1e-12)
    assert found[BEST].value > max(float(draw.mean()) for draw in scores)
    assert len({*scores.argmax(0).tolist()}) > 1  # not one draw of all
    for name, factor in ((UNREFINED, "0"), (FULLY, "1"), (GUIDED, GUIDED)):
        assert found[name] == whole.results.numbers("strength: score")[factor]
    for i, shown in enumerate(whole.results.images["rivals"][BEST]):
        want = every[int(scores[:, i].argmax())][i].permute(1, 2, 0).numpy()
        assert (np.asarray(shown.image) == want).all()


def test_what_is_analysed_is_no_rival_of_itself(tmp_path: Path) -> None:
    for strength, listed in ((1.0, False), (0.5, True)):
        study = Linear((0.0, 1.0), strength=strength)
        study.by = NLG(20)
        found = analyse(study, range(2), 4, 2, 0)
        assert (NUDGED in latents(found, "rivals: teacher")) is listed
        assert ("as fully refined" in found.left_out.get(NUDGED, "")) is not listed
        assert study.pictures == planned(study, range(2), 4, 2, 0)


def test_a_rival_that_can_do_nothing_is_left_out_and_says_why(tmp_path: Path) -> None:
    study = Linear((0.0, 1.0))
    study.refuses = lambda rival: "the noise is <known> there"
    write(analyse(study, range(2), 4, 2, 0), tmp_path)
    page = (tmp_path / "index.html").read_text("utf-8")
    assert "Left out: NLG(20), since the noise is &lt;known&gt; there." in page
    said = json.loads((tmp_path / "analysis.json").read_text("utf-8"))
    assert [*said["left out"]] == [BEST, NUDGED] and NUDGED not in said["rivals: rows"]
    assert study.pictures == planned(study, range(2), 4, 2, 0)


def test_parts_change_nothing(whole: Analysis) -> None:
    other = analyse(Linear((0.0, 1.0)), range(6), count=12, batch=1, show=2, score=brightness)
    a, b = (each.results.numbers("rivals: score") for each in (whole, other))
    assert {n: x.value for n, x in a.items()} == {n: pytest.approx(b[n].value) for n in b}
    for experiment in ("bands", "redraw", "prompts: layout", "strength: teacher"):
        a, b = latents(whole, experiment), latents(other, experiment)
        assert a.keys() == b.keys() and all(a[n] == pytest.approx(b[n], abs=1e-12) for n in a)


def test_planned_is_what_is_sampled() -> None:
    for changes in ({}, {"guided": False}, {"recipe": Recipe("m", prompts=("a cat",))}):
        study = Linear((0.0, 0.2))
        vars(study).update(changes)
        for score in (None, brightness):
            study.pictures = 0
            analyse(study, range(5), 4, 2, 1, score)
            assert study.pictures == planned(study, range(5), 4, 2, 1, score is not None)


def test_slerp_keeps_the_size_and_meets_its_ends() -> None:
    a, b = (Linear().noise([seed]) for seed in (0, 1))
    b = b * a.norm() / b.norm()
    for t in (0.0, 0.3, 1.0):
        assert float(slerp(a, b, t).norm()) == pytest.approx(float(a.norm()), rel=1e-12)
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)


def test_way_between_noises_is_even_for_a_linear_sampler(whole: Analysis) -> None:
    even = whole.results.numbers("between")
    assert even[UNREFINED].value == pytest.approx(0.25, abs=0.01)
    assert even[REFINED].value == pytest.approx(even[UNREFINED].value, abs=1e-9)


def test_partners_share_most_and_fewest_words() -> None:
    found = partners(["red cat", "green trees"], PROMPTS)
    assert found["similar"] == ["red dog", "small green tree"]
    assert found["unrelated"] == ["green trees", "red cat"] and found["empty"] == ["", ""]
    assert [*partners(["a", "b"], ["a", "b", "a"])] == ["empty"]


def test_ratio_is_of_sums_and_none_where_there_is_nothing() -> None:
    over = torch.tensor([1.0, 3.0], dtype=torch.float64)
    found = ratio(over, torch.tensor([2.0, 2.0], dtype=torch.float64))
    assert found.value == 1 and found.interval == (pytest.approx(0.5, 0.1), pytest.approx(1.5, 0.1))
    assert ratio(over, torch.zeros(2, dtype=torch.float64)) is None


def test_numbers_that_cannot_be() -> None:
    for seeds, more in (
        ([0], {}),
        ([1, 1], {}),
        ([0, 1], {"count": 0}),
        ([0, 1], {"batch": 0}),
        ([0, 1], {"show": -1}),
    ):
        with pytest.raises(ValueError, match="at least 2 seeds, each once, and count >= 2"):
            analyse(Linear((0, 1)), seeds, **more)
    with pytest.raises(ValueError, match="leaves noise as it is"):
        analyse(Linear(), [0, 1], 4)


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_samples_that_tell_nothing(value: float) -> None:
    class Broken(Linear):
        def draw(self, noise: Tensor, texts: Sequence[str], path: bool = False) -> Samples:
            return super().draw(noise * value, texts, path)

    with pytest.raises(ValueError, match=f"are {value:g} apart: they must be finite"):
        analyse(Broken((0, 1)), [0, 1], 4)


# ------------------------------------------------------------------ what is written


def test_files(whole: Analysis, tmp_path: Path) -> None:
    write(whole, tmp_path)
    said = json.loads((tmp_path / "analysis.json").read_text("utf-8"))
    assert said["verdicts"][0]["answer"] == "no" and said["seeds"] == "0-5"
    assert said["bands"]["0 to 0.1"]["latents"]["value"] == latents(whole, "bands")["0 to 0.1"]
    assert "NaN" not in json.dumps(said) and said == json.loads(json.dumps(numbers(whole)))
    page = (tmp_path / "index.html").read_text("utf-8")
    assert not re.search(r'(src|href)="(?!data:|#)', page) and "Not measured" not in page
    assert page.count("<svg") == 12 == len([*tmp_path.glob("*.svg")])
    kept = sum(len(p) for e in whole.results.images.values() for p in e.values())
    assert page.count("<img") == kept + 2 * 3  # both ends and 0 to 0.1 are in two tables
    assert said["rivals: rows"]["best of 4"] == {"value": 16, "interval": [16, 16]}
    assert said["rivals: teacher"][NUDGED]["latents"]["value"] == pytest.approx(0.25)
    row = re.search(r"<tr><th>best of 4</th>(.*?)</tr>", page)[1]
    score = said["rivals: score"]["best of 4"]["value"]
    assert row.startswith("<td>16</td><td></td><td></td><td></td>") and f"<td>{score:.3g}" in row
    for name in ("bands", "redraw", "strength", "prompts", "trajectory, guided", "rivals"):
        with Image.open(tmp_path / f"{name.replace(', ', '-')}.png") as sheet:
            columns, pixels = whole.results.images[name], np.asarray(sheet.convert("L"))
            assert sheet.width > 18 * len(columns) and sheet.height >= 18 * 2
            for label in (pixels[: LINE + GAP], pixels[:, :LABEL]):  # of columns, of rows
                assert label.min() < 100


def test_the_page_says_what_is_missing(tmp_path: Path) -> None:
    """Without guidance, score, other prompts and pictures: nothing is drawn in their place."""
    study = Linear((0.0, 0.2))
    study.guided, study.recipe = False, Recipe("m", prompts=("<b>cat",), refiner="r")
    write(analyse(study, range(3), 4, 2, show=0), tmp_path)
    page = (tmp_path / "index.html").read_text("utf-8")
    for said in ("Not measured: there is no guidance", "No score was named", "have to be three"):
        assert said in page
    for said in ("guided, since no guidance was named", "best of 4, since no score was named"):
        assert f"Left out: {said}" in page
    assert page.count("<svg") == 9 and "<img" not in page and not [*tmp_path.glob("*.png")]
    assert json.loads((tmp_path / "analysis.json").read_text())["round trip"] == {}


# ------------------------------------------------------------------ through a pipeline


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.saved(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def refiner(model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("refiner")
    moved(NoiseRefiner(load(model, torch.float32), rank=2)).save(folder)
    return str(folder)


def moved(refiner: NoiseRefiner) -> NoiseRefiner:
    """With random weights: it changes the noise in some way."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in refiner.parameters.values():
            p.copy_(0.1 * torch.randn(p.shape, generator=draw))
    return refiner


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr("sys.argv", ["diffsteer", "refine", "analyse", *map(str, words)])
    main()


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS), "utf-8")
    return tmp_path / "prompts.txt"


def test_features_are_those_of_the_extra_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert _extractor("cpu") is None
    monkeypatch.undo()
    assert isinstance(_extractor("cpu"), EfficientNetLite0)


def test_the_command(
    model: str, refiner: str, prompts: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    out = prompts.parent / "out"
    monkeypatch.setattr("diffsteer_lab.cli.analyse._extractor", lambda device: None)
    monkeypatch.setattr("diffsteer.io.progress.PAUSE", 0.0)
    words = [model, "--refiner", refiner, "--prompts", prompts, "--out", out, "--device", "cpu"]
    words += ["--guidance", "CFG(3)", "--steps", 2, "--seeds", "3-4", "--count", 4, "--show", 1]
    words += ["--score", "test_noise_analysis:brightness"]
    run(monkeypatch, *words)
    printed, progress = capsys.readouterr()
    assert progress.startswith(f"opening {model}\n")
    assert "4 noises to refine, then 1" in progress
    assert re.search(r"\d+ of \d+ images, \d+ s left", progress)  # though no terminal is there
    assert "Does the lowest band carry the result?" in printed and "index.html" in printed
    said = json.loads((out / "analysis.json").read_text("utf-8"))
    assert said["recipe"]["refiner"] == refiner and said["seeds"] == "3-4"
    assert said["refiner"] == json.loads((Path(refiner) / "refiner.json").read_text())["sha256"]
    left = said["bands"]["0 to 0.1"]["latents"]["value"]
    assert said["verdicts"][0]["carried"]["value"] == pytest.approx(1 - left)
    assert said["strength: change"]["0"]["latents"]["value"] == 0
    assert {*said["round trip"]} == {*INVERSIONS}
    rows = {name: each["value"] for name, each in said["rivals: rows"].items()}
    assert rows == {UNREFINED: 2, FULLY: 3, GUIDED: 4, NUDGED: 2 + 40, BEST: 8}
    page = (out / "index.html").read_text("utf-8")
    assert "Not measured: distances of features" in page and "CFG(3)" in page


@pytest.mark.parametrize("zero", [False, True], ids=["eps", "v, zero SNR"])
def test_inversion_goes_back_on_the_levels_of_the_pipeline(
    model: str, tmp_path: Path, zero: bool
) -> None:
    """What becomes of the noise that it finds, the pipeline's own sampling makes of it too."""
    if zero:
        kind = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
        pipe = load(model, torch.float32)
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **kind)
        pipe.save_pretrained(tmp_path)
        model = str(tmp_path)
    recipe = Recipe(model, prompts=PROMPTS, sampler="DDIM()", steps=4, refiner="NLG(1)")
    with noise_experiment(recipe, "cpu") as studied:
        texts = list(PROMPTS[:2])
        target = studied.draw(studied.noise([0, 1]), texts).latents
        noise, again = studied.inverted(target, texts, Inversion(9))
        drawn = studied.draw(noise, texts).latents
        assert ("the noise is known" in studied.refuses(NLG())) is zero
        if not zero:  # NLG knows no noise to guide at zero SNR
            pipe = load(model, torch.float32)
            want = refine(pipe, noise, texts, NLG(1))
            torch.testing.assert_close(studied.refined(noise, texts), want, atol=1e-5, rtol=1e-5)
    # float32 through four steps of a random network
    torch.testing.assert_close(drawn, again, atol=1e-4, rtol=1e-4)
    if zero:  # slopes of a network for eps with random weights are none of data
        assert (again - target).norm() < 0.02 * target.norm()


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Of a small Flux with a refiner; images of 16 x 32, noise of 4 x 8 x 16 in 4 x 8 patches."""
    folder = tmp_path_factory.mktemp("flux")
    tiny.flux(folder).save_pretrained(folder / "pipe")
    moved(NoiseRefiner(load(str(folder / "pipe"), torch.float32))).save(folder / "refiner")
    names = {"model": str(folder / "pipe"), "refiner": str(folder / "refiner")}
    return Recipe(**names, prompts=PROMPTS, guidance="CFG(3)", steps=2, width=32, height=16)


def test_noise_is_packed_for_the_pipeline_alone(flux: Recipe) -> None:
    """It gets what it would draw and pack itself, and gives images of the same size."""
    with noise_experiment(flux, "cpu") as studied:
        assert studied.shape == (4, 8, 16)
        noise, texts = studied.noise([0, 1]), list(PROMPTS[:2])
        given: list[Tensor] = []
        plain = replace(flux, refiner="", guidance="", settings=("guidance_scale=1.0",))
        with open_pipeline(plain, "cpu") as images:
            pipe, want = images.pipe, images([0, 1])
        watch = pipe.transformer.register_forward_pre_hook(
            lambda _, args, said: given.append(said["hidden_states"]), with_kwargs=True
        )
        drawn = studied.draw(noise, texts, path=True)
        watch.remove()
        assert torch.equal(given[0], pipe._pack_latents(noise, 2, 4, 8, 16))
        assert torch.equal(drawn.images, want)
        assert torch.equal(studied.decoded(drawn.latents, texts), want)
        torch.testing.assert_close(drawn.path[-1], drawn.latents)  # Euler's last step goes to x0
        assert drawn.latents.shape == noise.shape and len(drawn.path) == 2
        own = pipe._pack_latents(noise, 2, 4, 8, 16)
        got = refine(pipe, own, texts, studied.by, width=32, height=16)
        want = pipe._unpack_latents(got, 16, 32, pipe.vae_scale_factor)
        torch.testing.assert_close(studied.refined(noise, texts), want)
        back, again = studied.inverted(drawn.latents, texts, Inversion(9))
        ends = studied.draw(back, texts).latents  # on levels shifted for the size
        torch.testing.assert_close(ends, again, atol=1e-4, rtol=1e-4)


def test_a_model_of_classes_is_analysed(tmp_path: Path) -> None:
    """DiT takes no latents: its noise is given to its network and its scheduler."""
    pipe, model = tiny.saved_dit(tmp_path)
    moved(NoiseRefiner(pipe)).save(tmp_path / "refiner")
    names = {"model": model, "refiner": str(tmp_path / "refiner"), "guidance": "CFG(3)"}
    recipe = Recipe(**names, prompts=("golden retriever", "208"), sampler="DDIM()", steps=2)
    with noise_experiment(recipe, "cpu") as studied:
        noise, texts = studied.noise([0, 1]), list(recipe.prompts)
        for guidance, drawn in {
            "": studied.draw(noise, texts, path=True),
            "CFG(3)": studied.teach(noise, texts, path=True),
        }.items():
            with open_pipeline(replace(recipe, refiner="", guidance=guidance), "cpu") as images:
                # moved to noise that is there already, to rounding: a level of an image at most
                assert (images([0, 1]).int() - drawn.images.int()).abs().max() <= 1
            torch.testing.assert_close(drawn.path[-1], drawn.latents, atol=1e-5, rtol=1e-5)
            assert torch.equal(studied.decoded(drawn.latents, texts), drawn.images)
        found = analyse(studied, [0, 1], 2, 2, 1)
        write(found, tmp_path / "page")
    assert found.shape == (4, 8, 8)


def test_flux_is_analysed(flux: Recipe, tmp_path: Path) -> None:
    with noise_experiment(flux, "cpu") as studied:
        made = []
        studied.progress = made.append
        found = analyse(studied, [0, 1], 2, 2, 1)
        assert sum(made) == planned(studied, [0, 1], 2, 2, 1)
    assert found.shape == (4, 8, 16) and found.verdicts[0].of == 8 * 16
    assert {*found.results.numbers("round trip")} == {*INVERSIONS}
    assert found.results.ratios(ALL)["2"][GUIDED].value < 1e-9
    write(found, tmp_path)
    assert "Noise of 4 x 8 x 16" in (tmp_path / "index.html").read_text("utf-8")


def test_a_sampler_of_ours_on_a_flow_says_what_to_do(flux: Recipe) -> None:
    """It is the default of the command, which everyone with a Flux meets."""
    with (
        pytest.raises(ValueError, match='FlowMatchEulerDiscreteScheduler.*--sampler ""'),
        noise_experiment(replace(flux, sampler="DDIM()"), "cpu"),
    ):
        pass


SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
ZERO = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}


def oracle(scheduler: Any, meant: list[Tensor]) -> Any:
    """A network that says the x0 that is half of its sample and some of its prompt, by formula."""

    def act(said: dict[str, Any]) -> tuple[Tensor]:
        x = said.get("sample", said.get("hidden_states")).double()
        text = (
            said["encoder_hidden_states"].double()[..., 0].mean(1).reshape(-1, *[1] * (x.ndim - 1))
        )
        t = float(torch.as_tensor(said["timestep"]).flatten()[0])
        x0 = x / 2 + text
        meant.append(x0)
        if "hidden_states" in said:  # told sigma
            return (((x - (1 - t) * x0) / t - x0).float(),)
        square = scheduler.alphas_cumprod[int(t)].double()
        eps = (x - square.sqrt() * x0) / (1 - square).sqrt()
        v = square.sqrt() * eps - (1 - square).sqrt() * x0
        return ((v if scheduler.config.prediction_type == "v_prediction" else eps).float(),)

    return act


@pytest.mark.parametrize(
    ("scheduler", "guidance"),
    [
        (diffusers.DDIMScheduler(**SD, clip_sample=False), ""),
        (diffusers.DDIMScheduler(**SD, clip_sample=False), "CFG(3)"),
        (diffusers.EulerDiscreteScheduler(**SD), ""),  # its samples are not the network's
        (diffusers.PNDMScheduler(**SD, skip_prk_steps=True), ""),
        (SteerScheduler(**SD, **ZERO, sampler="UniPC()"), "CFG(3)"),
        (None, ""),
    ],
    ids=["DDIM", "guided", "Euler", "PNDM", "UniPC, v, zero SNR", "Flux"],
)
def test_what_is_watched_is_the_x0_that_the_network_means(
    tmp_path: Path, scheduler: Any, guidance: str
) -> None:
    pipe = tiny.stable_diffusion(scheduler, tmp_path) if scheduler else tiny.flux(tmp_path)
    size = {} if scheduler else {"width": 16, "height": 16}
    recipe = Recipe("m", prompts=PROMPTS, steps=4, guidance=guidance, **size)
    noise = torch.randn(2, *((4, 8, 8) if scheduler else (16, 16)))
    seen: list[Tensor] = []
    meant: list[Tensor] = []
    with network_replaced(pipe, oracle(pipe.scheduler, meant)), configured(pipe, recipe):
        sample_from_noise(pipe, recipe, PROMPTS[:2], noise, watch=seen.append)
    assert len(seen) == len(meant) >= 4 and "step" not in vars(pipe.scheduler)
    if guidance:
        halves = [each.chunk(2) for each in meant]
        assert (halves[0][0] - halves[0][1]).abs().max() > 1e-3  # the prompts say something
        meant = [null + 3 * (cond - null) for cond, null in halves]
    for x0, want in zip(seen, meant, strict=True):
        # float32, divided by alpha >= 0.07 at the noisiest level
        torch.testing.assert_close(x0.double(), want, atol=2e-4, rtol=1e-4)


def test_pictures_of_latents_are_the_pipelines_own_and_cost_no_rows(model: str) -> None:
    recipe = Recipe(model, prompts=PROMPTS, sampler="DDIM()", steps=3, refiner="NLG(1)")
    with noise_experiment(recipe, "cpu") as studied:
        texts = list(PROMPTS[:2])
        drawn = studied.draw(studied.noise([0, 1]), texts, path=True)
        studied.nfe()
        assert torch.equal(studied.decoded(drawn.latents, texts), drawn.images)
        assert not torch.equal(studied.decoded(drawn.path[0], texts), drawn.images)
        assert not sum(studied.nfe().values())
    assert len(drawn.path) == 3
    torch.testing.assert_close(drawn.path[-1], drawn.latents)  # the last step goes to x0


def test_bad_input(
    model: str, refiner: str, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffsteer_lab.cli.analyse._extractor", lambda device: None)
    good = [model, "--refiner", refiner, "--prompts", prompts, "--device", "cpu"]
    out = tmp_path / "out"
    other = tmp_path / "other"
    made = load(model, torch.float32)
    with torch.no_grad():
        made.unet.conv_out.bias += 1
    made.save_pretrained(other)
    for words, message in (
        ([*good, "--count", 0], "count >= 2"),
        ([*good, "--seeds", 5], "at least 2 seeds"),
        ([*good, "--strength", 0], "leaves noise as it is"),
        ([*good, "--seeds", "x"], "are no seeds"),
        ([*good, "--prompt", "a cat"], "prompts in a file"),
        ([*good, "--score", "math"], "MODULE:FUNCTION"),
        ([other, *good[1:]], "trained for other weights"),
        ([model, "--prompts", prompts], "name what refines the noise"),
        ([*good[:3], "--prompts", tmp_path / "none.txt"], "no file .*none.txt of prompts"),
        ([model, "--refiner", tmp_path, "--prompts", prompts], "has no refiner.json"),
    ):
        with pytest.raises(SystemExit, match=message):
            run(monkeypatch, *words, "--out", out, "--steps", "2")
    assert not out.exists()
