"""Training the networks of the toy against the exact score, and keeping them."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from diffsteer.core.errors import InputError
from diffsteer.core.level import Level
from diffsteer.core.noise import number
from diffsteer.core.power_ema import PowerEMA
from diffsteer.io.hashing import differences
from diffsteer.train.checkpoints import Checkpoints
from diffsteer_lab.toy.net import LogDensity
from diffsteer_lab.toy.tree import branches, mixture


@dataclass(frozen=True)
class Training:
    """Settings of the training of a network.

    Attributes:
        classes: Data, "A", or "AB" for both without their labels.
        dim: Its width.
        steps: Of training.
        seed: Of its first weights and of the data.
        batch: Points in a step.
        rate: Of learning at first.
        constant: Steps after which the rate falls as 1 / sqrt(step).
        width: Relative width of the average of the weights that is kept.
        log_mean: Of the noise levels, whose logarithm is normal.
        log_std: The same.

    Source: Karras et al. 2024, app. C, https://arxiv.org/abs/2406.02507.
    """

    classes: str
    dim: int
    steps: int
    seed: int = 0
    batch: int = 4096
    rate: float = 0.01
    constant: int = 512
    width: float = 0.010
    log_mean: float = -2.3
    log_std: float = 1.5

    def run(self, advance: Callable[[], object] = lambda: None) -> LogDensity:
        """Train; calls `advance` after each step."""
        exact = mixture(branches(self.classes))
        generator = torch.Generator().manual_seed(number(repr(self).encode()))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator.initial_seed())
            net = LogDensity(self.dim)
        optimizer = torch.optim.Adam(net.parameters(), self.rate, (0.9, 0.99))
        average = PowerEMA(net.named_parameters(), [self.width])
        one = torch.ones([])
        for step in range(self.steps):
            clean = exact.draw(self.batch, generator).float()
            normal = torch.randn(self.batch, 3, generator=generator)
            sigma = (self.log_mean + self.log_std * normal[:, 0]).exp()
            x = clean + sigma[:, None] * normal[:, 1:]
            with torch.no_grad():
                target = exact.score(x, Level(sigma, one, sigma))
            loss = (sigma[:, None] * (net.score(x, sigma) - target)).square().mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            for group in optimizer.param_groups:
                group["lr"] = self.rate / math.sqrt(max(step / self.constant, 1))
            optimizer.step()
            average.update((step + 1) * self.batch, self.batch)
            advance()
        if not loss.isfinite():
            raise InputError(f"training ended with a loss of {loss.item()}: {self}")
        net.load_state_dict(average.snapshot(0))
        return net

    def kept(self, folder: Path) -> LogDensity | None:
        """Load the network that `keep` wrote; None where there is none."""
        checkpoints = Checkpoints(folder)
        if not checkpoints.counts():
            return None
        groups, state = checkpoints.load(checkpoints.counts()[-1])
        if changes := differences(state["training"], asdict(self)):
            raise InputError(f"{folder} holds another network: {changes}. Give another --out")
        net = LogDensity(self.dim)
        net.load_state_dict(groups["weights"])
        return net

    def keep(self, net: LogDensity, folder: Path) -> None:
        """Write a trained network, whole or not at all."""
        images = self.steps * self.batch
        Checkpoints(folder).save(images, {"weights": net.state_dict()}, {"training": asdict(self)})
