"""Guidances and the engine against closed forms on Gaussians."""

import math
from dataclasses import dataclass, replace

import pytest
import torch

import diffsteer
from diffsteer import (
    APG,
    CFG,
    DDIM,
    DDPM,
    EDM,
    NAG,
    PAG,
    S2,
    SAG,
    SEG,
    SLG,
    STG,
    TPG,
    X0,
    Auto,
    AutoDropout,
    AutoNoise,
    CFGpp,
    CFGZero,
    Clamped,
    Classifier,
    Cosine,
    Discrete,
    DPMpp2M,
    Eps,
    Flow,
    Guidance,
    Heun,
    Karras,
    Momentum,
    Preconditioned,
    UniPC,
    V,
    Velocity,
    grid,
    parse,
    plan,
)
from diffsteer.core.errors import brief
from diffsteer.core.fields import Share, check_fields
from diffsteer.core.oracle import Gaussian, Mixture
from diffsteer.guidance import (
    Answer,
    Branch,
    Denoiser,
    GuidanceState,
    Network,
    class_gradient,
    lockstep,
    rescale,
    run,
)
from diffsteer.guidance.base import composable
from diffsteer.guidance.interval import Within
from diffsteer.guidance.rescale import Rescaled

F64 = torch.float64
Z = torch.linspace(-2, 2, 5, dtype=F64)[:, None]
SD0 = Discrete.scaled_linear().zero_snr()
ALL = [CFG(5.0), APG(4.0), CFGZero(3.0), PAG(3.0), SEG(3.0), SAG(0.75), Auto(2.0)]
ALL += [AutoDropout(2.0, p=0.2), AutoNoise(2.0, noise=0.3), Classifier(1.5)]
ALL += [NAG(4.0), SLG(2.8), STG(1.0, mode="attention"), S2(0.25), TPG(3.0)]
ALL += [CFGpp(0.5), Momentum(0.4, decay=0.8)]


def point(kind=None, schedule=SD0, t=400, batch=2) -> GuidanceState:
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 4, 8, 8, generator=gen, dtype=F64)
    return GuidanceState(x, schedule.at(t), kind or V(), schedule=schedule)


NAMES = ["cond", "null"]


def denoiser(guidance, kind, oracles, batch=5) -> Denoiser:
    """A denoiser whose conditions and guide are known oracles."""

    def network(pick) -> Network:
        def call(x, level, cond):
            rows = [
                kind.output_for_x0(row, oracles[pick(int(who))](row, level), level)
                for row, who in zip(x.split(1), cond["who"], strict=True)
            ]
            return torch.cat(rows)

        return Network(call)

    nets = {"main": network(lambda who: NAMES[who]), "guide": network(lambda who: "guide")}
    conds = {name: {"who": torch.full((batch,), i)} for i, name in enumerate(NAMES)}
    return Denoiser(nets, conds, kind, guidance)


def solve(guidance, kind, oracles, hi=80.0):
    *_, x = Heun()(
        hi * Z, grid(EDM(sigma_max=hi), 400, Karras(7)), denoiser(guidance, kind, oracles)
    )
    return x


@pytest.mark.parametrize("kind", [Eps(), V(), Velocity()], ids=repr)
def test_cfg_extrapolates_the_mean(kind) -> None:
    """CFG between N(2, c^2) and N(0.5, c^2) samples N(0.5 + 3 * 1.5, c^2)."""
    hi, c = 80.0, 0.7
    x = solve(CFG(3), kind, {"cond": Gaussian(2.0, c), "null": Gaussian(0.5, c)})
    m = 0.5 + 3 * 1.5
    torch.testing.assert_close(x, m + c * hi / math.hypot(c, hi) * (Z - m / hi), atol=2e-3, rtol=0)


@pytest.mark.parametrize("w", [1.0, 2.5])
def test_autoguidance_narrows_a_gaussian(w: float) -> None:
    """The guided ODE integrates to a spread of a^w b^(1-w): b > a narrows, w = 1 leaves a."""
    m, a, b, hi = 1.0, 0.5, 0.8, 80.0
    x = solve(Auto(w), Eps(), {"cond": Gaussian(m, a), "guide": Gaussian(m, b)})
    spread = hi * (1 + (hi / a) ** 2) ** (-w / 2) * (1 + (hi / b) ** 2) ** ((w - 1) / 2)
    assert spread == pytest.approx(a**w * b ** (1 - w), rel=1e-3)
    torch.testing.assert_close(x, m + spread * (Z - m / hi), atol=2e-3, rtol=0)


