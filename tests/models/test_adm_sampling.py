"""ADM sampling against a plain loop over the published formulas, and closed forms."""

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import random_weights
from torch import Tensor

from diffsteer import (
    CFG,
    DDIM,
    DDPM,
    PAG,
    SAG,
    SEG,
    Ancestral,
    Auto,
    Clamped,
    Classifier,
    Discrete,
    respaced,
)
from diffsteer.core.parse import parse
from diffsteer.core.sampler import NAMED, Sampler
from diffsteer.models.adm.checkpoint import Diffusion
from diffsteer.models.adm.flags import Flags
from diffsteer.models.adm.unet import ADM, ADMClassifier

TINY = Flags(
    image_size=32,
    num_channels=32,
    num_res_blocks=1,
    channel_mult="1,1,2",
    attention_resolutions="16,8",
    class_cond=True,
    resblock_updown=True,
    learn_sigma=True,
    num_classes=10,
)
SPLIT = replace(TINY, num_head_channels=8)  # 4 and 8 heads; the published maps take 4
CLASSIFIER = replace(TINY, num_head_channels=16, classifier=True)

NETS = {flags: random_weights(ADM(flags)).double() for flags in (TINY, SPLIT)}
CLASSES = torch.tensor([3, 7])
START = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5)).double()


def draws(seed: int = 1):
    gen = torch.Generator().manual_seed(seed)
    return lambda like: torch.randn(like.shape, generator=gen).to(like)


# ------------------------------------------------------------------ the published formulas, plainly


@cache
def official(net, times, s, sigma, block, ddim=False, gradient=None, scale=0.0, heads=None):
    """Self-attention guidance on ADM: timesteps ascending, all in float64.

    Written from the formulas alone: nothing of the package but the network's own forward. Also
    returns how near a score came to the threshold.
    """
    seen = {}
    module = net.output_blocks[block][1]
    hook = module.qkv.register_forward_hook(lambda *a: seen.update(qkv=a[-1]))
    noise, x, betas = draws(), START, torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    abar = (1 - betas).cumprod(0)[torch.tensor(times)]
    prev = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    beta = 1 - abar / prev
    small = beta * (1 - prev) / (1 - abar)
    margin, small = (
        1.0,
        torch.cat([small[1:2], small[1:]]),
    )  # the first is 0; its logarithm is clipped
    for i in reversed(range(len(times))):
        a, b = abar[i].item(), prev[i].item()
        t = torch.full((len(x),), times[i])
        e, v = net(x, t, CLASSES).split(3, dim=1)
        x0 = ((x - math.sqrt(1 - a) * e) / math.sqrt(a)).clamp(-1, 1)
        eps = e
        if s:
            n = heads or module.heads
            qkv = seen["qkv"]
            d = qkv.shape[1] // (3 * n)
            q, k, _ = qkv.reshape(len(x) * n, 3 * d, -1).split(d, dim=1)
            weights = (torch.einsum("bct,bcs->bts", q, k) / math.sqrt(d)).softmax(dim=-1)
            scores = weights.view(len(x), n, *weights.shape[1:]).mean(1).sum(1)
            margin = min(margin, (scores - 1).abs().min().item())
            side = math.isqrt(scores.shape[1])
            mask = (scores > 1.0).double().view(-1, 1, side, side)
            mask = F.interpolate(mask, x.shape[-2:])
            taps = torch.exp(-0.5 * (torch.arange(-15, 16, dtype=torch.float64) / sigma) ** 2)
            taps = (taps / taps.sum()).double()
            kernel = (taps[:, None] * taps[None]).expand(3, 1, 31, 31)
            blurred = F.conv2d(F.pad(x0, (15,) * 4, mode="reflect"), kernel, groups=3)
            x_bar = math.sqrt(a) * (mask * blurred + (1 - mask) * x0) + math.sqrt(1 - a) * e
            e_bar, _ = net(x_bar, t, CLASSES).split(3, dim=1)
            eps = e_bar + (1 + s) * (e - e_bar)
            x0 = ((x - math.sqrt(1 - a) * eps) / math.sqrt(a)).clamp(-1, 1)
        z = noise(x)
        if ddim:
            eps = (x - math.sqrt(a) * x0) / math.sqrt(1 - a)
            if gradient:
                eps = eps - math.sqrt(1 - a) * scale * gradient(x, t)
                x0 = (x - math.sqrt(1 - a) * eps) / math.sqrt(a)
            x = math.sqrt(b) * x0 + math.sqrt(1 - b) * eps
            continue
        mean = (math.sqrt(b) * beta[i] * x0 + math.sqrt(1 - beta[i]) * (1 - b) * x) / (1 - a)
        share = (v + 1) / 2
        log = share * beta[i].log().item() + (1 - share) * small[i].log().item()
        if gradient:
            mean = mean + log.exp() * scale * gradient(x, t)
        x = mean + (i > 0) * (0.5 * log).exp() * z
    hook.remove()
    return x, margin


