"""Parts of a sample (video and sound) are guided each as if alone, from common evaluations."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from diffsteer.core.level import Level
from diffsteer.core.parse import parse
from diffsteer.core.prediction import Velocity
from diffsteer.core.schedule import Flow
from diffsteer.guidance import Guidance
from diffsteer.guidance.denoiser import Denoiser, Network
from diffsteer.guidance.each_part import Parts
from diffsteer.guidance.step_memory import Store

LENGTHS = (5, 3)
COUNT = [0]


def answer(x: Tensor, level: Level, cond: dict[str, Tensor]) -> Tensor:
    """A network of tokens that do not see each other."""
    COUNT[0] += len(x)
    return torch.tanh(x * (1 + level.t.to(x)) + cond["text"].reshape(-1, *[1] * (x.ndim - 1)))


def guided(guidance: str, x: Tensor, parts: Parts | None = None) -> list[Tensor]:
    """Guided x0 of three steps; memory goes from step to step."""
    conds = {name: {"text": torch.full((len(x),), v)} for name, v in (("cond", 0.5), ("null", -1))}
    schedule = Flow()
    denoiser = Denoiser(
        {"main": Network(answer)},
        conds,
        Velocity(),
        parse(guidance, Guidance),
        schedule=schedule,
        seeds=(3, 4),
        memory=Store(),
        parts=parts,
    )
    levels = [schedule.at(torch.tensor(t, dtype=torch.float64)) for t in (0.9, 0.6, 0.3)]
    return [
        replace(denoiser, step=i, next=levels[min(i + 1, 2)])(x * (1 - 0.2 * i), level)
        for i, level in enumerate(levels)
    ]


@pytest.mark.parametrize(
    "guidance",
    ["CFG(4)", "CFG(4).rescaled(0.8)", "APG(4)", "CFGZero(4)", "CFG(3).within(0.5, 2) + CFG(2)"],
)
def test_parts_are_guided_as_if_alone(guidance: str) -> None:
    x = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    COUNT[0] = 0
    alone = [guided(guidance, part) for part in torch.split(x, list(LENGTHS), dim=1)]
    evaluations = COUNT[0]
    COUNT[0] = 0
    both = guided(guidance, x, Parts(LENGTHS))
    assert COUNT[0] == evaluations // 2
    for step, whole in enumerate(both):
        parts = torch.cat([part[step] for part in alone], dim=1)
        torch.testing.assert_close(whole, parts, atol=1e-12, rtol=0)
    same = [torch.allclose(a, b) for a, b in zip(both, guided(guidance, x), strict=True)]
    assert all(same) == guidance.endswith(("CFG(4)", "CFG(2)"))  # others take a norm of all


def test_noise_of_parts() -> None:
    """Each part asks at another level with noise of its own, in one evaluation."""
    x = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    text = "AutoNoise(2, noise=0.1)"
    video, _ = (guided(text, part) for part in torch.split(x, list(LENGTHS), dim=1))
    COUNT[0] = 0
    both = guided(text, x, Parts(LENGTHS))
    assert COUNT[0] == 2 * 2 * 3
    torch.testing.assert_close(both[0][:, :5], video[0], atol=1e-12, rtol=0)
    equal = guided(text, torch.cat([x[:, :5]] * 2, dim=1), Parts((5, 5)))[0]
    assert not torch.allclose(equal[:, :5], equal[:, 5:])


def test_a_video_is_guided_as_if_it_were_no_tokens() -> None:
    """Blur of packed tokens is packed blur, and sound beside the video is as without SAG."""
    video = torch.randn(2, 4, 3, 5, 2, generator=torch.Generator().manual_seed(0)).double()
    sound = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(1)).double()

    def unpacked(tokens: Tensor) -> Tensor:
        return tokens.transpose(1, 2).unflatten(2, (3, 5, 2))

    def packed(x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)

    parts = Parts((30, 7), unpacked, packed)
    x = torch.cat([packed(video), sound], dim=1)
    text = "CFG(3) + SAG(1, mask='global')"
    both = guided(text, x, parts)
    for step, (alone, plain) in enumerate(
        zip(guided(text, video), guided("CFG(3)", sound), strict=True)
    ):
        torch.testing.assert_close(both[step][:, :30], packed(alone), atol=1e-12, rtol=0)
        torch.testing.assert_close(both[step][:, 30:], plain, atol=1e-12, rtol=0)