def noised(oracle, at, level, n):
    """Prediction of an oracle for `at.x` brought to a noisier level with the noise `n`."""
    k = level.alpha / at.level.alpha
    return oracle(k * at.x + (level.sigma**2 - (k * at.level.sigma) ** 2).sqrt() * n, level)


@pytest.mark.parametrize("kind", [Eps(), V(), Velocity()], ids=repr)
@pytest.mark.parametrize("schedule", [SD0, Flow(), EDM()], ids=repr)
def test_auto_noise_on_a_gaussian(kind, schedule) -> None:
    """Both nets know the data; the guide's expectation over the noise shrinks towards its mean.

    With gain g = alpha a^2 / (alpha^2 a^2 + sigma^2) a prediction is m + g (x - alpha m); at a
    ratio r times as high, and x brought there by noise n, it is m + g' (k x + d n - alpha' m). The
    mean over n is linear in x, and so is the guided x0, with a spread of (w - 1) g' d around it.
    """
    m, a, w, r = 1.0, 0.5, 2.5, 1.3
    t = schedule.last * 0.4 if isinstance(schedule, Flow) else min(schedule.last, 400)
    at = point(kind, schedule, 0.7 if isinstance(schedule, EDM) else t, batch=400)
    oracle = Gaussian(m, a)
    made = denoiser(AutoNoise(w, noise=r - 1), kind, {"cond": oracle, "guide": oracle}, 400)
    made = replace(made, schedule=schedule)
    got = made(at.x, at.level)
    higher = schedule.at(schedule.time(at.level.ratio * r))
    assert higher.ratio == pytest.approx(r * at.level.ratio.item(), rel=1e-9)
    good, mean = oracle(at.x, at.level), noised(oracle, at, higher, 0 * at.x)
    rest = (good + (w - 1) * (good - mean) - got) / (w - 1)  # g' d n, for every value
    spread = (noised(oracle, at, higher, 1 + 0 * at.x) - mean).flatten()[0]
    n = rest / spread
    # 102400 values: their mean and spread stray by 0.003 and 0.002 of a unit Gaussian's
    assert n.mean().abs() < 0.015 and (n.std() - 1).abs() < 0.01
    torch.testing.assert_close(got, made(at.x, at.level), atol=0, rtol=0)
    few = replace(made, conds={"cond": {"who": torch.zeros(3, dtype=int)}}, seeds=(5, 0, 7))
    torch.testing.assert_close(few(at.x[:3], at.level)[0], sample_of(made, at, 5), atol=0, rtol=0)


def sample_of(made, at, seed):
    """The first sample with another seed, alone."""
    alone = replace(made, conds={"cond": {"who": torch.zeros(1, dtype=int)}}, seeds=(seed,))
    return alone(at.x[:1], at.level)[0]


def test_auto_noise_where_noise_cannot_rise() -> None:
    """Nothing is asked at pure noise and at the last level; without a schedule it raises."""
    for schedule, t in ((SD0, 999), (Discrete.scaled_linear(), 999), (EDM(), 80.0), (Flow(), 1.0)):
        at = point(schedule=schedule, t=t)
        assert plan(AutoNoise(2).shift(at), at).rows == {}
    with pytest.raises(ValueError, match="give Denoiser the schedule"):
        plan(AutoNoise(2).shift(replace(point(), schedule=None)), point())


