"""Skipped blocks and shuffled tokens, by hand on small blocks."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffsteer import CFG, S2, SLG, STG, TPG, Discrete, Guidance, V, parse, plan
from diffsteer.core.errors import InputError
from diffsteer.core.noise import number
from diffsteer.guidance import Denoiser, GuidanceState, Network
from diffsteer.guidance.block_edits import ShuffleTokens, SkipBlock

F64 = torch.float64
SIDE, WIDTH = 3, 4


class Block(nn.Module):
    """Adds a linear map of the tokens and of their mean, weighted by place."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.a, self.b = torch.randn(2, WIDTH, WIDTH, generator=generator, dtype=F64) / 3
        self.place = torch.randn(SIDE * SIDE, 1, generator=generator, dtype=F64)

    def forward(self, hidden_states: Tensor, other: Tensor | None = None) -> Any:
        mixed = (self.place * hidden_states).mean(dim=1, keepdim=True) @ self.b
        new = hidden_states + hidden_states @ self.a + mixed
        return new if other is None else (other + mixed, new)


class Net:
    """Two streams through three blocks; the second block returns both, the other one first."""

    def __init__(self) -> None:
        self.blocks = {f"blocks.{i}": Block(i) for i in range(3)}
        self.rows: list[int] = []

    def run(self, x: Tensor, skipped: Any = (), orders: Any = None) -> Tensor:
        """By hand, for one sample of a batch of 1."""
        tokens, other = x.flatten(2).transpose(1, 2), torch.ones(len(x), 5, WIDTH, dtype=F64)
        for name, block in self.blocks.items():
            if orders is not None and name in orders:
                tokens = tokens[:, orders[name]]
            if name in skipped:
                continue
            if name == "blocks.1":
                other, tokens = block.forward(tokens, other)
            else:
                tokens = block.forward(tokens)
        out = tokens + other.mean(dim=1, keepdim=True)
        return out.transpose(1, 2).reshape(x.shape)

    def call(self, x: Tensor, level: Any, cond: Any) -> Tensor:
        self.rows.append(len(x))
        tokens, other = x.flatten(2).transpose(1, 2), torch.ones(len(x), 5, WIDTH, dtype=F64)
        for name, block in self.blocks.items():
            if name == "blocks.1":
                other, tokens = block(tokens, other=other)
            else:
                tokens = block(hidden_states=tokens)
        return (tokens + other.mean(dim=1, keepdim=True)).transpose(1, 2).reshape(x.shape)


LEVEL = Discrete.linear().at(torch.tensor(400.0, dtype=F64))
X = torch.randn(3, WIDTH, SIDE, SIDE, generator=torch.Generator().manual_seed(7), dtype=F64)
SEEDS = (11, 12, 13)


def guided(net: Net, guidance: Any, max_rows: int | None = None, x: Tensor = X, seeds: Any = SEEDS):
    network = Network(net.call, blocks=net.blocks)
    conds = {"cond": {}, "null": {}}
    made = Denoiser({"main": network}, conds, V(), guidance, max_rows, seeds=seeds)
    return made(x, LEVEL)


def x0(net: Net, **edit: Any) -> Tensor:
    return V().x0(X, net.run(X, **edit), LEVEL)


@pytest.mark.parametrize("max_rows", [None, 4, 1])
@pytest.mark.parametrize(
    ("layer", "skipped"),
    [
        ("mid", ["blocks.1"]),
        ("0, blocks.2", ["blocks.0", "blocks.2"]),
        ("all", ["blocks.0", "blocks.1", "blocks.2"]),
    ],
)
def test_slg_by_hand(layer: str, skipped: list[str], max_rows: int | None) -> None:
    """Both streams of a block that returns two are as they were given."""
    net = Net()
    want = x0(net) + 2.5 * (x0(net) - x0(net, skipped=skipped))
    for guidance in (SLG(2.5, layer), STG(2.5, layer), CFG(3) + SLG(2.5, layer)):
        got = guided(net, guidance, max_rows)
        torch.testing.assert_close(got, want, atol=1e-12, rtol=0)


def test_s2_draws_blocks_for_each_sample_and_level() -> None:
    net, names = Net(), list(Net().blocks)
    got = guided(net, S2(0.5, share=0.4))
    state = GuidanceState(X, LEVEL, V(), seeds=SEEDS)
    drawn = []
    for i, seed in enumerate(state.seeds_for("skip")):
        drawn.append(min(names, key=lambda name: number(f"{seed} {name}".encode())))
        want = 1.5 * x0(net)[i] - 0.5 * x0(net, skipped=[drawn[-1]])[i]
        torch.testing.assert_close(got[i], want, atol=1e-12, rtol=0)
    assert len(set(drawn)) > 1
    counts = [SkipBlock(0.5, seeds=(5,)).acts(0, name, names) for name in names]
    assert sum(counts) == 2
    many = tuple(range(600))
    shares = [sum(SkipBlock(0.1, seeds=many).acts(i, n, names) for i in many) for n in names]
    assert sum(shares) == 600 and min(shares) > 160


