"""Guide an untouched diffusers pipeline.

    with steer(pipe, CFG(6).rescaled(0.7) + PAG(3)):
        image = pipe("a cat").images[0]

The network's `forward` is wrapped. A pipeline that guides sends both halves in one batch and
computes null + s (cond - null); both halves are answered with the guided prediction, so that this
sum returns it whatever s is. Image to image, inpainting, ControlNet and adapters come along.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from diffsteer.denoiser import Cond, Denoiser, Network, rows_of
from diffsteer.guidance import Guidance
from diffsteer.hf.config import kind_of, schedule_of
from diffsteer.hf.family import by_sdpa, family_of
from diffsteer.level import Level, wide
from diffsteer.prediction import Kind, Velocity
from diffsteer.schedule import Flow, Schedule
from diffsteer.text import parse


def steer(
    pipe: Any,
    guidance: Guidance | str,
    guide: Any = None,
    max_rows: int | None = None,
) -> "Steering":
    """Guide a pipeline until the handle is removed.

    Args:
        pipe: A diffusers pipeline. Its own guidance scale loses its meaning; where a guidance asks
            for the null prompt it has to be > 1, so that the pipeline sends it.
        guidance: A guidance or its text, "CFG(6) + PAG(3)".
        guide: For autoguidance, a second network, or a pipeline that holds one, for the same
            latents and conditions.
        max_rows: Most rows of one pass of a network, where memory is short.

    Returns:
        A handle with `remove()`, also a context manager. Afterwards the pipeline is as it was.

    Raises:
        ValueError: the pipeline is of no known family, or steered, or the guide does not fit.
    """
    if isinstance(guidance, str):
        guidance = parse(guidance, Guidance)
    return Steering(pipe, guidance, guide, max_rows)


class Steering:
    """A pipeline being steered; made by `steer`."""

    def __init__(self, pipe: Any, guidance: Guidance, guide: Any, max_rows: int | None) -> None:
        self.pipe, self.guidance, self.max_rows = pipe, guidance, max_rows
        self.network = network_of(pipe)
        if isinstance(getattr(self.network.forward, "__self__", None), Steering):
            raise ValueError("this pipeline is steered already: remove the other steering first")
        if getattr(self.network, "_compiled_call_impl", None) is not None:
            raise ValueError(
                "this network was compiled in place, which leaves no way in: use "
                "pipe.unet = torch.compile(pipe.unet) instead of pipe.unet.compile()"
            )
        self.family = family_of(_eager(self.network))
        self.guide = None if guide is None else network_of(guide)
        if self.guide is not None:
            _check_fit(_eager(self.network), _eager(self.guide))
        self._signature = inspect.signature(type(_eager(self.network)).forward)
        self._own_forward = self.network.__dict__.get("forward")
        self._forward = self.network.forward
        self._guide_forward = None if self.guide is None else self.guide.forward
        self._layers = {
            id(net): self.family.layers(_eager(net))
            for net in (self.network, self.guide)
            if net is not None
        }
        self._scheduler: tuple[Any, Schedule, Kind] | None = None
        self._tapping = False
        self.network.forward = self._steered

    def remove(self) -> None:
        """Give the pipeline back as it was."""
        if self._own_forward is not None:
            self.network.forward = self._own_forward
        else:
            self.network.__dict__.pop("forward", None)

    def __enter__(self) -> "Steering":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _steered(self, *args: Any, **kwargs: Any) -> Any:
        """Stand in for the network's forward."""
        if getattr(self.pipe, "guidance_rescale", 0):
            raise ValueError(
                f"guidance_rescale={self.pipe.guidance_rescale} of the pipeline would act on top "
                "of this guidance: leave it at 0 and write .rescaled(phi)"
            )
        said = dict(self._signature.bind(self._forward, *args, **kwargs).arguments)
        said.pop("self")
        said |= said.pop("kwargs", {})
        whole, as_dict = said.pop(self.family.sample), said.pop("return_dict", True)
        halves = self.family.sent(self.pipe, whole)
        rest, out = self._guided(whole, said, halves)
        half = out.to(whole.dtype)
        if rest:  # the first rows are those of the "cond" branch, which is always asked first
            half = torch.cat([half, torch.cat(rest)[: len(half)]], dim=1)
        answer = torch.cat([half] * len(halves))
        if not as_dict:
            return (answer,)
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=answer)

    def _guided(
        self, whole: Tensor, said: dict[str, Any], halves: tuple[str, ...]
    ) -> tuple[list[Tensor], Tensor]:
        """Return the guided output of one half, in float32, and channels that are not guided."""
        size = len(whole) // len(halves)
        channels = _channels(_eager(self.network))
        parts = {name: slice(i * size, (i + 1) * size) for i, name in enumerate(halves)}
        x = wide(whole[parts["cond"], :channels])
        said["extra"] = whole[:, channels:]
        conds = {name: rows_of(said, rows, len(whole)) for name, rows in parts.items()}
        schedule, kind = self._reads()
        t = said["timestep"]
        time = (t.flatten()[0] if isinstance(t, Tensor) else torch.tensor(t)).double().cpu()
        level = schedule.at(time / 1000 if isinstance(schedule, Flow) else time)
        rest: list[Tensor] = []
        nets = {"main": self._net(self.network, self._forward, whole.dtype, rest)}
        if self.guide is self.network:
            nets["guide"] = nets["main"]
        elif self.guide is not None:
            nets["guide"] = self._net(self.guide, self._guide_forward, whole.dtype, [])
        denoiser = Denoiser(nets, conds, kind, self.guidance, self.max_rows)
        base, shift = denoiser.steered(x, level, self._step(time))
        assert shift is not None
        return rest, base.out + kind.push(shift, level)

    def _net(self, module: Any, forward: Any, dtype: torch.dtype, rest: list[Tensor]) -> Network:
        """Wrap a network for the engine: float32 outside, its own dtype inside.

        The channels of its answers beyond those of the sample are put into `rest`. A compiled
        network runs uncompiled where its attention is tapped, since compiled code ignores taps.
        """
        channels = _channels(_eager(module))

        def call(x: Tensor, level: Level, cond: Cond) -> Tensor:
            given = {key: value for key, value in cond.items() if key != "extra"}
            given[self.family.sample] = torch.cat([x.to(dtype), cond["extra"]], dim=1)
            compiled = _eager(module) is not module
            act = _eager(module).forward if compiled and self._tapping else forward
            out = act(**given, return_dict=False)[0]
            if out.shape[1] > channels:
                rest.append(out[:, channels:])
            return wide(out[:, :channels])

        patch = getattr(_eager(module).config, "patch_size", None) or 1
        return Network(call, self._layers[id(module)], self._ready, patch)

    @contextmanager
    def _ready(self, layer: nn.Module) -> Iterator[None]:
        """Let a layer be tapped."""
        before, self._tapping = self._tapping, True
        try:
            with by_sdpa(layer):
                yield
        finally:
            self._tapping = before

    def _reads(self) -> tuple[Schedule, Kind]:
        """Schedule and prediction type of the pipeline's scheduler."""
        config = self.pipe.scheduler.config
        if self._scheduler is None or self._scheduler[0] is not config:
            schedule = schedule_of({"_class_name": type(self.pipe.scheduler).__name__, **config})
            if isinstance(schedule, Flow):
                self._scheduler = (config, Flow(), Velocity())
            else:
                self._scheduler = (config, schedule, kind_of(config))
        return self._scheduler[1:]

    def _step(self, time: Tensor) -> int:
        """Index of the sampling step at a time."""
        times = self.pipe.scheduler.timesteps.double().cpu()
        return int((times - time).abs().argmin()) if len(times) else 0


