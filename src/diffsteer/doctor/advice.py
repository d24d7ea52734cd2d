"""Guidance that a checkpoint can take, its cost, and settings to start with."""

import csv
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch

from diffsteer.core.errors import InputError
from diffsteer.core.parse import parse
from diffsteer.core.prediction import V
from diffsteer.core.schedule import Discrete
from diffsteer.doctor.checkpoint import Checkpoint
from diffsteer.doctor.schedulers import Finding
from diffsteer.doctor.verdict import ZERO
from diffsteer.guidance import Guidance
from diffsteer.guidance.cost import plan
from diffsteer.guidance.defaults import EACH, plainest
from diffsteer.guidance.queries import GuidanceState
from diffsteer.io.strict import read_object


@dataclass(frozen=True)
class Term:
    """A guidance.

    Attributes:
        name: Its name.
        works: Whether this network takes it.
        evaluations: Of the network for a sample and step.
        note: Why not, or what holds of this pipeline.
    """

    name: str
    works: bool
    evaluations: int
    note: str = ""


@dataclass(frozen=True)
class Defaults:
    """Settings to start with, as options of `diffsteer sample` spell them."""

    guidance: str
    sampler: str
    spacing: str
    steps: int


def terms(checkpoint: Checkpoint) -> list[Term]:
    """Guidance by the table of networks; empty where the network is not in it."""
    kind = checkpoint.architecture
    lines = files("diffsteer.hf").joinpath("models.csv").read_text().splitlines()
    same = [row for row in csv.DictReader(lines) if row["network"] == kind.network]
    if not same:
        return []
    plain = max(same, key=lambda row: sum(row[n] == "yes" for n in row))  # of other pipelines
    row = next((r for r in same if r["pipeline"] == kind.pipeline), plain)
    return [Term(n, row[n] == "yes", cost(EACH[n].guidance), row["note"] if row[n] != "yes" else "")
            for n in row if n in EACH]  # fmt: skip


def cost(guidance: str) -> int:
    """Network evaluations of a guidance for a sample, in a step at half noise."""
    schedule = Discrete.scaled_linear()
    state = GuidanceState(torch.zeros(1, 4, 8, 8), schedule.at(500.0), V(), 0, schedule)
    steered = parse(guidance, Guidance)
    return sum(plan(steered.guided(state), state).rows.values())


def defaults(checkpoint: Checkpoint, prediction: str, snr: str) -> Defaults | None:
    """Settings to start with; None where the prediction type is not known."""
    guided = any(term.name == "CFG" and term.works for term in terms(checkpoint))
    flow = prediction == "flow_prediction"
    text = plainest(checkpoint.architecture.pipeline, flow)[0].guidance if guided else ""
    if flow:
        return Defaults(text, "", "", 28)
    if prediction not in ("epsilon", "v_prediction", "sample"):
        return None
    if snr == ZERO and prediction == "epsilon":  # which samplers refuse: its own scheduler
        return Defaults(text, "", "", 25)
    if snr == ZERO and guided:
        text = f"Rescaled({text}, 0.7)"
    return Defaults(text, "UniPC()", "trailing", 25)


def rescaling(checkpoint: Checkpoint, prediction: str, snr: str) -> Iterator[Finding]:
    """Yield whether guidance rescale is missing or would act twice."""
    places = {str(path): value for path, value in _stated(checkpoint)}
    if len(places) > 1:
        text = f"guidance rescale stands in {' and in '.join(places)}, and would act twice"
        yield Finding("rescale-twice", "problem", text, "keep one, and set the other to 0")
    guided = any(term.name == "CFG" and term.works for term in terms(checkpoint))
    if snr != ZERO or prediction == "flow_prediction" or places or not guided:
        return
    import diffusers

    pipeline = getattr(diffusers, checkpoint.pipeline, None)
    takes = pipeline and "guidance_rescale" in inspect.signature(pipeline.__call__).parameters
    text = "guidance over-exposes at zero SNR without rescale, which no config states"
    own = "call the pipeline with guidance_rescale=0.7, or " if takes else ""
    remedy = f"{own}steer(pipe, Rescaled(CFG(w), 0.7)){', not both' * bool(own)}"
    yield Finding("rescale", "note" if takes else "warning", text, remedy)


def _stated(checkpoint: Checkpoint) -> Iterator[tuple[Any, float]]:
    """Files of a folder that set a guidance rescale above 0."""
    for folder in checkpoint.folders:
        for path in sorted((*folder.glob("*.json"), *folder.glob("*/guider_config.json"))):
            try:
                tree: Mapping[str, Any] = read_object(path)
            except InputError:  # a file of something else: a list of labels
                continue
            value = tree.get("guidance_rescale")
            if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
                yield path.relative_to(folder), float(value)
