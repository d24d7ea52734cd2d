"""Which channels of a network's input are the noisy sample: the scheduler's own sample tells.

Properties of pipelines are not trusted. The first step of every sampling compares what the
scheduler is given with what the network was given, and answered.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import partial, wraps
from typing import Any

from torch import Tensor
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.hf.call import NetworkCall
from diffsteer.hf.hooks import replaced
from diffsteer.hf.network import Place


def place_in(call: NetworkCall, timestep: Any, sample: Tensor) -> Place:
    """Place of the scheduler's sample in the input of a call, the expected one if it is there.

    Args:
        call: The first of a sampling.
        timestep: As the scheduler is given it.
        sample: As the scheduler holds it, `(B, *D)`.
    """
    scale, dim = getattr(call.scheduler, "scale_model_input", None), call.reader.family.channel_dim
    inputs, expected = call.inputs[call.rows("cond")], call.network.place.start
    scaled = (sample if scale is None else scale(sample, timestep)).to(inputs)
    if call.reader.family.null_class is not None:
        scaled = scaled[: len(inputs)]
    size = scaled.shape[dim]
    for start in sorted(range(inputs.shape[dim] - size + 1), key=lambda start: start != expected):
        part = inputs.narrow(dim, start, size)
        if part.shape == scaled.shape and _close(part, scaled):
            return Place(start, size)
    raise InputError(
        f"{call.reader.owner} gives its scheduler a sample of shape {tuple(sample.shape)} that is "
        f"not the one of its network, {tuple(call.inputs.shape)}: what is denoised cannot be "
        "told apart from what is not, so this pipeline cannot be steered in this call"
    )


def _close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal but for rounding to 8 bits; also where one is not finite."""
    return not bool(((a - b).abs() > 1e-2 * (b.abs() + b.abs().mean())).any())


class FirstStep(AbstractContextManager["FirstStep"]):
    """Compares the first answer of every sampling with what the scheduler then steps from.

    Where the place of the sample in the network's input is not certain, the pipeline first gets
    noise for an answer. When its scheduler is given the sample and an output, the guided output
    takes the place of that noise; so it does where the sample was expected elsewhere.
    """

    def __init__(self) -> None:
        self._replaced = ExitStack()
        self._pending = ""

    @override
    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._replaced.close()
        pending, self._pending = self._pending, ""
        if pending and error is None:
            raise InputError(
                f"{pending} called its network and then not scheduler.step, which tells which "
                "channels are denoised: step by the scheduler of the pipeline"
            )

    def answer(self, call: NetworkCall, evaluate: Callable[[NetworkCall], Tensor]) -> Any:
        """Reply to a call with what `evaluate` makes of it, `(B, *D)`."""
        if not call.starts and call.placed:
            return call.reply(evaluate(call))
        self.__exit__(None)
        if call.placed:
            out = evaluate(call)
        else:
            out = call.network.noise_like_output(call.inputs[call.rows("cond")])
            self._pending = call.reader.owner
        step = wraps(call.scheduler.step)(partial(self._step, call, out, evaluate))
        self._replaced.enter_context(replaced(call.scheduler, "step", step))
        return call.reply(out)

    def _step(
        self,
        call: NetworkCall,
        out: Tensor,
        evaluate: Callable[[NetworkCall], Tensor],
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """First step of the scheduler, which checks what it is given."""
        self._pending = ""
        self._replaced.close()
        place = place_in(call, timestep, sample)
        answered = _stepped(call, out, model_output)
        if answered.shape != model_output.shape or not _close(model_output, answered):
            raise InputError(
                f"{call.reader.owner} does not give its scheduler what its network answers, but "
                "changes it (by guidance of its own, or preconditioning), which would act on top "
                "of this guidance: switch that off, or take the plain pipeline"
            )
        if not call.placed or place[:2] != call.network.place[:2]:
            call.reader.place = place
            model_output = _stepped(call, evaluate(call.changed()), model_output)
        return call.scheduler.step(model_output, timestep, sample, *args, **kwargs)


def _stepped(call: NetworkCall, out: Tensor, like: Tensor) -> Tensor:
    """Part of an answer, `(B, *D)`, that the scheduler is given: a learned variance or not."""
    dim = call.reader.family.channel_dim
    part = out.narrow(dim, 0, min(out.shape[dim], like.shape[dim]))
    part = part.to(call.inputs.dtype).to(like.dtype)  # as the pipeline gets it
    return part if call.reader.family.null_class is None else call.batch.repeated(part)
