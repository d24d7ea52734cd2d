"""Every guidance on EDM2 and ADM networks: in each dtype, and alike in any batch."""

from dataclasses import replace

import pytest
import torch
from tiny import random_weights
from torch import Tensor

from diffsteer import (
    CFG,
    DDIM,
    EDM,
    SAG,
    Ancestral,
    Auto,
    Discrete,
    Guidance,
    Preconditioned,
    cosine,
    grid,
    interval,
    parse,
    ramp,
    sample,
)
from diffsteer.core.errors import InputError
from diffsteer.core.parse import subclasses
from diffsteer.guidance import Denoiser
from diffsteer.guidance.base import Scaled
from diffsteer.models.adm.checkpoint import Diffusion
from diffsteer.models.adm.flags import Flags
from diffsteer.models.adm.unet import ADM, ADMClassifier
from diffsteer.models.edm2.generate import Loop, generate
from diffsteer.models.edm2.model import EDM2, network

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
NETWORKS = (torch.float32, torch.float16)
"""Others differ in no line of these models; `tests/guidance/test_dtypes.py` has all of them."""
CONDITIONAL = (
    *("Auto(2)", "AutoNoise(2, noise=0.2)", "AutoDropout(2, p=0.2)", "Clamped(limit=0.4)"),
    "SLG(1, 'L') + STG(1, 'L') + S2(0.5, layer='L') + TPG(1, 'L')",
    *("PAG(1, 'L')", "SEG(1, layer='L')", "SEG(1, layer='L', sigma=2.0)"),
    *("SAG(0.5, 'L', on='cond')", "SAG(0.5, 'L', on='cond', mask='random')"),
    *("SAG(0.5, 'L', on='cond', mask='edges')", "SAG(0.5, on='cond', mask='global')"),
    "SelfGuidance(1) + TSG(1.5) + SWG(1.5) + Momentum(0.5) + ICG(2)",
    "SAG(0.5, 'L', on='cond', clamp=1.0).rescaled(0.7) + 0.5 * PAG(2, 'L').over(0, 1)",
)
WITH_NULL = (
    *("CFG(3)", "APG(4, parallel=0.5, norm=2)", "CFGZero(3, zero=1)", "CFG(6).rescaled(0.7)"),
    *("CFG(6).rescaled(0.5, centred=True).clamped(0.5)", "CFG(3).within(0.3, 5)"),
    "ICG(2) + MAMBO(3) + TCFG(2) + CFGNorm(2) + CFGRenorm(2) + DynamicThreshold(3)",
    "FDG(2, 4) + FreSca(2) + SMC(2) + FBG() + Adaptive(2) + RectifiedCFGpp(1) + CFGpp(0.6)",
    *("SAG(0.5, 'L')", "CFG(3).over(0, 1) + 0.5 * Auto(2) + SAG(0.5, 'L') + PAG(1, 'L')"),
)
TINY = Flags(
    image_size=16,
    num_channels=32,
    num_res_blocks=1,
    channel_mult="1,1",
    attention_resolutions="8",
    class_cond=True,
    learn_sigma=True,
    dropout=0.1,
    num_classes=10,
)
CLASSES = torch.tensor([3, 7])


def guidance(text: str, layer: str) -> Guidance:
    return parse(text.replace("'L'", repr(layer)), Guidance)


def edm2(seed: int, dtype: torch.dtype) -> EDM2:
    torch.manual_seed(seed)
    net = EDM2(8, 3, 10, 16, [1, 2], 1, [4], 16, logvar_channels=8, dropout=0.1).eval()
    for name, p in net.named_parameters():
        if name.endswith("_gain"):
            p.data.fill_(1)
    return net.to(dtype)


def adm(dtype: torch.dtype) -> Diffusion:
    torch.manual_seed(0)
    return Diffusion(random_weights(ADM(TINY)).to(dtype).eval())


