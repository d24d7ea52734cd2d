"""Official EDM2 snapshots: pickles that carry source text, read without running any of it."""

import re
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from diffsteer.io.hashing import file_hash
from diffsteer.models import pickled_tensors as tensors
from diffsteer.models.edm2.model import Checkpoint
from diffsteer.models.restricted_pickle import Allowed, Call, CheckpointError, Name, read_file

PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
DICT = "dnnlib.util.EasyDict"
MODULES = "torch.nn.modules.container.ModuleDict"
SEQUENCE = "torch.nn.modules.container.Sequential"
ARRAYS = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
NUMBERS = {"f2": "e", "f4": "f", "f8": "d"}
"""Numpy's names of dtypes, and those of struct."""


def _numeric(args: tuple[Any, ...]) -> bool:
    kind = args[0] if args and isinstance(args[0], str) else ""
    if re.fullmatch(r"[<|=]?[fiub][1248]", kind):
        return True
    raise CheckpointError(f"a numpy array of dtype {kind[:40]!r}, not of numbers: refused")


ALLOWED: Allowed = {
    **tensors.ALLOWED,
    **dict.fromkeys((DICT, MODULES, SEQUENCE), lambda args: not args),
    **dict.fromkeys(ARRAYS, lambda args: len(args) == 3 and args[0] == Name("numpy.ndarray")),
    PERSISTENT: lambda args: len(args) == 1,
    "numpy.ndarray": lambda args: False,
    "numpy.dtype": _numeric,
}
"""All that official snapshots name."""

DEEPEST = 16
"""Levels of modules in modules; EDM2 has five."""

MOST_PARTS = 10_000
"""Modules and tensors of one network; a published one of any size has 203 tensors in about as many
modules, and this leaves room for networks of twenty times the depth."""

LONGEST_NAME = 100
POSITIONAL = ("img_resolution", "img_channels", "label_dim")


def read(path: Path | str) -> Checkpoint:
    """Read an official snapshot, `.pkl`.

    Raises:
        CheckpointError: it is none, is broken, or asks for anything that no snapshot needs; says
            for what. Nothing of it is executed.
        OSError: it cannot be read.
    """
    path = Path(path)
    tree = read_file(path, ALLOWED)
    try:
        top = _items(tree, "the file")
        state = _state(top.get("ema"), "ema")
        kwargs = _items(state.get("_init_kwargs"), "the arguments of the network")
        args = state.get("_init_args") or ()
        if not isinstance(args, list | tuple) or len(args) > len(POSITIONAL):
            raise CheckpointError("the network has arguments without a name")
        config = _plain({**dict(zip(POSITIONAL, args, strict=False)), **kwargs})
        about = {"encoder": _encoder(top.get("encoder"))}
        if (loss := top.get("loss_fn")) is not None:
            about["loss"] = _plain(_items(_state(loss, "loss_fn").get("_init_kwargs"), "loss_fn"))
        checkpoint = Checkpoint(config, _Walk(path.stat().st_size).state_dict(top["ema"]), about)
        checkpoint.check()
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return checkpoint


def convert(source: Path | str, folder: Path | str) -> Checkpoint:
    """Turn an official snapshot into a folder that `EDM2.load` reads.

    Raises:
        CheckpointError: as `read`; nothing is written then.
        FileExistsError: the folder is there already.
    """
    source = Path(source)
    checkpoint = read(source)
    origin = {"file": source.name, "sha256": file_hash(source)}
    checkpoint = replace(checkpoint, about={**checkpoint.about, "source": origin})
    checkpoint.save(Path(folder))
    return checkpoint