def test_tpg_by_hand() -> None:
    """Tokens of chosen blocks are in another order; a sample has its own, alone or in a batch."""
    net = Net()
    got = guided(net, TPG(2, "0, 2"))
    seeds = GuidanceState(X, LEVEL, V(), seeds=SEEDS).seeds_for("shuffle")
    places = torch.arange(9.0)[None, :, None]
    for i in range(3):
        edit = ShuffleTokens(seeds=seeds)
        orders = {n: edit.shuffled(places, i, n)[0, :, 0].long() for n in ("blocks.0", "blocks.2")}
        assert not torch.equal(orders["blocks.0"], orders["blocks.2"])
        want = 3 * x0(net)[i] - 2 * x0(net, orders=orders)[i]
        torch.testing.assert_close(got[i], want, atol=1e-12, rtol=0)
        alone = guided(net, TPG(2, "0, 2"), x=X[i : i + 1], seeds=SEEDS[i : i + 1])
        torch.testing.assert_close(alone[0], got[i], atol=1e-12, rtol=0)


def test_tokens_of_a_text_stay_where_they_are() -> None:
    """A block of a single stream: the place of the image is that of its layer of attention."""

    class Attention(nn.Module):
        def forward(self, q: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(q, q, q)

    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn, self.seen = Attention(), []

        def forward(self, x: Tensor) -> Tensor:
            self.seen.append(x)
            return x + self.attn(x[:, None])[:, 0]

    block = Single()

    def call(x: Tensor, level: Any, cond: Any) -> Tensor:
        text = torch.arange(8.0, dtype=F64).reshape(1, 2, 4).expand(len(x), -1, -1)
        tokens = torch.cat([text, x.flatten(2).transpose(1, 2)], dim=1)
        return block(tokens)[:, 2:].transpose(1, 2).reshape(x.shape)

    network = Network(
        call, {"blocks.0.attn": block.attn}, text_first=True, blocks={"blocks.0": block}
    )
    Denoiser({"main": network}, {"cond": {}}, V(), TPG(1))(X, LEVEL)
    plain, shuffled = block.seen[0][:3], block.seen[0][3:]
    assert torch.equal(shuffled[:, :2], plain[:, :2])
    assert not torch.equal(shuffled[:, 2:], plain[:, 2:])
    for i in range(3):
        assert {*map(tuple, shuffled[i].tolist())} == {*map(tuple, plain[i].tolist())}


@pytest.mark.parametrize(
    ("text", "off"),
    [
        ("SLG(2.0)", "SLG(0, 'gone')"),
        ("STG(1.0, mode='attention')", "STG(0)"),
        ("S2(0.5)", "S2(0)"),
        ("TPG(3.0)", "TPG(0)"),
    ],
)
def test_values(text: str, off: str) -> None:
    guidance = parse(text, Guidance)
    assert repr(guidance) == text and parse(repr(guidance + CFG(2)), Guidance) == guidance + CFG(2)
    at = GuidanceState(X, LEVEL, V())
    assert plan((CFG(3) + guidance + guidance).shift(at), at).rows == {"main": 3}
    assert plan(parse(off, Guidance).shift(at), at).rows == {}


def test_bad_input() -> None:
    net = Net()
    with pytest.raises(InputError, match=r"no block with attention is called '7': there are bl"):
        guided(net, SLG(1, "1, 7"))
    assert net.rows == []
    with pytest.raises(InputError, match="none in this network"):
        Denoiser({"main": Network(net.call)}, {"cond": {}}, V(), SLG(1))(X, LEVEL)
    with pytest.raises(InputError, match="'block' or 'attention'"):
        STG(1, mode="both")
    for share in (0, 1, 1.5):
        with pytest.raises(InputError, match=r"a share in \]0, 1\["):
            S2(1, share=share)

    class Wider(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, x], dim=1)

    wider = Wider()
    network = Network(lambda x, *_: wider(x)[:, :4], blocks={"a": wider})
    with pytest.raises(InputError, match="the shape of nothing that it is given"):
        Denoiser({"main": network}, {"cond": {}}, V(), SLG(1, "a"))(X, LEVEL)

    class Beside(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return None, 2 * x

    beside = Beside()
    last = Network(lambda x, *_: beside(x)[1], blocks={"a": beside})
    got = Denoiser({"main": last}, {"cond": {}}, V(), SLG(1, "a"))(X, LEVEL)
    torch.testing.assert_close(got, 2 * V().x0(X, 2 * X, LEVEL) - V().x0(X, X, LEVEL))
    apart = Network(lambda x, *_: beside(x.flatten()[1:])[1], blocks={"a": beside})
    with pytest.raises(InputError, match=r"block 'a' sees 215 rows in a pass of 6, so that its"):
        Denoiser({"main": apart}, {"cond": {}}, V(), SLG(1, "a"))(X, LEVEL)
    video = Network(lambda x, *_: beside(x[:, :, None])[1][:, :, 0], blocks={"a": beside})
    with pytest.raises(InputError, match=r"block 'a' takes \(6, 4, 1, 3, 3\), in which the tokens"):
        Denoiser({"main": video}, {"cond": {}}, V(), TPG(1, "a"))(X, LEVEL)
    idle = Network(lambda x, *_: x, blocks={"a": wider})
    with pytest.raises(InputError, match="did not run"):
        Denoiser({"main": idle}, {"cond": {}}, V(), SLG(1, "a"))(X, LEVEL)
    assert not wider._forward_hooks and not wider._forward_pre_hooks
