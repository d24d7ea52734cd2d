"""Network of a `Denoiser`: how it is called, and what guidances may read and change inside."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from diffsteer.core.errors import InputError
from diffsteer.core.level import Level
from diffsteer.guidance.adapters import Adapt, no_adapters
from diffsteer.guidance.attention_edits import Edit
from diffsteer.guidance.attention_taps import Score, Using
from diffsteer.guidance.block_edits import BlockEdit
from diffsteer.guidance.image_tokens import Locate
from diffsteer.guidance.layer_names import matching
from diffsteer.guidance.queries import Branch

Cond = Mapping[str, Any]
"""What a network is told besides x, by name: tensors with one row a sample, and anything else."""


def no_text() -> InputError:
    """Error of a network whose attention reads no text."""
    return InputError(
        "NAG combines two texts in the attention that reads them, and no attention of this network "
        "reads a text: take CFG, or PAG, which needs none"
    )


def no_second(cond: Cond, other: Cond) -> Sequence[Cond]:
    """Refuse: the network reads no text."""
    raise no_text()


@dataclass(frozen=True, eq=False)
class Network:
    """Network of a `Denoiser`. `call` is enough for guidances that look at outputs alone.

    Attributes:
        call: From `(rows, *D)`, a level and a condition for as many rows to the output; twice the
            channels where it learned its variance, which comes second.
        layers: Its self-attention modules by name, for guidances that edit or read attention.
        using: Context in which such a module computes attention by scaled_dot_product_attention.
        patch: Side of a token in pixels of the sample, in its first layer.
        text_first: Whether layers that attend to image and text put the text first.
        touched: Makes the context of a pass in which something inside of the network is read or
            changed, and is told whether that is more than attention of the image.
        score: Attention map of a layer for SAG, from its queries, keys and values; None for the
            attention that each token receives.
        place: First row of a condition in a batch that the network makes of it, and the size of
            that batch; such branches are never stacked. None for a condition whose batch is what
            the network is given.
        sizes: Whether it takes samples of other sizes, for guidance by crops.
        locate: From a condition, and that of a second text if there is one, to what finds the
            tokens of the image in a layer, where `patch` and `text_first` do not say; may evaluate
            the network.
        adapted: Makes the context in which some of its adapters (LoRA) act.
        check: Refuses a branch that the network cannot answer, without evaluating it.
        attention: All its modules of attention by name, where some read a text.
        second: From a condition and another one to both rows of a pair, the first, and the first
            with the other's text; where `place` says the batch, to one condition for the pair.
        blocks: Its blocks by name, each with attention inside, for guidances that skip or shuffle.
        classes: How many classes it is told by their number; 0 where it is told none.
    """

    call: Callable[[Tensor, Level, Cond], Tensor]
    layers: Mapping[str, nn.Module] = field(default_factory=dict)
    using: Using = lambda layer: nullcontext()  # noqa: E731
    patch: int = 1
    text_first: bool = False
    touched: Callable[[bool], AbstractContextManager[None]] = lambda deep: nullcontext()  # noqa: E731
    score: Score | None = None
    place: Callable[[Cond], tuple[int, int] | None] = lambda cond: None  # noqa: E731
    locate: Callable[[Cond, Cond | None], Locate] | None = None
    adapted: Adapt = no_adapters
    check: Callable[[Branch], None] = lambda branch: None  # noqa: E731
    sizes: bool = True
    attention: Mapping[str, nn.Module] = field(default_factory=dict)
    second: Callable[[Cond, Cond], Sequence[Cond]] = no_second
    blocks: Mapping[str, nn.Module] = field(default_factory=dict)
    classes: int = 0

    def matching(self, wanted: str, edit: Edit | BlockEdit | None = None) -> list[str]:
        """Names of the layers that are recorded or edited, or of the blocks that are."""
        if isinstance(edit, BlockEdit):
            return matching(list(self.blocks), wanted, "block with attention")
        return matching(list(self.layers), wanted)