def ours(net, spacing, guidance, sampler, split=False, classifier=None) -> Tensor:
    adm = Diffusion(net)
    denoise = adm.denoiser(guidance, CLASSES, classifier, official_head_split=split)
    levels = respaced(adm.schedule, spacing)
    with torch.no_grad():
        *_, x = sampler(START, levels, denoise, draws())
    return x


def knobs(s: float, block: int, sigma: float) -> SAG:
    """The official flags: kernel 31, threshold 1, x0 clamped, no null class."""
    layer = f"output_blocks.{block}"
    return SAG(s, layer, sigma=sigma, kernel=31, on="cond", clamp=1.0)


SECTIONS = "4,0,0,0,0"
FIFTH = (0, 66, 133, 199)
SIXTH = (0, 200, 400, 599, 799, 999)


def agree(got: Tensor, found: tuple[Tensor, float]) -> None:
    """In float64, where no score is so near to 1 that rounding decides; measured: 2.4e-8 at most.

    In float32 two loops differ by about 5e-5, more on some processors than on others.
    """
    want, margin = found
    assert margin > 1e-7
    torch.testing.assert_close(got, want, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("spacing", "times", "block", "sigma", "s"),  # each two together at least once
    [
        (SECTIONS, FIFTH, 1, 9.0, 0.1),
        (SECTIONS, FIFTH, 2, 3.0, 0.8),
        ("6", SIXTH, 1, 9.0, 0.8),
        ("6", SIXTH, 2, 3.0, 0.1),
    ],
)
def test_sag_trajectories(spacing, times, block, sigma, s) -> None:
    net = NETS[TINY]
    want = official(net, times, s, sigma, block)
    agree(ours(net, spacing, knobs(s, block, sigma).clamped(), Ancestral()), want)
    assert (want[0] - official(net, times, 0.0, 9.0, 1)[0]).abs().max() > 1e-2


def test_without_guidance() -> None:
    net = NETS[TINY]
    want = official(net, SIXTH, 0.0, 9.0, 1)
    agree(ours(net, "6", Clamped(), Ancestral()), want)
    agree(ours(net, "6", SAG(0.0).clamped(), Ancestral()), want)


@pytest.mark.parametrize("order", [False, True])
def test_official_head_split(order: bool) -> None:
    """With heads of 8 channels the official maps still take 4 heads; the switch takes them too."""
    net = random_weights(ADM(replace(SPLIT, use_new_attention_order=order))).double()
    guidance = knobs(0.8, 1, 9.0).clamped()
    own = ours(net, "6", guidance, Ancestral())
    split = ours(net, "6", guidance, Ancestral(), split=True)
    agree(split, official(net, SIXTH, 0.8, 9.0, 1, heads=4))
    if not order:
        agree(own, official(net, SIXTH, 0.8, 9.0, 1))
    assert (own - split).abs().max() > 1e-2


def test_head_split_changes_nothing_where_heads_agree() -> None:
    """As at 128 pixels: `num_heads` is what the network has."""
    guidance = knobs(0.8, 1, 9.0).clamped()
    a, b = (ours(NETS[TINY], "6", guidance, Ancestral(), split) for split in (False, True))
    assert torch.equal(a, b)


def test_ddim_with_self_attention_guidance() -> None:
    net = NETS[TINY]
    got = ours(net, "6", knobs(0.8, 1, 9.0).clamped(), DDIM())
    agree(got, official(net, SIXTH, 0.8, 9.0, 1, ddim=True))


# ------------------------------------------------------------------ with a classifier


CLASSIFY = random_weights(ADMClassifier(CLASSIFIER)).double()


def gradient(x: Tensor, t: Tensor) -> Tensor:
    """Of log p(class | x), by finite machinery of its own: one backward pass a sample."""
    rows = []
    for i in range(len(x)):
        with torch.enable_grad():
            one = x[i : i + 1].clone().requires_grad_()
            logits = CLASSIFY(one, t[i : i + 1])
            F.cross_entropy(logits, CLASSES[i : i + 1], reduction="sum").backward()
        rows.append(-one.grad)
    return torch.cat(rows)


SCALE = 40.0  # gradients of random classifiers are small


def test_sag_and_classifier_move_the_mean() -> None:
    """The 128-pixel row of the table: the mean moves by variance x gradient, the last step too."""
    net = NETS[TINY]
    guidance = knobs(0.1, 2, 3.0).clamped()
    got = ours(net, "6", guidance, Ancestral(classifier=SCALE), classifier=CLASSIFY)
    want = official(net, SIXTH, 0.1, 3.0, 2, gradient=gradient, scale=SCALE)
    agree(got, want)
    assert (want[0] - official(net, SIXTH, 0.1, 3.0, 2)[0]).abs().max() > 1e-2


def test_classifier_moves_the_score_of_ddim() -> None:
    """After the clamp, as in the official code: what the classifier adds is not clamped."""
    net = NETS[TINY]
    guidance = Clamped() + Classifier(SCALE)
    got = ours(net, SECTIONS, guidance, DDIM(), classifier=CLASSIFY)
    want = official(net, FIFTH, 0, 3.0, 2, ddim=True, gradient=gradient, scale=SCALE)
    agree(got, want)
    assert (want[0] - official(net, FIFTH, 0, 3.0, 2, ddim=True)[0]).abs().max() > 1e-2