def test_auto_dropout() -> None:
    """Of a linear network: the formula with masks that belong to each sample alone."""
    torch.manual_seed(0)
    parts = torch.nn.Dropout(0.0), torch.nn.Flatten(), torch.nn.Linear(256, 256)
    layer = torch.nn.Sequential(*parts).double().eval()
    at, sizes = point(), []

    def call(x, level, cond):
        sizes.append(len(x))
        return layer(x).view_as(x)

    made = Denoiser({"main": Network(call)}, {"cond": {}}, V(), AutoDropout(2.5, p=0.25))
    made = replace(made, seeds=(3, 8))
    state, got = torch.get_rng_state(), made(at.x, at.level)
    assert sizes == [4] and torch.equal(torch.get_rng_state(), state) and not layer.training
    plain = V().x0(at.x, layer(at.x).view_as(at.x), at.level)
    bad = plain - (got - plain) / 1.5  # what the guide must have said of x0
    said = V().output_for_x0(at.x, bad, at.level).flatten(1) - layer[2].bias
    shown = torch.linalg.solve(layer[2].weight, said.T).T / at.x.flatten(1)
    kept = shown > 0.5
    torch.testing.assert_close(shown[kept], torch.full_like(shown[kept], 4 / 3))
    assert shown[~kept].abs().max() < 1e-9
    assert 0.15 < (~kept).double().mean() < 0.35  # 512 values, 0.25 +- 0.02
    assert not torch.equal(kept[0], kept[1])
    for rows in (1, 3):
        assert torch.allclose(replace(made, max_rows=rows)(at.x, at.level), got, rtol=1e-12)
    assert torch.allclose(replace(made, seeds=(8,))(at.x[1:], at.level), got[1:], rtol=1e-12)
    nothing = replace(made, nets={"main": Network(lambda x, level, cond: x)})
    with pytest.raises(ValueError, match="no dropout layer"):
        nothing(at.x, at.level)
    apart = replace(made, nets={"main": Network(lambda x, *_: parts[0](x.flatten()[1:]))})
    with pytest.raises(ValueError, match="its samples cannot be told apart"):
        apart(at.x, at.level)


def test_guidance_in_an_interval() -> None:
    """Within (lo, hi] the spread is multiplied by the ratio of the two scores' integrals there."""
    m, a, b, top, lo, hi, w = 1.0, 0.5, 0.8, 80.0, 0.3, 5.0, 2.5
    x = solve(Auto(w).within(lo, hi), Eps(), {"cond": Gaussian(m, a), "guide": Gaussian(m, b)})

    def r(c, s):
        return math.hypot(c, s)

    factor = (r(a, lo) / r(a, hi)) ** (w - 1) * (r(b, hi) / r(b, lo)) ** (w - 1)
    want = m + a * top / r(a, top) * factor * (Z - m / top)
    torch.testing.assert_close(x, want, atol=0.02, rtol=0)  # the ends fall between two of 400 nodes


def parts(at, **means):
    """A denoiser on images whose every condition is a Gaussian of another mean."""
    oracles = {name: Gaussian(m, 0.5) for name, m in means.items()}
    return denoiser(None, at.prediction, oracles, len(at.x)), oracles


@pytest.mark.parametrize("kind", [V(), Velocity()], ids=repr)
def test_sum_is_the_sum_of_the_parts(kind) -> None:
    at = point(kind)
    base, oracles = parts(at, cond=1.0, null=0.2, guide=-0.3)

    def shift(g):
        return run(g.shift(at), lambda branches: base.evaluate(branches, at))

    total = CFG(4) + 0.5 * Auto(3)
    torch.testing.assert_close(shift(total), shift(CFG(4)) + 0.5 * shift(Auto(3)))
    c, n, g = (oracles[k](at.x, at.level) for k in ("cond", "null", "guide"))
    torch.testing.assert_close(shift(total), 3 * (c - n) + 0.5 * 2 * (c - g), atol=1e-9, rtol=0)


def test_rescaled_is_algorithm_2_in_the_networks_space() -> None:
    at = point(V())
    base, oracles = parts(at, cond=1.0, null=0.2)
    got = run(CFG(7.5).rescaled(0.7).shift(at), lambda bs: base.evaluate(bs, at))
    c, n = (
        at.prediction.output_for_x0(at.x, oracles[k](at.x, at.level), at.level)
        for k in ("cond", "null")
    )
    v = rescale(n + 7.5 * (c - n), c, 0.7)
    torch.testing.assert_close(
        got + oracles["cond"](at.x, at.level), at.prediction.x0(at.x, v, at.level)
    )


