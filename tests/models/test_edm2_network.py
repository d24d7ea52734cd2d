"""The EDM2 network: magnitudes, invariances, precision, and its place in the engine."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from diffsteer import CFG, EDM, PAG, Auto, Preconditioned, grid
from diffsteer.guidance import Denoiser
from diffsteer.models.edm2.magnitude import MPConv, MPFourier, mp_cat, mp_silu, mp_sum, normalize
from diffsteer.models.edm2.model import EDM2, network

PUBLISHED = json.loads(
    (Path(__file__).parents[1] / "data" / "edm2_state_dict.json").read_text("utf-8")
)
SMALL = {
    **{"img_resolution": 16, "img_channels": 3, "label_dim": 10, "model_channels": 16},
    **{"channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8]},
    **{"channels_per_head": 16, "logvar_channels": 32},
}


def small(seed: int = 0, gain: float = 1.0, **changes) -> EDM2:
    """A network with random weights whose every part acts."""
    torch.manual_seed(seed)
    net = EDM2(**{**SMALL, **changes}).eval()
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.endswith("_gain"):
                p.fill_(gain)
    return net


def inputs(n: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(9)
    return torch.randn(n, 3, 16, 16), torch.linspace(0.5, 3, n), torch.eye(10)[:n]


def std(x: torch.Tensor) -> float:
    return x.square().mean().sqrt().item()


@pytest.mark.parametrize("name", ["default", "small"])
def test_names_and_shapes_are_those_of_published_files(name: str) -> None:
    said = PUBLISHED[name]
    with torch.device("meta"):
        net = EDM2(**said["config"])
        state = {key: torch.empty(shape) for key, shape in said["tensors"].items()}
    net.load_state_dict(state, strict=True, assign=True)
    assert {k: list(v.shape) for k, v in net.state_dict().items()} == said["tensors"]


def test_millions_of_parameters_of_the_published_sizes() -> None:
    sizes = {64: 31.3, 128: 125, 192: 280, 256: 498, 320: 778, 384: 1119, 448: 1523}
    for width, millions in sizes.items():
        with torch.device("meta"):
            net = EDM2(64, 4, 1000, width)
        assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.51)
    with torch.device("meta"):
        assert len(EDM2(64, 4, 0).state_dict()) == 202  # no embedding of labels


def test_layers_keep_unit_variance() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, 64, 32, 16, 16)
    # 1e6 numbers: the standard error of a standard deviation is 1e-3 or, after a convolution whose
    # weight is one draw of 32 outputs, a few times that
    assert std(mp_silu(x)) == pytest.approx(1, abs=5e-3)
    for t in (0.1, 0.3, 0.5):
        assert std(mp_sum(x, y, t)) == pytest.approx(1, abs=5e-3)
    for conv in (MPConv(32, 256, 3, 3), MPConv(32, 256, 1, 1)):
        conv.weight.data *= 1 + torch.rand(256, 1, 1, 1) * 10
        assert std(conv(x)[..., 1:-1, 1:-1]) == pytest.approx(1, abs=0.02)
    assert std(MPFourier(4096)(torch.randn(64))) == pytest.approx(1, abs=0.02)
    assert std(normalize(7 * x, dim=1)) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("n", "m"), [(8, 8), (24, 8), (8, 40)])
def test_both_parts_of_a_concatenation_count_alike(n: int, m: int) -> None:
    torch.manual_seed(0)
    both = mp_cat(torch.randn(64, n, 8, 8), torch.randn(64, m, 8, 8))
    first, second = both.split([n, m], dim=1)
    assert std(both) == pytest.approx(1, abs=0.02)
    assert first.square().sum().item() == pytest.approx(second.square().sum().item(), rel=0.05)


def test_the_whole_network_keeps_unit_variance() -> None:
    net = small(model_channels=64, channels_per_head=64)
    torch.manual_seed(1)
    x = 0.5 * torch.randn(16, 3, 16, 16)
    for sigma in (0.01, 1.0, 50.0):
        with torch.no_grad():
            out = net.out(x + sigma * torch.randn_like(x), sigma, torch.eye(10)[[3] * 16])
        assert 0.6 < std(out) < 1.6  # gain 1; other random networks lie within 10 % of this one's


def test_before_training_it_returns_c_skip_x() -> None:
    x, sigma, labels = inputs()
    skip = (0.25 / (sigma**2 + 0.25)).view(-1, 1, 1, 1)
    assert torch.equal(EDM2(**SMALL)(x, sigma, labels), skip * x)


def test_what_flows_from_where_to_where() -> None:
    (x, sigma, labels), net = inputs(), small().double()
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for part in ("enc", "dec"):
        for name, block in getattr(net.unet, part).items():
            block.register_forward_hook(
                lambda _, args, out, name=f"{part}.{name}": seen.update({name: (args[0], out)})
            )
    with torch.no_grad():
        net(x.double(), sigma.double(), labels)
    c_in = 1 / (0.25 + sigma.double() ** 2).sqrt()
    first = torch.cat([c_in.view(-1, 1, 1, 1) * x.double(), torch.ones(2, 1, 16, 16)], dim=1)
    torch.testing.assert_close(seen["enc.16x16_conv"][0], first)
    order = ["8x8_in0", "8x8_in1", "8x8_block0", "8x8_block1", "16x16_up", "16x16_block0"]
    order.append("16x16_block1")
    assert list(net.unet.dec) == order
    skips = list(reversed([name for name in seen if name.startswith("enc")]))
    for before, name in zip(order[1:-1], order[2:], strict=True):
        given, x = seen[f"dec.{name}"][0], seen[f"dec.{before}"][1]
        if "block" not in name:
            assert torch.equal(given, x)
            continue
        skip = seen[skips.pop(0)][1]
        n, m = x.shape[1], skip.shape[1]
        for part, width, joined in ((x, n, given[:, :n]), (skip, m, given[:, n:])):
            torch.testing.assert_close(joined, part * ((n + m) / 2 / width) ** 0.5)
    assert not skips


def test_the_embedding_is_that_of_the_paper() -> None:
    net, label, noise = small().double().unet, torch.eye(10).double()[:2], torch.tensor([0.3, -1.2])

    def linear(layer: MPConv, x: torch.Tensor) -> torch.Tensor:
        w = layer.weight / (1e-4 + layer.weight.square().mean(1, keepdim=True).sqrt())
        return x @ w.T / w.shape[1] ** 0.5

    with torch.no_grad():
        angle = noise.double()[:, None] * net.emb_fourier.freqs + net.emb_fourier.phases
        parts = linear(net.emb_noise, 2**0.5 * angle.cos()), linear(net.emb_label, label * 10**0.5)
        mixed = (parts[0] + parts[1]) / 2**0.5
        want = mixed * torch.sigmoid(mixed) / 0.596
        torch.testing.assert_close(net.embedding(noise.double(), label), want)


def test_attention_is_that_of_the_paper() -> None:
    block = dict(small().unet.named_modules())["dec.8x8_in0"]
    x = torch.randn(2, 32, 8, 8)
    with torch.no_grad():
        q, k, v = normalize(block.attn_qkv(x).view(2, 2, 16, 3, 64), dim=2).unbind(3)
        share = torch.einsum("bhcq,bhck->bhqk", q, k / 4).softmax(dim=-1)
        y = block.attn_proj(torch.einsum("bhqk,bhck->bhcq", share, v).reshape(x.shape))
        torch.testing.assert_close(block._attended(x), y, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["enc.8x8_block0", "dec.16x16_block0", "dec.8x8_in1"])
def test_blocks_are_those_of_the_paper(name: str) -> None:
    """Written out once more in float64; the constants are the paper's, not the module's."""
    block = dict(small(gain=0.7).double().unet.named_modules())[name]
    wide = block.conv_skip.weight.shape[1] if block.conv_skip else 32
    given, emb = torch.randn(2, wide, 8, 8).double(), torch.randn(2, 32).double()

    def conv(layer: MPConv, x: torch.Tensor, gain: float = 1.0) -> torch.Tensor:
        w = layer.weight.flatten(1)
        w = w / (1e-4 + w.square().mean(1, keepdim=True).sqrt()) * gain / w.shape[1] ** 0.5
        return F.conv2d(x, w.view_as(layer.weight), padding=layer.weight.shape[-1] // 2)

    def silu(x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(x) / 0.596

    with torch.no_grad():
        rows = block.emb_linear.weight
        rows = rows / (1e-4 + rows.square().mean(1, keepdim=True).sqrt())
        scale = emb @ rows.T * 0.7 / 32**0.5 + 1
        x = given
        if name.startswith("enc"):
            x = conv(block.conv_skip, x)
            x = x / (1e-4 + x.square().mean(1, keepdim=True).sqrt())
        y = conv(block.conv_res0, silu(x)) * scale[:, :, None, None]
        y = conv(block.conv_res1, silu(y))
        if name.startswith("dec") and block.conv_skip:
            x = conv(block.conv_skip, x)
        want = (0.7 * x + 0.3 * y) / 0.58**0.5
        if block.heads:
            want = (0.7 * want + 0.3 * block._attended(want)) / 0.58**0.5
        torch.testing.assert_close(block(given, emb), want)
        vast = 1e6 * given
        assert block(vast, emb).abs().max() <= 256
        assert block.heads == (2 if name == "enc.8x8_block0" else 0)


def test_resampling_is_means_and_repetition() -> None:
    unet, x = small().unet, torch.randn(1, 16, 16, 16)
    half = unet.enc["8x8_down"]._resampled(x)
    torch.testing.assert_close(half, x.view(1, 16, 8, 2, 8, 2).mean((3, 5)))
    double = unet.dec["16x16_up"]._resampled(half)
    assert torch.equal(double, half.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_float32_is_float64_to_1e_6() -> None:
    net, (x, sigma, labels) = small(), inputs()
    with torch.no_grad():
        narrow, exact = net(x, sigma, labels), net.double()(x.double(), sigma.double(), labels)
    assert narrow.dtype == torch.float32 and exact.dtype == torch.float64
    # the sines of float32 angles of up to 30 err by 1e-6 at worst; all else is below
    assert ((narrow - exact).norm() / exact.norm()).item() < 1e-6


def test_half_precision_weights_round_the_gains_only() -> None:
    (x, sigma, labels), gain = inputs(), 0.3
    half = small(gain=gain).half()
    full = small(gain=gain).half().float()
    rounded = small(gain=gain).half().float()
    with torch.no_grad():
        for name, p in rounded.named_parameters():
            if name.endswith("_gain"):
                fan = 32 if "emb" in name else 16 * 9
                p.copy_((p.half() / math.sqrt(fan)).float() * math.sqrt(fan))
        official, clean, same = (n(x, sigma, labels) for n in (half, full, rounded))
    assert official.dtype == torch.float32
    torch.testing.assert_close(official, same, atol=1e-6, rtol=0)
    assert 1e-6 < (official - clean).abs().max() < 1e-3


def test_labels() -> None:
    (x, sigma, labels), net = inputs(), small()
    with torch.no_grad():
        assert torch.equal(net(x, sigma), net(x, sigma, torch.zeros(2, 10)))
        one = net(x, sigma, labels[:1])
        torch.testing.assert_close(one[0], net(x, sigma, labels)[0], atol=1e-6, rtol=1e-5)
        assert (one[1] - net(x, sigma, labels)[1]).abs().max() > 1e-3
        free = small(label_dim=0)
        assert torch.equal(free(x, sigma, labels), free(x, sigma))
    for wrong in (torch.zeros(2, 9), torch.tensor([1, 2])):
        with pytest.raises(ValueError, match=r"one-hot, \(B, 10\)"):
            net(x, sigma, wrong)
    with pytest.raises(ValueError, match="x must have shape"):
        net(x[:, :2], sigma, labels)


def test_gradients_are_those_of_finite_differences() -> None:
    net = small().double()
    x, sigma, labels = (t.double() for t in inputs())
    leaves = [x, *net.parameters()]
    for leaf in leaves:
        leaf.requires_grad_()
    out, u = net(x, sigma, labels, return_logvar=True)
    probe = torch.randn_like(out)
    grads = torch.autograd.grad((out * probe).sum() + u.sum(), leaves)
    torch.manual_seed(3)
    for leaf, grad in zip(leaves, grads, strict=True):
        step = torch.randn_like(leaf)
        values = []
        for h in (1e-5, -1e-5):
            with torch.no_grad():
                leaf += h * step
                out, u = net(x, sigma, labels, return_logvar=True)
                values.append((out * probe).sum() + u.sum())
                leaf -= h * step
        slope = (values[0] - values[1]) / 2e-5
        assert slope.item() == pytest.approx((grad * step).sum().item(), rel=1e-5, abs=1e-6)


def test_training_forces_weights_to_unit_magnitude() -> None:
    (x, sigma, labels), net = inputs(), small().double().train()
    want, _ = net(x.double(), sigma, labels, return_logvar=True)
    with torch.no_grad():
        for p in (p for p in net.parameters() if p.ndim > 1):
            assert p.flatten(1).square().mean(1).sqrt().sub(1).abs().max() < 1e-3
            p *= 5 * torch.rand(len(p), *(1,) * (p.ndim - 1)) + 1
    scaled = net(x.double(), sigma, labels)
    # the 1e-4 added to each norm keeps it from being exact
    torch.testing.assert_close(scaled, want, atol=2e-3, rtol=0)
    gradient = torch.autograd.grad(scaled.square().sum(), net.unet.out_conv.weight)[0]
    weight = net.unet.out_conv.weight
    along = (gradient * weight).flatten(1).sum(1) / gradient.flatten(1).norm(dim=1)
    assert along.abs().max() < 1e-3 * weight.flatten(1).norm(dim=1).min()  # only directions learn


def test_dropout_acts_in_training_alone() -> None:
    (x, sigma, labels), net = inputs(), small(dropout=0.5)
    assert torch.equal(net(x, sigma, labels), net(x, sigma, labels))
    net.train()
    assert not torch.equal(net(x, sigma, labels), net(x, sigma, labels))


def test_uncertainty_is_a_number_for_each_level() -> None:
    (x, sigma, labels), net = inputs(), small()
    _, u = net(x, sigma, labels, return_logvar=True)
    head = net.logvar_fourier(sigma.log() / 4) @ net.logvar_linear.effective(1.0, x.dtype).T
    assert torch.equal(u, head.view(2, 1, 1, 1))


def test_kept_weights_have_the_same_bits_and_follow_changes() -> None:
    (x, sigma, labels), net = inputs(), small()
    with torch.no_grad():
        plain = net(x, sigma, labels)
        net.keep_weights()
        assert torch.equal(net(x, sigma, labels), plain)
        assert net.unet.out_conv._kept is not None
        net.unet.out_gain.fill_(2.0)
        net.load_state_dict(small(1, gain=2.0).state_dict())
        assert torch.equal(net(x, sigma, labels), small(1, gain=2.0)(x, sigma, labels))
    net(x, sigma, labels).sum().backward()  # where gradients are wanted nothing is kept
    assert net.unet.out_conv.weight.grad is not None
    net.train()
    assert net.unet.out_conv._kept is None and not net.unet.out_conv.keeps


def counted(net: EDM2, calls: list[int]) -> EDM2:
    net.unet.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    return net


def test_one_pass_of_each_network_an_evaluation() -> None:
    calls: tuple[list[int], list[int]] = ([], [])
    main, guide = (network(counted(small(i), calls[i])) for i in (0, 1))
    x, _, labels = inputs()
    conds = {"cond": {"labels": labels}, "null": {"labels": torch.zeros(2, 10)}}
    level = grid(EDM(), 8)[3]

    def rows(guidance, guide) -> tuple[list[int], ...]:
        for seen in calls:
            seen.clear()
        nets = {"main": main, "guide": guide}
        with torch.no_grad():
            Denoiser(nets, conds, Preconditioned(), guidance)(x, level)
        return calls

    assert rows(Auto(2.0), guide) == ([2], [2])
    assert rows(Auto(1.0), guide) == ([2], [])
    assert rows(CFG(2.0), guide) == ([4], [])  # both conditions in one pass
    assert rows(Auto(2.0), main) == ([4], [])  # equal networks share it
    assert rows(CFG(2.0) + Auto(1.5), guide) == ([4], [2])


def test_the_engine_computes_what_the_network_does() -> None:
    (x, _, labels), net = inputs(), small()
    level = grid(EDM(), 8)[3]
    denoiser = Denoiser({"main": network(net)}, {"cond": {"labels": labels}}, Preconditioned())
    with torch.no_grad():
        torch.testing.assert_close(
            denoiser(x, level), net(x, level.sigma, labels), atol=1e-6, rtol=1e-6
        )
        with pytest.raises(ValueError, match="alpha=1"):
            network(net).call(x, level._replace(alpha=torch.tensor(0.5)), {})


def test_attention_can_be_edited() -> None:
    (x, _, labels), net = inputs(), network(small())
    level = grid(EDM(), 8)[6]
    assert {n.split(".")[-1] for n in net.layers} == {"8x8_block0", "8x8_block1", "8x8_in0"}
    with torch.no_grad():
        bare, edited = (
            Denoiser({"main": net}, {"cond": {"labels": labels}}, Preconditioned(), g)(x, level)
            for g in (None, PAG(2.0, layer="8x8_in0"))
        )
    assert (bare - edited).abs().max() > 1e-4


@pytest.mark.parametrize(
    "changes",
    [
        {"img_resolution": 15},
        {"img_channels": 0},
        {"num_blocks": 10**9},
        {"model_channels": 2.5},
        {"channel_mult": []},
        {"channel_mult": [1, -1]},
        {"label_dim": True},
        {"sigma_data": 0},
        {"dropout": 1.0},
        {"model_channels": 4},  # narrower than a head
        {"model_channels": 45, "channels_per_head": 64, "channel_mult": [1, 3]},
    ],
)
def test_impossible_networks_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        EDM2(**{**SMALL, **changes})


def test_silu_constant() -> None:
    u, w = torch.linspace(-12, 12, 200001, dtype=torch.float64), 24 / 200000
    density = (-(u**2) / 2).exp() / math.sqrt(2 * math.pi)
    assert ((F.silu(u) ** 2 * density).sum() * w).sqrt().item() == pytest.approx(0.596, abs=5e-4)
