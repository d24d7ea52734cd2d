"""What can be trained: a module whose forward returns its losses."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffsteer.core.errors import InputError, brief
from diffsteer.io.atomic import put
from diffsteer.io.strict import refused
from diffsteer.train.settings import Pictures
from diffsteer.train.stream import Sample, Source, Stream


class Task(nn.Module, ABC):
    """Networks and what they learn; parameters that are trained require a gradient.

    All that is random about an image comes from its seed, so that a run that goes on sees what it
    would have seen.

    Attributes:
        shown: Name of the loss that the bar shows: a mean error, where "loss" is a sum.
        side: Setting that says the side of the images, and its value; None where any serves.
    """

    shown = "loss"
    side: tuple[str, int] | None = None

    def prepare(
        self, source: Source, cache: Path, alone: Callable[[Callable[[], None]], None]
    ) -> Source:
        """Compute what is needed once before training, on the device; return the source to use.

        Args:
            source: Where samples come from.
            cache: Folder for what a run that resumes should find.
            alone: Calls a function on one process, before the others go on.
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
        """Write an average of the trained weights, as snapshot `path` without suffix."""
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


def batches_of(loader: Iterable[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Batches of a DataLoader, whose workers put their traceback before the message of an error."""
    try:
        yield from loader
    except InputError as error:
        text = str(error).rpartition(f"{type(error).__name__}: ")[2]
        raise InputError(text.strip()) from error


def network_of_config(network: Callable[..., Any], config: Mapping[str, Any], name: str) -> Any:
    """Make a network from a table of settings, whose name stands in errors."""
    with refused(name):
        return network(**config)


def require_known(config: Mapping[str, Any], known: Sequence[str], name: str) -> None:
    """Refuse settings that a library would ignore."""
    if unknown := [key for key in config if key not in known]:
        raise InputError(f"{name} has no {brief(unknown[0])}: there are {', '.join(known)}")


def channels_last(network: nn.Module) -> None:
    """Lay out weights of images with channels last; `to` does no network that has others as well.

    Videos have weights of five dimensions, as the autoencoders of some image models.
    """
    for p in network.parameters():
        if p.ndim == 4:
            p.data = p.data.contiguous(memory_format=torch.channels_last)


def plain_attention(network: nn.Module) -> None:
    """Let a diffusers network compute attention by matrix products, which train faster on CPUs."""
    from diffusers.models.attention_processor import AttnProcessor

    network.set_attn_processor(AttnProcessor())  # type: ignore[operator]