def test_apg_is_cfg_less_its_parallel_part() -> None:
    at = point()
    base, oracles = parts(at, cond=1.0, null=0.2)

    def shift(g):
        return run(g.shift(at), lambda bs: base.evaluate(bs, at))

    torch.testing.assert_close(shift(APG(4, parallel=1.0)), shift(CFG(4)))
    x0 = oracles["cond"](at.x, at.level)
    assert (shift(APG(4)) * x0).sum((1, 2, 3)).abs().max() < 1e-9
    limited = shift(APG(2, parallel=1.0, norm=0.1))
    torch.testing.assert_close(limited.flatten(1).norm(dim=1), torch.full((2,), 0.1, dtype=F64))


def test_cfg_zero() -> None:
    """The null output is scaled to fit; in the first steps the flow stands still."""
    at = point(Velocity(), Flow(), 0.6)
    base, oracles = parts(at, cond=1.0, null=0.2)
    later = GuidanceState(at.x, at.level, at.prediction, step=1)

    def guided(where):
        shift = run(CFGZero(3).shift(where), lambda bs: base.evaluate(bs, where))
        x0 = oracles["cond"](at.x, at.level) + shift
        return at.prediction.output_for_x0(at.x, x0, at.level)

    torch.testing.assert_close(guided(at), torch.zeros_like(at.x), atol=1e-9, rtol=0)
    c, n = (
        at.prediction.output_for_x0(at.x, oracles[k](at.x, at.level), at.level)
        for k in ("cond", "null")
    )
    s = ((c * n).sum((1, 2, 3)) / (n * n).sum((1, 2, 3)))[:, None, None, None]
    torch.testing.assert_close(guided(later), s * n + 3 * (c - s * n))


def bayes(x, level, cond):
    """Log odds of the upper mode of `Mixture` at any level: what a perfect classifier says."""
    data = Mixture()
    odds = 2 * level.alpha * data.mode / Gaussian(0.0, data.std).var(level) * x.sum((1, 2, 3))
    prior = math.log(data.weight / (1 - data.weight))
    return torch.stack([torch.zeros_like(odds), odds + prior], dim=1)


@pytest.mark.parametrize(
    ("kind", "schedule"),
    [(Eps(), Discrete.linear()), (V(), SD0), (X0(), Cosine())]
    + [(Velocity(), Flow()), (Preconditioned(), EDM())],
    ids=repr,
)
@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
def test_an_exact_classifier_makes_the_conditional(kind, schedule, share: float) -> None:
    """Scale 1 on the score of a mixture is the score of its mode, to rounding in float64."""
    level = schedule.at(schedule.first + share * (schedule.last - schedule.first))
    gen = torch.Generator().manual_seed(3)
    x = level.mix(*torch.randn(2, 4, 2, 2, 2, generator=gen, dtype=F64))
    main = Network(lambda x, level, cond: kind.output_for_x0(x, Mixture()(x, level), level))
    nets = {"main": main, "classifier": Network(class_gradient(bayes))}
    y = torch.tensor([1, 0, 1, 0])
    with torch.inference_mode():
        got = Denoiser(nets, {"cond": {"y": y}}, kind, Classifier(1.0))(x, level)
        twice = Denoiser(nets, {"cond": {"y": y}}, kind, Classifier(2.0))(x, level)
    up, down = (Gaussian(m, 0.2)(x, level) for m in (0.9, -0.9))
    want = torch.where((y == 1).view(-1, 1, 1, 1), up, down)
    torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-10)
    plain = Mixture()(x, level)
    torch.testing.assert_close(twice - plain, 2 * (want - plain), atol=1e-10, rtol=1e-10)


def test_classifier_says_what_it_lacks() -> None:
    nets = {"main": Network(lambda x, *_: x), "classifier": Network(class_gradient(bayes))}
    at = point()
    with pytest.raises(ValueError, match="needs classes"):
        Denoiser(nets, {"cond": {}}, V(), Classifier(1.0))(at.x, at.level)
    with pytest.raises(ValueError, match="asks for a network 'classifier'"):
        Denoiser({"main": nets["main"]}, {"cond": {}}, V(), Classifier(1.0))(at.x, at.level)
    with pytest.raises(ValueError, match="says nothing about its class"):
        Denoiser(nets, {"cond": {}}, V(), Classifier(1.0))(at.x, SD0.at(999))
    off = Denoiser(nets, {"cond": {}}, V(), Classifier(1.0).within(0, 100))
    assert off(at.x, SD0.at(999)).isfinite().all()


