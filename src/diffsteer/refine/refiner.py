"""`NoiseRefiner`: an adapter of a pipeline's network, or a small one, that makes noise better.

    refiner = NoiseRefiner.load("refiner", pipe)
    with steer(pipe, refiner=refiner):
        image = pipe("a cat", guidance_scale=1).images[0]

Source: Ahn et al. 2024, https://arxiv.org/abs/2412.03895.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffsteer.core.errors import InputError, brief
from diffsteer.core.fields import is_whole, plain_number
from diffsteer.core.level import upcast
from diffsteer.guidance.denoiser import Cond
from diffsteer.hf.network import PipelineNetwork
from diffsteer.refine.heads import HEADS, RefineInput
from diffsteer.refine.lora import Lora
from diffsteer.refine.low_frequency import (
    LOW_FREQUENCY,
    TEXT_WEIGHT,
    LowFrequencyNetwork,
    require_width,
)
from diffsteer.refine.metadata import RefinerMetadata, fingerprint, read, require, write
from diffsteer.refine.prompt_mismatch import forget


class NoiseRefiner:
    """A low-rank adapter of a network, used for one call at the terminal level, or a small network.

    Args:
        pipe: The pipeline; its network gets the adapter, off but in that call, until `remove`.
        rank: Of the adapter, >= 1; of head "low_frequency" the width of its network.
        head: Of `HEADS`.
        alpha: Scale of the adapter times its rank; 0 for the rank.
        text: Width of the prompt's embeddings, of which the pipeline is asked where it is 0.

    Attributes:
        strength: Factor of the change; 1 is as trained, 0 none.
        sha256: Of the files that it is from; empty where it is new.
    """

    null = False

    def __init__(
        self, pipe: Any, rank: int = 16, head: str = "zero_init", alpha: int = 0, text: int = 0
    ) -> None:
        if head not in HEADS:
            raise InputError(f"no head is called {head!r}: there are {', '.join(HEADS)}")
        rank, alpha = plain_number(rank), plain_number(alpha)
        if not (is_whole(rank) and is_whole(alpha)):
            raise InputError(f"rank={brief(rank)} and alpha={brief(alpha)}: give whole numbers")
        self.model = PipelineNetwork.of(pipe)
        self.head, self.name, self.strength, self.sha256 = HEADS[head], head, 1.0, ""
        self.head.check(self.model.prediction, self.model.terminal)
        self.rank, self.alpha = rank, alpha or rank
        self.part: Lora | LowFrequencyNetwork
        if head == LOW_FREQUENCY:
            require_width(rank, self.alpha)
            self.part = LowFrequencyNetwork.of(pipe, rank, self.model.channels, text)
        else:
            self.part = Lora(self.model.module, rank, self.model.family.output, alpha)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Its weights by the names that files give them."""
        own = self.part
        return own.parameters if isinstance(own, Lora) else dict(own.named_parameters())

    @classmethod
    def load(
        cls, source: str | Path, pipe: Any, strength: float = 1.0, any_model: bool = False
    ) -> "NoiseRefiner":
        """Read a refiner and put it into the network of a pipeline.

        Args:
            source: Folder, hub id, or "critters-refiner", which ships.
            pipe: A pipeline with the network that the refiner was trained for.
            strength: Factor of the change.
            any_model: Also take a network with other weights, such as a fine-tuned one.
        """
        metadata, weights = read(source)
        require(metadata, PipelineNetwork.of(pipe), any_model, str(source))
        text = weights.get(TEXT_WEIGHT, torch.empty(1)).shape[-1]
        made = cls(pipe, metadata.rank, metadata.head, metadata.alpha, text)
        try:
            made._fill(weights)
        except ValueError:
            made.remove()
            raise
        made.strength, made.sha256 = strength, metadata.sha256
        for p in made.parameters.values():
            p.requires_grad_(False)
        return made

    def _fill(self, weights: Mapping[str, Tensor]) -> None:
        """Take weights of the same names and shapes."""
        own = self.parameters
        other = sorted(own.keys() ^ weights.keys())
        other += [n for n in own.keys() & weights.keys() if own[n].shape != weights[n].shape]
        if other:
            raise InputError(
                f"these weights do not fit {type(self.model.module).__name__} at rank {self.rank}: "
                f"{other[0]} and {len(other) - 1} more differ"
            )
        with torch.no_grad():
            for name, p in own.items():
                p.copy_(weights[name])

    def save(self, folder: str | Path, made: Mapping[str, Any] | None = None) -> None:
        """Write `refiner.safetensors` and `refiner.json`; `made` says how it was trained."""
        level = self.model.terminal
        metadata = RefinerMetadata(
            *(self.name, self.rank, self.alpha, type(self.model.module).__name__),
            weights=fingerprint(self.model.module),
            kind=repr(self.model.prediction),
            terminal={"t": level.t.item(), "alpha": level.alpha.item()},
            made=dict(made or {}),
        )
        write(Path(folder), metadata, {name: p.detach() for name, p in self.parameters.items()})

    def __call__(
        self, x: Tensor, conds: Mapping[str, Cond], model: PipelineNetwork | None = None
    ) -> Tensor:
        """Return refined noise, `(B, *D)`, float32 or wider; rows do not see each other.

        Args:
            x: Unit Gaussian noise, as the network takes it.
            conds: All else that the network is told, as `first_call` gives it, under "cond".
            model: How to call the network where something is wrapped around it.
        """
        model = model or self.model
        level, x = model.terminal, upcast(x)
        own, here = ((m.prediction, round(m.terminal.alpha.item(), 6)) for m in (self.model, model))
        if own != here:
            raise InputError(
                f"this refiner is for the prediction type and terminal alpha {own}, the pipeline "
                f"samples with {here} now: give it the scheduler back that it had"
            )

        cond, part = conds["cond"], self.part
        if isinstance(part, Lora):
            start = RefineInput(x, level, model.prediction, partial(model, x, level, cond), part.on)
        else:
            small = partial(part.to(x.device), x, cond)
            start = RefineInput(x, level, model.prediction, small, lambda _: nullcontext())
        return x + self.strength * self.head.delta(start)

    def remove(self) -> None:
        """Take the adapter out of the network, which is then as it was."""
        if isinstance(self.part, Lora):
            self.part.remove()
        forget(self.model.module)
