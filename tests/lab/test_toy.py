"""The toy of autoguidance: its truth in closed form, its networks, and the command end to end."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffsteer_lab.toy import study
from diffsteer_lab.toy.measure import Figures, Truth
from diffsteer_lab.toy.mixture import Gaussians
from diffsteer_lab.toy.net import LogDensity, network
from diffsteer_lab.toy.report import claims, table
from diffsteer_lab.toy.study import AUTO, CFG, PLAIN, TRUNCATED, WAYS, Row, Study
from diffsteer_lab.toy.training import Training
from diffsteer_lab.toy.tree import branches, cells, mixture
from torch import Tensor

from diffsteer import EDM, Cosine, Eps, Level
from diffsteer.cli.main import main
from diffsteer.core.errors import InputError
from diffsteer.core.level import CLEAN
from diffsteer.core.oracle import Gaussian
from diffsteer.guidance import Denoiser

F64 = torch.float64
LEVELS = [EDM().at(s) for s in (0.002, 0.1, 5.0)] + [Cosine().at(t) for t in (0.3, 0.9)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Find the edge of the truth from fewer samples."""
    monkeypatch.setattr("diffsteer_lab.toy.measure.LEVEL_FROM", 2**13)


def points(n: int = 60, seed: int = 0) -> Tensor:
    """Points where the tree is, and around it."""
    generator = torch.Generator().manual_seed(seed)
    x = mixture(branches("A")).draw(n, generator)
    return x + 0.1 * torch.randn(n, 2, generator=generator, dtype=F64)


def naive(x: Tensor, level: Level) -> Tensor:
    """Log density of class A by a library's general Gaussians, each with its own covariance."""
    flat = [(b.weight, mean, b.cov) for b in branches("A") for mean in b.means]
    weights, means, covs = (
        torch.from_numpy(np.array(column)) for column in zip(*flat, strict=True)
    )
    covs = level.alpha**2 * covs + level.sigma**2 * torch.eye(2, dtype=F64)
    parts = torch.distributions.MultivariateNormal(level.alpha * means, covs).log_prob(x[:, None])
    return (parts + (weights / weights.sum()).log()).logsumexp(1)


def test_the_tree_is_that_of_the_paper() -> None:
    """Both classes are standardised to mean 0 and deviation 0.5, which any other draw would miss.

    Measured moments are known to five digits.
    """
    exact = mixture(branches())
    assert exact.weights.numel() == 2032 and mixture(branches("A")).weights.numel() == 1016
    weights, means = exact.weights[..., None], exact.means
    mean = (weights * means).sum((0, 1))
    covs = torch.stack([torch.from_numpy(b.cov).diagonal() for b in branches()])
    var = (weights * (means - mean) ** 2).sum((0, 1)) + (exact.weights.sum(1)[:, None] * covs).sum(
        0
    )
    assert mean.tolist() == pytest.approx([-0.0001, 0.0006], abs=5e-5)
    assert var.sqrt().tolist() == pytest.approx([0.49985, 0.49990], abs=5e-6)


def test_subtrees() -> None:
    table = cells(branches("A"))
    assert table.shape == (9, 127)
    assert table.sum(0).tolist() == [1] * 127 and table.sum(1).tolist() == [7] + [15] * 8


@pytest.mark.parametrize("level", LEVELS)
def test_density_against_a_general_mixture(level: Level) -> None:
    x = points()
    torch.testing.assert_close(
        mixture(branches("A")).log_density(x, level), naive(x, level), atol=1e-10, rtol=1e-10
    )


@pytest.mark.parametrize("level", LEVELS)
def test_score_is_the_gradient_and_gives_the_denoised_point(level: Level) -> None:
    exact = mixture(branches("A"))
    x = points().requires_grad_()
    (slope,) = torch.autograd.grad(exact.log_density(x, level).sum(), x)
    torch.testing.assert_close(exact.score(x, level), slope, atol=1e-9, rtol=1e-9)
    # Tweedie: alpha E[x0 | x] = x + sigma^2 score
    tweedie = (x + level.sigma**2 * slope) / level.alpha
    torch.testing.assert_close(exact(x, level), tweedie, atol=1e-9, rtol=1e-9)