@pytest.mark.parametrize("kind", [Eps(), V()], ids=repr)
def test_clamped_keeps_the_guided_x0_within_its_limit(kind) -> None:
    at = point(kind)
    base, oracles = parts(at, cond=0.4, null=0.2)

    def guided(g):
        return Denoiser(base.nets, base.conds, kind, g)(at.x, at.level)

    c, n = (oracles[k](at.x, at.level) for k in ("cond", "null"))
    want = n + 4 * (c - n)
    assert want.abs().max() > 1 > want.abs().min()
    close = {"atol": 1e-9, "rtol": 0}
    torch.testing.assert_close(guided(CFG(4).clamped()), want.clamp(-1, 1), **close)
    torch.testing.assert_close(guided(CFG(4).clamped(0.5)), want.clamp(-0.5, 0.5), **close)
    torch.testing.assert_close(guided(Clamped()), c.clamp(-1, 1), **close)
    both = guided(Clamped() + CFG(4))  # what is added outside is not clamped
    torch.testing.assert_close(both, c.clamp(-1, 1) + 3 * (c - n), **close)
    assert plan(CFG(4).clamped().shift(at), at).rows == {"main": 2}


def test_sag_clamps_what_it_blurs() -> None:
    """A flat x0 of 3 everywhere: clamped to 1 before the blur, which leaves it flat."""
    at = point(V(), t=400)

    def call(x, level, cond):
        q = x.flatten(2).transpose(1, 2)[:, None]
        layer(q)
        return V().output_for_x0(x, torch.full_like(x, 3.0), level)

    class Layer(torch.nn.Module):
        def forward(self, q):
            return torch.nn.functional.scaled_dot_product_attention(q, q, q)

    layer = Layer()
    net = Network(call, {"mid": layer})
    for clamp, shift in ((1.0, 2 * (1.0 - 3.0)), (math.inf, 0.0)):
        guided = Denoiser({"main": net}, {"cond": {}}, V(), SAG(2.0, on="cond", clamp=clamp))
        x0 = guided(at.x, at.level)
        torch.testing.assert_close(x0, torch.full_like(x0, 3.0 + shift), atol=1e-6, rtol=0)


# ------------------------------------------------------------------ the engine


def test_plan_counts() -> None:
    """CFG + PAG + Auto + SAG: three rows in one pass, one of the guide; SAG's second row inside."""
    total = CFG(5) + PAG(3) + Auto(2) + SAG(0.75).within(0, 2)
    inside = plan(total.shift(point(t=300)), point(t=300))
    outside = plan(total.shift(point(t=900)), point(t=900))
    assert point(t=300).level.ratio < 2 < point(t=900).level.ratio
    assert (outside.rows, outside.passes) == ({"main": 3, "guide": 1}, {"main": 1, "guide": 1})
    assert (inside.rows, inside.passes) == ({"main": 4, "guide": 1}, {"main": 2, "guide": 1})
    assert str(inside) == "main: 4 rows in 2 passes, guide: 1 row in 1 pass"


def test_plan_counts_of_synthetic_guides() -> None:
    """Dropout is a row of the same pass, another level a pass of its own."""
    for total, rows, passes in (
        (CFG(5) + AutoDropout(2), 3, 1),
        (CFG(5) + AutoNoise(2), 3, 2),
        (CFG(5) + AutoNoise(2) + AutoDropout(2, p=0.1) + AutoDropout(3, p=0.1), 4, 2),
    ):
        p = plan(total.shift(point()), point())
        assert (p.rows, p.passes) == ({"main": rows}, {"main": passes})


def test_equal_branches_run_once() -> None:
    p = plan((CFG(5) + CFG(2) + PAG(1) + PAG(3) + SAG(1)).shift(point()), point())
    assert p.rows == {"main": 4}  # cond, null, cond perturbed, null blurred


