"""A checkpoint as it lies on the disk: files, tensors, metadata, and the configs beside it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from diffsteer.core.errors import InputError, brief, did_you_mean
from diffsteer.core.fields import is_whole
from diffsteer.doctor import architectures
from diffsteer.doctor.architectures import Architecture
from diffsteer.hf.load import offline_folder
from diffsteer.hf.network import PARTS
from diffsteer.hf.shipped import shipped
from diffsteer.io.extensions import known
from diffsteer.io.hub import HUB_ID, require_known
from diffsteer.io.model_folder import CONFIG, INDEX
from diffsteer.io.safetensors_header import Entry, is_safetensors, read_header
from diffsteer.io.strict import parse_object, read_bytes, read_object, refused

SCHEDULER = "scheduler_config.json"
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
Kind = Literal["file", "folder", "network", "lora"]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint.

    Attributes:
        name: As it was asked for.
        place: Its file or folder.
        kind: A single file, the folder of a pipeline, that of a network alone, or a LoRA.
        architecture: Its family.
        entries: Tensors by name; in folders "PART/FILE::NAME".
        metadata: Of the file; of the network's file in a folder.
        scheduler: Config of a scheduler that belongs to it, empty where there is none.
        yaml: Config of the original code beside a file, empty where there is none.
        network: Config of the network in a folder.
        network_folder: That has this config; None for files.
        folders: Places where the parts of a folder are looked for, the first that has it counts.
        index: Of its pipeline, model_index.json; empty for others.
        loaded_scheduler: Class that the index names where the scheduler's config names another.
    """

    name: str
    place: Path
    kind: Kind
    architecture: Architecture
    entries: Mapping[str, Entry] = field(repr=False)
    metadata: Mapping[str, str]
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    yaml: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, Any] = field(default_factory=dict)
    network_folder: Path | None = None
    folders: tuple[Path, ...] = ()
    index: Mapping[str, Any] = field(default_factory=dict)
    loaded_scheduler: str = ""

    @property
    def names(self) -> set[str]:
        """Names of the tensors of a file; of those of the network in a folder."""
        return {name.rpartition("::")[2] for name in self.entries}

    @property
    def channels(self) -> int:
        """Channels that the network takes, those of a mask or an image included; 0 if unknown."""
        ends = ("input_blocks.0.0.weight", "conv_in.weight")
        own = self.network.get("in_channels")
        shapes = (e.shape for n, e in self.entries.items() if n.endswith(ends))
        return own if is_whole(own) else next((s[1] for s in shapes if len(s) == 4), 0)

    @property
    def pipeline(self) -> str:
        """Class of diffusers that samples it."""
        name, inpaints = self.architecture.pipeline, self.kind == "file" and self.channels == 9
        return name.replace("Pipeline", "InpaintPipeline") if inpaints else name

    @property
    def latent(self) -> tuple[int, int, int] | None:
        """Shape of a latent, `(C, H, W)`, at the resolution of the config, else the usual one."""
        return self.architecture.latent


def open_checkpoint(name: str) -> Checkpoint:
    """Open a safetensors file, a LoRA, a folder, a hub id or a model that ships.

    Raises:
        FileNotFoundError: there is none.
        InputError: it is damaged, or of an architecture that is not known.
    """
    if not name:
        raise InputError("MODEL is empty: give a .safetensors file, a folder or a hub id")
    path = Path(name)
    if path.is_file():
        return _file(name, path)
    model = shipped(name)
    if model is not None:
        return _folder(name, (model.folder, *([model.base] if model.base else [])))
    if path.is_dir():
        return _folder(name, (path,))
    if not HUB_ID.fullmatch(name) or path.suffix == ".safetensors":
        ships = known("models")
        raise FileNotFoundError(
            f"no model {name!r}{did_you_mean(name, ships)}: give a .safetensors file, a folder, a "
            f"hub id NAME/MODEL, or one that ships ({', '.join(ships)})"
        )
    return _folder(name, (_download(name),))


def _download(name: str) -> Path:
    require_known(name)
    if (folder := offline_folder(name)) is not None:
        return folder
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.txt", "*/*.json", "*/*.txt", "*/*.model", "*/*.safetensors"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # of three libraries of connections
        reason = " ".join(str(error).split())[:200]
        raise FileNotFoundError(
            f"there is no folder {brief(name)}, and the hub does not give a model of that name "
            f"({reason}): look at the name, and at the connection"
        ) from error


def _file(name: str, path: Path) -> Checkpoint:
    if path.suffix in PICKLES:
        raise InputError(
            f"{name} is safetensors, which programs take for a pickle by its name: rename it to "
            f"{path.with_suffix('.safetensors').name}"
            if is_safetensors(path)
            else f"{name} is a pickle, which can run code and is not read: save it as .safetensors"
        )
    entries, metadata = read_header(path)
    if not entries:
        raise InputError(f"{name} holds no tensors")
    lora = architectures.is_lora(entries)
    kind = (
        architectures.lora_base(entries, metadata) if lora else architectures.architecture(entries)
    )
    if kind is architectures.UNKNOWN and not lora:
        raise InputError(
            f"{name} is of an architecture that is not known: its tensors, such as "
            f"{brief(min(entries))}, are of no Stable Diffusion 1, 2, XL or 3, no Flux and no LoRA"
        )
    yaml, scheduler = _yaml(path), _scheduler_beside(path)
    return Checkpoint(
        *(name, path, "lora" if lora else "file", kind, entries, metadata),
        scheduler=read_object(scheduler) if scheduler else {},
        yaml=_read_yaml(yaml) if yaml else {},
    )