@pytest.mark.parametrize("dtype", NETWORKS, ids=str)
def test_on_edm2(dtype: torch.dtype) -> None:
    """In official sampling of both dtypes, and as a denoiser of samples of any dtype."""
    nets, labels = [edm2(seed, dtype) for seed in (0, 1)], torch.eye(10)[CLASSES]
    conds = {"cond": {"labels": labels}, "null": {"labels": 0 * labels}}
    both = {"main": network(nets[0]), "guide": network(nets[1])}
    x, levels = torch.randn(2, 3, 8, 8), grid(EDM(), 2)
    for i, text in enumerate(CONDITIONAL + WITH_NULL):
        guided, wide = guidance(text, "4x4_in0"), DTYPES[i % 2]
        made = generate(nets[0], [0, 1], guided, nets[1], Loop(1), 3, wide)
        assert made.dtype == wide and made.isfinite().all(), text
        denoise = Denoiser(both, conds, Preconditioned(), guided, schedule=EDM())
        for given in {dtype, DTYPES[i % 4]}:
            assert denoise(x.to(given), levels[1]).isfinite().all(), (text, given)


@pytest.mark.parametrize("dtype", NETWORKS, ids=str)
def test_on_adm(dtype: torch.dtype) -> None:
    net = adm(dtype)
    judge = random_weights(ADMClassifier(replace(TINY, classifier=True, num_head_channels=16)))
    x, levels = torch.randn(2, 3, 16, 16), grid(net.schedule, 2)
    for i, text in enumerate((*CONDITIONAL, "Classifier(2)")):
        denoise = net.denoiser(guidance(text, "mid"), CLASSES, judge.to(dtype), net)
        for given in {dtype, DTYPES[i % 4]}:
            assert denoise(x.to(given), levels[1]).isfinite().all(), (text, given)
    *_, last = sample(denoise, levels, (3, 16, 16), [0, 1], Ancestral(classifier=1.0))
    assert last.x.dtype == torch.float32 and last.x.isfinite().all()


def test_skipped_blocks_return_what_they_are_given() -> None:
    """Of EDM2 those that keep the shape; of ADM the attention."""
    main, net, eye = edm2(0, torch.float64), adm(torch.float64), torch.eye(10).double()
    blocks = main.unet.dec["4x4_in0"], net.network().blocks["mid.middle_block.1"]
    official = Denoiser({"main": network(main)}, {"cond": {"labels": eye[:2]}}, Preconditioned())
    diffusion = net.denoiser(None, CLASSES)
    cases = (
        (official, "4x4_in0", blocks[0], EDM(), 8),
        (diffusion, "mid", blocks[1], net.schedule, 16),
    )
    for denoise, layer, block, schedule, side in cases:
        x, level = torch.randn(2, 3, side, side, dtype=torch.float64), grid(schedule, 3)[1]
        whole = denoise(x, level)
        hook = block.register_forward_hook(lambda _, args, out: args[0])
        without = denoise(x, level)
        hook.remove()
        got = replace(denoise, guidance=parse(f"SLG(1.5, {layer!r})", Guidance))(x, level)
        torch.testing.assert_close(got, whole + 1.5 * (whole - without), rtol=1e-9, atol=1e-9)
        assert (whole - without).abs().max() > 1e-3


TAPPING = sorted(
    (c for c in subclasses(Guidance) if {"layer", "adapter", "negative"} & {*c.__annotations__}),
    key=lambda c: c.__name__,
)
"""Guidances that reach inside of a network."""


def lacking(kind: type[Guidance], weight: object) -> Guidance:
    """A guidance that asks for what no network here has."""
    names = {*kind.__annotations__}
    missing = {"layer": "nope"} if "layer" in names else {}
    missing |= {"adapter": "nope"} if "adapter" in names else {}
    return kind(weight, **missing, **({"on": "cond"} if kind is SAG else {}))


def hidden(kind: type[Guidance]) -> list[Guidance]:
    """Sums and wrappers in which it asks nothing at first."""
    off = 1.0 if kind is Auto else 0.0
    always = lacking(kind, 3.0)
    return [
        *(lacking(kind, ramp(off, 3)), CFG(2) + lacking(kind, interval(3, 0.1, 20, outside=off))),
        *(always.over(2, 3), always.within(0, 20), (CFG(2) + always.over(2, 3)).rescaled(0.7)),
        *(Scaled(always, ramp(0, 1)), lacking(kind, cosine(off, 3)).within(0, 20)),
    ]


