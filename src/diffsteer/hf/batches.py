"""Batches of a network: conditions of equal form as rows of one batch, or each in its own call.

For networks of the table of families it is known which arguments have a row for each sample. Any
other network shows it: the first batch of a sampling begins with the prompt's samples, and has to
answer them as the pipeline's own call was answered. Where it does not, or where that call is all
there is, every condition is evaluated in a batch like that of its call.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.hf.batched_arguments import put_together
from diffsteer.hf.conditions import Part
from diffsteer.hf.families import known_family
from diffsteer.hf.layout import INPUTS, ROWS, Layout, RowsOf
from diffsteer.hf.network import uncompiled, unwrap_compiled
from diffsteer.hf.probed_calls import Call
from diffsteer.hf.sample_placement import View
from diffsteer.hf.timesteps import LOSSY

Told = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""From arguments of a call to those at another noise level; None at that of the step."""


class NotDivided(Exception):  # noqa: N818
    """Rows of a call are not certain to be what they are each for itself: evaluate it whole."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call


class Batches:
    """Evaluates networks for conditions, as `Layout.condition` makes them.

    Args:
        max_rows: Most rows of one pass of a network.

    Attributes:
        evaluating: Whether a network is being called from here.
        starting: Whether the next batch is the first of a step.
    """

    def __init__(self, max_rows: int | None) -> None:
        self.max_rows = max_rows
        self.evaluating = self.starting = self._tapping = self._deep = False
        self._divides: dict[Any, bool] = {}
        self._evaluated = set[Any]()
        self._outputs: dict[Any, tuple[Tensor, Tensor]] = {}
        self._compiled: dict[int, bool] = {}

    def begin(self, calls: Sequence[Call]) -> None:
        """Begin a step of such calls."""
        self.starting, self._outputs = True, {}
        self._evaluated = {call.key for call in calls if call.out is not None}

    def divides(self, call: Call) -> bool:
        """Whether rows of a call are evaluated apart; in its first step, to see if they can."""
        single = self.max_rows == len(call.inputs) == 1  # which nothing is divided in
        return self._divides.get(call.key, single or call.key in self._evaluated) and not call.keeps

    def keep(self, call: Call) -> None:
        """Evaluate such calls whole from now on, no rows of them apart."""
        self._divides[call.key] = False

    def output(
        self, x: Tensor, cond: RowsOf, network: Any = None, at_level: Told | None = None
    ) -> Tensor:
        """Model output for samples, `(B, *D)`, in float32 or wider.

        Args:
            x: The samples.
            cond: The condition of each row.
            network: Another network, in place of the call's.
            at_level: Changes the arguments to those at another noise level.
        """
        ((layout, tree),) = cond.items()
        starting, self.starting = self.starting, False
        if layout.tree is None:
            out = self._whole(layout, x, network, at_level)
        else:
            out = self._in_rows(layout, tree, layout.packed(x), network, at_level, starting)
        return layout.unpacked(layout.part.model_output(out))

    def _in_rows(
        self,
        layout: Layout,
        tree: Mapping[str, Any],
        x: Tensor,
        network: Any,
        at_level: Told | None,
        starting: bool,
    ) -> Tensor:
        """Output of a batch of any rows."""
        call, inputs = layout.part.call, tree[INPUTS]
        if layout.part.taken == View() and not layout.part.replaced:
            inputs = x.to(inputs.dtype)  # also crops
        else:
            inputs = inputs.clone()
            layout.part.place(inputs, x)
        plain = starting and network is None and at_level is None
        if plain and self._answered(call, tree[ROWS], inputs):
            assert call.out is not None
            return call.out[tree[ROWS]]
        given = {k: v for k, v in tree.items() if k not in (INPUTS, ROWS)}
        arguments: Mapping[str, Any] = put_together(given, len(x))
        arguments = arguments if at_level is None else at_level(arguments)
        known = self._divides.get(call.key) or known_family(unwrap_compiled(call.module))
        one = len(x) == len(call.inputs) == 1
        if known or one or torch.equal(tree[ROWS], torch.arange(len(call.inputs))):
            return self._run(call, inputs, arguments, network)
        if not starting or call.out is None:
            raise NotDivided(call)
        try:
            out = self._run(call, inputs, arguments, network)
        except Exception as error:  # of any kind, from arguments that do not fit each other
            raise NotDivided(call) from error
        self._compare(layout.part, call.out, out)
        return out

    def _answered(self, call: Call, rows: Tensor, inputs: Tensor) -> bool:
        """Whether a batch is of rows of a call whose output is known."""
        if call.out is None or self._tapping or bool((rows < 0).any()):
            return False
        few = self.max_rows is None or len(call.inputs) <= self.max_rows
        few = few and len(rows) == len(set(rows.tolist()))
        return few and torch.equal(inputs, call.inputs[rows])

    def _compare(self, part: Part, answered: Tensor, out: Tensor) -> None:
        """Check that the first batch of a sampling answers the prompt as its call was answered."""
        expected = answered[part.rows][: len(out)]
        difference = (out[: len(expected)] - expected).norm()
        allowed = (3e-2 if out.dtype in LOSSY else 1e-3) * expected.norm()
        if part.call.frames_apart:  # rows of another condition could answer almost the same
            others = answered[_others(part.rows, len(answered))]
            distances = [(row - expected[i % len(expected)]).norm() for i, row in enumerate(others)]
            allowed = min([allowed, *(distance / 4 for distance in distances)])
        if not difference <= allowed:
            raise NotDivided(part.call)
        self._divides[part.call.key] = True

    def _whole(self, layout: Layout, x: Tensor, network: Any, at_level: Told | None) -> Tensor:
        """Output for a condition of a call that is evaluated whole, once for the same samples."""
        part, call = layout.part, layout.part.call
        plain, key = at_level is None and not self._tapping, (call, x.data_ptr(), network)
        if plain and key in self._outputs:
            return self._outputs[key][1][part.rows]
        if plain and network is None and call.out is not None and torch.equal(x, layout.sample):
            return call.out[part.rows]
        out = self.in_call(layout, layout.packed(x), network, at_level)
        if plain:
            self._outputs[key] = x, out  # the samples are kept, and so their place
        return out[part.rows]

    def in_call(
        self, layout: Layout, x: Tensor, network: Any = None, at_level: Told | None = None
    ) -> Tensor:
        """Output of a whole call for other samples, under all its conditions, `(N, *D)`."""
        call, size = layout.part.call, len(x)
        if (network is not None or self._deep) and call.keeps:
            raise InputError(
                "the pipeline keeps a cache of the network's keys and values in its calls, which "
                "guides and changes of more than attention to the image would spoil: switch that "
                "off (use_kv_cache=False)"
            )
        inputs = call.inputs.clone()
        for start in range(0, len(inputs), size):
            layout.part.place(inputs[start : start + size], x)
        arguments = call.arguments if at_level is None else at_level(call.arguments)
        return self._run(call, inputs, arguments, network)

    def _run(
        self, call: Call, inputs: Tensor, arguments: Mapping[str, Any], network: Any
    ) -> Tensor:
        before, self.evaluating = self.evaluating, True
        try:
            return call.evaluated(inputs, arguments, network)
        finally:
            self.evaluating = before

    @contextmanager
    def touched(self, network: Any, deep: bool) -> Iterator[None]:
        """Context of passes in which something inside of a network is changed or recorded.

        No output of a call is taken over meanwhile, and compiled code runs as it was written.

        Args:
            network: The network.
            deep: Whether more is changed than attention of the image.
        """
        if id(network) not in self._compiled:  # asked for once, and only where needed: it is slow
            blocks = (getattr(block, "_compiled_call_impl", None) for block in network.modules())
            self._compiled[id(network)] = hasattr(network, "_orig_mod") or any(blocks)
        before = self._tapping, self._deep
        self._tapping, self._deep = True, deep
        try:
            with uncompiled() if self._compiled[id(network)] else nullcontext():
                yield
        finally:
            self._tapping, self._deep = before


def _others(rows: slice, size: int) -> list[int]:
    """Rows of a call that are not of a condition."""
    taken = range(size)[rows]
    return [i for i in range(size) if i not in taken]
