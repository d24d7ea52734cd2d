"""Networks and pipelines that no table knows are guided right, or refused before the first step."""

from functools import wraps
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from diffsteer import steer
from diffsteer.core.errors import InputError
from families.unknown_networks import CASES, BatchedPipeline, OddUNet, made

each = pytest.mark.parametrize("name", CASES)


def steered(pipe: Any, call: dict[str, Any], guidance: str, **more: Any) -> Tensor:
    with steer(pipe, guidance, **more):
        return pipe(**call, scale=1.5)


def perturbing(pipe: Any, name: str) -> Any:
    """Layer that PAG perturbs, which the network can perturb by itself."""
    *_, layer = CASES[name]
    block = pipe.transformer.get_submodule(layer)
    return block["attn"] if name.startswith("tokens") else block


@each
def test_sums_on_what_no_table_knows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """CFG(5) + PAG(2) is c + 4 (c - n) + 2 (c - p), with p by the network's own code.

    The scheduler computes in float32, so that its first model output alone is compared exactly.
    """
    pipe, call = made(name)
    firsts: list[Tensor] = []
    step = FlowMatchEulerDiscreteScheduler.step

    @wraps(step)
    def noted(self: Any, output: Tensor, *args: Any, **kwargs: Any) -> Any:
        firsts.extend([output] if self.step_index is None else [])
        return step(self, output, *args, **kwargs)

    monkeypatch.setattr(FlowMatchEulerDiscreteScheduler, "step", noted)
    *_, layer = CASES[name]
    wanted = pipe(**call, scale=5.0)
    torch.testing.assert_close(steered(pipe, call, "CFG(5)"), wanted, atol=5e-5, rtol=0)
    torch.testing.assert_close(firsts[1], firsts[0], atol=1e-10, rtol=0)
    first, expected = by_hand(pipe, call, name)
    inner = layer if name.startswith("tokens") else f"{layer}.own"
    got = steered(pipe, call, f"CFG(5) + PAG(2, layer='{inner}')")
    torch.testing.assert_close(firsts[2], first, atol=1e-10, rtol=0)
    torch.testing.assert_close(got, expected, atol=5e-5, rtol=0)
    assert (got - wanted).abs().max() > 1e-3
    assert torch.equal(pipe(**call, scale=5.0), wanted)
    one = {k: v[:1] for k, v in call.items()}
    steered(pipe, one, f"CFG(5) + PAG(2, layer='{inner}')")
    if name != "unet":  # whose `moment` is that of its batch
        torch.testing.assert_close(firsts[-1], firsts[2][:1], atol=1e-10, rtol=0)


def by_hand(pipe: Any, call: dict[str, Any], name: str) -> tuple[Tensor, Tensor]:
    """The first sum and the final sample, from outputs without guidance at each sample."""
    x, block = call["latents"], perturbing(pipe, name)
    pipe.scheduler.set_timesteps(3)
    timesteps, sigmas = list(pipe.scheduler.timesteps), pipe.scheduler.sigmas.double()
    outputs: list[Tensor] = []

    def output(at: Tensor, t: Tensor, **changed: Any) -> Tensor:
        steps, pipe.steps = pipe.steps, lambda latents, predict: predict(at, t)
        try:
            return pipe(**call | changed, scale=1.0)
        finally:
            pipe.steps = steps

    with torch.no_grad():
        for i, t in enumerate(timesteps):
            c = output(x, t)
            n = output(x, t, cond=call["null"], null=call["cond"])
            block.perturbed = True
            p = output(x, t)
            block.perturbed = False
            outputs.append(c + 4 * (c - n) + 2 * (c - p))
            x = x + (sigmas[i + 1] - sigmas[i]) * outputs[-1]
    return outputs[0], x


