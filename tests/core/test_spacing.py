"""Which levels are visited: Lin et al. 2023, table 2, in whole numbers for every step count."""

import math

import pytest
import torch
from diffusers.schedulers import AysSchedules

from diffsteer import EDM, SPACINGS, Cosine, Discrete, Flow, Karras, grid, respaced
from diffsteer.core.level import CLEAN
from diffsteer.core.schedule.continuous import OffsetCosine

F64 = torch.float64
SD = Discrete.scaled_linear()


def times(levels) -> list[float]:
    assert levels[-1] is CLEAN
    return [level.t.item() for level in levels[:-1]]


@pytest.mark.parametrize(
    ("spacing", "one_based"),
    [
        ("leading", [1, 101, 201, 301, 401, 501, 601, 701, 801, 901]),
        ("linspace", [1, 112, 223, 334, 445, 556, 667, 778, 889, 1000]),
        ("trailing", [100, 200, 300, 400, 500, 600, 700, 800, 900, 1000]),
    ],
)
def test_table_2(spacing: str, one_based: list[int]) -> None:
    assert times(grid(SD, 10, spacing)) == [t - 1 for t in reversed(one_based)]


def test_trailing_starts_at_the_last_time_itself() -> None:
    """5 last / 5 is not last in float64, and a time beyond it is of no trained level."""
    for schedule in (OffsetCosine(0.008), Cosine(), Flow(), EDM()):
        assert all(grid(schedule, n, "trailing")[0].t == schedule.last for n in range(1, 101))


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_every_step_count(spacing: str) -> None:
    """S whole, decreasing timesteps for all S; all of them at S = T."""
    for n in range(1, 1001):
        t = SPACINGS[spacing](SD, n)
        assert len(t) == n and (t == t.round()).all() and (t.diff() < 0).all()
        assert t[-1] >= 0 and t[0] <= 999
        assert spacing == "leading" or t[0] == 999
    assert t.tolist() == list(range(999, -1, -1))


