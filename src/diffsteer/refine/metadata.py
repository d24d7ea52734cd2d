"""A refiner on disk: `refiner.safetensors`, of a LoRA as peft names it, and `refiner.json`."""

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffsteer.core.errors import InputError, brief
from diffsteer.core.level import Level
from diffsteer.core.prediction import Prediction
from diffsteer.hf.network import PipelineNetwork
from diffsteer.hf.shipped import shipped_folder
from diffsteer.io.atomic import atomic_write
from diffsteer.io.hashing import bytes_hash, digest, parts_hash, tensor_bytes
from diffsteer.io.hub import silence
from diffsteer.io.strict import from_table, parse_safetensors, read_bytes, read_object, refused
from diffsteer.refine.lora import own_parameters
from diffsteer.refine.low_frequency import TEXT_WEIGHT

WEIGHTS, ABOUT = "refiner.safetensors", "refiner.json"
VERSION = 2
"""In version 1 `sha256` was of the weights alone."""
MAX_WEIGHTS = 2**33
"""Bytes of the weights, which are read as a whole."""
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class RefinerMetadata:
    """Entries of `refiner.json`.

    Attributes:
        rank: Of the adapter, or the width of the network of head "low_frequency".
        alpha: Its scale times its rank.
        weights: Sha256 of the network's weights in each precision in which it may be loaded.
        terminal: Time and alpha of the level at which noise is refined.
        made: How it was trained.
        sha256: Of the refiner's weights and of all entries.
    """

    head: str
    rank: int
    alpha: int
    network: str
    weights: Mapping[str, str]
    kind: str
    terminal: Mapping[str, float]
    made: Mapping[str, Any]
    sha256: str = ""

    def __post_init__(self) -> None:
        finite = all(math.isfinite(self.terminal.get(key, math.nan)) for key in ("t", "alpha"))
        if self.rank < 1 or self.alpha == 0 or not self.weights or not finite:
            raise InputError(
                f"rank={self.rank}, alpha={self.alpha}, terminal={dict(self.terminal)} and weights "
                f"of {list(self.weights)} say nothing that a refiner can have"
            )


def fingerprint(network: nn.Module) -> dict[str, str]:
    """Sha256 of a network's own weights, by each precision that they can be rounded to.

    A network that was trained in float32 and one that was loaded in bfloat16 share the latter.
    """
    weights = dict(own_parameters(network))
    if away := next((name for name, p in weights.items() if p.is_meta), None):
        raise InputError(
            f"{away} is offloaded, so that nobody can see whether the refiner is for these "
            "weights: load the refiner first, and enable sequential offload afterwards"
        )
    return fingerprint_of(weights)


