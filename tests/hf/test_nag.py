"""Normalised attention guidance: by hand, and on networks of diffusers."""

import copy
from typing import Any

import diffusers
import pytest
import tiny
import torch
import torch.nn.functional as F
from families.calls import first
from families.test_guidance import named
from torch import Tensor

from diffsteer import CFG, NAG, Discrete, Guidance, V, parse, plan, steer
from diffsteer.core.errors import InputError
from diffsteer.guidance import GuidanceState
from diffsteer.guidance.attention_edits import SecondContext

SCALE, TAU, ALPHA = 6.0, 1.7, 0.4
PROMPTS, NEGATIVES = ["a cat", "a red dog"], ["blurred", "glasses"]
START = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def test_combination_by_hand() -> None:
    """Two heads of one channel, one token: |Z+| = 4, |Z| = |1 + s 2| + |3 - s 1|."""
    plus = torch.tensor([1.0, 3.0]).reshape(1, 2, 1, 1)
    minus = torch.tensor([-1.0, 4.0]).reshape(1, 2, 1, 1)

    def combined(scale: float, tau: float, alpha: float) -> list[float]:
        return SecondContext(scale, tau, alpha, "null").combined(plus, minus).flatten().tolist()

    assert combined(2, 9, 1) == [5, 1]  # norm 6, below 9 * 4
    assert combined(2, 1, 1) == pytest.approx([5 * 4 / 6, 1 * 4 / 6])  # brought back to 4
    assert combined(2, 9, 0.25) == [2, 2.5]
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        second = SecondContext(2, 1, 1, "null")
        low = second.combined(plus.to(dtype), minus.to(dtype))
        assert low.dtype == dtype
        torch.testing.assert_close(low.float(), second.combined(plus, minus), rtol=4e-3, atol=0)
    zero = torch.zeros(1, 2, 1, 1)
    assert SecondContext(2, 1, 1, "null").combined(zero, zero).abs().max() == 0


class Official:
    """Cross-attention of one image under two texts, stacked along the batch."""

    def __call__(self, attn: Any, x: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Tensor:
        q, k, v = attn.to_q(x), attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)

        def attended(k: Tensor, v: Tensor) -> Tensor:
            heads = (y.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for y in (q, k, v))
            return F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)

        plus, minus = map(attended, k.chunk(2), v.chunk(2))
        moved = plus * (1 + SCALE) - minus * SCALE
        ratio = moved.norm(p=1, dim=-1, keepdim=True) / plus.norm(p=1, dim=-1, keepdim=True)
        moved = moved * torch.minimum(ratio, torch.tensor(TAU)) / ratio
        return attn.to_out[0](ALPHA * moved + (1 - ALPHA) * plus)


def test_unet_is_the_published_processor(tmp_path: Any) -> None:
    pipe = tiny.stable_diffusion(diffusers.DDIMScheduler(clip_sample=False), tmp_path)
    call = {"num_inference_steps": 3, "output_type": "latent", "latents": START}
    call |= {"negative_prompt": NEGATIVES, "guidance_scale": 4.0}
    alone = call | {"guidance_scale": 1.0}
    plain = pipe(PROMPTS, **alone).images
    guidance = NAG(SCALE, tau=TAU, alpha=ALPHA)
    rows: list[int] = []
    handle = pipe.unet.conv_in.register_forward_hook(lambda _, args, out: rows.append(len(out)))
    with steer(pipe, guidance):
        got = pipe(PROMPTS, **call).images
    handle.remove()
    assert rows == [4] * 3  # each prompt with its negative, and never alone
    with steer(pipe, guidance, max_rows=2):
        torch.testing.assert_close(pipe(PROMPTS, **call).images, got, atol=1e-5, rtol=1e-5)
    with steer(pipe, guidance):  # of a negative prompt that the pipeline is not asked to send
        torch.testing.assert_close(pipe(PROMPTS, **alone).images, got, atol=1e-5, rtol=1e-5)
    with steer(pipe, "NAG(0) + NAG(3, alpha=0)"):
        torch.testing.assert_close(pipe(PROMPTS, **call).images, plain, atol=1e-5, rtol=1e-5)
    plus, minus = pipe.encode_prompt(PROMPTS, "cpu", 1, True, NEGATIVES)
    for name, module in pipe.unet.named_modules():
        if name.endswith("attn2"):
            module.processor = Official()
    pipe.scheduler.set_timesteps(3)
    x = START
    with torch.no_grad():
        for t in pipe.scheduler.timesteps:
            out = pipe.unet(x, t, torch.cat([plus, minus])).sample
            x = pipe.scheduler.step(out, t, x).prev_sample
    torch.testing.assert_close(got, x, atol=1e-4, rtol=1e-4)
    assert (got - plain).abs().max() > 1e-2


