"""Samplers against exact solutions, measured orders, and other people's samplers."""

import math
from dataclasses import dataclass
from enum import IntEnum
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch

from diffsteer import (
    DDIM,
    DDPM,
    EDM,
    X0,
    Ancestral,
    Cosine,
    Discrete,
    DPMpp2M,
    Eps,
    EulerAncestral,
    Flow,
    Heun,
    Karras,
    Level,
    Sampler,
    UniPC,
    V,
    Velocity,
    grid,
    sample,
)
from diffsteer.core.level import CLEAN
from diffsteer.core.noise import Noise
from diffsteer.core.oracle import Bright, Gaussian, Mixture, antithetic, as_network
from diffsteer.core.parse import subclasses
from diffsteer.core.sampler import Denoised, trace
from diffsteer.guidance import CFG, Denoiser, Network

F64 = torch.float64
SD = Discrete.scaled_linear()
SD0 = SD.zero_snr()
Z = torch.linspace(-2, 2, 9, dtype=F64)[:, None]


class Posterior:
    """A denoiser that knows its variance, and says that it is the posterior's."""

    def __init__(self, denoise, said=lambda x, level: -torch.ones_like(x), gradient=None):
        self.denoise, self.said, self.slope = denoise, said, gradient

    def __call__(self, x, level):
        return Denoised(self.denoise(x, level), self.said(x, level), lambda: self.slope(x, level))


class AncestralAsDDPM(Ancestral):
    """The sampler of learned variances over denoisers without any."""

    def step(self, x, now, nxt, denoise, past, noise):
        return super().step(x, now, nxt, Posterior(denoise), past, noise)


ALL = [*(c() for c in subclasses(Sampler) if c is not Ancestral), DDPM]
FRESH = (DDPM, AncestralAsDDPM())
ORDERS: dict[Sampler, int] = {DDIM(): 1, Heun(): 2, DPMpp2M(): 2, UniPC(): 3}
"""Order of convergence of each sampler without fresh noise."""


def batched_noise():
    """Noise of all rows from one generator, much faster than one of each row has."""
    generator = torch.Generator().manual_seed(0)
    return lambda like: torch.randn(like.shape, generator=generator).to(like)


def last(steps):
    *_, x = steps
    return x


# ------------------------------------------------------------------ order of convergence


def error(sampler: Sampler, schedule, span, n: int) -> float:
    """Greatest distance to the exact ODE solution after n steps over a span of times."""
    data = Gaussian(1.5, 0.5)
    levels = [schedule.at(t) for t in torch.linspace(*span, n + 1, dtype=F64)]
    x = last(sampler(data.exact(Z, levels[0]), levels, data))
    return (x - data.exact(Z, levels[-1])).abs().max().item()


@pytest.mark.parametrize(
    ("schedule", "span"),
    [(SD, (950, 50)), (Cosine(), (0.95, 0.05)), (EDM(), (5.0, 0.1)), (Flow(), (0.95, 0.05))],
    ids=lambda v: type(v).__name__,
)
@pytest.mark.parametrize(("sampler", "order"), ORDERS.items(), ids=repr)
def test_order_of_convergence(sampler: Sampler, order: int, schedule, span) -> None:
    """Slope of log error over log n; within 0.15 at these n, where the next order still shows."""
    n = torch.tensor([256, 362, 512, 724, 1024])
    log_error = torch.tensor([error(sampler, schedule, span, int(k)) for k in n], dtype=F64).log()
    log_n = n.to(F64).log()
    slope = ((log_n - log_n.mean()) * log_error).sum() / ((log_n - log_n.mean()) ** 2).sum()
    assert -slope.item() == pytest.approx(order, abs=0.15)


def test_every_sampler_states_its_order() -> None:
    shipped = {c for c in subclasses(Sampler) if c.__module__.startswith("diffsteer.")}
    assert {type(sampler) for sampler in ORDERS} == shipped - {Ancestral}