def _yaml(path: Path) -> Path | None:
    places = (path.with_suffix(end) for end in (".yaml", ".yml"))
    return next((place for place in places if place.is_file()), None)


def _scheduler_beside(path: Path) -> Path | None:
    """Config of a scheduler: under the name of the file, or of the only checkpoint of a folder."""
    own = path.with_suffix(f".{SCHEDULER}")
    alone = len([*path.parent.glob("*.safetensors")]) == 1
    places = [own, *([path.parent / SCHEDULER, path.parent / "scheduler" / SCHEDULER] * alone)]
    return next((place for place in places if place.is_file()), None)


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    with refused(f"{path} is no YAML"):
        tree = yaml.safe_load(read_bytes(path, 2**20).decode())
        if not isinstance(tree, dict):
            raise InputError(f"it holds a {type(tree).__name__}, not a table")
        return tree


def _folder(name: str, folders: tuple[Path, ...]) -> Checkpoint:
    index_path = _first(folders, INDEX)
    index = read_object(index_path) if index_path else {}
    part = next((p for p in PARTS if _first(folders, f"{p}/{CONFIG}")), "")
    config_path = _first(folders, f"{part}/{CONFIG}" if part else CONFIG)
    scheduler = _first(folders, f"scheduler/{SCHEDULER}") or _first(folders, SCHEDULER)
    if config_path is None:
        files = sorted(p.name for p in folders[0].glob("*.safetensors"))
        hint = f"give {folders[0] / files[0]}" if files else "give one that save_pretrained wrote"
        raise InputError(f"{name} is a folder without a network ({INDEX} or {CONFIG}): {hint}")
    network = read_object(config_path)
    entries, metadata = _tensors(folders, part)
    config = read_object(scheduler) if scheduler else {}
    loaded = _named_part(index, "scheduler")
    own = config.setdefault("_class_name", loaded) if config and loaded else loaded
    return Checkpoint(
        *(name, folders[0], "folder" if index else "network", _named(index, network, entries)),
        *(entries, metadata),
        scheduler=config,
        network=network,
        network_folder=config_path.parent,
        folders=folders,
        index=index,
        loaded_scheduler=loaded if own != loaded else "",
    )


def _named_part(index: Mapping[str, Any], part: str) -> str:
    """Class of diffusers that an index names for a part; empty where it names none."""
    match index.get(part):
        case ["diffusers", str(name)]:
            return name
    return ""


def _first(folders: tuple[Path, ...], inner: str) -> Path | None:
    return next((f / inner for f in folders if (f / inner).is_file()), None)


def _named(
    index: Mapping[str, Any], network: Mapping[str, Any], entries: Mapping[str, Entry]
) -> Architecture:
    """Architecture by the classes that a folder names."""
    kind, pipeline = str(network.get("_class_name", "")), str(index.get("_class_name", ""))
    own = architectures.architecture({k.rpartition("::")[2]: e for k, e in entries.items()})
    side, channels = network.get("sample_size"), network.get("in_channels")
    latent = own.latent
    if is_whole(out := network.get("out_channels")) and is_whole(channels):
        channels = min(channels, out)  # less a mask and an image, or a variance
    if is_whole(side) and is_whole(channels) and min(side, channels) > 0:
        latent = channels, side, side
    if kind == own.network:
        return Architecture(own.name, own.spec, kind, pipeline or own.pipeline, latent, own.flow)
    return Architecture(kind or "unknown", "", kind, pipeline, latent)


def _tensors(folders: tuple[Path, ...], network: str) -> tuple[dict[str, Entry], dict[str, str]]:
    """Tensors of all parts, and the metadata of the network's file."""
    entries: dict[str, Entry] = {}
    metadata: dict[str, str] = {}
    parts = {p.name for f in folders for p in f.iterdir() if p.is_dir()} if network else {""}
    for part in sorted(parts):
        place = next((f / part for f in folders if (f / part).is_dir()), folders[0])
        for path in _weights(place):
            header, words = read_header(path)
            entries |= {f"{part}/{path.name}::{name}": entry for name, entry in header.items()}
            metadata |= words if part == network else {}
    return entries, metadata


def _weights(place: Path) -> list[Path]:
    """Files of weights of a part that loading takes: the full precision, or its only variant."""
    files = sorted(place.glob("*.safetensors"))
    plain = [p for p in files if re.fullmatch(r"[\w-]+\.safetensors", p.name)]
    indexed = sharded(place)
    return sorted(p for p in indexed if p.is_file()) if indexed and not plain else plain or files


def sharded(place: Path) -> dict[Path, list[str]]:
    """Files that the index of a part names, with the tensors of each; empty where it has none."""
    shards: dict[Path, list[str]] = {}
    for index in sorted(place.glob("*.safetensors.index.json"))[:1]:
        table = parse_object(read_bytes(index), str(index)).get("weight_map", {})
        with refused(f"{index} is no index of weights"):
            for tensor, name in table.items():
                shards.setdefault(place / Path(name).name, []).append(tensor)
    return shards
