"""The guided model output of a step, from its conditions and a guidance."""

from collections import UserDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.core.level import Level
from diffsteer.core.noise import seeds_of
from diffsteer.guidance import Guidance
from diffsteer.guidance.cfg_variants import CFGNorm
from diffsteer.guidance.denoiser import Denoiser, Network
from diffsteer.guidance.frequency import FDG, FreSca
from diffsteer.guidance.image_tokens import Locate
from diffsteer.guidance.queries import Branch
from diffsteer.guidance.sag import SAG
from diffsteer.hf.adapters import adapted
from diffsteer.hf.batches import Batches, NotDivided
from diffsteer.hf.conditions import Part
from diffsteer.hf.families import (
    Patch,
    blocks_with_attention,
    by_sdpa,
    check_branch,
    count_classes,
    known_family,
    text_attention,
)
from diffsteer.hf.guide_fit import check_residuals
from diffsteer.hf.layout import ROWS, Layout, RowsOf
from diffsteer.hf.measured_image_tokens import Located, MeasuredLayers
from diffsteer.hf.network import unwrap_compiled
from diffsteer.hf.panorama import PanoramaViews
from diffsteer.hf.probed_calls import Call, certain
from diffsteer.hf.second_text import pair_of, second
from diffsteer.hf.time_arguments import RULES, Now, TimeArgument


class LazyConditions(UserDict[str, Any]):
    """Conditions of a step by name; one that is a function is made when it is asked for."""

    @override
    def __getitem__(self, name: str) -> Any:
        if callable(self.data[name]):
            self.data[name] = self.data[name]()
        return self.data[name]