@pytest.mark.parametrize("sampler", ORDERS, ids=repr)
@pytest.mark.parametrize("schedule", [SD0, Cosine(), Flow()], ids=repr)
def test_converges_from_zero_snr(sampler: Sampler, schedule) -> None:
    """From pure noise the ODE ends at mean + std z; halving the steps at least halves the error."""
    data = Gaussian(0.9, 0.5)

    def miss(n: int) -> float:
        return (
            (last(sampler(Z, grid(schedule, n, "trailing"), data)) - data.exact(Z, CLEAN))
            .abs()
            .max()
            .item()
        )

    assert miss(200) < 0.55 * miss(100) < 0.05


# ------------------------------------------------------------------ closed forms


def trailing_levels(n: int) -> list[tuple[float, float]]:
    """(alpha, sigma) of Stable Diffusion at zero SNR, apart from the code under test."""
    root = [0.00085**0.5 + i / 999 * (0.012**0.5 - 0.00085**0.5) for i in range(1000)]
    a, alphas = 1.0, []
    for r in root:
        a *= 1 - r * r
        alphas.append(math.sqrt(a))
    alphas = [(a - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1]) for a in alphas]
    nodes = [math.floor(1000 * i / n + 0.5) - 1 for i in range(n, 0, -1)]
    return [(alphas[t], math.sqrt(1 - alphas[t] ** 2)) for t in nodes] + [(1.0, 0.0)]


def ddim_map(n: int, mean: float, std: float) -> tuple[float, float]:
    """DDIM over N(mean, std^2) is affine in its start: gain and offset, step by step."""
    gain, offset = 1.0, 0.0
    for (a, s), (a2, s2) in pairwise(trailing_levels(n)):
        g = a * std**2 / (a * a * std**2 + s * s)
        keep = s2 / s
        slope = keep + (a2 - keep * a) * g
        shift = (a2 - keep * a) * mean * (1 - g * a)
        gain, offset = slope * gain, slope * offset + shift
    return gain, offset


@pytest.mark.parametrize("kind", [V(), X0(), Velocity()], ids=repr)
@pytest.mark.parametrize("n", [1, 2, 5, 7, 10, 25, 28, 50, 61])
def test_ddim_closed_form(n: int, kind) -> None:
    """1e-9 in float64 and 2e-4 in float32, n not dividing 1000 included."""
    gain, offset = ddim_map(n, 0.9, 0.2)
    net = as_network(Gaussian(0.9, 0.2), kind)
    x = last(DDIM()(Z, grid(SD0, n), net))
    torch.testing.assert_close(x, gain * Z + offset, atol=1e-9, rtol=0)
    x = last(DDIM()(Z.float(), grid(SD0, n), net))
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.double(), gain * Z + offset, atol=2e-4, rtol=0)


@pytest.mark.parametrize("n", [5, 25, 61])
def test_half_precision_network_keeps_a_float32_state(n: int) -> None:
    """A network in bf16 errs by 2^-9 an output; over the steps less than 0.06."""
    net = as_network(Gaussian(0.9, 0.2), V())
    gain, offset = ddim_map(n, 0.9, 0.2)
    half = torch.bfloat16
    x = last(DDIM()(Z.to(half), grid(SD0, n), lambda x, lv: net(x.to(half), lv).to(half)))
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.double(), gain * Z + offset, atol=0.06, rtol=0)


