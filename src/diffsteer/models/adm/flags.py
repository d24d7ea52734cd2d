"""Flags of official ADM and IDDPM command lines, under their own names."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any

from diffsteer.core.errors import InputError, brief
from diffsteer.core.fields import Share, between, check_fields
from diffsteer.io.strict import from_table, refused

MULTS = {
    512: "0.5,1,1,2,2,4,4",
    256: "1,1,2,2,4,4",
    128: "1,1,2,3,4",
    64: "1,2,3,4",
    32: "1,2,2,2",
}
"""Default multiples of the channels at each resolution, by image size."""

WITHOUT_EFFECT = frozenset(
    {"use_checkpoint", "use_fp16", "use_kl", "rescale_learned_sigmas", "timestep_respacing"}
)
"""Official flags of training, speed and sampling, which change neither network nor schedule."""

OF_CLASSIFIERS = {
    **{"classifier_width": "num_channels", "classifier_depth": "num_res_blocks"},
    "classifier_attention_resolutions": "attention_resolutions",
    "classifier_resblock_updown": "resblock_updown",
    "classifier_use_scale_shift_norm": "use_scale_shift_norm",
}
"""Official names of classifier flags, and those of the same flags of a denoiser."""

CLASSIFIER = {
    **{"classifier": True, "attention_resolutions": "32,16,8"},
    **{"resblock_updown": True, "num_head_channels": 64},
}
"""Defaults of classifiers where they differ from those of denoisers."""


@dataclass(frozen=True)
class Flags:
    """Architecture and noise of a network; names and defaults of guided-diffusion.

    Attributes:
        image_size: Side in pixels.
        num_channels: Channels at multiple 1; a multiple of 32.
        num_res_blocks: Residual blocks at each resolution on the way down; one more on the way up.
        channel_mult: Multiples of the channels from full resolution down, "1,2,3,4"; empty for what
            the official code takes at this size.
        attention_resolutions: Sides in pixels at which there is attention, "32,16,8".
        num_heads: Attention heads, where `num_head_channels` is -1.
        num_head_channels: Channels of a head; -1 for `num_heads` heads whatever the channels.
        num_heads_upsample: Heads on the way up; -1 for `num_heads`.
        dropout: In training.
        class_cond: Whether it is class-conditional.
        use_scale_shift_norm: Whether time and class scale and shift the features, or only add.
        resblock_updown: Whether resolutions change in residual blocks, or by convolutions.
        use_new_attention_order: Whether query, key and value are split before heads, or after.
        learn_sigma: Whether it predicts its variance in three more channels.
        predict_xstart: Whether it predicts x0 instead of eps.
        diffusion_steps: Trained timesteps.
        noise_schedule: "linear" or "cosine".
        rescale_timesteps: Whether its timesteps are scaled to 0 to 1000.
        num_classes: Classes; 1000 in the official code.
        classifier: Whether it is a classifier of noisy images: the encoder and a pool.
    """

    image_size: Annotated[int, between(1, 4096)] = 64
    num_channels: Annotated[int, between(1, 8192)] = 128
    num_res_blocks: Annotated[int, between(1, 64)] = 2
    channel_mult: str = ""
    attention_resolutions: str = "16,8"
    num_heads: Annotated[int, between(1, 8192)] = 4
    num_head_channels: Annotated[int, between(-1, 8192)] = -1
    num_heads_upsample: Annotated[int, between(-1, 8192)] = -1
    dropout: Share = 0.0
    class_cond: bool = False
    use_scale_shift_norm: bool = True
    resblock_updown: bool = False
    use_new_attention_order: bool = False
    learn_sigma: bool = False
    predict_xstart: bool = False
    diffusion_steps: Annotated[int, between(1, 100_000)] = 1000
    noise_schedule: str = "linear"
    rescale_timesteps: bool = False
    num_classes: Annotated[int, between(1, 10**6)] = 1000
    classifier: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.noise_schedule not in ("linear", "cosine"):
            raise InputError(f"noise_schedule={brief(self.noise_schedule)}: give linear or cosine")
        if self.classifier and self.num_head_channels == -1:
            raise InputError("the pool of a classifier needs num_head_channels; published ones: 64")
        for channels in self.widths:
            if channels % 32 or not 0 < channels <= 2**16:
                raise InputError(f"{channels} channels do not make 32 groups: take multiples of 32")
        for part in self.attention_resolutions.split(","):
            if not re.fullmatch(r"\s*0*[1-9][0-9]{0,4}\s*", part):
                raise InputError(
                    f"attention_resolutions={brief(self.attention_resolutions)}: '32,16,8'"
                )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at each resolution, from full down."""
        text = self.channel_mult or MULTS.get(self.image_size, "")
        try:
            return tuple(int(float(part) * self.num_channels) for part in text.split(",", 12))
        except (ValueError, OverflowError) as error:
            raise InputError(
                f"channel_mult={brief(self.channel_mult)} at image_size={self.image_size}: write "
                f"multiples such as '1,2,3,4'; sizes with one of their own: {sorted(MULTS)}"
            ) from error

    @property
    def rates(self) -> frozenset[int]:
        """Downsampling factors at which there is attention."""
        sides = self.attention_resolutions.split(",")
        return frozenset(self.image_size // int(side) for side in sides)

    def heads(self, channels: int, up: bool = False) -> int:
        """Attention heads over `channels`."""
        if self.num_head_channels != -1:
            return channels // self.num_head_channels
        return self.num_heads_upsample if up and self.num_heads_upsample != -1 else self.num_heads

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Flags":
        """Read flags by name; values may be texts."""
        types = {f.name: type(f.default) for f in fields(cls)}
        table = {
            name: _value(name, value, types[name]) if name in types else value
            for name, value in settings.items()
            if name not in WITHOUT_EFFECT
        }
        return from_table(cls, table, "ADM")

    @classmethod
    def parse(cls, text: str) -> "Flags":
        """Read the text of official command lines, "--image_size 64 --class_cond True".

        A line with flags such as --classifier_depth describes a classifier.
        """
        with refused(f"{brief(text)} are no flags"):
            words = shlex.split(text.replace("=", " "))
        names, values = words[::2], words[1::2]
        if len(names) != len(values) or not all(name.startswith("--") for name in names):
            raise InputError(f"{brief(text)} are no flags: write --image_size 64 --class_cond True")
        settings = {name[2:]: value for name, value in zip(names, values, strict=True)}
        flags = cls.of(_of_classifier(settings))
        if flags.diffusion_steps != 1000 and "rescale_timesteps" not in settings:
            raise InputError(
                f"diffusion_steps={flags.diffusion_steps} without rescale_timesteps: the code of "
                "IDDPM rescales unless told not to, that of ADM does not. Add --rescale_timesteps "
                "True or False"
            )
        return flags

    def __str__(self) -> str:
        """Text that `parse` reads back, without defaults that it does not require."""
        settings = {f.name: getattr(self, f.name) for f in fields(self)}
        defaults = {f.name: f.default for f in fields(self)}
        if self.diffusion_steps != 1000:
            del defaults["rescale_timesteps"]
        return " ".join(
            f"--{n} {value}" for n, value in settings.items() if value != defaults.get(n)
        )


def _of_classifier(settings: dict[str, str]) -> dict[str, Any]:
    """Flags of a classifier under the names of a denoiser; others unchanged."""
    if not any(name.startswith("classifier_") for name in settings):
        return settings
    if settings.get("classifier_pool", "attention") != "attention":
        raise InputError(
            f"classifier_pool={brief(settings['classifier_pool'])}: published ones are read, "
            "attention"
        )
    unneeded = ("classifier_pool", "classifier_use_fp16")
    renamed = {
        OF_CLASSIFIERS.get(n, n): value for n, value in settings.items() if n not in unneeded
    }
    both = [n for n, name in OF_CLASSIFIERS.items() if n in settings and name in settings]
    if both or not _value("classifier", settings.get("classifier", True), bool):
        other = OF_CLASSIFIERS[both[0]] if both else "classifier False"
        raise InputError(
            f"{both[0] if both else 'flags of a classifier'} beside {other}: these are of two "
            "networks; give the flags of the one that is read"
        )
    return CLASSIFIER | renamed


def _value(name: str, value: Any, kind: type) -> Any:
    """One flag in its type."""
    text = str(value).strip()
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        return kind(text)
    except (KeyError, ValueError) as error:
        raise InputError(f"{name}={brief(value)} is no {kind.__name__}") from error
