"""Every guidance of the catalogue against its paper's formula, and against diffusers where it can.

A network that answers fixed tensors shows the formula; oracles of Gaussians show what it samples.
"""

import math
from dataclasses import replace

import diffusers.guiders as theirs
import pytest
import torch
import torch.nn.functional as F

from diffsteer import (
    ADG,
    APG,
    CFG,
    DDIM,
    EDM,
    FBG,
    FDG,
    ICG,
    MAMBO,
    SMC,
    SWG,
    TCFG,
    TSG,
    X0,
    Adaptive,
    CFGNorm,
    CFGpp,
    CFGRenorm,
    CFGZero,
    Discrete,
    DynamicThreshold,
    Eps,
    Flow,
    FreSca,
    Guidance,
    RectifiedCFGpp,
    SelfGuidance,
    V,
    Velocity,
    grid,
)
from diffsteer.core.errors import InputError
from diffsteer.core.oracle import Gaussian
from diffsteer.guidance import Answer, Denoiser, GuidanceState, Network, run
from diffsteer.guidance.step_memory import StepMemory, Store

F64 = torch.float64
SD = Discrete.scaled_linear()
GEN = torch.Generator().manual_seed(0)
C, U = (torch.randn(3, 4, 8, 8, generator=GEN, dtype=F64) + 0.3 for _ in range(2))


def state(kind, level=None, memory=None, step=0, schedule=SD, **more) -> GuidanceState:
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=F64)
    level = schedule.at(400) if level is None else level
    at = GuidanceState(x, level, kind, step, schedule, **more)
    if memory is not None:
        view, _ = StepMemory(memory, step).begin(level, x.shape)
        at = GuidanceState(x, level, kind, step, schedule, memory=view, **more)
    return at


def output(g: Guidance, kind=None, c=C, u=U, memory=None, step=0):
    """Guided output where the network answers c and u, and how many rows it evaluates."""
    rows = []
    at = state(kind or Velocity(), SD.at(800 - 100 * step), memory, step)

    def evaluate(branches):
        answers = [
            Answer(c if b.cond == "cond" else u, at.x, at.level, at.prediction) for b in branches
        ]
        answers = [
            a if b.samples is None else a.of_samples(list(b.samples))
            for a, b in zip(answers, branches, strict=True)
        ]
        rows.append(sum(len(a.out) for a in answers))
        return answers

    base, shift = run(g.guided(at), evaluate)
    return at.prediction.output_for_x0(at.x, base.x0 + shift, at.level), sum(rows)


def guider(made, c=C, u=U):
    """Output of a guider of diffusers, some of which take (B, *, *) alone."""
    made.set_state(step=0, num_inference_steps=10, timestep=torch.tensor(400))
    made.prepare_inputs({})
    return made.forward(c.flatten(2), u.flatten(2)).pred.reshape(c.shape)


def same(got, want, tolerance=1e-4) -> None:
    want = torch.as_tensor(want).to(got).expand_as(got)
    torch.testing.assert_close(got, want, atol=tolerance, rtol=tolerance)


def norms(x, dim=(1, 2, 3)):
    return x.square().sum(dim, keepdim=True).sqrt()


# ------------------------------------------------------------------ functions of c and u