@pytest.mark.parametrize("n", [1, 3, 7, 16, 25, 50])
def test_ancestral_closed_form(n: int) -> None:
    """Mean and variance of eta = 1 over a Gaussian, by recursion; 4e5 draws err by 0.2 %."""
    mean, std, data = 0.9, 0.2, Gaussian(0.9, 0.2)
    m, var = 0.0, 1.0
    for (a, s), (a2, s2) in pairwise(trailing_levels(n)):
        g = a * std**2 / (a * a * std**2 + s * s)
        back = 0.0 if a == 0 else (s2 * a / (s * a2)) ** 2  # (ratio' / ratio)^2
        keep = s2 / s * math.sqrt(back)
        slope = keep + (a2 - keep * a) * g
        m = slope * m + (a2 - keep * a) * mean * (1 - g * a)
        var = slope**2 * var + s2**2 * (1 - back)
    gen = torch.Generator().manual_seed(n)
    x = torch.randn(400_000, 1, generator=gen)

    def noise(like):
        return torch.randn(like.shape, generator=gen)

    x = last(DDPM(x, grid(SD0, n), data, noise))
    assert x.mean().item() == pytest.approx(m, abs=4 * math.sqrt(var / 4e5) + 1e-5)
    assert x.std().item() == pytest.approx(math.sqrt(var), rel=0.006, abs=1e-6)


def test_learned_variance_of_the_posterior_is_ddpm() -> None:
    x = [last(s(Z, grid(SD0, 9), Gaussian(), Noise(range(9)))) for s in FRESH]
    torch.testing.assert_close(*x, atol=1e-12, rtol=0)


@pytest.mark.parametrize("schedule", [SD, SD0, Cosine(), EDM(), Flow()], ids=repr)
@pytest.mark.parametrize("n", [2, 5, 20])
def test_the_right_variance_keeps_every_marginal(n: int, schedule) -> None:
    """Over N(m, c^2) a reverse step is Gaussian, its variance the posterior's and what x0 may vary.

    Told in logarithms, -1 to 1, it makes mean and variance exact at every level and number of
    steps; DDPM's falls short.
    """
    data = Gaussian(0.9, 0.5)
    levels = grid(schedule, n)
    follows = dict(pairwise(level.t.item() for level in levels[:-1]))
    at = {level.t.item(): level for level in levels[:-1]}

    def said(x, now):
        if now.t.item() not in follows:
            return -torch.ones_like(x)  # the last step draws nothing
        nxt = at[follows[now.t.item()]]
        fresh = 1 - (nxt.ratio / now.ratio) ** 2
        low, high = nxt.sigma**2 * fresh, now.sigma**2 * fresh
        slope = nxt.alpha - nxt.sigma**2 * now.alpha**2 / (now.sigma**2 * nxt.alpha)
        true = low + slope**2 * (data.std * now.sigma) ** 2 / data.var(now)
        return (2 * (true / low).log() / (high / low).log() - 1).expand_as(x)

    def run(start: float, draw: int | None) -> list[torch.Tensor]:
        drawn = iter(range(n))
        noise = lambda like: torch.full_like(like, float(next(drawn) == draw))  # noqa: E731
        x = torch.full((1, 1), start, dtype=F64)
        return [s.x for s in trace(Ancestral(), x, levels, Posterior(data, said), noise)][:-1]

    first = levels[0]
    mean, spread = first.alpha * data.mean, data.var(first).sqrt()
    middle, up = run(mean.item(), None), run((mean + spread).item(), None)
    moved = [run(mean.item(), k) for k in range(n - 1)]
    for i, level in enumerate(levels[1:-1]):
        var = (up[i] - middle[i]) ** 2 + sum((m[i] - middle[i]) ** 2 for m in moved)
        torch.testing.assert_close(middle[i].squeeze(), level.alpha * data.mean, atol=1e-9, rtol=0)
        torch.testing.assert_close(var.squeeze(), data.var(level), atol=0, rtol=1e-9)


