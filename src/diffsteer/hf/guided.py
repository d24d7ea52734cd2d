"""A network of diffusers, its guide and a guidance: one guided output for all conditions."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.core.level import Level, upcast
from diffsteer.core.prediction import Prediction
from diffsteer.core.schedule import Flow, Schedule
from diffsteer.guidance import Guidance
from diffsteer.guidance.denoiser import Cond, Denoiser, Network
from diffsteer.guidance.queries import number
from diffsteer.hf.architectures import by_sdpa, family_of, packed, size_of, unpacked
from diffsteer.hf.network import channels, timestep_like, uncompiled, unwrap_compiled
from diffsteer.hf.timed import level_at, timestep_schedule
from diffsteer.hf.timesteps import SamplingStep, StepTracker

Size = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Shared:
    """An argument that is the same for all rows, though its first dimension may be as long."""

    value: Any


class Conds(Mapping[str, Cond]):
    """Conditions by name, each made when it is first asked for."""

    def __init__(self, makers: Mapping[str, Callable[[], Cond]]) -> None:
        self._makers, self._made = makers, dict[str, Cond]()

    def __getitem__(self, name: str) -> Cond:
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __contains__(self, name: object) -> bool:
        return name in self._makers

    def __len__(self) -> int:
        return len(self._makers)


class Guided:
    """Calls the networks as a guidance asks for it.

    Args:
        network: A network of a known family, maybe compiled.
        forward: Its forward as it was before it was wrapped; may be set anew.
        guidance: What guides.
        guide: For autoguidance, a second network for the same latents and conditions.
        max_rows: Most rows of one pass.

    Raises:
        ValueError: the network is of no known family, or the guide does not fit.
    """

    def __init__(
        self,
        network: Any,
        forward: Callable[..., Any],
        guidance: Guidance,
        guide: Any = None,
        max_rows: int | None = None,
    ) -> None:
        self.network, self.forward, self.guide = network, forward, guide
        self.guidance, self.max_rows = guidance, max_rows
        self.family = family_of(unwrap_compiled(network))
        if guide is not None:
            _check_fit(unwrap_compiled(network), unwrap_compiled(guide))
        self._layers = self.family.layers(unwrap_compiled(network))
        self._guide_layers = {} if guide is None else self.family.layers(unwrap_compiled(guide))
        blocks = (block for m in (network, guide) if m is not None for block in m.modules())
        compiled = any(getattr(block, "_compiled_call_impl", None) for block in blocks)
        # blocks that are compiled in place; asked for only where there are any, since it is slow
        self._eagerly = uncompiled if compiled else nullcontext
        self._clock = StepTracker()
        self._scheduler: tuple[Any, Schedule, Prediction] | None = None
        self._grid: tuple[Any, Size] | None = None
        self._seeds: tuple[int, ...] = ()
        self._dry_run_done: Any = None
        self._tapping = False

    def tick(self, scheduler: Any, timestep: float | Tensor) -> SamplingStep:
        """Say which step the network is called for."""
        timestep_like = (
            self.family.flow_time if isinstance(self.reads(scheduler)[0], Flow) else 1000.0
        )
        return self._clock.read(timestep, scheduler, 1000.0 / timestep_like)

    def reads(self, scheduler: Any) -> tuple[Schedule, Prediction]:
        """Schedule and prediction type of a scheduler."""
        config = scheduler.config
        if self._scheduler is None or self._scheduler[0] is not config:
            self._scheduler = (config, *timestep_schedule(scheduler))
        return self._scheduler[1:]

    def __call__(
        self,
        whole: Tensor,
        conds: Mapping[str, Callable[[], Cond]],
        scheduler: Any,
        tick: SamplingStep,
    ) -> Tensor:
        """Return the guided output for the rows of one condition, as the network would.

        Args:
            whole: The sample as the network gets it, channels that are not denoised included.
            conds: Makers of the arguments besides the sample, "cond" and those there are.
            scheduler: The pipeline's.
            tick: The step.
        """
        schedule, kind = self.reads(scheduler)
        level = level_at(schedule, tick.time)
        cond = conds["cond"]()
        if tick.first and self.guide is not None:
            _check_residuals(unwrap_compiled(self.network), unwrap_compiled(self.guide), cond)
        size = self._size(whole, cond) if self.family.packed else None
        x, extra = self._split(whole, size)
        x = upcast(x)
        if tick.first or len(self._seeds) != len(x):
            self._seeds = seeds_of(x)
        rest: list[Tensor] = []
        nets = {"main": self._net(self.network, level, whole.dtype, size, rest)}
        if self.guide is self.network:
            nets["guide"] = nets["main"]
        elif self.guide is not None:
            nets["guide"] = self._net(self.guide, level, whole.dtype, size, [])
        arguments = {
            name: lambda make=make: self._marked(make(), extra) for name, make in conds.items()
        }
        made = Conds(arguments)
        settings = self.guidance, self.max_rows, schedule, self._seeds, tick.step
        denoiser = Denoiser(nets, made, kind, *settings)
        if tick.first:
            self._dry_run(denoiser, x)
        base, shift = denoiser.predict(x, level)
        assert shift is not None
        out = (base.out + kind.output_shift(shift, level)).to(whole.dtype)
        if size is not None:
            return packed(out)
        if rest:  # the first rows are those of the "cond" branch, which is always asked first
            out = torch.cat([out, torch.cat(rest)[: len(out)]], dim=1)
        return out

    def _dry_run(self, denoiser: Denoiser, x: Tensor) -> None:
        """Ask all that later steps will ask, so that what is missing shows before the first call.

        Once for each set of timesteps, on a small sample.
        """
        left = self._clock.left()
        known = (left, tuple(denoiser.conds))
        if known == self._dry_run_done:
            return
        small, schedule = x.new_zeros(1, x.shape[1], 4, 4), denoiser.schedule
        assert schedule is not None
        alone = replace(denoiser, seeds=None)
        for step, time in left:
            replace(alone, step=step).dry_run(small, level_at(schedule, time))
        self._dry_run_done = known

    def _marked(self, said: Cond, extra: Tensor) -> Cond:
        shared = {name: Shared(said[name]) for name in self.family.shared if name in said}
        return {**said, **shared, "extra": extra}

    def _net(
        self, module: Any, now: Level, dtype: torch.dtype, size: Size | None, rest: list[Tensor]
    ) -> Network:
        """Wrap a network for the engine: float32 outside, its own dtype inside.

        The channels of its answers beyond those of the sample are put into `rest`. A compiled
        network runs uncompiled where something in it is touched, since compiled code ignores that.
        """
        forward = self.forward if module is self.network else module.forward

        def call(x: Tensor, level: Level, cond: Cond) -> Tensor:
            given = {
                key: value.value if isinstance(value, Shared) else value
                for key, value in cond.items()
                if key != "extra"
            }
            given[self.family.sample] = self._joined(x.to(dtype), cond["extra"], size)
            if level is not now:
                given["timestep"] = self._told(level, given["timestep"])
            touched = unwrap_compiled(module) is not module and self._tapping
            act = unwrap_compiled(module).forward if touched else forward
            out, more = self._split(act(**given, return_dict=False)[0], size)
            if more.numel():
                rest.append(more)
            return upcast(out)

        patch = (
            2
            if self.family.packed
            else getattr(unwrap_compiled(module).config, "patch_size", None) or 1
        )
        layers = self._layers if module is self.network else self._guide_layers
        return Network(call, layers, by_sdpa, patch, self.family.text_first, self._touched)

    def _split(self, whole: Tensor, size: Size | None) -> tuple[Tensor, Tensor]:
        """The sample, `(B, C, H, W)`, and channels beyond it."""
        n = channels(unwrap_compiled(self.network))
        if size is None:
            return whole[:, :n], whole[:, n:]
        return unpacked(whole[..., :n], size), whole[..., n:]

    def _joined(self, x: Tensor, extra: Tensor, size: Size | None) -> Tensor:
        if size is None:
            return torch.cat([x, extra], dim=1)
        return torch.cat([packed(x), extra], dim=-1)

    def _size(self, whole: Tensor, said: Cond) -> Size:
        """Height and width of a packed sample in tokens; read once for each tensor of places."""
        ids = said["img_ids"]
        if self._grid is None or self._grid[0] is not ids:
            self._grid = (ids, size_of(ids, whole.shape[1]))
        return self._grid[1]

    def _told(self, level: Level, before: float | Tensor) -> Tensor:
        """What the network is told of another level."""
        flow = self._scheduler is not None and isinstance(self._scheduler[1], Flow)
        return timestep_like(level.t.item() * (self.family.flow_time if flow else 1.0), before)

    @contextmanager
    def _touched(self) -> Iterator[None]:
        """Run the network where hooks and function modes reach it."""
        before, self._tapping = self._tapping, True
        try:
            with self._eagerly():
                yield
        finally:
            self._tapping = before


def seeds_of(start: Tensor) -> tuple[int, ...]:
    """A seed for each sample, from the first values that its sampling starts from.

    So a sample has the same one alone and in any batch. Reads a few values of each.
    """
    values = start.detach().flatten(1)[:, :16].float().cpu()
    return tuple(number(row.numpy().tobytes()) for row in values)


def _check_residuals(main: Any, guide: Any, said: Cond) -> None:
    """Check that what a ControlNet or adapter adds to the network's features fits the guide's.

    Raises:
        ValueError: it does not.
    """
    given = [name for name in said if "additional_residual" in name and said[name] is not None]
    layouts = [
        [getattr(m.config, name, None) for name in ("block_out_channels", "layers_per_block")]
        for m in (main, guide)
    ]
    if given and layouts[0] != layouts[1]:
        raise InputError(
            "the pipeline adds features of a ControlNet or adapter inside of its network, which "
            "do not fit a guide of another size: guide without it, or by a network of this size"
        )


def _check_fit(main: Any, guide: Any) -> None:
    mine, theirs = ((m.config.in_channels, channels(m)) for m in (main, guide))
    if mine != theirs:
        raise InputError(
            f"the guide takes {theirs[0]} channels and returns {theirs[1]}, the network {mine[0]} "
            f"and {mine[1]}: both must see the same latents"
        )
    for width in ("cross_attention_dim", "joint_attention_dim", "caption_channels"):
        widths = [getattr(m.config, width, None) for m in (main, guide)]
        if widths[0] != widths[1]:
            raise InputError(
                f"the guide reads text of width {widths[1]}, the network of width {widths[0]}: "
                "both must take the same prompt"
            )