@pytest.mark.parametrize(
    ("g", "made"),
    [
        (MAMBO(7.0), lambda: theirs.MagnitudeAwareGuidance(guidance_scale=7.0)),
        (MAMBO(3.0, 2.0), lambda: theirs.MagnitudeAwareGuidance(guidance_scale=3.0, alpha=2.0)),
        (TCFG(5.0), lambda: theirs.TangentialClassifierFreeGuidance(guidance_scale=5.0)),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_diffusers_guiders(g, made) -> None:
    got, _ = output(g, Velocity())
    same(got, guider(made()))
    assert (got - output(CFG(g.scale), Velocity())[0]).abs().max() > 0.1


@pytest.mark.parametrize("step", [0, 1, 3])
def test_cfgzero_is_that_of_diffusers(step: int) -> None:
    made = theirs.ClassifierFreeZeroStarGuidance(guidance_scale=5.0, zero_init_steps=2)
    made.set_state(step=step, num_inference_steps=10, timestep=torch.tensor(400))
    made.prepare_inputs({})
    same(output(CFGZero(5.0, zero=2), step=step)[0], made.forward(C, U).pred)


def test_tcfg_is_the_singular_value_decomposition() -> None:
    """Also where one answer is 0 or both are alike."""
    for c, u in ((C, U), (C, 2 * C), (0 * C, U), (C, 0 * U)):
        pair = torch.stack([c, u], 1).flatten(2)
        *_, v = torch.linalg.svd(pair, full_matrices=False)
        first = v[:, 0]
        part = ((u.flatten(1) * first).sum(1, keepdim=True) * first).reshape(u.shape)
        same(output(TCFG(4.0), c=c, u=u)[0], part + 4 * (c - part), 1e-9)


def test_norms_of_qwen_and_z_image() -> None:
    out = U + 4 * (C - U)
    same(output(CFGNorm(4.0))[0], out * norms(C, 1) / norms(out, 1), 1e-9)
    short = 0.2 * C + 0.8 * U  # shorter than c for one of the samples, where nothing is done
    cases = {1.0: out, 1.3: out}
    for limit, want in cases.items():
        factor = (limit * norms(C) / norms(want)).clamp(max=1)
        same(output(CFGRenorm(4.0, limit))[0], want * factor, 1e-9)
    factor = (3 * norms(C) / norms(out)).clamp(max=1)
    assert (factor == 1).any() or (factor < 1).all()
    same(output(CFGRenorm(0.2, 3.0))[0], short, 1e-9)


def test_cfgnorm_of_packed_tokens_is_along_the_last_dimension() -> None:
    """As the pipeline of Qwen-Image has it."""
    c, u = C.flatten(2), U.flatten(2)
    at = GuidanceState(torch.randn(3, 4, 64, dtype=F64), SD.at(400), Velocity())
    answers = {"cond": c, "null": u}

    def evaluate(branches):
        return [Answer(answers[b.cond], at.x, at.level, at.prediction) for b in branches]

    base, shift = run(CFGNorm(4.0).guided(at), evaluate)
    got = at.prediction.output_for_x0(at.x, base.x0 + shift, at.level)
    out = u + 4 * (c - u)
    same(got, out * (c.norm(dim=-1, keepdim=True) / out.norm(dim=-1, keepdim=True)), 1e-9)


def test_angle_domain_guidance() -> None:
    """Turns by (scale - 1) angles, 60 degrees at most, and bounds the norm."""
    c, u = (x.flatten(1) for x in (C, U))
    cosine = F.cosine_similarity(c, u)[:, None]
    angle = torch.arccos(cosine)
    across = c - (c * u).sum(1, keepdim=True) / u.square().sum(1, keepdim=True) * u
    for scale in (1.5, 3.0, 15.0):
        turn = ((scale - 1) * angle).clamp(max=math.pi / 3)
        want = turn.cos() * c + turn.sin() / angle.sin() * across
        got, _ = output(ADG(scale), X0())
        same(got.flatten(1), want, 1e-9)
        assert (norms(got) <= math.sqrt(2) * norms(C) + 1e-9).all()
    got, _ = output(ADG(3.0), X0(), u=(1 + 1e-9) * C)
    same(got, C, 1e-6)


def test_dynamic_threshold_keeps_the_contrast_of_the_lower_scale() -> None:
    g = DynamicThreshold(12.0, mimic=5.0)
    got, _ = output(g)
    high, low = (U + w * (C - U) for w in (12.0, 5.0))
    centred = [x - x.mean((2, 3), keepdim=True) for x in (high, low)]
    reach = [x.abs().amax((2, 3), keepdim=True) for x in centred]
    factor = reach[1] / torch.maximum(*reach)
    same(got, high.mean((2, 3), keepdim=True) + centred[0] * factor, 1e-9)
    limited, _ = output(DynamicThreshold(12.0, mimic=5.0, percentile=0.9))
    top = (limited - limited.mean((2, 3), keepdim=True)).abs().amax()
    assert top <= reach[1].max() * 1.2
    same(output(DynamicThreshold(5.0, mimic=5.0))[0], low, 1e-9)


def test_frequency_decoupled_guidance() -> None:
    """The pyramid as kornia has it: 5 binomial taps, half the size, and back."""
    taps = torch.tensor([1, 4, 6, 4, 1], dtype=F64)
    kernel = (taps[:, None] * taps / 256).expand(4, 1, 5, 5)

    def blur(x):
        return F.conv2d(F.pad(x, (2, 2, 2, 2), "reflect"), kernel, groups=4)

    def low(x):
        small = F.interpolate(blur(x), scale_factor=0.5, mode="bilinear")
        return blur(F.interpolate(small, scale_factor=2, mode="bilinear"))

    want = [U + w * (C - U) for w in (3.0, 8.0)]
    want = low(want[0]) + want[1] - low(want[1])
    same(output(FDG(3.0, 8.0))[0], want, 1e-9)
    same(output(FDG(4.0, 4.0))[0], output(CFG(4.0))[0], 1e-9)


def test_frequency_scaling() -> None:
    difference = torch.fft.fftshift(torch.fft.fft2(C - U), dim=(-2, -1))
    mask = torch.full((8, 8), 1.5, dtype=F64)
    mask[2:6, 2:6] = 0.7
    scaled = torch.fft.ifft2(torch.fft.ifftshift(difference * mask, dim=(-2, -1))).real
    same(output(FreSca(4.0, 0.7, 1.5, cutoff=2))[0], U + 4 * scaled, 1e-9)
    same(output(FreSca(4.0, 1.0, 1.0))[0], output(CFG(4.0))[0], 1e-9)
    same(output(FreSca(4.0, 1.5, 9.0, cutoff=8))[0], output(CFG(6.0))[0], 1e-9)


@pytest.mark.parametrize("name", [FDG(3.0, 8.0), FreSca(3.0), SWG(2.0)], ids=repr)
def test_filters_of_images_refuse_packed_samples(name) -> None:
    at = GuidanceState(torch.zeros(1, 4, 64), SD.at(400), Velocity())
    with pytest.raises(ValueError, match="packed or sound"):
        next(name.shift(at))


# ------------------------------------------------------------------ memory


def test_momentum_of_apg_is_that_of_diffusers() -> None:
    made = theirs.AdaptiveProjectedGuidance(
        guidance_scale=5.0,
        use_original_formulation=True,
        adaptive_projected_guidance_momentum=-0.5,
        adaptive_projected_guidance_rescale=9.0,
        eta=0.3,
    )
    store, g = Store(), APG(6.0, parallel=0.3, norm=9.0, momentum=-0.5)
    made.set_state(step=0, num_inference_steps=10, timestep=torch.tensor(400))
    made.prepare_inputs({})
    for step, (c, u) in enumerate(((C, U), (C + 0.1, U - 0.2), (U, C))):
        same(output(g, X0(), c, u, store, step)[0], made.forward(c, u).pred)
    plain = output(APG(6.0, parallel=0.3, norm=9.0), X0(), U, C)[0]
    assert (plain - made.forward(U, C).pred).abs().max() > 0.1


def test_sliding_mode_control() -> None:
    store, error = Store(), None
    for step, (c, u) in enumerate(((C, U), (C + 0.1, U - 0.2), (U, C))):
        e = c - u
        before = e if error is None else error
        surface = (e - before) + 5.0 * before
        error = e - 0.2 * surface / surface.abs()
        same(output(SMC(4.0), Velocity(), c, u, store, step)[0], u + 4 * error, 1e-9)


def test_adaptive_guidance_stops_for_each_sample_and_saves_its_evaluations() -> None:
    """From the step after that in which both answers agree, the null prompt is not evaluated."""
    near = torch.stack([C[0], C[1] + 0.01 * U[1], C[2]])
    far = torch.stack([U[0], C[1], U[2]])
    store, g = Store(), Adaptive(5.0, agree=0.9)
    guided, rows = output(g, c=near, u=far, memory=store)
    same(guided, far + 5 * (near - far), 1e-9)
    assert rows == 6
    got, rows = output(g, c=C, u=C + 1e-3, memory=store, step=1)
    same(got[[0, 2]], (C + 1e-3 * (1 - 5))[[0, 2]], 1e-9)
    assert rows == 5 and torch.allclose(got[1], C[1], rtol=0, atol=1e-12)
    got, rows = output(g, c=C, u=U, memory=store, step=2)
    assert rows == 3 and torch.allclose(got, C, rtol=0, atol=1e-12)
    _, rows = output(g, c=C, u=U, memory=store, step=0)  # another sampling asks again
    assert rows == 6


def oracles(g, means, kind=None, spread=0.5, log=None, **more) -> Denoiser:
    """A guided denoiser of Gaussians, one for each condition."""
    kind = kind or X0()

    def call(x, level, cond):
        if log is not None:
            log.append(len(x))
        made = [Gaussian(m, spread) for m in means]
        rows = [
            kind.output_for_x0(row, made[int(who)](row, level), level)
            for row, who in zip(x.split(1), cond["who"], strict=True)
        ]
        return torch.cat(rows)

    conds = {name: {"who": torch.full((2,), i)} for i, name in enumerate(("cond", "null"))}
    return Denoiser({"main": Network(call)}, conds, kind, g, **more)


def test_adaptive_guidance_saves_evaluations_of_a_network() -> None:
    """One sample goes on alone, in a batch of its own, and is what it is alone."""
    levels, log = grid(SD, 8), []
    x = torch.randn(2, 4, dtype=F64, generator=torch.Generator().manual_seed(3))
    made = oracles(Adaptive(4.0, agree=0.9), (1.0, 0.4), Velocity(), log=log)
    *_, got = DDIM()(x, levels, made)
    rows = sum(log)
    assert 16 < rows < 32 and 3 in {sum(log[i : i + 2]) for i in range(len(log))} | set(log)
    for i in range(2):
        conds = {name: {"who": cond["who"][:1]} for name, cond in made.conds.items()}
        alone = Denoiser(made.nets, conds, made.prediction, made.guidance)
        *_, one = DDIM()(x[i : i + 1], levels, alone)
        same(one, got[i : i + 1], 1e-12)
    (net,), sizes = made.nets.values(), set()
    whole = replace(
        net, call=lambda *a: sizes.add(len(a[0])) or net.call(*a), place=lambda _: (0, 2)
    )
    *_, again = DDIM()(x, levels, replace(made, nets={"main": whole}))  # whose batch has all
    same(again, got, 1e-12)
    assert sizes == {2}


def test_feedback_guidance_follows_the_posterior() -> None:
    """The weight of each step from the likelihood of the step before, as the paper has it."""
    levels, pi, tau, delta, most = grid(EDM(), 6), 0.9, 0.5, -0.6, 8.0
    x = levels[0].sigma * torch.randn(2, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    g = FBG(pi, temperature=tau, offset=delta, most=most)
    *_, got = DDIM(eta=1.0)(x, levels, oracles(g, (1.0, 0.2)), lambda x: 0.3 + 0 * x)
    log, weights = torch.zeros(2, 1, dtype=F64), []
    for now, nxt in zip(levels, levels[1:], strict=False):
        c, u = (Gaussian(m, 0.5)(x, now) for m in (1.0, 0.2))
        weight = log.exp() / (log.exp() - (1 - pi))
        weights.append(weight.max().item())
        x0 = u + weight * (c - u)
        if nxt.sigma == 0:
            x = x0
            break
        r = nxt.sigma**2 / now.sigma**2
        variance = (now.sigma**2 - nxt.sigma**2) * r
        means = [r * x + (1 - r) * m for m in (c, u)]
        x = r * x + (1 - r) * x0 + variance.sqrt() * 0.3
        far = [(x - m).square().sum(1, keepdim=True) for m in means]
        log = log + delta - tau / (2 * variance) * (far[0] - far[1])
        log = log.clamp(math.log((1 - pi) * most / (most - 1)), 3.0)
    assert len(set(weights)) > 4 and max(weights) > 1.4
    same(got, x, 1e-9)


# ------------------------------------------------------------------ other levels and inputs


def test_rectified_cfgpp_on_a_flow() -> None:
    levels, flow, scale = grid(Flow(), 5), Flow(), 2.5
    with pytest.raises(InputError, match="the step from t=0.4 to t=0.4 loses no noise"):
        oracles(CFGpp(), (1.0, 0.2), next=flow.at(0.4))(torch.ones(2, 3), flow.at(0.4))
    x = torch.randn(2, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    made = oracles(RectifiedCFGpp(scale), (1.0, 0.2), Velocity(), schedule=flow)
    *_, got = DDIM()(x, levels, made)

    def velocity(x, level, mean):
        return (x - Gaussian(mean, 0.5)(x, level)) / level.t

    for now, nxt in zip(levels, levels[1:], strict=False):
        v = velocity(x, now, 1.0)
        y, there = (x, now) if nxt.sigma == 0 else (x + (nxt.t - now.t) * v, nxt)
        v = v + scale * (velocity(y, there, 1.0) - velocity(y, there, 0.2))
        x = x + (nxt.t - now.t) * v
    same(got, x, 1e-9)


def told(g, kind=None, t=400.0):
    """Guided output of a network whose output is x times the time that it is told."""
    at = state(kind or Eps(), SD.at(t))

    def evaluate(branches):
        return [
            Answer(at.x * (b.level or at.level).t, at.x, b.level or at.level, at.prediction)
            for b in branches
        ]

    base, shift = run(g.guided(at), evaluate)
    return at.prediction.output_for_x0(at.x, base.x0 + shift, at.level) / at.x


def test_another_time_of_the_same_sample() -> None:
    same(told(SelfGuidance(2.0, later=0.01)), torch.tensor(400 - 2 * 9.99), 1e-6)
    same(told(SelfGuidance(2.0, later=0.01), V(), 995.0), torch.tensor(995.0 - 2 * 4), 1e-6)
    same(told(SelfGuidance(2.0), t=999.0), torch.tensor(999.0), 1e-6)
    drawn = torch.stack([(told(TSG(2.0), t=t) - t).mean() for t in range(300, 700, 4)])
    same(drawn.std(), torch.tensor(0.05 * 999), 6.0)
    assert drawn.mean().abs() < 15 and torch.equal(told(TSG(2.0)), told(TSG(2.0)))
    at = GuidanceState(torch.zeros(1, 2), SD.at(400), V())
    with pytest.raises(ValueError, match="give Denoiser the schedule"):
        next(TSG(2.0).shift(at))


def test_sliding_windows() -> None:
    """A network that returns the mean of its input, so that each crop answers another."""
    at = state(X0())

    def evaluate(branches):
        answers = []
        for branch in branches:
            x = at.x if branch.x is None else branch.x
            out = x.mean((2, 3), keepdim=True).expand_as(x).clone()
            answers.append(Answer(out, x, at.level, at.prediction))
        return answers

    got = run(SWG(3.0, crop=0.625).shift(at), evaluate)
    corner = [at.x[..., r : r + 6, c : c + 6].mean((2, 3)) for r in (0, 2) for c in (0, 2)]
    whole = at.x.mean((2, 3))
    middle = torch.stack(corner).mean(0)
    same(got[..., 3, 4], 2 * (whole - middle), 1e-9)
    same(got[..., 3, 0], 2 * (whole - (corner[0] + corner[2]) / 2), 1e-9)
    assert (got[..., 0, 0] == 0).all() and (got[..., 7, 1] == 0).all()


def test_independent_condition_guidance_is_cfg_against_a_random_condition() -> None:
    """Embeddings of the same mean and deviation, another class; the rest stays."""
    seen = []

    def call(x, level, cond):
        seen.append(cond)
        text = cond["added_cond_kwargs"]["text_embeds"].mean(1) + cond["labels"] @ torch.arange(4.0)
        return text[:, None, None, None].expand_as(x)

    labels = torch.eye(4)[[0, 3, 2]]
    text = torch.randn(3, 64, generator=torch.Generator().manual_seed(5)) + 1
    more = {"text_embeds": text, "time_ids": torch.ones(3, 6)}
    cond = {"labels": labels, "added_cond_kwargs": more}
    made = Denoiser({"main": Network(call)}, {"cond": cond}, X0(), ICG(3.0), seeds=(1, 2, 3))
    x, level = torch.zeros(3, 4, 8, 8), SD.at(400)
    got = made(x, level)
    (both,) = seen
    drawn = {name: value[3:] for name, value in both["added_cond_kwargs"].items()}
    assert torch.equal(both["labels"][:3], labels) and torch.equal(
        drawn["time_ids"], torch.ones(3, 6)
    )
    assert (both["labels"][3:].sum(1) == 1).all() and (both["labels"][3:] * labels).sum() == 0
    same(drawn["text_embeds"].mean(1), text.mean(1), 0.5)
    same(drawn["text_embeds"].std(1), text.std(1), 0.4)
    assert (drawn["text_embeds"] - text).abs().mean() > 0.5
    c, u = (
        call(x, level, part)
        for part in (cond, {"labels": both["labels"][3:], "added_cond_kwargs": drawn})
    )
    same(got, u + 3 * (c - u), 1e-4)
    alone = {"labels": labels[1:2], "added_cond_kwargs": {n: v[1:2] for n, v in more.items()}}
    one = Denoiser(made.nets, {"cond": alone}, X0(), ICG(3.0), seeds=(2,))
    same(one(x[1:2], level), got[1:2], 1e-5)
    bare = Denoiser(made.nets, {"cond": {"y": torch.tensor([1, 2, 3])}}, X0(), ICG(3.0))
    with pytest.raises(ValueError, match="ICG finds no prompt"):
        bare(x, level)
    assert len(seen) == 4  # nothing was evaluated


def test_independent_condition_guidance_on_class_numbers() -> None:
    """Each of the other classes is as likely, and a sample's own is never drawn."""
    seen = []

    def call(x, level, cond):
        seen.append(cond["y"])
        return cond["y"][:, None, None, None].expand_as(x).to(x)

    y, n = torch.arange(400) % 5, 400
    made = Denoiser({"main": Network(call, classes=5)}, {"cond": {"y": y}}, X0(), ICG(3.0),
                    seeds=range(n))  # fmt: skip
    got = made(torch.zeros(n, 1, 1, 1), SD.at(400))
    other = seen[0][n:]
    assert torch.equal(seen[0][:n], y) and (other != y).all()
    assert (torch.bincount((other - y) % 5)[1:] > n / 4 * 0.7).all()
    same(got.flatten(), other + 3.0 * (y - other), 1e-4)
