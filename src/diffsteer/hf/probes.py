"""Probes: answers to the calls of networks, of random numbers in the form of their outputs.

Their parts in what the pipeline gives its scheduler can be told (`conditions`).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffsteer.hf.probed_calls import Call, Form, tensor_of

EPSILON = 2.0**-7
"""Share by which the probe of a second condition differs from the first's."""
PROBE_SEED = 0x5EED_0F_9A0BE5
"""Seed of probes, which must not be latents: nobody draws them with it."""


class Probes:
    """Answers calls; the probe of each form is drawn once."""

    def __init__(self) -> None:
        self._forms: dict[Any, Form] = {}
        self._drawn: dict[Any, Tensor] = {}

    def form(self, call: Call) -> Form | None:
        """Form of the output of a call, where it is known."""
        return Form.expected(call) or self._forms.get(call.key)

    def answered(
        self, call: Call, second: bool, forward: Callable[[], Any]
    ) -> tuple[Call, Callable[[], Any]]:
        """A call with its probe, and what makes the answer, which a pipeline may change in place.

        Args:
            call: The call.
            second: Whether another one of its step came before.
            forward: Evaluates the network, where the form of its output is not known.
        """
        form = self.form(call)
        if form is None or call.caches:
            output = forward()
            form = self._forms[call.key] = Form.of(output, call)
            call = call.joined(form.second)
            call.out = tensor_of(output, bool(form.second))
        else:
            call = call.joined(form.second)
        key = form.shape, form.dtype, second, call.inputs.device
        if key not in self._drawn:
            self._drawn[key] = probe(form, second).to(call.inputs.device)
        call.probe, wrap = self._drawn[key], form.wrap
        return call, lambda: wrap(call.probe.clone())


def probe(form: Form, second: bool) -> Tensor:
    """Random tensor of a form; halves of a batch, and second calls, differ by a small share."""
    generator = torch.Generator().manual_seed(PROBE_SEED)
    rows, rest = form.shape[0], form.shape[1:]
    x = torch.randn(rows // 2 if rows % 2 == 0 else rows, *rest, generator=generator)
    if rows % 2 == 0:
        x = torch.cat([x, x + EPSILON * torch.randn(x.shape, generator=generator)])
    if second:
        x = x + EPSILON * torch.randn(x.shape, generator=generator)
    return x.to(form.dtype)
