"""The closed form of multistep score distillation, its memory, and a toy with an exact answer."""

import math

import pytest
import torch
from torch import Tensor, nn

from diffsteer import (
    DDIM,
    EDM,
    Discrete,
    DPMpp2M,
    Eps,
    Flow,
    Heun,
    Level,
    Prediction,
    Sampler,
    Schedule,
    UniPC,
    V,
    Velocity,
    grid,
)
from diffsteer.core.oracle import Gaussian, Mixture
from diffsteer.train.refiner.msd import MSD, Full, Student

F64 = torch.float64
CASES = [
    (Eps(), Discrete.scaled_linear()),
    (V(), Discrete.scaled_linear()),
    (V(), Discrete.scaled_linear().zero_snr()),
    (Velocity(), Flow()),
    (Velocity(), Flow(3.0)),
    (Eps(), EDM()),
]
SAMPLERS = [DDIM(), Heun(), DPMpp2M(), UniPC()]


class Net(nn.Module):
    """A small network of x and the level that is linear in neither."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 4)).to(F64)

    def forward(self, x: Tensor, level: Level) -> Tensor:
        told = torch.atan2(level.sigma, level.alpha).expand(len(x), 1)
        out: Tensor = self.layers(torch.cat([x / (1 + level.sigma), told], dim=1))
        return out


def student(kind: Prediction, schedule: Schedule, sampler: Sampler, n: int = 6) -> Student:
    return Student(Net().requires_grad_(False), kind, grid(schedule, n, "trailing"), sampler)


def pair(seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x, target = torch.randn(2, 3, 4, generator=draw, dtype=F64)
    return x.requires_grad_(), target


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
@pytest.mark.parametrize(("kind", "schedule"), CASES, ids=repr)
def test_closed_form_is_autograd_through_the_detached_chain(kind, schedule, sampler) -> None:
    """Relative 1e-10: the same numbers summed in another order, in float64."""
    s = student(kind, schedule, sampler)
    x, target = pair()
    chain = Student(lambda x, level: s.net(x, level).detach(), kind, s.levels, sampler)
    loss = (chain(x) - target).square().mean()
    (want,) = torch.autograd.grad(loss, x)
    mine = MSD(slope=s.slope()).loss(x, target, s)
    (got,) = torch.autograd.grad(mine, x)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=0)
    torch.testing.assert_close(mine, loss, rtol=1e-12, atol=0)
    (unit,) = torch.autograd.grad(MSD().loss(x, target, s), x)
    torch.testing.assert_close(unit * s.slope(), want, rtol=1e-10, atol=0)


def test_slopes_are_those_of_the_theory() -> None:
    """Eps: 1 / alpha_T; v: a product of cosines; flow: 1; EDM: the size of noised data."""
    sd, edm = Discrete.scaled_linear(), EDM()
    start = sd.at(999)
    levels = grid(sd, 10, "trailing")
    angles = [math.atan2(lv.sigma, lv.alpha) for lv in levels]
    cosines = math.prod(math.cos(a - b) for a, b in zip(angles, angles[1:], strict=False))
    rtol = {"rel": 1e-12}
    eps, v, flow = (student(k, s, DDIM(), 10).slope() for k, s in (CASES[0], CASES[1], CASES[4]))
    assert eps == pytest.approx(1 / start.alpha.item(), **rtol)
    assert v == pytest.approx(cosines, **rtol)
    assert flow == pytest.approx(1.0, **rtol)
    assert student(Eps(), edm, DDIM()).slope() == pytest.approx(
        math.hypot(1, edm.sigma_max), **rtol
    )


def test_full_is_autograd_without_checkpoints_and_another_direction() -> None:
    s = student(V(), Discrete.scaled_linear(), DDIM())
    x, target = pair()
    (want,) = torch.autograd.grad((s(x) - target).square().mean(), x)
    (got,) = torch.autograd.grad(Full().loss(x, target, s), x)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-15)
    (msd,) = torch.autograd.grad(MSD(slope=s.slope()).loss(x, target, s), x)
    assert not torch.allclose(msd, want, rtol=1e-2)


def test_no_gradient_reaches_the_frozen_network() -> None:
    net = Net()
    s = Student(net, V(), grid(Discrete.scaled_linear(), 3, "trailing"), DDIM())
    x, target = pair()
    MSD().loss(x, target, s).backward()
    assert x.grad is not None and all(p.grad is None for p in net.parameters())


def saved(gradient: MSD | Full, steps: int) -> int:
    """Bytes that autograd keeps for the backward pass of one training step."""
    refiner, s = nn.Linear(4, 4).to(F64), student(V(), Discrete.scaled_linear(), DDIM(), steps)
    x, target = pair()
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        gradient.loss(x.detach() + refiner(x.detach()), target, s)
    return sum(kept.values())


def test_memory_of_a_step_does_not_grow_with_the_steps() -> None:
    """What is kept for the backward pass: equal at 2 and 50 steps; that of the whole grows."""
    assert saved(MSD(), 2) == saved(MSD(), 50) > 0
    assert saved(Full(), 50) > 5 * saved(Full(), 2)


# ------------------------------------------------------------------ a toy with an exact answer


def solved(denoise, levels: list[Level], x: Tensor) -> Tensor:
    *_, end = DDIM()(levels[0].alpha.hypot(levels[0].sigma) * x, levels, denoise)
    return end


def test_refined_noise_gives_guided_samples_of_a_gaussian() -> None:
    """Classes N(m, c^2) and N(m0, c^2): CFG of scale w samples N(m + (w - 1)(m - m0), c^2) exactly.

    From a level that keeps a little signal, alpha_T, the unguided sampling is x -> a x + b, so that
    noise moved by d = (w - 1)(m - m0) / a gives the guided samples. With Eps at 20 steps, 200 steps
    of Adam find d to 1e-3, relative to the gap that guidance makes.
    """
    m, m0, c, w = 0.6, -0.4, 0.5, 3.0
    schedule = Discrete.scaled_linear()
    levels = list(grid(schedule, 20, "trailing"))
    cond, null = Gaussian(m, c), Gaussian(m0, c)

    def guided(x: Tensor, level: Level) -> Tensor:
        return null(x, level) + w * (cond(x, level) - null(x, level))

    def net(x: Tensor, level: Level) -> Tensor:
        return V().output_for_x0(x, cond(x, level), level)

    x = torch.randn(512, 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    target = solved(guided, levels, x)
    gap = (target - solved(cond, levels, x)).mean()
    found = trained(x, target, Student(net, V(), levels, DDIM()), lambda x: torch.ones_like(x))
    torch.testing.assert_close(
        solved(cond, levels, found(x)), target, atol=1e-3 * float(gap), rtol=0
    )
    a = (solved(cond, levels, x + 1) - solved(cond, levels, x)).mean()
    torch.testing.assert_close((found(x) - x).mean(), gap / a, rtol=2e-3, atol=0)


def trained(x: Tensor, target: Tensor, s: Student, feature, steps: int = 400):
    """Fit x + feature(x) @ weights by MSD; returns the refiner."""
    weights = torch.zeros(feature(x).shape[1], x.shape[1], dtype=F64, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        MSD().loss(x + feature(x) @ weights, target, s).backward()
        optimizer.step()
        scheduler.step()
    return lambda x: (x + feature(x) @ weights).detach()


UP, ANY = Mixture(0.9, 0.4, 0.8), Mixture(0.9, 0.4, 0.3)
"""Two modes of width 0.4 at 0.9 and -0.9: of the class, 80 % are above, of all data 30 %."""
LEVELS = list(grid(Discrete.scaled_linear(), 20, "trailing"))


def guided_mixture(x: Tensor, level: Level) -> Tensor:
    return ANY(x, level) + 2.5 * (UP(x, level) - ANY(x, level))


def of_mixture(x: Tensor, level: Level) -> Tensor:
    return V().output_for_x0(x, UP(x, level), level)


def test_descent_by_msd_contracts_to_the_guided_samples() -> None:
    """With free noise of each sample, at the rate that theory gives.

    On a line the unguided sampling F is increasing, so that guided samples y have exactly one noise
    each, F(x) = y. A step x - rate (F(x) - y), which is what MSD descends, leaves at most
    q = max |1 - rate F'| of every error where F is that steep; rate = 1 / max F' makes q < 1.
    """
    x = torch.linspace(-2.5, 2.5, 41, dtype=F64)[:, None]
    y = solved(guided_mixture, LEVELS, x)
    s = Student(of_mixture, V(), LEVELS, DDIM())
    wide = torch.linspace(-4, 4, 4001, dtype=F64)[:, None]
    slope = s(wide).diff(dim=0) / wide.diff(dim=0)
    assert slope.min() > 0  # increasing
    rate = 1 / slope.max()
    q = float(1 - rate * slope.min())
    refined = x.clone().requires_grad_()
    first = (s(x) - y).abs().max()
    for _ in range(200):
        (g,) = torch.autograd.grad(MSD().loss(refined, y, s) * len(x) / 2, refined)
        refined = (refined - rate * g).detach().requires_grad_()
    last = (s(refined.detach()) - y).abs().max()
    assert wide.min() < refined.min() and refined.max() < wide.max()
    assert q < 0.99 and last <= q**200 * first + 1e-12
    assert first > 0.5


def test_a_small_refiner_brings_unguided_samples_to_guided_ones() -> None:
    """Of noise it never saw: 90 % of the error in samples and in the share of the mode is gone.

    Bumps around 13 nodes follow the one smooth function F^-1(y(x)) to about 1 % of its range.
    """
    nodes = torch.linspace(-3, 3, 13, dtype=F64)

    def feature(x: Tensor) -> Tensor:
        return torch.softmax(-((x - nodes) ** 2) / 0.1, dim=1)

    x, unseen = (
        torch.randn(1024, 1, generator=torch.Generator().manual_seed(i), dtype=F64) for i in (0, 1)
    )
    s = Student(of_mixture, V(), LEVELS, DDIM())
    found = trained(x, solved(guided_mixture, LEVELS, x), s, feature)
    target, plain = solved(guided_mixture, LEVELS, unseen), s(unseen)
    got = s(found(unseen))
    error, before = ((a - target).square().mean().sqrt() for a in (got, plain))
    share, wanted, was = ((a > 0).double().mean() for a in (got, target, plain))
    assert error < 0.1 * before and wanted - was > 0.1
    assert (share - wanted).abs() < 0.1 * (wanted - was)
