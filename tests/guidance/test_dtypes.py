"""Every guidance computes in float32 or wider, whatever dtypes samples and networks have."""

import copy
import re

import diffusers
import pytest
import tiny
import torch
import torch.nn.functional as F
from test_catalogue import ON
from torch import Tensor, nn

from diffsteer import ICG, NAG, Discrete, Eps, Guidance, V, parse
from diffsteer.core.parse import subclasses
from diffsteer.guidance.classifier import class_gradient
from diffsteer.guidance.denoiser import Denoiser, Network
from diffsteer.steering import steer

ACCURACY = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.3}
TEXTS = (
    *("APG(4, parallel=0.5, norm=2)", "CFG(6).rescaled(0.7)", "CFG(3).within(0.01, 500)"),
    *("CFG(6).rescaled(0.5, centred=True).clamped(0.5)", "Clamped(limit=0.4)"),
    *("SAG(0.5, on='cond', clamp=1.0)", "SEG(1, sigma=2.0)"),
    *(repr(g) for g in ON if not isinstance(g, ICG | NAG) and "adapter" not in repr(g)),
    "CFG(3) + 0.5 * SAG(0.5).over(0, 1) + PAG(2) + Auto(2)",
)
"""Each guidance of networks that read no text and have no adapters, and more settings of some."""


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(8, 24)

    def forward(self, h: Tensor) -> Tensor:
        heads = self.read(h).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)


class Net(nn.Module):
    """A network with self-attention and dropout that converts nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.read = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1), nn.Linear(3, 8)
        self.mid, self.drop = Attention(), nn.Dropout(0.1)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        h = self.first(x) + self.read(cond)[:, :, None, None]
        y = self.mid(h.flatten(2).transpose(1, 2)).transpose(1, 2).view_as(h)
        return self.last(self.drop(h + y).tanh())


def networks(dtype: torch.dtype, answer: torch.dtype | None) -> dict[str, Network]:
    """Networks in a dtype that answer in it, or that take samples of any and answer in `answer`."""
    torch.manual_seed(0)
    made = {}
    for name in ("main", "guide"):
        net = Net().eval().to(dtype)

        def call(x, level, cond, net=net):
            out = net(x if answer is None else x.to(dtype), cond["c"].to(dtype))
            return out if answer is None else out.to(answer)

        made[name] = Network(call, {"mid": net.mid}, blocks={"mid": net.mid})
    judge = nn.Linear(3, 5).to(dtype)
    made["classifier"] = Network(
        class_gradient(lambda x, level, cond: judge(x.to(dtype).mean((2, 3))))
    )
    return made


@pytest.mark.parametrize("kind", [V(), Eps()], ids=repr)
def test_own_networks(kind) -> None:
    """Networks that answer in the dtype of x, and in float32 whatever x is."""
    schedule, draw = Discrete.scaled_linear(), torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=draw)
    c, y = torch.randn(2, 3, dtype=torch.float64, generator=draw), torch.tensor([1, 2])
    conds = {"cond": {"c": c, "y": y}, "null": {"c": 0 * c, "y": y}}
    level = schedule.at(torch.tensor(600.0, dtype=torch.float64))
    same = [(dtype, dtype, None) for dtype in ACCURACY]
    mixed = [(torch.float32, given, torch.float32) for given in ACCURACY]
    want = {}
    for dtype, given, answer in same + mixed:
        nets = networks(dtype, answer)
        limit = max(ACCURACY[dtype], ACCURACY[given])
        for text in TEXTS:
            guidance = parse(text, Guidance)
            x0 = Denoiser(nets, conds, kind, guidance, schedule=schedule)(x.to(given), level)
            right = want.setdefault(text, x0)  # the first is in float64
            assert x0.dtype == given, (text, dtype, given)
            assert (x0 - right).abs().max() <= limit * right.abs().max(), (text, dtype, given)


def test_all_guidances_are_tried() -> None:
    methods = {c.method: c.__name__ for c in subclasses(Guidance)}
    names = set(re.findall(r"\w+(?=\()", " ".join(TEXTS)))
    tried = {methods.get(name, name) for name in names} | {"Sum", "Scaled"}
    shipped = {c.__name__ for c in subclasses(Guidance) if c.__module__.startswith("diffsteer.")}
    assert shipped <= tried | {"ICG", "NAG"}  # of networks that read a text


def test_pipelines(tmp_path) -> None:
    """In float32 where the pipeline is narrower; in the dtype of the pipeline outside."""
    made = tiny.stable_diffusion(diffusers.DDIMScheduler(clip_sample=False), tmp_path)
    start = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    want = None
    for dtype, limit in ACCURACY.items():
        pipe, guide = (copy.deepcopy(made).to(dtype) for _ in range(2))
        settings = {"output_type": "latent", "num_inference_steps": 1, "latents": start.to(dtype)}
        with steer(pipe, " + ".join((TEXTS[-1], "APG(2).rescaled()", "SEG(1)")), guide=guide):
            x = pipe(["a cat", "a red dog"], guidance_scale=5.0, **settings).images
        want = x if want is None else want
        assert x.dtype == dtype and (x - want).abs().mean() <= limit * want.abs().mean()