def test_ancestral_moves_its_mean_by_variance_times_gradient() -> None:
    """In the last step too, with the posterior variance of the step before for a logarithm of 0."""
    levels, zero = grid(SD, 3), torch.zeros_like
    said = lambda x, level: torch.full_like(x, 0.3)  # noqa: E731
    net = Posterior(lambda x, level: zero(x), said, lambda x, level: torch.ones_like(x))
    plain = [s.x for s in trace(Ancestral(), Z, levels, net, zero)]
    moved = [s.x for s in trace(Ancestral(classifier=2.0), Z, levels, net, zero)]
    ratio = [level.ratio for level in levels]
    keeps, offset = [], 0.0
    for i, (now, nxt) in enumerate(pairwise(levels)):
        fresh = 1 - (ratio[i + 1] / ratio[i]) ** 2
        low = nxt.sigma**2 * fresh if i < 2 else now.sigma**2 * (1 - (ratio[2] / ratio[1]) ** 2)
        variance = low ** (0.35) * (now.sigma**2 * fresh) ** 0.65
        keeps.append(nxt.sigma**2 * now.alpha / (now.sigma**2 * nxt.alpha))
        offset = keeps[-1] * offset + 2 * variance
        torch.testing.assert_close(moved[i] - plain[i], offset.expand_as(Z), atol=1e-12, rtol=0)


def test_ancestral_needs_a_learned_variance() -> None:
    with pytest.raises(ValueError, match="network that learned its variance"):
        last(Ancestral()(Z, grid(SD, 3), Gaussian()))
    with pytest.raises(ValueError, match="classifier must be a finite number, got inf"):
        Ancestral(classifier=math.inf)
    net = lambda x, level: Denoised(x, torch.zeros_like(x))  # noqa: E731
    with pytest.raises(ValueError, match=r"classifier=2.0 needs the gradient of a classifier"):
        last(Ancestral(classifier=2.0)(Z, grid(SD, 3), net))


def brightness(
    sampler: Sampler, levels, kind, shape=(4, 8, 8), n: int = 128
) -> tuple[float, float]:
    x = last(sampler(antithetic(n, shape), levels, as_network(Bright(), kind), batched_noise()))
    b = x.mean(tuple(range(1, x.ndim)))
    return b.mean().item(), b.std(correction=0).item()


@pytest.mark.parametrize(
    ("sampler", "kind"),
    [(s, kind) for s in ALL for kind in (V(), X0(), Velocity()) if kind == V() or s not in FRESH],
    ids=repr,
)
def test_brightness_is_free_at_zero_snr(sampler: Sampler, kind) -> None:
    """Truth 0.600 +- 0.300; fresh noise of ancestral steps errs by 0.3 / sqrt(n).

    Samplers see x0 alone, so that the many samples which those need are of one prediction type.
    """
    n = 4096 if sampler in FRESH else 128
    mean, spread = brightness(sampler, grid(SD0, 50), kind, n=n)
    assert mean == pytest.approx(0.6, abs=0.02)
    assert spread == pytest.approx(0.3, rel=0.15)


@pytest.mark.parametrize(("n", "spread"), [(5, 0.211), (10, 0.253), (25, 0.280), (50, 0.290)])
def test_brightness_of_ddim(n: int, spread: float) -> None:
    got = brightness(DDIM(), grid(SD0, n), V(), n=512)
    assert got == pytest.approx((0.6, spread), abs=1e-3)


def test_the_flaw_without_zero_snr() -> None:
    """Without the repair the exact ODE gives 0.413 +- 0.286 at 4x8x8 and DDIM 0.420 at 25 steps."""
    mean, _ = brightness(DDIM(), grid(SD, 25), Eps(), n=512)
    assert mean == pytest.approx(0.420, abs=1e-3)


@pytest.mark.parametrize(("spacing", "spread"), [("trailing", 0.123), ("logsigma", 0.212)])
def test_logsigma_recovers_spread_of_large_latents(spacing: str, spread: float) -> None:
    """4x64x64 at 10 steps, truth 0.300; other nodes of the same kind gave 0.219."""
    got = brightness(DDIM(), grid(SD0, 10, spacing), V(), (4, 64, 64), 16)
    assert got == pytest.approx((0.6, spread), abs=3e-3)


