"""What SAG blurs: by attention of one layer or several, at random, by detail, everywhere."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffsteer import SAG, Discrete, Guidance, V, parse, plan
from diffsteer.core.errors import InputError
from diffsteer.guidance import Denoiser, GuidanceState, Network
from diffsteer.guidance.attention_edits import blur, received
from diffsteer.guidance.sag import attention_mask, edge_mask, random_mask

F64 = torch.float64
LEVEL = Discrete.linear().at(torch.tensor(400.0, dtype=F64))
X = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(3), dtype=F64)
SEEDS = (4, 5, 6)


class Attention(nn.Module):
    def forward(self, q: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, q, q)


class Net:
    """Attends at two resolutions, 4 x 4 and 8 x 8."""

    def __init__(self) -> None:
        self.layers = {"mid": Attention(), "up.0": Attention()}
        self.inputs: list[Tensor] = []

    def queries(self, x: Tensor) -> dict[str, Tensor]:
        fine = 2 * x.flatten(2).transpose(1, 2)[:, None]
        return {"mid": 3 * F.avg_pool2d(x, 2).flatten(2).transpose(1, 2)[:, None], "up.0": fine}

    def call(self, x: Tensor, level, cond) -> Tensor:
        self.inputs.append(x)
        for name, q in self.queries(x).items():
            self.layers[name](q)
        return x.sin()


def by_hand(mask: Tensor, sigma: float = 1.0) -> Tensor:
    """x0 moved by 0.75 (x0~ - x0(x~)), for the network above and a mask `(B, 1, 8, 8)`."""
    x0, eps = V().solve(X, X.sin(), LEVEL)
    soft = torch.where(mask, blur(x0, sigma, 9), x0)
    noised = LEVEL.mix(soft, eps)
    return x0 + 0.75 * (soft - V().x0(noised, noised.sin(), LEVEL))


def guided(guidance: Guidance, x: Tensor = X, seeds=SEEDS) -> Tensor:
    net = Net()
    network = Network(net.call, net.layers)
    made = Denoiser({"main": network}, {"cond": {}, "null": {}}, V(), guidance, seeds=seeds)
    return made(x, LEVEL)


def maps() -> dict[str, Tensor]:
    return {
        name: received(q, q).reshape(3, 1, *2 * [int(q.shape[2] ** 0.5)]).double()
        for name, q in Net().queries(X).items()
    }


def twice(a: Tensor) -> Tensor:
    return a.repeat_interleave(2, -1).repeat_interleave(2, -2)


def test_several_layers_have_the_mean_of_their_maps() -> None:
    found = maps()
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(guided(SAG(0.75)), by_hand(twice(found["mid"] > 1)), **close)
    both = (twice(found["mid"]) + found["up.0"]) / 2
    for threshold in (1.0, 1.1):
        got = guided(SAG(0.75, "mid, up.0", threshold=threshold))
        torch.testing.assert_close(got, by_hand(both > threshold), **close)
    assert not torch.equal(twice(found["mid"] > 1), both > 1)
    sums = guided(SAG(0.75) + SAG(0.75, "up.0"))  # each reads its own layer of one answer
    x0 = V().x0(X, X.sin(), LEVEL)
    want = by_hand(twice(found["mid"] > 1)) + by_hand(found["up.0"] > 1) - x0
    torch.testing.assert_close(sums, want, **close)


def test_global_blur_asks_for_no_attention() -> None:
    """Without any layer, for any sigma."""
    whole = torch.ones(3, 1, 8, 8, dtype=torch.bool)
    made = Denoiser(
        {"main": Network(Net().call)}, {"null": {}, "cond": {}}, V(), SAG(0.75, mask="global")
    )
    torch.testing.assert_close(made(X, LEVEL), by_hand(whole), atol=1e-9, rtol=0)
    got = guided(SAG(0.75, mask="global", sigma=2.5))
    torch.testing.assert_close(got, by_hand(whole, 2.5), atol=1e-9, rtol=0)


def test_random_and_edges_mask_as_many_tokens() -> None:
    scores = [a[:, 0] for a in maps().values()]
    x0 = V().x0(X, X.sin(), LEVEL)
    mask = attention_mask(scores[:1], x0, 1.0)
    seeds = GuidanceState(X, LEVEL, V(), seeds=SEEDS).seeds_for("mask")
    drawn, edges = random_mask(mask, seeds), edge_mask(mask, x0 - blur(x0, 1.0, 9))
    counts = mask.sum(dim=(1, 2, 3))
    for other in (drawn, edges):
        assert torch.equal(other.sum(dim=(1, 2, 3)), counts) and not torch.equal(other, mask)
    energy = F.avg_pool2d((x0 - blur(x0, 1.0, 9)).square().mean(1, keepdim=True), 2)
    for i in range(3):
        assert energy[i][edges[i]].min() > energy[i][~edges[i]].max()
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(guided(SAG(0.75, mask="random")), by_hand(twice(drawn)), **close)
    torch.testing.assert_close(guided(SAG(0.75, mask="edges")), by_hand(twice(edges)), **close)
    for kind in ("random", "edges"):  # alone as in a batch
        one = guided(SAG(0.75, mask=kind), X[1:2], SEEDS[1:2])
        torch.testing.assert_close(one[0], guided(SAG(0.75, mask=kind))[1], **close)


def test_videos() -> None:
    """Maps of frames, or one map for all frames."""
    x0 = torch.randn(2, 3, 5, 8, 8)
    for scores in (torch.rand(2, 5, 4, 4), torch.rand(2, 4, 4)):
        mask = attention_mask([scores], x0, 0.5)
        for made in (mask, random_mask(mask, (1, 2)), edge_mask(mask, x0)):
            assert made.ndim == 5 and torch.equal(made.flatten(1).sum(1), mask.flatten(1).sum(1))
    frames = torch.rand(2, 5, 4, 4)
    both = attention_mask([torch.zeros(2, 8, 8), frames], x0, 0.25)  # the frames stay apart
    assert torch.equal(both[:, 0, :, ::2, ::2], frames > 0.5)


def test_values() -> None:
    for kind in ("random", "edges", "global"):
        guidance = SAG(0.5, "mid, up.0", mask=kind)
        assert parse(repr(guidance), Guidance) == guidance
        at = GuidanceState(X, LEVEL, V())
        assert plan(guidance.shift(at), at).rows == {"main": 2}
    with pytest.raises(InputError, match="mask must be one of attention, random, edges, global"):
        SAG(0.5, mask="square")
