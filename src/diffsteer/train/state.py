"""State of a run on disk: its settings, and tensors of weights, optimizer and averages."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.core.power_ema import PowerEMA
from diffsteer.io.atomic import put
from diffsteer.io.hashing import differences
from diffsteer.io.strict import read_object
from diffsteer.train.checkpoints import Checkpoints, Groups
from diffsteer.train.settings import Data, Run, flat

Parameters = Mapping[str, torch.nn.Parameter]


class NotFinite(InputError):
    """A loss or gradient is NaN or infinite."""


def claim(folder: Path, run: Run, contents: Mapping[str, Any]) -> None:
    """Write run.json, or check that the folder holds this run, of data with these `contents`."""
    path, settings = folder / "run.json", run.binds() | dict(contents)
    if not path.exists():
        if Checkpoints(folder / "checkpoints").counts():
            raise InputError(
                f"{folder} has checkpoints, but no run.json, which says what they are of: put it "
                "back, or give another --out"
            )
        put(path, json.dumps(settings, indent=1).encode())
        return
    try:
        stored = read_object(path)
        before = flat({"data": asdict(Data())}) | flat(stored)
    except (ValueError, AttributeError) as error:
        raise InputError(
            f"{path} was changed and says no more which run this is ({error}): put it back "
            "as it was, or give another --out"
        ) from error
    now = flat(settings)
    if "contents" not in stored:  # written before fingerprints were recorded
        now = {name: value for name, value in now.items() if not name.startswith("contents.")}
    elif contents:  # which say what the data is, wherever it lies
        before["data.source"] = now["data.source"]
    if changes := differences(before, now):
        raise InputError(
            f"{folder} holds another run: {changes}. Give another --out, or the settings "
            "and the data that it began with"
        )


def pack(parameters: Parameters, optimizer: torch.optim.Optimizer, averages: PowerEMA) -> Groups:
    """Tensors of a checkpoint by group and name."""
    names = list(parameters)
    moments = {
        f"{names[i]}/{key}": value
        for i, values in optimizer.state_dict()["state"].items()
        for key, value in values.items()
    }
    return {"weights": dict(parameters), "optimizer": moments, "averages": averages.state_dict()}


def unpack(
    groups: Groups, parameters: Parameters, optimizer: torch.optim.Optimizer, averages: PowerEMA
) -> None:
    """Load the tensors of a checkpoint."""
    fill(parameters, groups["weights"])
    state, moments = optimizer.state_dict(), groups["optimizer"]
    for i, (name, p) in enumerate(parameters.items()):
        # the fused optimizer takes the memory of moments and weights to be laid out alike
        stored = {key: moments[f"{name}/{key}"] for key in ("exp_avg", "exp_avg_sq")}
        values = {key: torch.empty_like(p).copy_(value) for key, value in stored.items()}
        state["state"][i] = {**values, "step": moments[f"{name}/step"]}
    optimizer.load_state_dict(state)
    averages.load_state_dict(groups["averages"])


@torch.no_grad()
def fill(parameters: Parameters, values: Mapping[str, Tensor]) -> None:
    """Copy values into parameters of the same names."""
    for name, p in parameters.items():
        p.copy_(values[name])