class _Walk:
    """Collects the tensors of modules in modules."""

    def __init__(self, budget: int) -> None:
        self.tensors = tensors.Tensors(budget)
        self.state: dict[str, Tensor] = {}
        self.parts = 0
        self.seen: set[int] = set()

    def state_dict(self, module: Any, prefix: str = "", depth: int = 0) -> dict[str, Tensor]:
        state = _state(module, prefix or "the network")
        if depth > DEEPEST:
            raise CheckpointError("modules lie in modules without end: refused")
        if id(state) in self.seen:  # EDM2 shares none, and a shared one could be met without end
            raise CheckpointError(f"the module {prefix[:100]!r} has another name, too: refused")
        self.seen.add(id(state))
        for group in ("_parameters", "_buffers"):
            for name, value in self._group(state, group).items():
                if value is not None:
                    full = f"{prefix}{name}"
                    self.state[full] = self.tensors.made(value, full[:100])
        for name, child in self._group(state, "_modules").items():
            if child is not None:
                self.state_dict(child, f"{prefix}{name}.", depth + 1)
        return self.state

    def _group(self, state: Mapping[str, Any], group: str) -> Mapping[str, Any]:
        """Parts of a module, which are counted; absent ones too, since a file may repeat them."""
        parts = _items(state.get(group), group)
        self.parts += len(parts)
        if self.parts > MOST_PARTS:
            raise CheckpointError(f"more than {MOST_PARTS:,} modules and tensors: refused")
        for name in parts:
            _require_name(name)
        return parts


def _state(tree: Any, what: str) -> Mapping[str, Any]:
    """State of an object, whose source text is passed over."""
    if isinstance(tree, Call) and tree.name == PERSISTENT:
        return _items(_items(tree.args[0], what).get("state"), what)
    if isinstance(tree, Call) and tree.name in (MODULES, SEQUENCE):
        return _items(tree.state, what)
    raise CheckpointError(f"{what[:100]} is no module: no EDM2 snapshot")


def _require_name(name: Any) -> None:
    if not isinstance(name, str) or len(name) > LONGEST_NAME:
        raise CheckpointError(f"{str(name)[:100]} is no name of a network's part: refused")


def _items(tree: Any, what: str) -> Mapping[str, Any]:
    """Items of a dictionary of any of the allowed kinds."""
    if isinstance(tree, dict):
        return tree
    if isinstance(tree, Call) and tree.name in (DICT, "collections.OrderedDict"):
        return tree.items
    raise CheckpointError(f"{what[:100]} is no dictionary: no EDM2 snapshot")


def _plain(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers, short texts and lists of numbers; refuses all else."""
    plain: dict[str, Any] = {}
    for name, value in mapping.items():
        _require_name(name)
        listed = isinstance(value, list | tuple) and len(value) <= 100
        for one in value if listed else [value]:
            text = isinstance(one, str) and len(one) <= 1000
            number = isinstance(one, int | float) and abs(one) < 1e300
            if not (one is None or text or number):
                raise CheckpointError(f"{name} is no plain value: refused")
        plain[name] = list(value) if listed else value
    return plain


def _encoder(tree: Any) -> dict[str, Any]:
    """How images become what the network works on: "rgb", or "vae" with factors by channel."""
    if tree is None:
        return {"kind": "rgb"}
    state = _state(tree, "encoder")
    numbers = {name: state[name] for name in ("scale", "bias") if name in state}
    if not numbers:
        return {"kind": "rgb"}
    kwargs = _items(state.get("_init_kwargs", {}), "encoder")
    name = {k: v for k, v in kwargs.items() if k == "vae_name" and isinstance(v, str)}
    return {"kind": "vae", **_plain(name), **{k: _array(v, k) for k, v in numbers.items()}}


def _array(tree: Any, name: str) -> list[float]:
    """A few numbers of a numpy array, or of a list."""
    if isinstance(tree, list | tuple):
        numbers: list[float] = _plain({name: tree})[name]
        return numbers
    if not isinstance(tree, Call) or tree.name not in ARRAYS or not isinstance(tree.state, tuple):
        raise CheckpointError(f"encoder {name} is no array")
    *_, dtype, _, data = tree.state
    kind = str(dtype.args[0]).strip("<=|") if isinstance(dtype, Call) and dtype.args else ""
    if kind not in NUMBERS or not isinstance(data, bytes) or len(data) > 8192:
        raise CheckpointError(f"encoder {name} is no array of numbers")
    try:
        return [value for (value,) in struct.iter_unpack("<" + NUMBERS[kind], data)]
    except struct.error as error:
        raise CheckpointError(f"encoder {name} has {len(data)} bytes of {kind}") from error