@pytest.mark.parametrize(
    "off",
    [
        *(CFG(1), APG(1), CFGZero(1), Auto(1), AutoDropout(1), AutoNoise(1)),
        *(PAG(0), SEG(0), SAG(0), Classifier(0), 0 * CFG(5)),
        *(CFG(5).within(2, 3), CFG(5).over(1, 9)),
    ],
    ids=repr,
)
def test_off_costs_nothing(off: Guidance) -> None:
    at = point(t=999)
    assert plan(off.shift(at), at).rows == {}


def test_together_in_lockstep() -> None:
    """Askers of different length share rounds; each gets its own answers."""
    rounds = []

    def asker(names):
        seen = []
        for name in names:
            (answer,) = yield (Branch(name),)
            seen.append(answer.maps)
        return seen

    def evaluate(branches):
        rounds.append([b.cond for b in branches])
        at = point()
        return [Answer(at.x, at.x, at.level, at.prediction, {b.cond: at.x}) for b in branches]

    short, long, none = run(lockstep(asker("a"), asker("bac"), asker("")), evaluate)
    assert rounds == [["a", "b"], ["c"]]  # the second "a" is known from the first round
    assert [list(m) for m in short + long] == [["a"], ["b"], ["a"], ["c"]] and none == []


def test_a_branch_is_asked_again_for_what_it_did_not_record() -> None:
    """Known without attention scores, wanted with them: evaluated once more, and then no more."""
    at, asked = point(), []

    def asker():
        yield (Branch(),)
        (seen,) = yield (Branch(record=("mid",)),)
        (again,) = yield (Branch(),)
        return seen.maps, again.maps

    def evaluate(branches):
        asked.extend(b.record for b in branches)
        maps = [dict.fromkeys(b.record, at.x) for b in branches]
        return [Answer(at.x, at.x, at.level, at.prediction, found) for found in maps]

    seen, again = run(asker(), evaluate)
    assert list(seen) == ["mid"] and again is seen and asked == [(), ("mid",)]


@pytest.mark.parametrize("max_rows", [1, 2, 3, 5, None])
def test_max_rows_splits_without_a_difference(max_rows) -> None:
    at = point(batch=3)
    oracles = {"cond": Gaussian(1.0), "null": Gaussian(0.2), "guide": Gaussian(-0.3)}
    whole = denoiser(CFG(4) + Auto(2), at.prediction, oracles, 3)
    sizes = []

    def counted(net):
        return Network(lambda x, level, cond: sizes.append(len(x)) or net.call(x, level, cond))

    nets = {name: counted(net) for name, net in whole.nets.items()}
    split = Denoiser(nets, whole.conds, at.prediction, whole.guidance, max_rows)
    torch.testing.assert_close(split(at.x, at.level), whole(at.x, at.level), atol=1e-12, rtol=0)
    assert sum(sizes) == 9 and max(sizes) <= (max_rows or 6)


def test_conditions_of_other_length_run_apart() -> None:
    """A prompt of another length cannot be stacked: a pass of its own, the same answer."""
    at, calls = point(), []

    def call(x, level, cond):
        calls.append(len(x))
        return cond["text"].mean(dim=1)[:, None, None, None] * x

    conds = {"cond": {"text": torch.ones(2, 7)}, "null": {"text": torch.zeros(2, 5)}}
    Denoiser({"main": Network(call)}, conds, at.prediction, CFG(3))(at.x, at.level)
    assert calls == [2, 2]


# ------------------------------------------------------------------ text and bad input


@pytest.mark.parametrize("g", ALL, ids=repr)
def test_text_round_trip(g: Guidance) -> None:
    for value in (
        g,
        g + CFG(2.0),
        2 * g,
        2 * (g + PAG(1.0)),
        g.within(0.28, 5.4).rescaled(0.7),
        (g + SEG(2.0, sigma=1.5)).rescaled(0.5, centred=True).over(2, 9) + 0.5 * g,
        (2 * g).within(1.0),
        (g + CFG(2.0)).clamped() + Classifier(2.0, net="other"),
        Clamped(limit=2.0) + g.clamped(0.5),
    ):
        assert parse(repr(value), Guidance) == value


def test_short_text() -> None:
    assert repr(CFG(6.0).rescaled(0.7).within(0.28, 5.4) + PAG(3.0)) == (
        "CFG(6.0).rescaled(0.7).within(0.28, 5.4) + PAG(3.0)"
    )
    assert parse("CFG(6)+SAG(0.75)", Guidance) == CFG(6) + SAG(0.75)