@pytest.mark.parametrize("sampler", ALL, ids=repr)
def test_mixture_weights(sampler: Sampler) -> None:
    """80 % of the samples in the mode at 0.9, 20 % at -0.9; 0.822 is ancestral's at 50 steps."""
    n = 8192 if sampler in FRESH else 1000
    x = last(sampler(antithetic(n, (4, 8, 8)), grid(SD0, 50), Mixture(), batched_noise()))
    b = x.mean((1, 2, 3))
    up, down = b[b > 0], b[b < 0]
    assert len(up) / len(b) == pytest.approx(0.8, abs=0.03)
    assert (up.mean().item(), down.mean().item()) == pytest.approx((0.9, -0.9), abs=0.05)


# ------------------------------------------------------------------ properties of every sampler


@pytest.mark.parametrize("sampler", ALL, ids=repr)
@pytest.mark.parametrize("schedule", [SD, SD0, Cosine(), EDM(), Flow(), Flow(3.0)], ids=repr)
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace", "logsigma", Karras(7)])
def test_a_constant_denoiser_is_reached(sampler: Sampler, schedule, spacing) -> None:
    """If every prediction is c, the sample ends at c; first-order steps are exact for it."""
    x, c = torch.randn(2, 3, dtype=F64), torch.randn(2, 3, dtype=F64)
    for n in (1, 2, 3, 8):
        got = last(
            sampler(x * schedule.at(schedule.last).sigma, grid(schedule, n, spacing), lambda *_: c)
        )
        torch.testing.assert_close(got, c, atol=1e-10, rtol=0)


@pytest.mark.parametrize("sampler", ALL, ids=repr)
def test_finite_at_every_step_count(sampler: Sampler) -> None:
    for n in (*range(1, 61), 100, 250, 500, 1000):
        assert last(sampler(Z.float(), grid(SD0, n), Gaussian())).isfinite().all()


@pytest.mark.parametrize("sampler", ALL, ids=repr)
def test_eps_at_zero_snr_raises(sampler: Sampler) -> None:
    with pytest.raises(ValueError, match="Eps output does not fix x0"):
        last(sampler(Z, grid(SD0, 10), lambda x, lv: Eps().solve(x, x, lv)[0]))


@pytest.mark.parametrize(
    "sampler", [*ALL, Heun(gamma=0.2, s_min=0.1, s_max=10, schedule=SD0)], ids=repr
)
def test_a_seed_means_one_sample(sampler: Sampler) -> None:
    """Alone or in a batch, in any order; kernels may differ in the last bits."""

    def run(seeds):
        *_, step = sample(Gaussian(), grid(SD0, 8), (3, 4), seeds, sampler)
        return step.x

    together = run([5, 6, 7])
    torch.testing.assert_close(run([7, 5])[[1, 0]], together[[0, 2]], atol=1e-6, rtol=0)
    assert not torch.allclose(together[0], together[1])


def test_steps_as_they_happen() -> None:
    """One step at a time, with its preview; closing the loop stops the network."""
    calls = []

    def net(x, level):
        calls.append(level.t.item())
        return Gaussian()(x, level)

    loop = trace(DDIM(), Z, grid(SD0, 4), net)
    first = next(loop)
    assert (first.done, first.level.t, calls) == (1, 749, [999])
    torch.testing.assert_close(first.x0, Gaussian()(Z, SD0.at(999)))
    loop.close()
    assert calls == [999]
    assert [s.done for s in trace(DDIM(), Z, grid(SD0, 4), net)] == [1, 2, 3, 4]


@pytest.mark.parametrize("sampler", [*ALL, Heun(0.1, s_max=10, schedule=SD0)], ids=repr)
def test_nothing_reads_the_sample(sampler: Sampler) -> None:
    """On a meta device nothing can be read: no step waits for a device."""
    x = torch.empty(2, 3, device="meta")
    x = last(sampler(x, grid(SD0, 6), lambda x, level: 0.5 * x))
    assert x.device.type == "meta"


