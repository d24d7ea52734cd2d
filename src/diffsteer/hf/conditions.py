"""Conditions of a step: which rows of which call are for the prompt, which for the null prompt.

The model output that the pipeline makes of the probes says which part of the network's output it
takes, with which sign, and which of two calls, or parts of a batch, is for the null prompt: its
factor is negative.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import inf

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.core.level import upcast
from diffsteer.hf.batched_arguments import form
from diffsteer.hf.probed_calls import Call
from diffsteer.hf.sample_placement import ROUNDING, View, fitted, frames_replaced, placed, views
from diffsteer.hf.scheduler_batch import Folding
from diffsteer.hf.several_images import SampledImage
from diffsteer.hf.timesteps import LOSSY

CLOSE = 0.1
"""Largest relative difference of a model output from a sum of the probes: some pipelines bring the
norm of the guided output back, which the probes hardly change."""
SMALL = 0.02
"""Share of a condition in the model output that is taken for none."""


@dataclass(frozen=True, eq=False)
class Part:
    """One condition of a call: some rows of its batch.

    Attributes:
        call: The call.
        rows: Rows of its batch, one for each sample.
        taken: Where its input holds the sample.
        given: Part of its output that becomes the scheduler's model output.
        sign: Factor of that part in the model output, 1 or -1; 1 where that holds the sample.
        scale: Factor of that part where the model output holds the sample as well (Cosmos).
        held: Factor of the sample in such a model output, else 0.
        replaced: Frames of the input, tokens of two samples, or images that hold a condition in the
            place of the sample.
    """

    call: Call
    rows: slice
    taken: View = View()
    given: View = View()
    sign: float = 1.0
    scale: float = 1.0
    held: float = 0.0
    replaced: tuple[int, ...] = ()

    @property
    def sample(self) -> Tensor:
        """The sample as the network is given it, `(B, *D)`."""
        return self.taken(self.call.inputs[self.rows])

    def place(self, inputs: Tensor, x: Tensor) -> None:
        """Put samples, `(B, *D)`, into inputs of the network."""
        view, dim = self.taken(inputs), 1 if self.call.second or inputs.ndim == 6 else 2
        index = torch.tensor(self.replaced, dtype=torch.long, device=inputs.device)
        conditions = view.index_select(dim, index) if self.replaced else None
        view.copy_(x)
        if conditions is not None:
            view.index_copy_(dim, index, conditions)

    @property
    def whole(self) -> "Part":
        """The same of both samples, where the call has two."""
        if not self.call.second:
            return self
        return replace(self, taken=View(), given=View(), replaced=self._conditions())

    def _conditions(self) -> tuple[int, ...]:
        """Tokens of the first of two samples that its scheduler does not step."""
        tokens = torch.zeros(1, *self.call.inputs.shape[1:])
        self.taken(tokens).fill_(1)
        own = tokens[0, : self.call.lengths[0], 0] == 0
        return tuple(own.nonzero().flatten().tolist())

    def model_output(self, out: Tensor) -> Tensor:
        """The scheduler's model output of outputs, `(B, *D)`, in float32 or wider.

        It is without the sample, where the scheduler's holds that: see `with_sample`.
        """
        return self.sign * upcast(self.given(out))

    def with_sample(self, out: Tensor, sample: Tensor) -> Tensor:
        """The scheduler's model output of guided ones, and its sample, `(B, *D)`."""
        return self.scale * out + self.held * upcast(sample) if self.held else out


