"""From networks, conditions and a guidance to one denoiser, in as few passes as there can be."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from diffsteer.core.errors import InputError, brief
from diffsteer.core.fields import offers, renamed_fields
from diffsteer.core.level import CLEAN, Level, upcast
from diffsteer.core.prediction import Prediction
from diffsteer.core.sampler import Denoised
from diffsteer.core.schedule import Schedule
from diffsteer.guidance.base import Guidance
from diffsteer.guidance.batching import chunks, joined, require_max_rows, rows_of, shapes, stacked
from diffsteer.guidance.each_part import Parts, each_part
from diffsteer.guidance.edited_pass import Maps, edited, located
from diffsteer.guidance.icg import require_prompt, unrelated
from diffsteer.guidance.later_branches import LATE, acting, later
from diffsteer.guidance.network import Cond, Network, no_text
from diffsteer.guidance.queries import (
    Answer,
    Branch,
    GuidanceState,
    Queries,
    dry_answers,
    run,
)
from diffsteer.guidance.second_context import evaluated
from diffsteer.guidance.step_memory import StepMemory, Store

__all__ = ["Cond", "Denoiser", "Network"]


@renamed_fields(kind="prediction")
@dataclass(frozen=True, eq=False)
class Denoiser:
    """A guided network as a function (x, level) -> x0, for any sampler.

    Branches of one network whose inputs have equal shapes are stacked into one pass.

    Networks are given samples in the dtype of x and may answer in any. Guidances see both in
    float32, or in float64 where x is; x0 comes back in the dtype of x.

    Args:
        nets: Networks by name; "main", "guide" for autoguidance, "classifier" for its guidance.
        conds: Conditions by name; "cond", and "null" for CFG.
        prediction: What the networks predict.
        guidance: Any sum of guidances, or None.
        max_rows: Most rows of one pass, where memory is short.
        schedule: What the networks were trained on, for guidances that ask them at other levels.
        seeds: One for each sample, for guidances that draw; None for those of `sample`, and outside
            of it for the places in the batch.
        step: Index of the sampling step, for guidances of some steps, `.over`.
        next: Level that the step goes to, for guidances that look ahead.
        memory: What guidances keep from step to step of a sampling, or that as this step sees it;
            None where each call stands alone. `sample` gives every sampling its own, and `at_step`
            those of a loop of your own.
        levels: Those of the sampling, if known: `at_step` takes `next` from them.
        parts: Parts of a sample of tokens that are guided each by itself; None where it is one.
    """

    nets: Mapping[str, Network]
    conds: Mapping[str, Cond]
    prediction: Prediction
    guidance: Guidance | None = None
    max_rows: int | None = None
    schedule: Schedule | None = None
    seeds: Sequence[int] | None = None
    step: int = 0
    next: Level = CLEAN
    memory: Store | StepMemory | None = None
    levels: Sequence[Level] = ()
    parts: Parts | None = None
    _own: Store = field(default_factory=Store, init=False, repr=False)  # a copy has another

    def __post_init__(self) -> None:
        require_max_rows(self.max_rows)
        for given, name in ((self.guidance, "shift"), (self.prediction, "x0")):
            if not offers(given, name) and not (given is None and name == "shift"):
                raise InputError(
                    f"{brief(given)} is no guidance or prediction: give objects, such as CFG(3) "
                    "and V(); parse reads texts"
                )

    def at_step(self, step: int) -> Callable[[Tensor, Level], Denoised]:
        """Return the denoiser of a step, for all evaluations of that step.

        Step 0 begins a sampling, and so does a step that does not follow the one before it: what
        guidances remember is empty then. Of the evaluations of a step the first alone writes.
        """
        ahead = self.levels[step + 1] if step + 1 < len(self.levels) else self.next
        store = self.memory if isinstance(self.memory, Store) else self._own
        memory = StepMemory(store, step, self.levels[step] if step < len(self.levels) else None)
        return replace(self, step=step, next=ahead, memory=memory).denoised

    def for_levels(self, levels: Sequence[Level]) -> "Denoiser":
        """Return the denoiser of one sampling over these levels, with a memory of its own."""
        return replace(self, levels=tuple(levels), memory=None)

    def for_seeds(self, seeds: Sequence[int]) -> "Denoiser":
        """Return the denoiser with these seeds, unless it has some."""
        return self if self.seeds is not None else replace(self, seeds=tuple(seeds))

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        """Return the guided x0, `(B, *D)`."""
        return self.denoised(x, level).x0

    def denoised(self, x: Tensor, level: Level) -> Denoised:
        """Return the guided x0, the learned variance and the gradient of a classifier, if any."""
        base, shift = self.predict(x, level)
        x0 = base.x0 if shift is None else base.x0 + shift

        def class_gradient() -> Tensor:
            at = self._state(x, level)
            return self.evaluate([Branch(net="classifier")], at, x.dtype)[0].out

        return Denoised(x0.to(x.dtype), base.variance, class_gradient)

    def predict(self, x: Tensor, level: Level) -> tuple[Answer, Tensor | None]:
        """Return the answer of the "cond" branch and what the guidance adds to its x0."""
        if self.seeds is not None and len(self.seeds) != len(x):
            raise InputError(
                f"{len(self.seeds)} seeds cannot serve {len(x)} samples: give one each"
            )
        seen = self.memory
        if not isinstance(seen, StepMemory):
            seen = StepMemory(seen or Store(), self.step)
        memory, start = seen.begin(level, x.shape)
        at = replace(self._state(x, level), memory=memory, start=start)
        evaluate = partial(self.evaluate, dtype=x.dtype)
        if self.guidance is None:
            return evaluate([Branch()], at=at)[0], None
        if start is None and seen.begins and self.memory is not None:
            self._rehearse(self.guidance, x[:1], level)
        return run(self._asker(self.guidance, at), partial(evaluate, at=at))

    def _asker(self, guidance: Guidance, at: GuidanceState) -> Queries[tuple[Answer, Tensor]]:
        if self.parts is not None:
            return each_part(guidance.guided, at, self.parts)
        return guidance.guided(at)

    def _rehearse(self, guidance: Guidance, x: Tensor, level: Level) -> None:
        """Check what a guidance will ask later alone, so that what is missing shows at once.

        That is at the levels of the sampling, or, where they are not known, at any.
        """
        for part in later(guidance):
            ahead = replace(self, guidance=part, seeds=None)
            for step, (now, nxt) in enumerate(pairwise(self.levels)):
                replace(ahead, step=step, next=nxt).dry_run(x, now)
            if not self.levels:
                for there in acting(part):
                    replace(ahead, guidance=there, step=LATE).dry_run(x, level)

    def dry_run(self, x: Tensor, level: Level) -> None:
        """Check that all is there that the guidance asks for at a level, without any network."""
        at = self._state(x, level)

        def check(branches: Sequence[Branch]) -> list[Answer]:
            for branch in branches:
                self._check(branch, at)
                self.nets[branch.net].check(branch)
            return dry_answers(branches, at)

        if self.guidance is not None:
            run(self._asker(self.guidance, at), check)

    def _state(self, x: Tensor, level: Level) -> GuidanceState:
        seeing = self.prediction, self.step, self.schedule, self.seeds, self.next
        return GuidanceState(upcast(x), level, *seeing)

    def evaluate(
        self, branches: Sequence[Branch], at: GuidanceState, dtype: torch.dtype | None = None
    ) -> list[Answer]:
        """Answer every branch, those that stack in one pass; samples are given in `dtype`."""
        for branch in branches:
            self._check(branch, at)
        groups: dict[Any, list[int]] = {}
        for i, branch in enumerate(branches):
            net, cond = self.nets[branch.net], self.conds[branch.cond]
            alone = None if net.place(cond) is None else i
            groups.setdefault((id(net), shapes(cond), at.form(branch), alone), []).append(i)
        answers: dict[int, Answer] = {}
        for members in groups.values():
            group = [branches[i] for i in members]
            answers |= zip(members, self._for_samples(group, at, dtype or at.x.dtype), strict=True)
        return [answers[i] for i in range(len(branches))]

    def _for_samples(
        self, group: list[Branch], at: GuidanceState, dtype: torch.dtype
    ) -> list[Answer]:
        """Evaluate branches of one pass for the samples that they ask about."""
        if group[0].samples is None:
            return self._pass(group, at, dtype)
        rows, size = list(group[0].samples), len(at.x)
        if self.nets[group[0].net].place(self.conds[group[0].cond]) is not None:  # its own batch
            whole = self._pass([replace(branch, samples=None) for branch in group], at, dtype)
            return [answer.of_samples(rows) for answer in whole]
        names = {b.cond for b in group} | {b.second.cond for b in group if b.second is not None}
        conds = {name: rows_of(self.conds[name], rows, size) for name in names}
        return replace(self, conds=conds)._pass(group, replace(at, x=at.x[rows]), dtype)

    def _check(self, branch: Branch, at: GuidanceState) -> None:
        if branch.net not in self.nets:
            raise InputError(
                f"the guidance asks for a network {branch.net!r}, there is {', '.join(self.nets)}: "
                "give the weaker network of autoguidance as guide, others by their name"
            )
        if branch.second is not None and not self.nets[branch.net].attention:
            raise no_text()
        asked = (branch.cond, *([] if branch.second is None else [branch.second.cond]))
        if missing := [name for name in asked if name not in self.conds]:
            needs = (
                'CFG needs a null prompt (guidance_scale > 1 in a pipeline); SAG(..., on="cond") '
                "does without"
                if branch.second is None
                else "NAG reads the negative prompt of the pipeline, which sends one where "
                "guidance_scale > 1, and acts in place of that"
            )
            raise InputError(
                f"the guidance asks for the condition {missing[0]!r}, there is "
                f"{', '.join(self.conds)}: {needs}"
            )
        if branch.adapter is not None:
            self.nets[branch.net].adapted(branch.adapter)  # raises where one is not loaded
        cond = self.conds[branch.cond]  # one that is made when it is asked for may raise
        if branch.second is not None:
            self.nets[branch.net].second(cond, self.conds[branch.second.cond])
        if branch.unrelated is not None:
            require_prompt(cond, self.nets[branch.net].classes)
        if not self.nets[branch.net].sizes and at.form(branch)[-1] != at.x.shape[1:]:
            raise InputError(
                "the guidance asks about crops, and this network takes samples of one size alone, "
                "as transformers do, and calls with a control image or a mask"
            )
        for layer, edit in (*branch.edits, *((name, None) for name in branch.record)):
            self.nets[branch.net].matching(layer, edit)

    def _pass(self, group: list[Branch], at: GuidanceState, dtype: torch.dtype) -> list[Answer]:
        """Evaluate branches of one network and level whose conditions have equal shapes."""
        if group[0].second is not None:
            return [self._pair(branch, at, dtype) for branch in group]
        net = self.nets[group[0].net]
        size, level = len(at.x), group[0].level or at.level
        inputs = [(at.x if branch.x is None else branch.x).to(dtype) for branch in group]
        conds = [
            cond if b.unrelated is None else unrelated(cond, b.unrelated, net.classes)
            for b in group
            for cond in (self.conds[b.cond],)
        ]
        x, cond = stacked(inputs), joined(conds, size)
        maps: list[Maps] = [{name: [] for name in b.record} for b in group]
        outs = []
        for rows in chunks(len(x), self.max_rows):
            part = cond if len(x) == rows.stop - rows.start else rows_of(cond, rows, len(x))
            with edited(net, group, maps, rows, x, part):
                outs.append(net.call(x[rows], level, part))
        parts = torch.split(stacked(outs).to(at.x.dtype), size)
        seen = [{name: stacked(m) for name, m in recorded.items()} for recorded in maps]
        return [
            _answer(out, upcast(x), level, at.prediction, scores)
            for out, x, scores in zip(parts, inputs, seen, strict=True)
        ]

    def _pair(self, branch: Branch, at: GuidanceState, dtype: torch.dtype) -> Answer:
        """Evaluate a branch whose attention reads a second text."""
        net, second, level = self.nets[branch.net], branch.second, branch.level or at.level
        assert second is not None
        x = (at.x if branch.x is None else branch.x).to(dtype)
        cond = self.conds[branch.cond]
        conds = net.second(cond, self.conds[second.cond])
        settings = second, x, level, conds, self.max_rows
        locate = located(net, x, cond, self.conds[second.cond])
        out = evaluated(net, locate, *settings)
        return _answer(out.to(at.x.dtype), upcast(x), level, at.prediction, {})


def _answer(
    out: Tensor, x: Tensor, level: Level, prediction: Prediction, maps: dict[str, Tensor]
) -> Answer:
    """Tell the prediction and a learned variance apart."""
    if out.shape[1:2] != (2 * x.shape[1],):
        return Answer(out, x, level, prediction, maps)
    half, variance = out.chunk(2, dim=1)
    return Answer(half, x, level, prediction, maps, variance)