def count_calls(sampler: Sampler, n: int) -> int:
    calls = []
    last(sampler(Z, grid(SD0, n), lambda x, lv: calls.append(1) or Gaussian()(x, lv)))
    return len(calls)


def test_evaluations() -> None:
    """One a step; Heun two but for the last."""
    assert [count_calls(s, 10) for s in (DDIM(), DDPM, DPMpp2M(), UniPC(), Heun())] == [10] * 4 + [
        19
    ]


# ------------------------------------------------------------------ EDM and parity


def edm_reference(x, levels, data, gamma, lo, hi, swell, noise):
    """Karras et al. 2022, algorithm 2, line by line."""
    for t, t2 in pairwise([level.sigma for level in levels]):
        t_hat = t
        if lo <= t <= hi:
            t_hat = t + gamma * t
            x = x + (t_hat**2 - t**2).sqrt() * swell * noise(x)
        d = (x - data(x, EDM().at(t_hat))) / t_hat
        y = x + (t2 - t_hat) * d
        if t2 > 0:
            d2 = (y - data(y, EDM().at(t2))) / t2
            y = x + (t2 - t_hat) * (d + d2) / 2
        x = y
    return x


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.4142])
def test_heun_is_algorithm_2(gamma: float) -> None:
    levels, data = grid(EDM(), 18, Karras(7)), Gaussian()
    lo, hi, swell = (0.05, 50.0, 1.003) if gamma else (1.0, 0.0, 1.0)
    x = 80.0 * Z
    want = edm_reference(x, levels, data, gamma, lo, hi, swell, Noise(range(9)))
    got = last(Heun(gamma, 0.05, 50.0, 1.003)(x, levels, data, Noise(range(9))))
    torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-10)


def test_churn_on_a_discrete_schedule_keeps_the_distribution() -> None:
    """Raised levels lie on the schedule: spread and mean are the data's, less 2 % at 200 steps."""
    data, n = Gaussian(0.9, 0.5), 20_000
    gen = torch.Generator().manual_seed(0)

    def noise(like):
        return torch.randn(like.shape, generator=gen)

    x = last(
        Heun(0.1, s_max=10.0, schedule=SD0)(noise(torch.empty(n, 1)), grid(SD0, 200), data, noise)
    )
    assert x.mean().item() == pytest.approx(0.9, abs=0.02)  # 4 standard errors: 0.014
    assert x.std().item() == pytest.approx(0.5, rel=0.03)


def test_churn_errors() -> None:
    with pytest.raises(ValueError, match="churn needs the schedule of the levels"):
        last(Heun(0.1)(Z, grid(SD, 5), Gaussian()))
    with pytest.raises(ValueError, match="churn needs the schedule of the levels"):
        last(Heun(0.1, s_max=10, schedule=Discrete.linear())(Z, grid(SD, 5), Gaussian()))
    for bad in ({"s_min": 2, "s_max": 1}, {"s_min": math.nan}, {"s_noise": -1}, {"schedule": EDM}):
        with pytest.raises(ValueError, match="0 <= s_min|finite number >= 0|schedule must be"):
            Heun(0.1, **bad)
    with pytest.raises(ValueError, match="lower s_max"):
        last(Heun(0.1, schedule=SD)(Z, grid(SD, 5), Gaussian()))
    with pytest.raises(ValueError, match=r"min\(S_churn / steps"):
        Heun(40)


def ancestral_reference(x, levels, data, noise):
    """Euler ancestral in sigma / alpha: step to sigma_down, add sigma_up."""
    for now, nxt in pairwise(levels):
        s, s2 = now.ratio, nxt.ratio
        up = torch.minimum(s2, (s2**2 * (s**2 - s2**2) / s**2).sqrt())
        down = (s2**2 - up**2).sqrt()
        y = x / now.alpha
        y = y + (down - s) * (y - data(x, now)) / s
        x = nxt.alpha * (y + up * noise(x) if s2 > 0 else y)
    return x