def parts_of(calls: Sequence[Call], model_output: Tensor, sample: Tensor) -> dict[str, Part]:
    """Conditions of a step's calls: "cond" and, where there are two, "null".

    Args:
        calls: Made since the last step.
        model_output: What the pipeline made of their probes, `(B, *D)`; twice the channels where a
            learned variance comes second.
        sample: The scheduler's, `(B, *D)`.

    Raises:
        InputError: the layout cannot be made out.
    """
    size, rows = len(sample), [len(call.inputs) for call in calls]
    if any(n % size for n in rows):
        raise InputError(
            f"calls its network with {' and '.join(map(str, rows))} samples to step {size}, where "
            "each sample is expected once, or once for the prompt and once for the null prompt"
        )
    if sum(rows) > 2 * size:
        raise InputError(
            f"calls its network with {' and '.join(map(str, rows))} rows that are not the same "
            f"samples under null and cond, to step {size}: switch off what else it guides by (an "
            "image, PAG, skipped layers) while it is steered, or take the plain pipeline"
        )
    try:
        return _parts(calls, model_output, sample, in_turn=False)
    except InputError as error:
        if max(rows) == size or size == 1:
            raise
        try:  # each sample under all conditions in turn
            return _parts(calls, model_output, sample, in_turn=True)
        except InputError:
            raise error from None


def _parts(
    calls: Sequence[Call], model_output: Tensor, sample: Tensor, in_turn: bool
) -> dict[str, Part]:
    """Conditions of calls whose samples come under one condition after another, or in turn."""
    parts = [
        _part_of_rows(call, rows, sample)
        for call in calls
        for rows in _rows(len(call.inputs), len(sample), in_turn)
    ]
    factors, given, held = _given(parts, model_output, sample)
    if not held and not 0.5 < abs(sum(factors)) < 2:
        raise InputError(
            f"multiplies what its network returns by {sum(factors):.3g}, where 1 or -1 is expected"
        )
    scale = sum(factors)
    sign = 1.0 if held or scale > 0 else -1.0
    parts = [
        replace(part, given=view, sign=sign, scale=scale, held=held)
        for part, view in zip(parts, given, strict=True)
    ]
    if len(parts) == 2 and _null_first([f / scale for f in factors], len(calls) == 2):
        parts.reverse()
    return dict(zip(("cond", "null"), parts, strict=False))


def _null_first(shares: Sequence[float], apart: bool) -> bool:
    """Whether the null prompt is the first of two conditions: its share is negative.

    At a scale of 1 it is 0; then, as in diffusers, it is the second call, or first in a batch.
    """
    low, first = min(shares), shares[0] < shares[1]
    if low > SMALL or (low > -SMALL and first == apart):
        raise InputError(
            f"makes {shares[0]:.2g} and {shares[1]:.2g} of its two conditions, which does not show "
            "which is the null prompt: leave its own scale of guidance above 1 while it is steered"
        )
    return first


def _rows(rows: int, size: int, in_turn: bool) -> list[slice]:
    """Rows of each condition in a batch of so many rows."""
    count = rows // size
    if in_turn:
        return [slice(i, None, count) for i in range(count)]
    return [slice(i * size, (i + 1) * size) for i in range(count)]


def _part_of_rows(call: Call, rows: slice, sample: Tensor) -> Part:
    """Rows of a call as a condition, with the place of the sample in its input."""
    inputs = call.inputs[rows]
    if (view := placed(inputs, sample, call.lengths)) is None:
        if frames := frames_replaced(inputs, sample):  # a video from an image
            return Part(call, rows, replaced=frames)
        if not sample.any():
            raise InputError(
                "gives its scheduler a sample of zeros, which says nothing of the noisy channels "
                "of its network: give latents of noise"
            )
        raise InputError(
            f"gives its network {tuple(inputs.shape)}, in which the scheduler's sample "
            f"{tuple(sample.shape)} is no run of channels, neither the first nor the last tokens"
        )
    sampled = SampledImage.of(call)
    return Part(call, rows, view, replaced=sampled.others if sampled else ())


