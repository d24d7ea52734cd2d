"""Pickles of the structure that official EDM2 snapshots have, of our own networks.

Each module is a persistent object: a call of `_reconstruct_persistent_obj` with source text, class
name and state. The source text here leaves a trace if anything ever runs it.
"""

import pickle
import sys
import types
from collections import OrderedDict
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from diffsteer.models.edm2.model import EDM2


def _reconstruct_persistent_obj(meta: dict[str, Any]) -> Any:
    raise AssertionError("a reader called what a pickle named")


class EasyDict(dict):
    pass


class Persistent:
    def __init__(self, class_name: str, state: dict[str, Any], trace: Path) -> None:
        source = f"open({str(trace)!r}, 'w')\nimport os\nos.system('touch {trace}')\n"
        self.meta = {
            **{"type": "class", "version": 6, "module_src": source},
            **{"class_name": class_name, "state": state},
        }

    def __reduce__(self):
        return _reconstruct_persistent_obj, (self.meta,)


@contextmanager
def named():
    """Let the pickler find the helpers under the names that official files have."""
    homes = {"torch_utils.persistence": _reconstruct_persistent_obj, "dnnlib.util": EasyDict}
    own, added = __name__, []
    for home, thing in homes.items():
        thing.__module__ = home
        for name in (home.partition(".")[0], home):
            sys.modules[name] = types.ModuleType(name)
            added.append(name)
        setattr(sys.modules[home], thing.__name__, thing)
    try:
        yield
    finally:
        for thing in homes.values():
            thing.__module__ = own
        for name in added:
            del sys.modules[name]


def module(net: nn.Module, trace: Path, kwargs: dict[str, Any] | None = None) -> Any:
    """Persistent form of a module and of all in it."""
    children = {n: module(m, trace) for n, m in net.named_children()}
    if isinstance(net, nn.ModuleDict):
        made = nn.ModuleDict()
        made._modules = children
        return made
    state = {k: v for k, v in net.__dict__.items() if not k.startswith("_kept")}
    state |= {"_modules": OrderedDict(children), "_init_args": (), "_init_kwargs": EasyDict()}
    if kwargs is not None:
        state["_init_kwargs"] = EasyDict(kwargs)
    name = {"EDM2": "Precond"}.get(type(net).__name__, type(net).__name__)
    return Persistent(name, state, trace)


def encoder(latent: bool, trace: Path, channels: int = 4, **changes: Any) -> Persistent:
    if not latent:
        return Persistent("StandardRGBEncoder", {"_init_kwargs": EasyDict()}, trace)
    scale = np.float32(0.5) / np.float32([4.17, 4.62, 3.71, 3.28])
    bias = -np.float32([5.81, 3.25, 0.12, -2.15]) * scale
    kwargs = EasyDict(vae_name="stabilityai/sd-vae-ft-mse")
    state = {"_init_kwargs": kwargs, "scale": scale[:channels], "bias": bias[:channels], **changes}
    return Persistent("VAE", {k: v for k, v in state.items() if v is not None}, trace)


def snapshot(
    net: EDM2, trace: Path, latent: bool = False, protocol: int = 4, **changes: Any
) -> bytes:
    """Bytes of a snapshot of a network, in float16; `trace` appears if its source text runs.

    `changes` are of the encoder's state, None for what it lacks.
    """
    loss = Persistent("EDM2Loss", {"_init_kwargs": EasyDict(P_mean=-0.4, P_std=1.0)}, trace)
    with named():
        content = EasyDict(
            encoder=encoder(latent, trace, net.config["img_channels"], **changes),
            dataset_kwargs=EasyDict(class_name="training.dataset.ImageFolderDataset"),
            loss_fn=loss,
            ema=module(net, trace, net.config),
        )
        return pickle.dumps(content, protocol=protocol)