def fingerprint_of(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Sha256 of weights by the names that diffusers gives them; see `fingerprint`."""
    given = next(iter(weights.values())).dtype
    dtypes = PRECISIONS if given in (torch.float32, torch.float64) else {str(given)[6:]: given}
    return {
        precision: parts_hash(
            part
            for name, p in sorted(weights.items())
            for part in (f"{name} {tuple(p.shape)} ".encode(), tensor_bytes(p.to(dtype)))
        )
        for precision, dtype in dtypes.items()
    }


def write(folder: Path, metadata: RefinerMetadata, weights: Mapping[str, Tensor]) -> None:
    """Write both files; what says that the weights are whole comes last."""
    from safetensors.torch import save

    data = save({name: p.cpu().contiguous() for name, p in weights.items()})
    table = {"version": VERSION, **asdict(metadata)}
    table["sha256"] = _hash(table, data)
    with atomic_write(folder / WEIGHTS) as file:
        file.write(data)
    with atomic_write(folder / ABOUT) as file:
        file.write((json.dumps(table, indent=2, ensure_ascii=False) + "\n").encode())


def _hash(table: Mapping[str, Any], data: bytes) -> str:
    """Hash of all entries but the hash itself, and of the weights."""
    return digest({**table, "sha256": bytes_hash(data)})


def read(source: str | Path) -> tuple[RefinerMetadata, dict[str, Tensor]]:
    """Read and check both files of a folder, of a hub id, or of "critters-refiner", which ships."""
    about, weights = found(source)
    with refused(f"{about} is no refiner of ours"):
        table = read_object(about)
        if not weights.exists():
            raise FileNotFoundError(
                f"{weights} is not there, of which {about} speaks: copy both files of the refiner"
            )
        data = read_bytes(weights, MAX_WEIGHTS)
        entries = {name: value for name, value in table.items() if name != "version"}
        if (version := table.get("version")) not in (1, VERSION):
            raise InputError(f"it is of version {brief(version)}, this reads 1 and {VERSION}")
        metadata = from_table(RefinerMetadata, entries, "it")
        right = bytes_hash(data) if version == 1 else _hash(table, data)
        if metadata.sha256 != right:
            raise InputError(
                f"{WEIGHTS} or an entry is not what was written: it was cut short or changed"
            )
        tensors = parse_safetensors(data, WEIGHTS)
        first = {n: w for n, w in tensors.items() if ".lora_A." in n or n == TEXT_WEIGHT}
        ranks = {w.shape[0] for w in first.values() if w.ndim}
        if ranks != {metadata.rank}:  # before an adapter of any size is made
            raise InputError(f"{WEIGHTS} holds ranks {sorted(ranks)}, and it says {metadata.rank}")
        if broken := [name for name, w in tensors.items() if not w.isfinite().all()]:
            raise InputError(f"{broken[0]} in {WEIGHTS} holds numbers that are not finite")
        if version == 1 and metadata.alpha != metadata.rank:
            metadata = replace(metadata, sha256=_hash(table, data))  # tells other alphas apart
        return metadata, tensors


def found(source: str | Path) -> tuple[Path, Path]:
    """Paths of `refiner.json` and of the weights in a folder or at a hub id."""
    folder = Path(shipped_folder(str(source)))
    if folder.is_dir():
        if not (folder / ABOUT).is_file():
            raise FileNotFoundError(
                f"{folder} has no {ABOUT}: `diffsteer train refiner` writes it to RUN/model"
            )
        return folder / ABOUT, folder / WEIGHTS
    if folder.exists() or len(folder.parts) != 2 or folder.is_absolute():
        raise FileNotFoundError(f"{source} is neither a folder nor a hub id, NAME/REFINER")
    from huggingface_hub import hf_hub_download

    offline = bool(silence())
    try:
        about, weights = (
            Path(hf_hub_download(str(source), name, local_files_only=offline))
            for name in (ABOUT, WEIGHTS)
        )
    except (OSError, ValueError) as error:  # the latter for a name that no model can have
        raise FileNotFoundError(
            f"{source} is no folder here, and the hub gives no refiner of this name: {error}"
        ) from error
    return about, weights


def require(metadata: RefinerMetadata, model: PipelineNetwork, any_model: bool, where: str) -> None:
    """Check that a refiner was trained for a network."""
    network = type(model.module).__name__
    if metadata.network != network:
        raise _for_another("network", metadata.network, network, where)
    require_level(metadata, model.prediction, model.terminal, where)
    if not any_model:
        require_weights(metadata, fingerprint(model.module), where)


def require_level(
    metadata: RefinerMetadata, prediction: Prediction, terminal: Level, where: str
) -> None:
    """Check that a refiner was trained for a prediction type and where sampling starts."""
    pairs = {
        "prediction type": (metadata.kind, repr(prediction)),
        "terminal timestep": (metadata.terminal["t"], terminal.t.item()),
        "terminal alpha": (round(metadata.terminal["alpha"], 6), round(terminal.alpha.item(), 6)),
    }
    for name, (trained, here) in pairs.items():
        if trained != here:
            raise _for_another(name, trained, here, where)


def require_weights(metadata: RefinerMetadata, hashes: Mapping[str, str], where: str) -> None:
    """Check that a refiner was trained for weights of these hashes, by precision."""
    trained_for = metadata.weights
    shared = trained_for.keys() & hashes.keys()
    if not shared:
        warnings.warn(
            f"{where} knows the weights of its network in {', '.join(trained_for)}, this one "
            f"is in {', '.join(hashes) or 'others'}: whether they are the same is not known",
            stacklevel=4,
        )
    if any(trained_for[name] != hashes[name] for name in shared):
        raise InputError(
            f"{where} was trained for other weights of {metadata.network}: load that model, or, "
            "where this one is fine-tuned from it, NoiseRefiner.load(..., any_model=True)"
        )


def _for_another(name: str, trained: object, here: object, where: str) -> InputError:
    return InputError(
        f"{where} was trained for a {name} {trained}, this pipeline has {here}: load the "
        "model that it was trained for, with its scheduler"
    )