@pytest.mark.parametrize("eta", [0.3, 0.5, 1.0])
def test_fresh_noise_is_song_et_al(eta: float) -> None:
    """One step by eq. 12 and 16, with the fresh noise known: sigma_eta in its published form."""
    now, nxt, data = SD.at(700), SD.at(500), Gaussian()
    z = torch.randn(9, 1, dtype=F64)
    got, x0 = DDIM(eta).step(Z, now, nxt, data, [], lambda like: z)
    bar, bar2 = now.alpha**2, nxt.alpha**2
    fresh = eta * ((1 - bar2) / (1 - bar)).sqrt() * (1 - bar / bar2).sqrt()
    eps = (Z - now.alpha * x0) / now.sigma
    want = nxt.alpha * x0 + (1 - bar2 - fresh**2).sqrt() * eps + fresh * z
    torch.testing.assert_close(got, want, atol=1e-12, rtol=0)


def test_heun_from_pure_noise_is_the_trapezoid_in_alpha_over_sigma() -> None:
    """At alpha = 0: x' = sigma' x / sigma + (alpha' / sigma') sigma' (x0 + x0') / 2, not Euler."""
    now, nxt, data = SD0.at(999), SD0.at(700), Gaussian()
    got, x0 = Heun().step(Z, now, nxt, data, [], torch.randn_like)
    end = data(nxt.sigma * Z + nxt.alpha * x0, nxt)
    torch.testing.assert_close(got, nxt.sigma * Z + nxt.alpha * (x0 + end) / 2)
    assert not torch.allclose(got, nxt.sigma * Z + nxt.alpha * x0)


def test_euler_ancestral_is_ancestral_in_sigma_over_alpha() -> None:
    levels, data = grid(SD, 12), Gaussian()
    want = ancestral_reference(Z, levels, data, Noise(range(9)))
    got = last(EulerAncestral(Z, levels, data, Noise(range(9))))
    torch.testing.assert_close(got, want, atol=1e-10, rtol=0)


def diffusers_scheduler(name: str, **more):
    import diffusers

    own = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    return getattr(diffusers, name)(**own, timestep_spacing="trailing", **more)


@pytest.mark.parametrize(
    ("name", "sampler", "n"),
    [
        ("DDIMScheduler", DDIM(), 20),
        ("DPMSolverMultistepScheduler", DPMpp2M(), 20),
        ("UniPCMultistepScheduler", UniPC(), 20),
        ("EulerDiscreteScheduler", DDIM(), 20),
    ],
)
def test_parity_with_diffusers(name: str, sampler: Sampler, n: int) -> None:
    """Same levels, same network, same result, where diffusers is right: no zero SNR, n | 1000.

    DDIM of diffusers ends at the first alpha unless told to end in data.
    """
    more = {"set_alpha_to_one": True, "clip_sample": False} if name == "DDIMScheduler" else {}
    theirs = diffusers_scheduler(name, prediction_type="v_prediction", **more)
    theirs.set_timesteps(n)
    levels, data, v = grid(SD, n), Gaussian(0.9, 0.4), V()
    assert theirs.timesteps.tolist() == pytest.approx([lv.t.item() for lv in levels[:-1]])
    scale = theirs.init_noise_sigma
    start = Z.float()[None, :, :, None].expand(1, 9, 1, 1)
    x = start * scale
    for t, level in zip(theirs.timesteps, levels, strict=False):
        seen = theirs.scale_model_input(x, t)
        out = v.output_for_x0(seen.double(), data(seen.double(), level), level).float()
        x = theirs.step(out, t, x).prev_sample
    begin = start.double()
    if (
        name == "EulerDiscreteScheduler"
    ):  # starts at sqrt(1 + ratio^2) z in sigma / alpha, ours at z
        begin = begin * (scale * levels[0].alpha)
    mine = last(sampler(begin, levels, data))
    torch.testing.assert_close(x.double(), mine, atol=2e-4, rtol=0)  # float32 over 20 steps