class EndingPipeline(BatchedPipeline):
    """The null prompt at the first step alone, a moment of each step for both conditions."""

    together = moving = drawn = False
    own, null = 0.0, torch.empty(0)

    def __call__(self, latents: Tensor, cond: Tensor, null: Tensor, scale: float) -> Tensor:
        self.null = null
        ends = iter([False, True, True])

        def predict(x: Tensor, t: Tensor) -> Tensor:
            texts = [cond, null]
            if self.moving:  # features of each condition, as a ControlNet makes them
                texts = [text * (1 + t / 1000) for text in texts]
            if next(ends) and scale > 1:
                return self.answer([x], texts[:1], t)
            if self.together:
                c, n = self.answer([x, x], texts, t).chunk(2)
            else:
                c, n = (self.answer([x], [text], t) for text in texts)
            return n + abs(scale) * (c - n)

        return self.steps(latents, predict)

    def answer(self, xs: list[Tensor], texts: list[Tensor], t: Tensor) -> Tensor:
        x, text = torch.cat(xs), torch.cat(texts)
        if self.drawn:  # a channel beside the sample that is another at each step
            shifts = [t / 1000 + self.own * (words is self.null) for words in texts]
            beside = [s * torch.ones_like(y[:, :1]) for s, y in zip(shifts, xs, strict=True)]
            x = torch.cat([x, torch.cat(beside)], dim=1)
        given = {"moment": xs[0].mean() + t / 1000, "timestep": (1 - t / 1000).expand(len(x))}
        out: Tensor = -self.transformer(x, text, **given)[0]
        return out


class DrawnUNet(OddUNet):
    """With a fifth channel, which shifts all others."""

    def forward(self, noisy: Tensor, words: Tensor, moment: Tensor, timestep: Tensor) -> Any:
        return super().forward(noisy[:, :4] + noisy[:, 4:], words, moment, timestep)


@pytest.mark.parametrize("together", [False, True])
def test_guidance_that_ends_early_in_a_network_that_is_told_of_each_step(together: bool) -> None:
    known, call = made("unet")
    pipe = EndingPipeline(known.transformer, known.scheduler)
    pipe.together = together
    wanted = pipe(**call, scale=-3.0)
    assert not torch.equal(pipe(**call, scale=3.0), wanted)
    torch.testing.assert_close(steered(pipe, call, "CFG(3)"), wanted, atol=5e-5, rtol=0)
    torch.manual_seed(0)
    drawn = EndingPipeline(DrawnUNet().double().eval(), known.scheduler)
    drawn.together, drawn.drawn = together, True
    want, got = drawn(**call, scale=-3.0), steered(drawn, call, "CFG(3)")
    torch.testing.assert_close(got, want, atol=5e-5, rtol=0)
    drawn.own = 0.3
    with pytest.raises(InputError, match="noisy of the null prompt changes from step to step"):
        steered(drawn, call, "CFG(3)")
    pipe.moving = True
    with pytest.raises(InputError, match="words of the null prompt changes from step to step"):
        steered(pipe, call, "CFG(3)")


REFUSED = {
    ("tokens", "SAG(1, on='cond')"): "SAG blurs images",
    ("tokens", "NAG(3)"): "5 and 3 tokens",
}
"""What a network cannot do, with words of the reason."""


@each
@pytest.mark.parametrize(
    "guidance",
    ["SEG(2, sigma=1.0)", "SAG(1, on='cond')", "NAG(3)", "AutoNoise(2, noise=0.1)", "APG(4)"],
)
def test_others_work_or_are_refused(name: str, guidance: str) -> None:
    pipe, call = made(name)
    plain = pipe(**call, scale=1.0)
    if reason := REFUSED.get((name[:6], guidance)):
        pipe.transformer.register_forward_hook(lambda *_: seen.append(1))
        seen: list[int] = []
        with pytest.raises(InputError, match=reason):
            steered(pipe, call, guidance)
        assert len(seen) <= 2  # the calls that show the form of its output
        return
    got = steered(pipe, call, guidance)
    assert got.isfinite().all() and (got - plain).abs().max() > 1e-6
    assert torch.equal(got, steered(pipe, call, guidance))