class GuidedOutput:
    """Evaluates a guidance at the steps of a pipeline's scheduler.

    Args:
        owner: Class of the pipeline, for errors.
        guidance: What guides.
        guide: For autoguidance, a second network for the same latents and conditions.
        max_rows: Most rows of one pass of a network.
        patch: Of an image, where the pipeline packs them into tokens.
    """

    def __init__(
        self,
        owner: str,
        guidance: Guidance,
        guide: Any,
        max_rows: int | None,
        patch: Patch | None = None,
    ) -> None:
        self.owner, self.guidance, self.guide, self.max_rows = owner, guidance, guide, max_rows
        parts = tuple(guidance.parts())
        norms = any(isinstance(part, CFGNorm) for part in parts)  # which is of each token
        images = any(isinstance(part, SAG | FDG | FreSca) for part in parts)
        self._patch = patch if images and not norms else None
        self.batches = Batches(max_rows)
        self._time_argument = TimeArgument()
        self._seeds: tuple[int, ...] = ()
        self._views = PanoramaViews()
        self._measured: dict[Any, Located] = {}
        self._modules: dict[Any, Mapping[str, nn.Module]] = {}

    def begin(self, network: Any) -> None:
        """Begin a sampling."""
        family = known_family(unwrap_compiled(network))
        rules = RULES if family is None else RULES[1:2] if family.flow_time == 1 else RULES[:1]
        self._time_argument = TimeArgument(rules)

    def end(self) -> None:
        """End a run of the pipeline."""
        self._views.end()

    def __call__(self, parts: Mapping[str, Part], calls: Sequence[Call], now: Now) -> Tensor:
        """Guided model output, `(B, *D)`, as the scheduler is given it, in float32 or wider.

        Args:
            parts: Conditions by name, "cond" and, where there is one, "null".
            calls: Of this step.
            now: This step.
        """
        for call in calls:
            self._time_argument.see(call.arguments, now.time, now.timeline.count)
        self._views.enter(now)
        while True:
            self.batches.begin(calls)
            try:
                return self._predicted(parts, now)
            except NotDivided as error:
                self.batches.keep(error.call)

    def _predicted(self, parts: Mapping[str, Part], now: Now) -> Tensor:
        layout = self._layout(parts["cond"])
        x = layout.sample
        self._check(layout, x, now)
        if now.step.first or len(self._seeds) != len(x):
            self._seeds = seeds_of(x)
        memory = self._views.memory(now.step.step)
        main = self._network(None, layout, now)
        nets = {"main": replace(main, check=partial(self._check_branch, parts, main))}
        if self.guide is not None:
            own = self.guide is layout.part.call.module
            nets["guide"] = nets["main"] if own else self._network(self.guide, layout, now)
        made = {name: partial(self._cond, parts, name, layout) for name in parts}
        conds = LazyConditions(made)
        settings = self.guidance, self.max_rows, now.timeline.schedule, self._seeds, now.step.step
        ahead = now.next(now.step.step), memory
        prediction = now.timeline.prediction
        denoiser = Denoiser(nets, conds, prediction, *settings, *ahead, parts=layout.parts)
        if now.step.first:
            self._dry_run(replace(denoiser, seeds=None), x[:1], now)
            conds = LazyConditions(made)  # of places that are measured now
            denoiser = replace(denoiser, conds=conds)
        base, shift = denoiser.predict(x, now.level)
        assert shift is not None
        self._views.keep(memory, now.step.step)
        out = base.out + denoiser.prediction.output_shift(shift, now.level)
        out = now.timeline.direction * out
        if base.variance is not None:
            out = torch.cat([out, base.variance], dim=1)
        return layout.packed(out)

    def _check(self, layout: Layout, x: Tensor, now: Now) -> None:
        """Check what can be known before anything is evaluated."""
        if layout.tree is None and self.max_rows is not None and len(x) > self.max_rows:
            raise InputError(
                f"{self.owner} samples {len(x)} at once, more than max_rows={self.max_rows}, and "
                "its network does not show how its calls can be divided: sample fewer at once"
            )
        if now.step.first and self.guide is not None:
            check_residuals(layout.part.call.module, self.guide, layout.part.call.arguments)
        if any(isinstance(part, SAG) for part in self.guidance.parts()):
            shape, channels = layout.part.call.inputs.shape, layout.channels
            if len(shape) == x.ndim == 5 and shape[1] == shape[2] == channels:
                raise InputError(
                    f"{self.owner} has samples {tuple(x.shape[1:])} of {channels} channels, whose "
                    "frames SAG cannot tell: take PAG or SEG, or another number of frames"
                )

    def _check_branch(self, parts: Mapping[str, Part], main: Network, branch: Branch) -> None:
        """Refuse to look into a network that answers for another condition alone (Ideogram 4)."""
        changed = branch.edits or branch.record or branch.adapter
        if changed and parts[branch.cond].call.module is not parts["cond"].call.module:
            raise InputError(
                f"{self.owner} has another network for the {branch.cond} prompt, and a guidance "
                "changes and reads the one of the prompt alone: guide under the prompt, on='cond'"
            )
        if branch.second is not None:
            len(main.layers)  # measured now, so that conditions of other places stay apart
        main.check(branch)

    def _dry_run(self, denoiser: Denoiser, x: Tensor, now: Now) -> None:
        """Ask all that later steps will ask, so that what is missing shows before the first."""
        seen = -1
        for step, time in now.tracker.remaining():
            level = now.timeline.level(time)
            denoiser.prediction.x0(x, x, level)  # the output has to fix x0
            if step == seen:  # inner evaluations may end where their step does
                continue
            seen = step
            replace(denoiser, step=step, next=now.next(step)).dry_run(x, level)

    def _layout(self, part: Part) -> Layout:
        return Layout.of(part, self.batches.divides(part.call), self._patch)

    def _cond(self, parts: Mapping[str, Part], name: str, base: Layout) -> RowsOf:
        part = parts[name]
        own = part.call is not base.part.call
        layout = self._layout(part) if own else replace(base, part=part)
        return layout.condition(layout if own and self._apart(base, layout) else base)

    def _apart(self, base: Layout, other: Layout) -> bool:
        """Whether the image has other places among the tokens of two calls, where that counts."""
        if not self._measured or not base.fits(other):
            return False
        places, own = (self._measured_layers(None, lay).places for lay in (base, other))
        return places != own

    def _network(self, guide: Any, layout: Layout, now: Now) -> Network:
        """`Network` of a guide, or, for None, of the network that was called."""
        part = layout.part
        network = guide or part.call.module
        module = unwrap_compiled(network)
        family, patch, locate = known_family(module), 1, None
        layers: Mapping[str, nn.Module]
        if family is None or (family.packed and part.taken.dim == 1):  # more tokens than known of
            measured = self._measured_layers(guide, layout)
            layers, locate = measured, partial(self._located, guide, measured)
        else:
            patch = 2 if family.packed else getattr(module.config, "patch_size", None) or 1
            layers = self._once(module, family.layers)

        def evaluate(x: Tensor, level: Level, cond: Any) -> Tensor:
            at_level = None
            if level is not now.level:
                time = now.timeline.time(level)
                beside, count = bool(part.replaced or part.taken.grid), now.timeline.count
                at_level = partial(
                    self._time_argument.told, t=time, now=now.time, n=count, beside=beside
                )
            return now.timeline.direction * self.batches.output(x, cond, guide, at_level)

        return Network(
            evaluate,
            layers,
            by_sdpa,
            patch,
            text_first=family is not None and family.text_first,
            touched=partial(self.batches.touched, network),
            place=_place,
            locate=locate,
            adapted=partial(adapted, module),
            check=partial(check_branch, module, layers),
            attention=self._once(module, text_attention),
            second=second,
            blocks=self._once(module, blocks_with_attention),
            sizes="UNet" in type(module).__name__ and certain(part.call),
            classes=count_classes(module),
        )

    def _once(
        self, module: nn.Module, find: Callable[[nn.Module], Mapping[str, nn.Module]]
    ) -> Mapping[str, nn.Module]:
        """Modules inside of a network, which are looked for once."""
        key = id(module), find
        if key not in self._modules:
            self._modules[key] = find(module)
        return self._modules[key]

    def _located(
        self, guide: Any, layers: MeasuredLayers, cond: RowsOf, second: RowsOf | None = None
    ) -> Locate:
        """Function that finds the tokens of the image under a condition.

        Each of `layers`, which are those under the prompt, has to have some.
        """
        ((layout, tree),) = cond.items()
        rows = _rows(tree)
        own = self._measured_layers(guide, layout)
        if second is not None and own.text_first:
            ((other, its),) = second.items()
            rows += _rows(its)
            if other is not layout:
                (layout,), rows = pair_of(layout, other), []
                own = self._measured_layers(guide, layout)
        if missing := layers.places.keys() - own.places.keys():
            raise InputError(
                f"attention of {min(missing)} is from image to image under the prompt alone: edit "
                "attention under the prompt, on='cond'"
            )
        return partial(own.tokens, rows=rows)

    def _measured_layers(self, guide: Any, layout: Layout) -> MeasuredLayers:
        """Layers of a network that attend from image to image, for calls of this form."""
        network = guide or layout.part.call.module

        def run(x: Tensor) -> None:
            with self.batches.touched(network, guide is not None):
                self.batches.in_call(layout, layout.turned(x), guide)

        sample = layout.turned(layout.part.sample)
        return MeasuredLayers(unwrap_compiled(network), run, sample, layout.part, self._measured)


def _rows(tree: Mapping[str, Any]) -> list[int]:
    """Rows of a call where the image has the places of those of a condition; none for all."""
    return [max(i, ~i) for i in tree[ROWS].tolist()] if tree else []


def _place(cond: Any) -> tuple[int, int] | None:
    """First row of a condition in the batch of its call, and the size of that, where it is kept."""
    (layout,) = cond
    part = layout.part
    return (part.rows.start, len(part.call.inputs)) if layout.tree is None else None