# ------------------------------------------------------------------ bad input


def test_bad_levels() -> None:
    data = Gaussian()
    with pytest.raises(ValueError, match="level 1 has .*must lose noise at every step"):
        last(DDIM()(Z, [SD.at(100), SD.at(200), CLEAN], data))
    with pytest.raises(ValueError, match="lose noise at every step"):
        last(DDIM()(Z, [SD.at(100), SD.at(100)], data))
    with pytest.raises(ValueError, match="make no step"):
        last(DDIM()(Z, [CLEAN], data))
    with pytest.raises(ValueError, match="levels of a sampling are for all rows alike"):
        last(DDIM()(Z, [Level(*(v[None] for v in level)) for level in grid(SD, 2)], data))
    for bad in (-1.0, math.nan, math.inf):
        level = Level(*(torch.tensor(v, dtype=F64) for v in (5.0, 0.5, bad)))
        with pytest.raises(ValueError, match="must be finite and >= 0"):
            last(DDIM()(Z, [level, CLEAN], data))


def test_bad_denoiser_and_seeds() -> None:
    def wide_net(x: torch.Tensor, level: Level) -> torch.Tensor:
        return torch.cat([x, x], dim=1)

    with pytest.raises(ValueError, match=r"returned shape \(9, 2\) for \(9, 1\)"):
        last(DDIM()(Z, grid(SD, 2), wide_net))
    with pytest.raises(ValueError, match="3 seeds cannot serve 2 samples"):
        Noise([1, 2, 3])(torch.empty(2, 4))
    for seeds in ([], [-1], [2**64], [0.5], [True], 7, "0-3"):
        with pytest.raises(ValueError, match="are no seeds"):
            Noise(seeds)
    for seeds in (range(2), np.arange(2), torch.arange(2), iter([0, 1])):
        assert Noise(seeds).seeds == (0, 1)
    for output in ((Z,), {"sample": Z}, None):
        with pytest.raises(ValueError, match="return x0 as a tensor"):
            last(DDIM()(Z, grid(SD, 2), lambda x, level, output=output: output))
    for sampler in ("UniPC()", UniPC, None):
        with pytest.raises(ValueError, match="is no sampler: give one"):
            last(sample(lambda x, level: x, grid(SD, 2), (1,), [0], sampler))
    for eta in (-0.1, 1.1, math.nan):
        with pytest.raises(
            ValueError, match=r"eta must be in \[0, 1\] \(0 is deterministic, 1 ancestral\), got"
        ):
            DDIM(eta)


class Wrapped:
    """Stands for an object, as wrappers and mocks do, without its class."""

    def __init__(self, inner: object) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)


def test_objects_serve_by_what_they_offer_whatever_their_class() -> None:
    network = Network(lambda x, level, cond: 0.5 * x)
    parts = {"main": network}, {"cond": {}, "null": {}}
    plain = Denoiser(*parts, V(), CFG(2.0), schedule=Flow())
    other = Denoiser(*parts, Wrapped(V()), Wrapped(CFG(2.0)), schedule=Wrapped(Flow()))
    expected = last(sample(plain, grid(Flow(), 3), (1,), [0], UniPC()))
    found = last(sample(other, grid(Wrapped(Flow()), 3), (1,), [0], Wrapped(UniPC())))
    assert torch.equal(found.x, expected.x)


class Order(IntEnum):
    FIRST = 1


def test_numbers_of_the_users_own_types_stay_what_they_are() -> None:
    @dataclass(frozen=True)
    class Own(DDIM):
        order: Order = Order.FIRST
        share: Fraction = Fraction(1, 2)

    assert Own().order is Order.FIRST and Own().share == Fraction(1, 2)
    assert type(Own(eta=np.float32(1)).eta) is float