def test_density_integrates_to_one() -> None:
    """A sum over a grid is exact to rounding where the noise is wide beside its step."""
    axis = torch.linspace(-4, 4, 161, dtype=F64)
    level = EDM().at(0.2)
    logs = mixture(branches("AB")).log_density(torch.cartesian_prod(axis, axis), level)
    assert logs.exp().sum().item() * 0.05**2 == pytest.approx(1, abs=1e-12)


def test_levels_of_single_points_and_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    exact, x = mixture(branches("A")), points(7)
    sigma = torch.linspace(0.01, 1, 7, dtype=F64)
    together = exact.score(x, Level(sigma, torch.ones(7, dtype=F64), sigma))
    alone = torch.cat([exact.score(x[i : i + 1], EDM().at(s)) for i, s in enumerate(sigma)])
    torch.testing.assert_close(together, alone, atol=1e-9, rtol=1e-12)
    monkeypatch.setattr("diffsteer_lab.toy.mixture.BLOCK", 3 * 1016)
    parts = exact.score(x, Level(sigma, torch.ones([], dtype=F64), sigma))
    torch.testing.assert_close(parts, alone, atol=1e-9, rtol=1e-12)


def test_float32_errs_little() -> None:
    """At the least noise a coordinate's rounding, 6e-8, is 1e-5 of a twig's width."""
    exact, x = mixture(branches("A")), points(2000).float()
    for level in LEVELS:
        single, double = exact.score(x, level), exact.score(x.double(), level)
        assert ((single - double).norm(dim=1) / double.norm(dim=1)).max() < 1e-3


def test_one_gaussian_is_the_gaussian_oracle() -> None:
    exact = Gaussians(torch.ones(1, 1), torch.full((1, 1, 3), 1.5), 0.25 * torch.eye(3)[None])
    x = torch.randn(4, 3, dtype=F64)
    for level in (*LEVELS, Cosine().at(1.0)):  # pure noise included
        torch.testing.assert_close(
            exact(x, level), Gaussian(1.5, 0.5)(x, level), atol=1e-12, rtol=0
        )


def test_draws_have_the_moments_of_the_mixture() -> None:
    """And fall on branches as their weights say: chi-square of 126 degrees, 5 deviations."""
    exact, n = mixture(branches("A")), 20000
    x = exact.draw(n, torch.Generator().manual_seed(0))
    mass, true = exact.groups(x, CLEAN).mean(0), exact.weights.sum(1)
    assert mass.sum().item() == pytest.approx(1, abs=1e-12)
    assert (n * (mass - true) ** 2 / true).sum() < 126 + 5 * math.sqrt(2 * 126)