# ------------------------------------------------------------------ everything else plugs in


@pytest.mark.parametrize(
    "guidance",
    [PAG(2.0), SEG(2.0), PAG(2.0, "input_blocks.5"), SAG(0.7, on="cond") + PAG(1.0), Auto(2.0)],
    ids=repr,
)
def test_every_guidance_works(guidance) -> None:
    adm, guide = Diffusion(NETS[TINY]), Diffusion(NETS[SPLIT])
    level = adm.schedule.at(400)
    steered = adm.denoiser(guidance, CLASSES, guide=guide)(START, level)
    plain = adm.denoiser(None, CLASSES)(START, level)
    assert steered.isfinite().all() and (steered - plain).abs().max() > 1e-3


def test_pag_is_attention_to_itself() -> None:
    """The middle with values instead of attention, by a copy of the network without taps."""
    net = ADM(TINY).double().eval()
    net.load_state_dict(NETS[TINY].state_dict())
    middle = net.middle_block[1]

    def values(layer, given):
        pixels = given[0].flatten(2)
        v = layer.qkv(layer.norm(pixels)).view(2, 4, 3, -1, pixels.shape[-1])[:, :, 2]
        return (pixels + layer.proj_out(v.reshape(pixels.shape))).view(given[0].shape)

    level = Discrete.linear().at(400)
    with torch.no_grad():
        good = Diffusion(NETS[TINY]).denoiser(None, CLASSES)(START, level)
        middle.register_forward_hook(lambda layer, given, _: values(layer, given))
        bad = Diffusion(net).denoiser(None, CLASSES)(START, level)
        got = Diffusion(NETS[TINY]).denoiser(PAG(3.0), CLASSES)(START, level)
    torch.testing.assert_close(got, good + 3 * (good - bad), atol=1e-12, rtol=0)


def test_what_is_missing_is_said() -> None:
    adm, level = Diffusion(NETS[TINY]), Discrete.linear().at(400)
    with pytest.raises(ValueError, match="need classes"):
        adm.denoiser()
    with pytest.raises(ValueError, match="one a sample, from 0 to 9"):
        adm.denoiser(classes=torch.tensor([3, 10]))
    with pytest.raises(ValueError, match="one a row"):
        adm.denoiser(classes=torch.tensor([3]))(START, level)
    plain = Diffusion(ADM(replace(TINY, class_cond=False)))
    with pytest.raises(ValueError, match="knows no classes, and there is no classifier"):
        plain.denoiser(classes=CLASSES)
    with pytest.raises(ValueError, match="asks for a network 'classifier'"):
        adm.denoiser(Classifier(1.0), CLASSES)(START, level)
    with pytest.raises(ValueError, match="asks for the condition 'null'"):
        adm.denoiser(CFG(2.0), CLASSES)(START, level)
    fixed = Diffusion(random_weights(ADM(replace(TINY, learn_sigma=False))).double())
    with pytest.raises(ValueError, match="3 channels for 3, so it learned no variance") as refusal:
        ours(fixed.net, "4", None, Ancestral())
    advice = str(refusal.value).rpartition("--sampler ")[2]
    assert parse(advice, Sampler, named=NAMED) == DDPM
    assert ours(fixed.net, "4", None, DDPM).isfinite().all()


@pytest.mark.parametrize(
    "change",
    [
        {"noise_schedule": "cosine"},
        {"diffusion_steps": 4000, "rescale_timesteps": True},
        {"predict_xstart": True},
        {"image_size": 64},
    ],
    ids=str,
)
def test_a_guide_that_means_another_thing_is_refused(change: dict) -> None:
    """Its time would be another noise level, or its output another quantity."""
    (name, value), *_ = change.items()
    other = Diffusion(ADM(replace(TINY, **change)))
    with pytest.raises(ValueError, match=f"the guide has {name}={value} and the network "):
        Diffusion(NETS[TINY]).denoiser(Auto(2.0), CLASSES, guide=other)


def test_classes_fit_every_network() -> None:
    plain, few = (
        Diffusion(ADM(replace(TINY, **c))) for c in ({"class_cond": False}, {"num_classes": 5})
    )
    with pytest.raises(ValueError, match="need classes"):
        plain.denoiser(Auto(2.0), guide=few)
    with pytest.raises(ValueError, match="one a sample, from 0 to 4"):
        Diffusion(NETS[TINY]).denoiser(Auto(2.0), CLASSES, guide=few)
    assert respaced(few.schedule, 4) == respaced(few.schedule, "4")
    for classes in ([0, 4], np.array([0, 4], np.uint8)):
        assert few.denoiser(classes=classes).conds["cond"]["y"].equal(torch.tensor([0, 4]))
    for classes in ([0.0, 1.0], [True, False], 1):
        with pytest.raises(ValueError, match="one a sample, from 0 to 4"):
            few.denoiser(classes=classes)