@pytest.mark.parametrize(
    "name", ["StableDiffusion3", "Flux", "PixArtAlpha", "Wan", "ZImage", "QwenImage"]
)
def test_joint_and_cross_attention(name: str) -> None:
    """The image of both rows stays one: with the prompt as its own negative nothing changes."""
    family = named(name)
    pipe = family.build()

    def run(guidance: str, same: bool = False) -> Tensor:
        call = family.kwargs(pipe) | family.guided(pipe)
        if same:
            embeds = [n for n in call if n.startswith("negative_") and n[9:] in call]
            call |= {n: copy.deepcopy(call[n.removeprefix("negative_")]) for n in embeds}
        torch.manual_seed(0)
        with steer(pipe, guidance):
            return first(pipe(**call))

    plain = run("CFG(1)")
    torch.testing.assert_close(run("NAG(4)", same=True), plain, atol=1e-4, rtol=1e-4)
    assert (run("NAG(4)") - plain).abs().max() > 1e-4
    both = run("CFG(2) + NAG(4, tau=5.0, alpha=0.5)")
    assert both.isfinite().all() and (both - run("CFG(2)")).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["QwenImage", "NucleusMoEImage"])
def test_prompts_of_two_lengths(name: str) -> None:
    """The shorter is padded, and masked: what it is padded by does not count."""
    family = named(name)
    pipe = family.build()
    call = family.kwargs(pipe) | family.guided(pipe)
    lengths = [call[n].shape[1] for n in ("prompt_embeds", "negative_prompt_embeds")]
    assert lengths[0] != lengths[1]

    def run(**more: Any) -> Tensor:
        with steer(pipe, "NAG(4)"):
            return first(pipe(**copy.deepcopy(call | more)))

    padded = {}
    for prefix, length in zip(("", "negative_"), lengths, strict=True):
        more = max(lengths) - length
        names = f"{prefix}prompt_embeds", f"{prefix}prompt_embeds_mask"
        padded[names[0]] = F.pad(call[names[0]], (0, 0, 0, more), value=0.7)
        padded[names[1]] = F.pad(torch.ones(1, length, dtype=torch.long), (0, more))
    torch.testing.assert_close(run(), run(**padded), atol=1e-4, rtol=1e-4)
    other = {"negative_prompt_embeds": -call["negative_prompt_embeds"]}
    assert (run(**other) - run()).abs().max() > 1e-4


def test_networks_without_a_text(tmp_path: Any) -> None:
    calls: list[int] = []
    pipe = tiny.unconditional(diffusers.DDIMScheduler())
    pipe.unet.conv_in.register_forward_pre_hook(lambda *_: calls.append(1))
    for guidance in (NAG(4), NAG(4).over(1, 2)):
        with (
            steer(pipe, guidance),
            pytest.raises(InputError, match="no attention of this network reads a text"),
        ):
            pipe(num_inference_steps=2)
    assert not calls


def test_texts_that_cannot_be_paired() -> None:
    for name, reason in (
        ("HiDreamImage", "encoder_hidden_states_llama3 is"),
        ("AnimateDiff", "a row of tokens for each sample, and encoder_hidden_states is"),
        ("Mochi", "tells the image from the text and has both samples of a pair"),
        ("Flux2Klein", "5 and 7 tokens, and the network takes no mask of its text alone"),
    ):
        family = named(name)
        pipe = family.build()
        with steer(pipe, "NAG(4)"), pytest.raises(InputError, match=reason):
            pipe(**family.kwargs(pipe) | family.guided(pipe))


def test_it_needs_no_evaluation_of_the_prompt_alone() -> None:
    """By itself, in an interval and clamped; in a sum others need it."""
    sd = Discrete.scaled_linear()
    at = GuidanceState(START, sd.at(500.0), V(), 1, sd)
    for text, count in (
        *(("NAG(4)", 2), ("NAG(ramp(1, 4))", 2), ("NAG(4).within(0, 99)", 2), ("NAG(0)", 1)),
        *(("NAG(4).over(0, 2).clamped(3)", 2), ("NAG(4).over(3, 9)", 1), ("Clamped()", 1)),
        *(("CFG(2) + NAG(4)", 4), ('NAG(4, on="null")', 4), ("NAG(4).rescaled(0.7)", 3)),
    ):
        assert plan(parse(text, Guidance).guided(at), at).rows == {"main": count}, text


def test_values() -> None:
    guidance = CFG(2.0) + NAG(4.0, tau=3.0, alpha=0.5, negative="other")
    assert parse(repr(guidance), Guidance) == guidance
    for bad in ("NAG(4, tau=0)", "NAG(4, alpha=1.5)", "NAG(inf)"):
        with pytest.raises(InputError):
            parse(bad, Guidance)
