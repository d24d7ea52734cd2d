"""The networks of the toy: a log density, of which the score is the gradient.

Source: Karras et al. 2024, app. C, https://arxiv.org/abs/2406.02507.
"""

import torch
from torch import Tensor, nn
from typing_extensions import override

from diffsteer.core.level import Level
from diffsteer.guidance.denoiser import Cond, Network
from diffsteer.models.edm2.magnitude import MPConv, mp_silu

SIGMA_DATA = 0.5
LAYERS = 4


class LogDensity(nn.Module):
    """An unnormalised log density of noisy points of a plane.

    G(x; sigma) = gain / sigma mean(F^2) - |y|^2 / 2, with y = x / sqrt(sigma^2 + sigma_data^2) and
    a magnitude-preserving network F of y, log(sigma) / 4 and 1. Before training the gain is 0, so
    that the score is that of a Gaussian N(0, sigma_data^2 + sigma^2).

    Args:
        dim: Width of F.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.first = MPConv(4, dim)
        self.hidden = nn.ModuleList(MPConv(dim, dim) for _ in range(LAYERS))
        self.gain = nn.Parameter(torch.zeros([]))

    @override
    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return G, `(B,)`, of noisy points `(B, 2)` at noise levels > 0, 0-dim or `(B,)`."""
        sigma = sigma.to(x).reshape(-1, 1)
        y = x / (sigma**2 + SIGMA_DATA**2).sqrt()
        f = self.first(
            torch.cat([y, (sigma.log() / 4).expand(len(x), 1), x.new_ones(len(x), 1)], 1)
        )
        for layer in self.hidden:
            f = layer(mp_silu(f))
        learned: Tensor = self.gain / sigma[:, 0] * f.square().mean(1)
        return learned - y.square().sum(1) / 2

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the gradient of G by x, `(B, 2)`; itself differentiable while training."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            total = self(x, sigma).sum()
            (score,) = torch.autograd.grad(total, x, create_graph=self.training)
        return score


def network(net: LogDensity, truncation: float = 1.0) -> Network:
    """The network as a `Denoiser` calls it, with `Eps()` and `EDM()`.

    Args:
        net: Of one class, or of both.
        truncation: Factor of the score; above 1 samples crowd where the density is high.
    """
    net.eval().requires_grad_(False)

    def call(x: Tensor, level: Level, cond: Cond) -> Tensor:
        return net.score(x, level.sigma) * (-truncation * level.sigma)

    return Network(call)
