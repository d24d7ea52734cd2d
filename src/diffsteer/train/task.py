"""What can be trained: a module whose forward returns its losses."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from diffsteer.train.checkpoints import put
from diffsteer.train.settings import Pictures
from diffsteer.train.stream import Sample, Source, Stream


class Task(nn.Module, ABC):
    """Networks and what they learn; parameters that are trained require a gradient.

    All that is random about an image comes from its seed, so that a run that goes on sees what it
    would have seen.
    """

    def prepare(
        self, source: Source, cache: Path, alone: Callable[[Callable[[], None]], None]
    ) -> Source:
        """Compute what is needed once before training, on the device.

        Args:
            source: Where samples come from.
            cache: Folder for what a run that goes on should find.
            alone: Calls a function on one process, before the others go on.

        Returns:
            Where examples come from then: without images, where they are not needed any more.
        """
        return source

    @abstractmethod
    def example(self, number: int, index: int, sample: Sample, seed: int) -> dict[str, Tensor]:
        """What `forward` takes, one row of it, for image `number`: sample `index` of the source."""

    @abstractmethod
    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        """Losses by name, 0-dim, with "loss", the one to reduce."""

    @abstractmethod
    def pictures(self, how: Pictures) -> Tensor:
        """Draw images that show how good the networks are: uint8 `(N, 3, H, W)`."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the networks as diffusers reads them."""

    def store(self, weights: dict[str, Tensor], path: Path, images: int) -> None:
        """Write an average of the trained weights, of which `diffsteer ema` makes others.

        Args:
            weights: The average, by name as in `trained`.
            path: Of the snapshot, without suffix.
            images: Count at which it ends.
        """
        from safetensors.torch import save

        half = {name: w.to("cpu", torch.float16).contiguous() for name, w in weights.items()}
        put(path.with_name(f"{path.name}.safetensors"), save(half, {"images": str(images)}))

    def trained(self) -> dict[str, nn.Parameter]:
        """Parameters that are trained, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(iter(self.parameters())).device


class Examples(torch.utils.data.Dataset[dict[str, Tensor]]):
    """The examples of a task by image number, for a DataLoader."""

    def __init__(self, task: Task, stream: Stream) -> None:
        self.task, self.stream = task, stream

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        stream = self.stream
        return self.task.example(
            number, stream.index(number), stream[number], stream.image_seed(number)
        )


def plain_attention(network: nn.Module) -> None:
    """Let a diffusers network on a CPU compute attention by matrix products.

    The backward pass of PyTorch's flash attention takes half of a small network's time on a CPU;
    with this a training step of ours takes 0.6 to 0.7 of the time.
    """
    from diffusers.models.attention_processor import AttnProcessor

    network.set_attn_processor(AttnProcessor())  # type: ignore[operator]