@pytest.mark.parametrize(
    "text",
    [
        "CFG(5).__class__",
        "CFG(5).within.__func__",
        "CFG(5) - PAG(3)",
        "CFG(5) * 2",
        "99999999 * 'a'",
        "999999999 * ('a' + 'b')",
        "CFG('5')",
        "CFG()",
        "CFG(5, 6, 7)",
        "CFG(nan)",
        "2",
        "Sum(1)",
    ],
)
def test_bad_text(text: str) -> None:
    with pytest.raises(ValueError):
        parse(text, Guidance)


@pytest.mark.parametrize(
    "make",
    [
        lambda: CFG(math.nan),
        lambda: PAG(math.inf),
        lambda: Auto(None),
        lambda: AutoDropout(2, p=1),
        lambda: AutoNoise(2, noise=0),
        lambda: SAG(1, sigma=0),
        lambda: SAG(1, kernel=4),
        lambda: SEG(1, sigma=-1),
        lambda: SAG(1, clamp=0),
        lambda: Classifier(math.nan),
        lambda: CFG(2).clamped(0),
        lambda: Clamped(limit=math.inf),
        lambda: APG(3, norm=0),
        lambda: CFG(2).within(3, 1),
        lambda: CFG(2).within(math.nan, 1),
        lambda: CFG(2).over(3, 3),
        lambda: CFG(2).rescaled(1.5),
        lambda: math.nan * CFG(2),
        lambda: CFG(2).over(0.5, 2),
        lambda: CFGZero(2, zero=0.5),
        lambda: CFGZero(2, zero=-1),
        lambda: SAG(1, kernel=9.0),
        lambda: SAG(1, layer=3),
        lambda: PAG(1, layer=""),
        lambda: SEG(1, on=None),
        lambda: Auto(2, net=1),
        lambda: AutoNoise(2, on=0),
        lambda: Classifier(1, net=None),
        lambda: Clamped(5),
        lambda: Within(None, 0, 1),
        lambda: Rescaled(CFG, 0.5),
    ],
)
def test_bad_values(make) -> None:
    with pytest.raises(ValueError):
        make()


@pytest.mark.parametrize(
    "text",
    ["'mid'.rescaled()", "2.0.within(0, 1)", "CFG.over.within", "Clamped(5)", "Scaled(3, 2)"],
)
def test_texts_that_are_no_guidance(text: str) -> None:
    with pytest.raises(ValueError):
        parse(text, Guidance)


def test_what_is_not_there() -> None:
    at = point()
    alone = Denoiser(
        {"main": Network(lambda x, level, cond: x)}, {"cond": {}}, at.prediction, CFG(3)
    )
    with pytest.raises(ValueError, match="asks for the condition 'null', there is cond"):
        alone(at.x, at.level)
    for guidance, says in ((Auto(2), "asks for a network 'guide'"), (PAG(2), "no attention layer")):
        broken = Denoiser(alone.nets, {"cond": {}, "null": {}}, at.prediction, guidance)
        with pytest.raises(ValueError, match=says):
            broken(at.x, at.level)
    with pytest.raises(ValueError, match="max_rows=0"):
        Denoiser(alone.nets, {}, at.prediction, None, 0)
    with pytest.raises(ValueError, match="3 seeds cannot serve 2 samples"):
        replace(alone, seeds=(1, 2, 3))(at.x, at.level)


@pytest.mark.parametrize("sampler", [DDIM(), DDPM, DPMpp2M(), UniPC()], ids=repr)
def test_steps_are_counted_in_ones_own_loop(sampler) -> None:
    """Steps 2 to 4 are those from the noise of level 2 down to that of level 5, which is left."""
    oracles = {"cond": Gaussian(2.0, 0.7), "null": Gaussian(0.5, 0.7)}
    levels = grid(Discrete.linear().zero_snr(), 8)
    lo, hi = levels[5].ratio.item(), levels[2].ratio.item()

    def run(guidance):
        torch.manual_seed(0)
        return list(sampler(Z, levels, denoiser(guidance, V(), oracles)))[-1]

    got = run(CFG(3).over(2, 5))
    assert torch.equal(got, run(CFG(3).within(lo, hi)))
    assert not torch.allclose(got, run(CFG(3)), atol=1e-2)
    assert torch.equal(run(CFG(3).over(8, 9)), run(None))