def network_of(pipe: Any) -> Any:
    """The denoising network of a pipeline, or the network itself.

    Raises:
        ValueError: the pipeline has none.
    """
    if isinstance(pipe, nn.Module):
        return pipe
    for name in ("unet", "transformer"):
        if getattr(pipe, name, None) is not None:
            return getattr(pipe, name)
    raise ValueError(f"{type(pipe).__name__} has neither a unet nor a transformer to steer")


def _eager(module: Any) -> Any:
    """The network inside a compiled one."""
    return getattr(module, "_orig_mod", module)


def _channels(network: Any) -> int:
    """Channels of the sample: what the network returns, less a learned variance."""
    given, returned = (
        network.config.in_channels,
        network.config.out_channels or network.config.in_channels,
    )
    return int(given if returned == 2 * given else min(given, returned))


def _check_fit(main: Any, guide: Any) -> None:
    mine, theirs = ((m.config.in_channels, _channels(m)) for m in (main, guide))
    if mine != theirs:
        raise ValueError(
            f"the guide takes {theirs[0]} channels and returns {theirs[1]}, the network {mine[0]} "
            f"and {mine[1]}: both must see the same latents"
        )
    widths = [getattr(m.config, "cross_attention_dim", None) for m in (main, guide)]
    if widths[0] != widths[1]:
        raise ValueError(
            f"the guide reads text of width {widths[1]}, the network of width {widths[0]}: "
            "both must take the same prompt"
        )
