"""ADM and IDDPM checkpoints: reading, conversion, and denoisers to sample with."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.core.fields import renamed_fields
from diffsteer.core.level import Level, upcast
from diffsteer.core.prediction import X0, Eps, Prediction
from diffsteer.core.schedule import Discrete
from diffsteer.guidance import Clamped, Guidance
from diffsteer.guidance.attention_edits import received
from diffsteer.guidance.classifier import class_gradient
from diffsteer.guidance.denoiser import Cond, Denoiser, Network
from diffsteer.io.hashing import file_hash
from diffsteer.io.model_folder import write_model
from diffsteer.models.adm.blocks import join_heads, split_heads
from diffsteer.models.adm.files import FORMAT, State, read
from diffsteer.models.adm.flags import Flags
from diffsteer.models.adm.published import PUBLISHED
from diffsteer.models.adm.unet import ADM, ADMClassifier

Net = TypeVar("Net", ADM, ADMClassifier)
AS_PUBLISHED = Clamped()
"""Keeps x0 in [-1, 1], as the official code does at every step."""


@renamed_fields(kind="prediction")
@dataclass(frozen=True, eq=False)
class Diffusion:
    """Network with its noise schedule and prediction type.

    Attributes:
        net: The network; move it to its device by `diffusion.net.cuda()`.
    """

    net: ADM

    @property
    def schedule(self) -> Discrete:
        """Noise schedule of the training."""
        return schedule_of(self.net.flags)

    @property
    def prediction(self) -> Prediction:
        """Prediction type."""
        return X0() if self.net.flags.predict_xstart else Eps()

    def network(self, official_head_split: bool = False) -> Network:
        """The network for a `Denoiser`; conditions are `{"y": classes}`, or `{}` without classes.

        Args:
            official_head_split: Compatibility with the official code of SAG, whose maps split the
                channels into `num_heads` heads whatever the network does. At 256 pixels, where the
                network has 16 heads of 64 channels and that flag stays at 4, this mixes queries,
                keys and values; where both agree (128 pixels) it changes nothing.
        """
        flags = self.net.flags

        def call(x: Tensor, level: Level, cond: Cond) -> Tensor:
            y = cond["y"] if flags.class_cond else None
            return upcast(self.net(x, timesteps(flags, x, level), y))

        layers = self.net.attention_layers()
        split = partial(_split_anew, flags.num_heads, flags.use_new_attention_order)
        score = split if official_head_split else None
        classes = flags.num_classes if flags.class_cond else 0
        return Network(call, layers, score=score, blocks=layers, classes=classes)

    def denoiser(
        self,
        guidance: Guidance | None = AS_PUBLISHED,
        classes: Tensor | Sequence[int] | None = None,
        classifier: ADMClassifier | None = None,
        guide: "Diffusion | None" = None,
        official_head_split: bool = False,
        max_rows: int | None = None,
    ) -> Denoiser:
        """A guided denoiser.

        Args:
            guidance: Ends in `.clamped()` to keep x0 in [-1, 1], as the official code does.
                Without a null class CFG has nothing to go by, and SAG works on="cond".
            classes: Class of each sample, `(B,)`, for class-conditional networks and classifiers.
            classifier: For `Classifier` and `Ancestral(classifier=...)`.
            guide: A weaker network of the same size, schedule and prediction type, for `Auto`.
            official_head_split: As for `network`.
            max_rows: Largest batch of a forward pass.
        """
        self._check_guide(guide)
        classes = None if classes is None else torch.as_tensor(classes)
        self._check(classes, *(net for net in (classifier, guide and guide.net) if net))
        nets = {"main": self.network(official_head_split)}
        if classifier is not None:
            nets["classifier"] = Network(class_gradient(partial(self._classify, classifier)))
        if guide is not None:
            nets["guide"] = guide.network(official_head_split)
        cond = {} if classes is None else {"y": classes.long()}
        return Denoiser(nets, {"cond": cond}, self.prediction, guidance, max_rows, self.schedule)

    def _check_guide(self, guide: "Diffusion | None") -> None:
        for name in ("image_size", "noise_schedule", "diffusion_steps", "predict_xstart"):
            own = getattr(self.net.flags, name)
            other = own if guide is None else getattr(guide.net.flags, name)
            if own != other:
                raise InputError(
                    f"the guide has {name}={other} and the network {own}: the same time and output "
                    "mean different things to them; give a guide that was trained alike"
                )

    def _check(self, classes: Tensor | None, *others: ADM | ADMClassifier) -> None:
        every = [net.flags for net in (self.net, *others)]
        counts = [flags.num_classes for flags in every if flags.class_cond or flags.classifier]
        if classes is None:
            if counts:
                raise InputError("a class-conditional network and a classifier need classes, (B,)")
            return
        if not counts:
            raise InputError("this network knows no classes, and there is no classifier: give none")
        whole = not (classes.is_floating_point() or classes.dtype == torch.bool)
        known = (classes >= 0) & (classes < min(counts))
        if classes.ndim != 1 or not whole or not known.all():
            raise InputError(
                f"classes={classes.tolist()}: one a sample, from 0 to {min(counts) - 1}"
            )

    def _classify(self, net: ADMClassifier, x: Tensor, level: Level, _: Cond) -> Tensor:
        return upcast(net(x, timesteps(self.net.flags, x, level)))


def schedule_of(flags: Flags) -> Discrete:
    """Noise schedule of the training of a network or classifier."""
    if flags.noise_schedule == "cosine":
        return Discrete.cosine(flags.diffusion_steps)
    scale = 1000 / flags.diffusion_steps
    return Discrete.linear(1e-4 * scale, 0.02 * scale, flags.diffusion_steps)


def timesteps(flags: Flags, x: Tensor, level: Level) -> Tensor:
    """Timesteps, `(B,)`, of a network or classifier for `x`, `(B, *D)`, at one level or `(B,)`."""
    scale = 1000 / flags.diffusion_steps if flags.rescale_timesteps else 1.0
    return (level.t * scale).to(x.device, torch.get_default_dtype()).expand(len(x))


def _split_anew(heads: int, new_order: bool, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention received if the channels were `heads` times (query, key, value)."""
    q, k, _ = split_heads(join_heads(q, k, v, new_order), heads, new_order=False)
    return received(q, k)