def test_what_reaches_inside_is_found() -> None:
    names = {kind.__name__ for kind in TAPPING}
    assert {"PAG", "SEG", "SAG", "SLG", "STG", "S2", "TPG", "NAG", "Auto"} == names


@pytest.mark.parametrize("kind", TAPPING, ids=lambda kind: kind.__name__)
def test_what_a_later_step_lacks_is_told_before_the_first(kind: type[Guidance]) -> None:
    """In official sampling, by a sampler, and in a loop of one's own, which knows no levels."""
    net, diffusion, rows = edm2(0, torch.float64), adm(torch.float64), []
    for module in (net.unet, diffusion.net):
        module.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    labels = torch.eye(10).double()[:1]
    conds = {"cond": {"labels": labels}, "null": {"labels": 0 * labels}}
    x, edm = torch.randn(1, 3, 8, 8, dtype=torch.float64), EDM()
    for guided in hidden(kind):
        with pytest.raises(InputError, match="nope|reads a text"):
            generate(net, [0], guided, None, Loop(4), 3, torch.float64)
        with pytest.raises(InputError, match="nope|reads a text"):
            own = Denoiser({"main": network(net)}, conds, Preconditioned(), guided, schedule=edm)
            own.at_step(0)(x, edm.at(50.0))
        if "CFG" not in repr(guided):  # these networks have no null class
            denoise = diffusion.denoiser(guided, CLASSES)
            with pytest.raises(InputError, match="nope|reads a text"):
                next(sample(denoise, grid(diffusion.schedule, 4), (3, 16, 16), [0, 1], DDIM()))
    assert not rows


def test_what_never_acts_asks_nothing() -> None:
    net = edm2(0, torch.float64)
    for text in (
        "0 * PAG(2, 'nope').over(2, 3)",
        "PAG(2, 'nope').over(9, 10)",
        "0 * SLG(ramp(0, 1), 'nope')",
    ):
        made = generate(net, [0], parse(text, Guidance), None, Loop(4), 3, torch.float64)
        assert made.isfinite().all()


def test_null_classes_of_later_steps_are_told_before_the_first() -> None:
    diffusion, rows = adm(torch.float64), []
    diffusion.net.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    levels = grid(diffusion.schedule, 4)
    for text in ("CFG(ramp(1, 7))", "CFGZero(3, zero=2)", "APG(interval(4, 0.1, 1))"):
        denoise = diffusion.denoiser(parse(text, Guidance), CLASSES)
        with pytest.raises(InputError, match="asks for the condition 'null'"):
            next(sample(denoise, levels, (3, 16, 16), [0, 1], DDIM()))
        with pytest.raises(InputError, match="asks for the condition 'null'"):
            denoise.at_step(0)(torch.randn(2, 3, 16, 16), levels[0])
    assert not rows


DRAWS = ("AutoNoise(2, noise=0.2)", "AutoDropout(2, p=0.2) + 0.5 * AutoNoise(2)")


@pytest.mark.parametrize("text", DRAWS)
def test_a_sample_depends_on_its_seed_and_not_on_its_place(text: str) -> None:
    """Guidances that draw draw by the seed, in official sampling and in `sample`."""
    main, net, levels = edm2(0, torch.float64), adm(torch.float64), grid(Discrete.linear(), 2)

    def official(seeds: list[int]) -> Tensor:
        return generate(main, seeds, parse(text, Guidance), None, Loop(2), 3, torch.float64)

    def sampled(seeds: list[int]) -> Tensor:
        denoise = net.denoiser(parse(text, Guidance), CLASSES[:1].repeat(len(seeds)))
        *_, last = sample(denoise, levels, (3, 16, 16), seeds, DDIM())
        return last.x

    for draw in (official, sampled):
        torch.testing.assert_close(draw([4, 9])[1:], draw([9]), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(draw([9, 4]), draw([4, 9]).flip(0), rtol=1e-5, atol=1e-5)