def _given(
    parts: list[Part], output: Tensor, sample: Tensor
) -> tuple[tuple[float, ...], tuple[View, ...], float]:
    """Factors and views of the parts' probes that add up to the scheduler's model output.

    The last is the factor of the sample, which is in the sum where that is needed.
    """
    probes = [part.call.probe[part.rows] for part in parts]
    lengths = parts[0].call.lengths
    choices = [list(views(probe.shape, output.shape, lengths)) for probe in probes]
    learned = output.ndim > 1 and output.shape[1] == 2 * sample.shape[1]
    channels = slice(sample.shape[1] if learned else None)  # those of a variance are not guided
    target = output[:, channels]
    fits: list[tuple[float, tuple[float, ...], tuple[View, ...]]] = []
    lossy = probes[0].dtype in LOSSY or output.dtype in LOSSY
    for chosen in product(*choices):
        columns = [view(probe)[:, channels] for view, probe in zip(chosen, probes, strict=True)]
        factors, left = _fit(target, columns, CLOSE)
        if left > 1e-4:
            held, rest = _fit(target, [*columns, sample], 3 * ROUNDING if lossy else 1e-4)
            if 4 * rest < left:
                return held[:-1], chosen, held[-1]
        if factors:
            fits.append((left, factors, chosen))
    if fits:  # where only one of the views is right, what is left may be small as well
        least = min(left for left, *_ in fits)
        near = [fit for fit in fits if fit[0] <= max(4 * least, ROUNDING if lossy else 1e-6)]
        near.sort(key=lambda fit: (len(set(fit[2])), fit[0]))  # of a condition that has no share
        return *near[0][1:], 0.0  # any view fits
    raise no_part(output, probes[0])


def _fit(
    target: Tensor, parts: Sequence[Tensor], tolerance: float
) -> tuple[tuple[float, ...], float]:
    """Factors of parts that add up to a target, and the share that is left; none, inf if not."""
    if (factors := fitted(target, parts, tolerance)) is None:
        return (), inf
    total = sum(f * part.double() for f, part in zip(factors, parts, strict=True))
    return factors, float((target.double() - total).norm() / target.norm())


def no_part(output: Tensor, answered: Tensor) -> InputError:
    """Make the error for a model output that is not made of what the network answers."""
    return InputError(
        f"does not give its scheduler what its network answers: {tuple(output.shape)} is no part "
        f"of what its network returns, {tuple(answered.shape)}, times a factor. Switch off "
        "guidance of its own and preconditioning, or take the plain pipeline"
    )


@dataclass(frozen=True, eq=False)
class StepParts:
    """Conditions of a step, and the calls and the model output that they were measured from.

    Attributes:
        calls: Of the step.
        model_output: What the pipeline made of their probes.
        folding: Of the batch that its scheduler steps.
        parts: Conditions by name.
    """

    calls: Sequence[Call]
    model_output: Tensor
    folding: Folding
    parts: Mapping[str, Part]

    @classmethod
    def of(cls, calls: Sequence[Call], model_output: Tensor, sample: Tensor) -> "StepParts":
        """Measure the conditions of a step; see `parts_of`."""
        folding = Folding.of(calls, model_output, sample)
        measured = parts_of(calls, folding.unfolded(model_output), folding.unfolded(sample))
        return cls(calls, model_output, folding, measured)

    def next(self, calls: Sequence[Call], model_output: Tensor, sample: Tensor) -> "StepParts":
        """Conditions of the next step, which are these where the same is made of the same probes.

        Waits for the device once, or once more where the sample is scaled for the network.
        """
        before = [call.key for call in self.calls], form(self.model_output)
        if before != ([call.key for call in calls], form(model_output)):
            return StepParts.of(calls, model_output, sample)
        now = dict(zip(self.calls, calls, strict=True))
        parts = {name: replace(part, call=now[part.call]) for name, part in self.parts.items()}
        x = self.folding.unfolded(sample)
        pairs = [(part.sample, x) for part in parts.values()]
        if any(part.replaced or part.held for part in parts.values()) or any(
            own.shape != x.shape for own, x in pairs
        ):
            return StepParts.of(calls, model_output, sample)
        pairs.append((self.model_output, model_output))
        equal = [(a == b.to(a.dtype)).all() for a, b in pairs]
        *placed, same = torch.stack(equal).tolist()
        scaled = (fitted(a, [b]) for (a, b), equal in zip(pairs, placed, strict=False) if not equal)
        if not same or None in scaled:
            return StepParts.of(calls, model_output, sample)
        return StepParts(calls, model_output, self.folding, parts)
