"""Train a network of your own at zero terminal SNR, then sample it with our sampler."""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from diffsteer import Discrete, Level, UniPC, grid, sample

torch.manual_seed(0)
schedule = Discrete.cosine(n=1000).zero_snr()
angle = 2 + 9 * torch.rand(4096, 1).sqrt()
data = torch.cat([angle * angle.cos(), angle * angle.sin()], 1) / 4  # a spiral, std 1.4
hidden = (nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU())
network = nn.Sequential(nn.Linear(6, 128), *hidden, nn.Linear(128, 2))


def denoise(x: Tensor, level: Level) -> Tensor:
    t = (level.t.float() / 1000).expand(len(x), 1)  # one time for all, or (N, 1)
    out = network(torch.cat([x, t, t.square(), (3 * t).sin(), (3 * t).cos()], 1))
    return (level.alpha * x - level.sigma * out).float()  # x0 of v-prediction


optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
for _ in range(1500):
    x0, level = data[torch.randint(4096, (512,))], schedule.at(torch.randint(1000, (512, 1)))
    x = (level.alpha * x0 + level.sigma * torch.randn_like(x0)).float()
    error = (denoise(x, level) - x0) / level.sigma  # that of v
    optimizer.zero_grad()
    error.square().mean().backward()
    optimizer.step()
with torch.no_grad():
    *_, last = sample(denoise, grid(schedule, 20), (2,), seeds=range(1000), sampler=UniPC())
_, axes = plt.subplots(1, 2, figsize=(8, 4.2), layout="constrained")
for ax, points, name in zip(axes, (data[:1000], last.x), ("data", "samples"), strict=True):
    ax.scatter(*points.T, s=3)
    ax.set(title=f"1,000 points: {name}", xlabel="x", ylabel="y", xlim=(-4, 4), ylim=(-4, 4))
plt.savefig(Path(sys.argv[1]) / "own_loop.png", dpi=90)