def load(path: Path | str, flags: Flags | None = None) -> Diffusion:
    """Read a denoising network.

    Args:
        path: A published `.pt` file, a state dict of that code in `.pt` or `.safetensors`, or a
            folder that `diffsteer convert adm` made.
        flags: Of the network; None for what the folder says, or for those of the file name.

    Raises:
        OSError: there is no such file.
        InputError: it cannot be read, is no such network, or its flags are not known.
    """
    return Diffusion(from_state(*_known(Path(path), flags)))


def load_classifier(path: Path | str, flags: Flags | None = None) -> ADMClassifier:
    """Read a classifier of noisy images; arguments and errors as `load`."""
    return _network(ADMClassifier, *_known(Path(path), flags))


def from_state(state: Mapping[str, Tensor], flags: Flags) -> ADM:
    """Build the denoising network of a state dict."""
    return _network(ADM, state, flags)


def _network(cls: type[Net], state: Mapping[str, Tensor], flags: Flags) -> Net:
    if flags.classifier != (cls is ADMClassifier):
        what, use = ("classifier", "load_classifier") if flags.classifier else ("denoiser", "load")
        raise InputError(f"these are the flags of a {what}: read it by {use}")
    check(state, flags)
    with torch.device("meta"):
        net = cls(flags)
    net.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net.eval().requires_grad_(False)


def _known(path: Path, flags: Flags | None) -> tuple[State, Flags]:
    """State dict and its flags: given, of the folder, or of the file name."""
    state, stored_flags = read(path)
    flags = flags or stored_flags or PUBLISHED.get(path.name)
    if flags is None:
        raise InputError(
            f"{path}: no published checkpoint has this name, so its flags are not known; "
            f"{_guess(state)}; give flags, Flags.parse('--image_size 64 ...')"
        )
    return state, replace(flags, num_classes=_classes(state) or flags.num_classes)


def _classes(state: State) -> int:
    """Number of classes by the shapes of tensors; 0 without classes."""
    for name in ("label_emb.weight", "out.2.c_proj.weight"):
        if name in state and state[name].ndim > 0:
            return len(state[name])
    return 0


@lru_cache
def shapes_of(flags: Flags) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a network."""
    with torch.device("meta"):
        net = ADMClassifier(flags) if flags.classifier else ADM(flags)
    return _shapes(net.state_dict())


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def check(state: Mapping[str, Tensor], flags: Flags) -> None:
    """Raise InputError unless names and shapes are those of the flags; says which flags fit."""
    expected = shapes_of(flags)
    shapes = _shapes(state)
    if shapes == expected:
        return
    both = [n for n in expected if n in shapes and shapes[n] != expected[n]]
    parts = {
        "missing": [n for n in expected if n not in shapes],
        "unexpected": [n for n in shapes if n not in expected],
        "of another shape": [f"{n} is {shapes[n]}, not {expected[n]}" for n in both],
    }
    faults = [f"{len(v)} {what} ({_few(v)})" for what, v in parts.items() if v]
    raise InputError(f"tensors do not fit '{flags}': {'; '.join(faults)}; {_guess(state)}")


def convert(source: Path | str, out: Path | str, flags: Flags | None = None) -> Flags:
    """Write a checkpoint as safetensors and JSON, and return its flags.

    Args:
        source: As for `load`; a classifier too.
        out: A folder that is not there.
        flags: As for `load`.

    Raises:
        OSError: there is no such file.
        InputError: as `load`, or `out` exists.
    """
    source, out = Path(source), Path(out)
    state, flags = _known(source, flags)
    check(state, flags)
    if out.exists():
        raise InputError(f"{out} is there already: name a folder that is not")
    origin = {"name": source.name, "sha256": file_hash(source)}
    write_model(out, FORMAT, {"flags": asdict(flags), "source": origin}, state)
    return flags


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _guess(state: Mapping[str, Tensor]) -> str:
    """Name the published networks with these tensors."""
    shapes = _shapes(state)
    width = shapes.get("time_embed.0.weight", (0, 0))[-1]
    near = {name: flags for name, flags in PUBLISHED.items() if flags.num_channels == width}
    names = [name for name, flags in near.items() if shapes_of(flags) == shapes]
    if not names:
        return "no published ADM or IDDPM network has such tensors"
    return f"its tensors are those of {', '.join(names)}"