@pytest.mark.parametrize("n", [61, 103, 121, 206, 217, 333, 999])
def test_trailing_is_rounded_exactly(n: int) -> None:
    """round(T i / S) - 1 by integer arithmetic, at counts where floating point adds a node."""
    half = [(2000 * i + n) // (2 * n) - 1 for i in range(n, 0, -1)]  # no ties at odd n
    assert times(grid(SD, n)) == half


@pytest.mark.parametrize("n", [16, 32, 48, 80, 400])
def test_trailing_rounds_halves_to_even_as_the_paper(n: int) -> None:
    """round(flip(arange(T, 0, -T/S))) - 1 with numpy's round, where T/S is exact in binary."""
    steps = torch.arange(n, 0, -1, dtype=F64) * 1000 / n
    assert times(grid(SD, n)) == (steps.round() - 1).tolist()


def test_karras_is_the_published_formula() -> None:
    lo, hi, n = 0.002, 80.0, 18
    want = [(hi ** (1 / 7) + i / (n - 1) * (lo ** (1 / 7) - hi ** (1 / 7))) ** 7 for i in range(n)]
    assert times(grid(EDM(), n, Karras(7))) == pytest.approx(want, rel=1e-12)


def test_logsigma_is_even_in_log_sigma_below_the_last_level() -> None:
    levels = grid(SD.zero_snr(), 10, "logsigma")
    assert levels[0].alpha == 0
    steps = torch.stack([level.half_log_snr for level in levels[1:-1]]).diff()
    torch.testing.assert_close(steps, steps.mean().expand(8), rtol=1e-9, atol=0)
    assert levels[1].t.item() == pytest.approx(998) and levels[-2].t.item() == pytest.approx(0)


@pytest.mark.parametrize(
    "schedule", [SD, SD.zero_snr(), Cosine(), EDM(), Flow(), Flow(3.0)], ids=repr
)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("n", [1, 2, 7, 50])
def test_every_grid_loses_noise_and_starts_where_it_should(schedule, spacing: str, n: int) -> None:
    levels = grid(schedule, n, spacing)
    angle = torch.stack([torch.atan2(level.sigma, level.alpha) for level in levels])
    assert len(levels) == n + 1 and (angle.diff() < 0).all()
    if spacing != "leading":
        assert levels[0] == schedule.at(schedule.last)


def test_respacing_in_sections() -> None:
    """The documented example: of 300 timesteps 10, 15 and 20 in each hundred, ends visited."""
    t = times(respaced(Discrete.linear(n=300), "10,15,20"))[::-1]
    parts = [[x - lo for x in t if lo <= x < lo + 100] for lo in (0, 100, 200)]
    assert [len(p) for p in parts] == [10, 15, 20] and all(p[0] == 0 for p in parts)
    assert all(p[-1] == 99 for p in parts)
    assert times(respaced(SD, "4,0,0,0,0")) == [199, 133, 66, 0]
    assert times(respaced(SD, "1,1")) == [500, 0]
    assert times(respaced(Discrete.linear(n=10), "2,1,1")) == [7, 4, 3, 0]  # lengths 4, 3, 3


def test_respacing_by_a_count_and_as_ddim() -> None:
    for n in (*range(2, 25), 38, 299, 614, 999, 1000):
        t = respaced(SD, str(n))
        assert len(t) == n + 1 and (t[0].t, t[-2].t) == (999, 0)
    assert times(respaced(SD, "3")) == [999, 500, 0]  # 499.5 rounds to even
    assert times(respaced(SD, "")) == list(range(999, -1, -1))
    assert times(respaced(SD, "ddim25")) == times(grid(SD, 25, "leading"))


@pytest.mark.parametrize(
    "text", ["1001", "ddim300", "ddim", "a", "10,-1", "0", "0,0", "501,1", "1.5"]
)
def test_bad_respacing(text: str) -> None:
    with pytest.raises(ValueError, match="respacing|fit|stride"):
        respaced(SD, text)


@pytest.mark.parametrize("n", [0, -1, 1001, 2.5, math.nan])
def test_bad_step_counts(n) -> None:
    with pytest.raises(ValueError, match="sampling steps cannot be|do not fit on 1000"):
        grid(SD, n)


def test_bad_spacings() -> None:
    with pytest.raises(ValueError, match="no spacing is called 'even': there are trailing"):
        grid(SD, 5, "even")
    with pytest.raises(ValueError, match="must lie below the one before"):
        grid(SD, 2, lambda *_: torch.tensor([3.0, 7.0], dtype=F64))
    with pytest.raises(ValueError, match=r"gave times of shape \(3,\) for 2 steps"):
        grid(SD, 2, lambda *_: torch.tensor([9.0, 7.0, 3.0], dtype=F64))
    with pytest.raises(ValueError, match="no noise left"):
        grid(Flow(), 2, lambda *_: torch.tensor([1.0, 0.0], dtype=F64))
    with pytest.raises(ValueError, match="rho"):
        Karras(0)


def test_align_your_steps_are_the_published_tables() -> None:
    """At 10 steps the timesteps themselves; at other counts even in log-sigma between them."""
    for name, key in (("ays-sd", "StableDiffusion"), ("ays-sdxl", "StableDiffusionXL")):
        want = AysSchedules[f"{key}Timesteps"]
        assert times(grid(SD, 10, name)) == want
        sigmas = [level.ratio.item() for level in grid(SD, 10, name)[:-1]]
        assert sigmas == pytest.approx(AysSchedules[f"{key}Sigmas"][:-1], rel=0.02)
        assert times(grid(SD, 20, name))[::2] == pytest.approx(want, abs=1e-6)
    video = grid(EDM(0.002, 700.0), 10, "ays-svd")
    want = AysSchedules["StableDiffusionVideoSigmas"]
    assert [level.sigma.item() for level in video] == pytest.approx(want, rel=1e-9)
    middle = grid(SD, 20, "ays-sd")[5].half_log_snr
    assert middle == pytest.approx(sum(grid(SD, 10, "ays-sd")[i].half_log_snr for i in (2, 3)) / 2)


@pytest.mark.parametrize(
    "given", [(Flow,), ("Flow()",), (Flow(), Karras), (Flow(), [1, 0.5])], ids=str
)
def test_classes_and_texts_are_no_schedules_and_lists_no_spacings(given) -> None:
    with pytest.raises(ValueError, match="is no (schedule|spacing): give"):
        grid(given[0], 2, *given[1:])


@pytest.mark.parametrize("text", [2.5, None, [10, 15]], ids=str)
def test_respacing_is_a_text(text) -> None:
    with pytest.raises(ValueError, match='timestep_respacing is a text, such as "250"'):
        respaced(SD, text)
