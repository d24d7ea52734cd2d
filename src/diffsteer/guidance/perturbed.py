"""Guidance by a network that is disturbed inside: one more row of the same pass."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor
from typing_extensions import override

from diffsteer.core.fields import Finite, Name, Positive, Rule
from diffsteer.guidance.attention_edits import BlurQuery, Edit, Identity
from diffsteer.guidance.base import Guidance
from diffsteer.guidance.block_edits import BlockEdit, ShuffleTokens, SkipBlock
from diffsteer.guidance.queries import Branch, GuidanceState, Queries, extrapolate


class _Disturbed(Guidance):
    """Guidance away from the branch `on` with an edit in a layer; scale 0 is off."""

    scale: float
    layer: str
    on: str

    @abstractmethod
    def edit(self, at: GuidanceState) -> Edit | BlockEdit:
        """What is disturbed."""

    @override
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        disturbed = Branch(self.on, edits=((self.layer, self.edit(at)),))
        return (yield from extrapolate(at, self.scale, Branch(self.on), disturbed))


@dataclass(frozen=True, repr=False)
class PAG(_Disturbed):
    """Perturbed-attention guidance; scale 0 is off and costs nothing.

    Args:
        scale: x0 gains scale (x0 - x0 with identity attention).
        layer: Self-attention layers to perturb, by parts of their names, "mid, up_blocks.1", or
            "all".
        on: The branch to perturb, "cond" or "null".

    Source: Ahn et al. 2024, eq. 12, https://arxiv.org/abs/2403.17377.
    """

    scale: Finite
    layer: Name = "mid"
    on: Name = "cond"

    @override
    def edit(self, at: GuidanceState) -> Edit | BlockEdit:
        return Identity()


@dataclass(frozen=True, repr=False)
class SEG(_Disturbed):
    """Smoothed energy guidance; scale 0 is off and costs nothing.

    Args:
        scale: x0 gains scale (x0 - x0 with blurred queries).
        sigma: Of the Gaussian over the queries, in tokens, > 0; inf is their mean.
        layer: As for PAG.
        on: As for PAG.

    Source: Hong 2024, https://arxiv.org/abs/2408.00760.
    """

    scale: Finite
    sigma: Positive = float("inf")
    layer: Name = "mid"
    on: Name = "cond"

    @override
    def edit(self, at: GuidanceState) -> Edit | BlockEdit:
        return BlurQuery(self.sigma)


@dataclass(frozen=True, repr=False)
class SLG(_Disturbed):
    """Skip-layer guidance; scale 0 is off and costs nothing.

    Args:
        scale: x0 gains scale (x0 - x0 with blocks skipped); 2.8 for Stable Diffusion 3.5 medium.
        layer: Blocks to skip, by parts of their names, "7, 8, 9" for Stable Diffusion 3.5 medium.
        on: As for PAG.

    Source: the reference code of Stable Diffusion 3.5, 2024.
    """

    scale: Finite
    layer: Name = "mid"
    on: Name = "cond"

    @override
    def edit(self, at: GuidanceState) -> Edit | BlockEdit:
        return SkipBlock()


@dataclass(frozen=True, repr=False)
class STG(_Disturbed):
    """Spatiotemporal skip guidance of videos; scale 0 is off and costs nothing.

    Args:
        scale: x0 gains scale (x0 - x0 with layers skipped); 1 is usual, with `.rescaled(0.7)`.
        layer: Layers to skip, by parts of their names.
        mode: "block" skips blocks (STG-R), "attention" takes values for attention (STG-A).
        on: As for PAG.

    Source: Hyung et al. 2024, https://arxiv.org/abs/2411.18664.
    """

    scale: Finite
    layer: Name = "mid"
    mode: Annotated[str, Rule("'block' or 'attention'", ("block", "attention").__contains__)] = (
        "block"
    )
    on: Name = "cond"

    @override
    def edit(self, at: GuidanceState) -> Edit | BlockEdit:
        return SkipBlock() if self.mode == "block" else Identity()


@dataclass(frozen=True, repr=False)
class S2(_Disturbed):
    """Stochastic self-guidance: random blocks are skipped; scale 0 is off and costs nothing.

    Args:
        scale: x0 gains scale (x0 - x0 with blocks skipped); 0.25 is usual.
        share: Of the blocks that are skipped, in ]0, 1[, drawn for each sample at every level.
        layer: Blocks to draw from, as for SLG.
        on: As for PAG.

    Source: Chen et al. 2025, https://arxiv.org/abs/2508.12880.
    """

    scale: Finite
    share: Annotated[Finite, Rule("a share in ]0, 1[", lambda share: 0 < share < 1)] = 0.1
    layer: Name = "all"
    on: Name = "cond"

    @override
    def edit(self, at: GuidanceState) -> Edit | BlockEdit:
        return SkipBlock(self.share, seeds=at.seeds_for("skip"))


@dataclass(frozen=True, repr=False)
class TPG(_Disturbed):
    """Token perturbation guidance; scale 0 is off and costs nothing.

    Args:
        scale: x0 gains scale (x0 - x0 with tokens shuffled); 3 is usual.
        layer: Blocks whose tokens are shuffled, drawn for each sample at every level, by parts of
            their names; "down_blocks" in UNets.
        on: As for PAG.

    Source: Rajabi et al. 2025, https://arxiv.org/abs/2506.10036.
    """

    scale: Finite
    layer: Name = "mid"
    on: Name = "cond"

    @override
    def edit(self, at: GuidanceState) -> Edit | BlockEdit:
        return ShuffleTokens(seeds=at.seeds_for("shuffle"))
