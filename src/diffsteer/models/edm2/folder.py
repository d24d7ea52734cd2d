"""EDM2 networks in folders: `model.safetensors` and `config.json`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.io.atomic import atomic_folder, umask
from diffsteer.io.strict import read_json, read_safetensors, refused
from diffsteer.models.edm2.model import EDM2

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = "diffsteer.EDM2"


@dataclass(frozen=True)
class Stored:
    """A network as a file holds it.

    Attributes:
        config: Arguments of `EDM2`.
        tensors: Its weights and buffers by name.
        about: What else is known: how images become what it works on, and where it came from.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    about: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raise ValueError unless config, tensors and encoder fit; allocates nothing."""
        self._fit(_on_meta(self.config))
        if (encoder := self.about.get("encoder")) is not None:
            _check_encoder(encoder, self.config["img_channels"])

    def network(self) -> EDM2:
        """Make the network, with the tensors in the dtypes that they have, for evaluation."""
        net = _on_meta(self.config)
        self._fit(net)
        net.load_state_dict(dict(self.tensors), strict=True, assign=True)
        return net.eval()

    def save(self, folder: Path, over: bool = False) -> None:
        """Write a folder, whole or not at all.

        Args:
            folder: Where.
            over: Whether it takes the place of a folder that is there.

        Raises:
            FileExistsError: it is there already and holds something.
            ValueError: as `check`.
        """
        from safetensors.torch import save_file

        self.check()
        with atomic_folder(folder, over) as part:
            save_file(dict(self.tensors), part / WEIGHTS)
            (part / WEIGHTS).chmod(0o666 & ~umask())  # the library writes for its user alone
            content = {"format": FORMAT, "config": dict(self.config), **self.about}
            (part / CONFIG).write_text(json.dumps(content, indent=2) + "\n", "utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Stored":
        """Read a folder.

        Raises:
            ValueError: it holds anything else.
            OSError: it cannot be read.
        """
        with refused(f"{folder} is no EDM2 network"):
            content = described(folder)
            stored = cls(content.pop("config"), read_safetensors(folder / WEIGHTS), content)
            stored.check()
        return stored

    def _fit(self, net: EDM2) -> None:
        want = {name: tuple(t.shape) for name, t in net.state_dict().items()}
        have = {name: tuple(t.shape) for name, t in self.tensors.items()}
        for name in (*want, *have):
            if want.get(name) != have.get(name):
                raise InputError(
                    f"{name[:100]} has shape {have.get(name)} in the file and {want.get(name)} in "
                    "the network that its config describes"
                )
        for name, t in self.tensors.items():
            if not t.is_floating_point():
                raise InputError(f"{name} has dtype {t.dtype}")


def described(folder: Path) -> dict[str, Any]:
    """What a folder says of its network: config, and what else is known; its weights are not read.

    Raises:
        ValueError: it is of another format.
        OSError: it cannot be read.
    """
    content = read_json(folder / CONFIG)
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise InputError(f"{folder / CONFIG} does not say format {FORMAT!r}")
    return content


def _check_encoder(encoder: Any, channels: int) -> None:
    """Refuse factors from which no image can be made."""
    kind = encoder.get("kind") if isinstance(encoder, dict) else None
    if kind not in ("rgb", "vae"):
        raise InputError(f"the encoder is {str(encoder)[:100]}: there are the kinds rgb and vae")
    for name in ("scale", "bias") if kind == "vae" else ():
        said = encoder.get(name)
        listed = isinstance(said, list | tuple) and len(said) == channels
        if not listed or not all(type(v) in (int, float) and abs(v) < 1e300 for v in said):
            raise InputError(
                f"encoder {name} is {str(said)[:100]}, where latents of {channels} channels need "
                "as many finite numbers"
            )
        if name == "scale" and min(said) <= 0:
            raise InputError(f"encoder scale is {said}: it must be > 0, since it is divided by")


def _on_meta(config: Mapping[str, Any]) -> EDM2:
    try:
        with torch.device("meta"):
            return EDM2(**config)
    except TypeError as error:
        raise InputError(f"config of another network: {error}") from error