@pytest.mark.parametrize(
    ("weights", "covs", "says"),
    [
        ([[1.0, 1.0]], [[[1.0]]], "do not fit"),
        ([[0.0]], [[[1.0]]], "weights > 0"),
        ([[1.0]], [[[-1.0]]], "without variance < 0"),
    ],
)
def test_mixtures_that_cannot_be(weights: list, covs: list, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Gaussians(torch.tensor(weights), torch.zeros(1, 1, 1), torch.tensor(covs))


# ------------------------------------------------------------------------------ networks


def net(dim: int = 8, gain: float = 0.3) -> LogDensity:
    torch.manual_seed(0)
    made = LogDensity(dim).double()
    torch.nn.init.constant_(made.gain, gain)
    return made


def test_score_against_finite_differences() -> None:
    """Central differences of step h err by h^2 of a third derivative and 1e-16 / h of rounding."""
    made, x, h = net().eval(), points(20), 1e-5
    for sigma in (torch.tensor(0.1, dtype=F64), torch.linspace(0.05, 2, 20, dtype=F64)):
        slopes = [
            (made(x + h * unit, sigma) - made(x - h * unit, sigma)) / (2 * h)
            for unit in torch.eye(2, dtype=F64)
        ]
        torch.testing.assert_close(
            made.score(x, sigma), torch.stack(slopes, 1), atol=1e-7, rtol=1e-7
        )


def test_score_before_training_is_that_of_a_gaussian() -> None:
    """G = -|x|^2 / (2 (sigma^2 + 0.25)), so that x0 is the posterior mean of N(0, 0.25)."""
    made, x = net(gain=0.0), points(20)
    for sigma in (0.01, 0.5, 5.0):
        level = EDM().at(sigma)
        denoise = Denoiser({"main": network(made)}, {"cond": {}}, Eps())
        torch.testing.assert_close(denoise(x, level), Gaussian(0.0, 0.5)(x, level))


def test_loss_reaches_every_weight_through_the_score() -> None:
    made = net().train()
    made.score(points(20), torch.tensor(0.1, dtype=F64)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in made.parameters())


def test_truncation_multiplies_the_score() -> None:
    made, x, level = net(), points(20), EDM().at(0.3)
    plain, sharp = (
        Denoiser({"main": network(made, c)}, {"cond": {}}, Eps())(x, level) for c in (1.0, 1.4)
    )
    torch.testing.assert_close(sharp - x, 1.4 * (plain - x))


SHORT = Training("A", dim=8, steps=60, batch=256)


def test_a_training_that_ends_in_nan_is_refused() -> None:
    with pytest.raises(InputError, match="training ended with a loss of nan"):
        replace(SHORT, steps=3, batch=4, rate=math.inf).run()


def test_training_learns_and_repeats() -> None:
    """Error of the score, in the units of the loss, beside that of the Gaussian it begins as."""
    trained, again = SHORT.run(), SHORT.run()
    for a, b in zip(trained.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    level, exact = EDM().at(0.3), mixture(branches("A"))
    x = level.mix(exact.draw(500, torch.Generator().manual_seed(1)), torch.randn(500, 2)).float()
    error = (trained.eval().score(x, level.sigma) - exact.score(x, level)).square().mean()
    first = (-x / (0.09 + 0.25) - exact.score(x, level)).square().mean()
    assert error < 0.7 * first


def test_networks_are_kept_with_their_settings(tmp_path: Path) -> None:
    made = LogDensity(8)
    SHORT.keep(made, tmp_path / "a")
    found = SHORT.kept(tmp_path / "a")
    assert found is not None and SHORT.kept(tmp_path / "b") is None
    x, sigma = points(5).float(), torch.tensor(0.3)
    assert torch.equal(found(x, sigma), made(x, sigma))
    with pytest.raises(ValueError, match="another network: dim was 8 and is 16.*another --out"):
        replace(SHORT, dim=16).kept(tmp_path / "a")
    (path,) = (tmp_path / "a").rglob("weights.safetensors")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="is broken"):
        SHORT.kept(tmp_path / "a")


# ------------------------------------------------------------------------------ measures


def test_the_truth_is_at_the_floor_of_every_measure() -> None:
    """Independent exact samples: each figure within what 2000 samples leave to chance."""
    truth = Truth(2000)
    found = truth.measure(truth.exact.draw(2000, torch.Generator().manual_seed(1)))
    assert found.outliers == pytest.approx(1, abs=0.9)  # 4 deviations of a count of 20
    assert (found.coarse, found.branches) < (0.06, 0.12)
    assert abs(found.energy) < 2e-3 and found.sliced < 0.06 and found.recall > 0.95


def test_measures_see_what_is_wrong() -> None:
    truth = Truth(1000)
    x = truth.samples
    still = truth.measure(x)
    assert still.sliced == 0 and still.recall == 1
    moved = truth.measure(
        x + torch.tensor([0.3, 0.4], dtype=F64)
    )  # 0.5 away; along a line, that times cos
    assert moved.sliced == pytest.approx(0.5 * math.sqrt(0.5), rel=1e-9)
    assert moved.outliers > 50 and moved.coarse > 0.2
    half = truth.measure(x[x[:, 1].argsort()[:500]].repeat(2, 1))
    assert half.outliers < 2 and half.coarse > 0.2 and half.recall < 0.7 and half.energy > 0.05


def test_energy_distance_against_the_plain_definition() -> None:
    truth = Truth(200)
    x, y = 2 * truth.samples.flip(0), truth.samples
    between, own, other = (torch.cdist(a, b) for a, b in ((x, y), (x, x), (y, y)))
    want = 2 * between.mean() - (own.sum() + other.sum()) / (200 * 199)
    assert truth.measure(x).energy == pytest.approx(want.item(), abs=1e-6)  # pairs are in float32


# ------------------------------------------------------------------------------ the study


def test_ways_are_expressions_of_the_library() -> None:
    """Each way's x0 from the networks' own, by the formulas of the papers."""
    nets = {("main", 0): net(), ("guide", 1): net(4), ("uncond", 1): net(6)}
    made = Study(nets, Truth(100))
    x, level = points(20), EDM().at(0.3)
    x0 = {
        role: x + level.sigma**2 * one.eval().score(x, level.sigma)
        for (role, _), one in nets.items()
    }
    for way in WAYS:
        weight = float(way.name.split()[-1]) if way.name[-1].isdigit() else 0.0
        want = {
            "": x + way.truncation * (x0["main"] - x),
            "guide": x0["guide"] + weight * (x0["main"] - x0["guide"]),
            "uncond": x0["uncond"] + weight * (x0["main"] - x0["uncond"]),
        }[way.guide]
        found = made.denoiser(way, 0, 1 if way.guide else None)(x, level)
        torch.testing.assert_close(found, want)


def test_the_exact_score_gives_the_truth() -> None:
    """Heun's 32 steps from exact noisy points: the library's sampler errs below what is seen."""
    made = Study({}, Truth(1000))
    exact, by_score = made.rows([], [])
    assert (exact.way, by_score.way) == study.FLOORS
    for name, most in (("outliers", 1.5), ("log_p", 0.1), ("coarse", 0.04), ("sliced", 0.04)):
        assert abs(getattr(exact.figures, name) - getattr(by_score.figures, name)) < most


def rows(changes: dict[str, dict[str, float]]) -> list[Row]:
    """What the study would find; figures with the second guide are changed by the way's name."""
    base = {"log_p": 0.0, "branches": 0.1, "sliced": 0.01, "recall": 0.98}
    figures = {
        PLAIN.name: {"outliers": 10.0, "coarse": 0.01, "energy": 0.0},
        AUTO[2].name: {"outliers": 7.0, "coarse": 0.05, "energy": 0.001},
        AUTO[3].name: {"outliers": 8.0, "coarse": 0.07, "energy": 0.002},
        CFG[1.5].name: {"outliers": 9.0, "coarse": 0.1, "energy": 0.02},
        CFG[2].name: {"outliers": 8.0, "coarse": 0.2, "energy": 0.04},
        CFG[4].name: {"outliers": 12.0, "coarse": 0.5, "energy": 0.3},
    }
    found = []
    for guide in (0, 1):
        for name, said in figures.items():
            changed = changes.get(name, {}) if guide == 1 else {}
            seed = guide if name != PLAIN.name else None
            found.append(Row(name, 3, seed, Figures(**{**base, **said, **changed})))
    return found


@pytest.mark.parametrize(
    ("changes", "held"),
    [
        ({}, (2, 2, 2, 2, 2)),
        ({AUTO[2].name: {"outliers": 9.1}}, (1, 2, 2, 2, 2)),
        ({AUTO[2].name: {"energy": 0.0081}}, (2, 1, 2, 2, 2)),
        ({AUTO[2].name: {"outliers": 9.6}}, (1, 1, 2, 2, 2)),
        ({CFG[2].name: {"outliers": 9.5}}, (2, 2, 2, 2, 2)),  # then CFG's best weight is 1.5
        ({AUTO[2].name: {"coarse": 0.1}}, (2, 2, 1, 2, 2)),
        ({AUTO[3].name: {"outliers": 11.0}}, (2, 2, 2, 1, 2)),
        ({AUTO[2].name: {"recall": 0.985}}, (2, 2, 2, 2, 1)),
        ({AUTO[2].name: {"sliced": 0.009}}, (2, 2, 2, 2, 1)),
    ],
)
def test_claims_are_measured(changes: dict, held: tuple[int, ...]) -> None:
    found = claims(rows(changes))
    assert tuple(sum(claim.held) for claim in found) == held
    for claim in found:
        verdict = "holds, 2 of 2" if all(claim.held) else "does not hold, 1 of 2"
        assert f": {verdict} (" in str(claim)


def test_table_shows_the_spread() -> None:
    lines = table(rows({CFG[2].name: {"energy": 0.08}})).splitlines()
    assert lines[0].startswith("|  | outliers % | mean log p | coarse TV | branch TV | energy |")
    (line,) = [line for line in lines if line.startswith("| CFG, weight 2 |")]
    assert "| 8.0 (8.0 to 8.0) |" in line and "| 0.0600 (0.0400 to 0.0800) |" in line


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A study of seconds; returns the roles and seeds that are trained, as they are."""
    nets = {
        role: replace(SHORT, classes=how.classes, steps=3, batch=32)
        for role, how in study.NETS.items()
    }
    monkeypatch.setattr("diffsteer_lab.toy.run.STEPS", 3)  # first: it imports the true number
    monkeypatch.setattr(study, "NETS", nets)
    monkeypatch.setattr(study, "STEPS", 3)
    monkeypatch.setattr("diffsteer_lab.toy.draw.CELLS", 20)
    made: list[str] = []
    run = Training.run

    def counted(self: Training, *args) -> LogDensity:
        made.append(f"{self.classes} {self.seed}")
        if made == ["A 7", "A 0", "A 1"]:
            raise KeyboardInterrupt
        return run(self, *args)

    monkeypatch.setattr(Training, "run", counted)
    return made


def command(monkeypatch: pytest.MonkeyPatch, *args: str) -> None:
    monkeypatch.setattr("sys.argv", ["diffsteer", "toy", *args])
    main()


def test_command(
    short: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    args = ("--out", str(tmp_path), "--seeds", "7", "--guides", "0,1", "--samples", "120")
    with pytest.raises(SystemExit):
        command(monkeypatch, *args)  # interrupted while it trains the third network
    assert not (tmp_path / "toy.json").exists()
    command(monkeypatch, *args)
    assert short == ["A 7", "A 0", "A 1", "A 1", "AB 0", "AB 1"]
    printed = capsys.readouterr().out
    assert "N=120, main networks of seeds 7, guides of seeds 0-1, 3 Heun steps" in printed
    said = json.loads((tmp_path / "toy.json").read_text("utf-8"))
    first = (tmp_path / "toy.json").read_bytes()
    assert len(said["rows"]) == 2 + 1 + 2 + 2 * (1 + len(AUTO) + len(CFG))
    for name in (PLAIN.name, *(way.name for way in TRUNCATED.values())):
        assert [(r["main"], r["guide"]) for r in said["rows"] if r["way"] == name] == [(7, None)]
    assert [claim["name"] for claim in said["claims"]] == list("abcde")
    assert all(f"\n* {claim['name']}. " in printed for claim in said["claims"])
    assert (tmp_path / "toy.png").read_bytes().startswith(b"\x89PNG")
    command(monkeypatch, *args)
    assert len(short) == 6 and (tmp_path / "toy.json").read_bytes() == first
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["networks", "toy.json", "toy.md", "toy.png"]
    assert (tmp_path / "toy.md").read_text("utf-8") in printed


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--samples", "99"), "99 samples show nothing: give at least 100"),
        (("--seeds", "one"), "'one' are no seeds"),
        (("--guides", "0,0"), "names a seed twice"),
    ],
)
def test_mistakes(
    args: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match=says):
        command(monkeypatch, "--out", str(tmp_path / "out"), *args)
    assert not (tmp_path / "out").exists()


def test_networks_of_other_settings_are_refused(
    short: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace(SHORT, seed=0).keep(LogDensity(8), tmp_path / "networks" / "main-0")
    with pytest.raises(SystemExit, match="main-0 holds another network: batch was 256 and is 32"):
        command(monkeypatch, "--out", str(tmp_path), "--samples", "120")
    assert not short