def test_both_evaluations_of_a_step_belong_to_it() -> None:
    """Heun asks twice a step, but for the last one."""
    oracles, levels = {"cond": Gaussian(2.0, 0.7), "null": Gaussian(0.5, 0.7)}, grid(EDM(), 4)
    made = denoiser(CFG(3).over(1, 2), Eps(), oracles)
    rows = []
    call = made.nets["main"].call
    watched = Network(lambda x, *rest: rows.append(len(x)) or call(x, *rest))
    list(Heun()(80 * Z, levels, replace(made, nets={"main": watched})))
    assert rows == [5, 5, 10, 10, 5, 5, 5]


@composable("halved")
@dataclass(frozen=True, repr=False)
class Halved(Guidance):
    """A wrapper as a user would write it."""

    inner: Guidance
    times: int = 1

    def shift(self, at):
        return 0.5**self.times * (yield from self.inner.shift(at))


def test_a_users_wrapper_is_a_method_in_python_and_in_texts() -> None:
    made = CFG(3).halved(2).within(0, 5)
    assert made == Within(Halved(CFG(3), 2), 0.0, 5.0)
    assert repr(made) == "CFG(3).halved(times=2).within(0.0, 5.0)"
    assert parse(repr(made), Guidance) == made
    both = Halved(CFG(3) + PAG(1))
    assert repr(both) == "(CFG(3) + PAG(1)).halved()" and parse(repr(both), Guidance) == both


def test_a_chain_that_parses_prints() -> None:
    text = "CFG(2)" + ".over(0, 9)" * 300
    assert repr(parse(text, Guidance)) == text
    deep = CFG(2)
    for _ in range(3000):
        deep = deep.over(0, 9)
    assert repr(deep) == "CFG(2)" + ".over(0, 9)" * 3000


def test_errors_name_the_class_and_the_field() -> None:
    with pytest.raises(ValueError, match="^CFG: scale must be a finite number, got inf$"):
        CFG(math.inf)

    @dataclass
    class Known:
        scale: Share

    @dataclass
    class Unknown(Known):
        other: "Nowhere"  # noqa: F821

    with pytest.raises(ValueError, match=r"^Known: scale must be in \[0, 1\], got 2$"):
        check_fields(Known(2))
    check_fields(Unknown(2, 3))  # whose annotations are for type checkers alone
    assert len(brief(10**5000)) < 100


def test_names_of_the_last_version() -> None:
    """`kind` is `prediction`, and plumbing is in `diffsteer.guidance`; both work with a warning."""
    with pytest.warns(DeprecationWarning, match="Denoiser: kind is prediction now"):
        made = Denoiser({}, {}, kind=V())
    with pytest.warns(DeprecationWarning, match="kind is prediction now"):
        assert made.kind == made.prediction == V()
    assert replace(made, prediction=Eps()).prediction == Eps()
    with pytest.warns(DeprecationWarning, match=r"Denoiser is diffsteer.guidance.Denoiser now"):
        assert diffsteer.Denoiser is Denoiser


def test_guidances_multiply_from_both_sides_and_sum_as_lists() -> None:
    assert CFG(3) * 0.5 == 0.5 * CFG(3)
    assert sum([CFG(3), PAG(1)]) == CFG(3) + PAG(1)
    with pytest.raises(TypeError):
        1 + CFG(3)


@pytest.mark.parametrize(("prediction", "guidance"), [(V(), "CFG(3)"), (V, None), ("V()", None)])
def test_a_denoiser_takes_objects(prediction, guidance) -> None:
    with pytest.raises(ValueError, match="give objects, such as CFG"):
        Denoiser({}, {}, prediction, guidance)


def test_what_is_planned_asks_already() -> None:
    at = point(batch=1)
    assert plan(CFG(2).guided(at), at).rows == {"main": 2}
    with pytest.raises(ValueError, match=r"asks nothing yet: plan\(guidance.guided\(at\), at\)"):
        plan(CFG(2), at)  # type: ignore[arg-type]
