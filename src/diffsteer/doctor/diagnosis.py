"""Diagnosis of a checkpoint: sources, verdicts, findings and advice."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from diffsteer.core.errors import InputError
from diffsteer.core.level import CLEAN, Level
from diffsteer.core.schedule import Discrete
from diffsteer.doctor import advice, brightness, schedulers, weights
from diffsteer.doctor.checkpoint import Checkpoint, open_checkpoint
from diffsteer.doctor.measure import Measurement, measure, trained_schedule
from diffsteer.doctor.name_mismatch import named
from diffsteer.doctor.other_programs import Reading, readings
from diffsteer.doctor.schedulers import DEFAULT_STEPS, Finding
from diffsteer.doctor.tensors import Scan, scan
from diffsteer.doctor.verdict import (
    SOURCES,
    UNKNOWN,
    ZERO,
    Claim,
    Verdict,
    claims_of,
    judge,
    not_understood,
)
from diffsteer.hf.weights import quiet

HEALTHY, PROBLEMS = 0, 3
"""Exit statuses; 1 is a mistake in the input, 2 a wrong option."""


@dataclass(frozen=True)
class Diagnosis:
    """All that is known of a checkpoint.

    Attributes:
        checkpoint: As it lies on the disk.
        claims: Of all sources.
        prediction: Verdict on the prediction type.
        snr: Verdict on the terminal SNR.
        last_timestep: By number of steps, whether its scheduler asks the last timestep; empty
            where it has none.
        brightness: Expected brightness of samples; None where the schedule is not known.
        findings: Problems first.
        readings: What programs take it for.
        terms: Guidance that it can take.
        defaults: Settings to start with; None where the prediction type is not known.
        scan: Of its values.
        measurement: With `deep`, of its network.
    """

    checkpoint: Checkpoint
    claims: tuple[Claim, ...]
    prediction: Verdict
    snr: Verdict
    last_timestep: dict[int, bool]
    brightness: brightness.Brightness | None
    findings: tuple[Finding, ...]
    readings: tuple[Reading, ...]
    terms: tuple[advice.Term, ...]
    defaults: advice.Defaults | None
    scan: Scan
    measurement: Measurement | None

    @property
    def exit_status(self) -> int:
        """3 where there is a problem, else 0."""
        return PROBLEMS if any(f.severity == "problem" for f in self.findings) else HEALTHY

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        point, verdicts = self.checkpoint, (self.prediction, self.snr)
        sources = {s: [asdict(c) for c in self.claims if c.source == s] for s in SOURCES}
        return {
            "model": point.name,
            "kind": point.kind,
            "architecture": point.architecture.name,
            "pipeline": point.pipeline,
            "latent": point.latent,
            "sources": sources,
            "prediction_type": self.prediction.value,
            "terminal_snr": self.snr.value,
            "verdicts": [asdict(verdict) for verdict in verdicts],
            "disagreements": [v.disagreement for v in verdicts if v.disagreement],
            "last_timestep": self.last_timestep,
            "brightness": asdict(self.brightness) if self.brightness else None,
            "findings": [asdict(finding) for finding in self.findings],
            "readings": [asdict(reading) for reading in self.readings],
            "guidance": [asdict(term) for term in self.terms],
            "defaults": asdict(self.defaults) if self.defaults else None,
            "weights": asdict(self.scan),
            "measurement": _plain(self.measurement),
            "exit_status": self.exit_status,
        }


def _plain(measurement: Measurement | None) -> dict[str, Any] | None:
    return {k: v for k, v in asdict(measurement).items() if k != "claims"} if measurement else None


def diagnose(model: str | Path, deep: bool = False, stated: Sequence[Claim] = ()) -> Diagnosis:
    """Diagnose a checkpoint.

    Args:
        model: Safetensors file of a checkpoint or LoRA, folder of diffusers, hub id, or the name
            of a model that ships.
        deep: Whether to load its network and measure it.
        stated: What the user knows of it.

    Raises:
        InputError: it is damaged, or of an architecture that is not known.
    """
    checkpoint = open_checkpoint(str(model))
    with quiet(bar=False):
        return _diagnosis(checkpoint, deep, stated)


def _diagnosis(checkpoint: Checkpoint, deep: bool, stated: Sequence[Claim]) -> Diagnosis:
    scanned = scan(checkpoint.entries)
    faults = [*weights.findings(checkpoint, scanned)]
    measurement, more = _measurement(checkpoint, faults) if deep else (None, [])
    claims = (*claims_of(checkpoint), *(measurement.claims if measurement else ()), *stated)
    prediction, snr = judge(claims)
    read = tuple(readings(checkpoint))
    light = _brightness(checkpoint, prediction, snr)
    findings = [
        *faults,
        *more,
        *_verdicts(checkpoint, deep or checkpoint.kind == "lora", prediction, snr),
        *_misread(read, prediction, snr),
        *_scheduler(checkpoint, prediction, snr),
        *advice.rescaling(checkpoint, prediction.value, snr.value),
        *_dark(light, checkpoint, prediction.value != "epsilon" and snr.value == ZERO),
    ]
    order = ("problem", "warning", "note")
    return Diagnosis(
        checkpoint=checkpoint,
        claims=claims,
        prediction=prediction,
        snr=snr,
        last_timestep=_last(checkpoint),
        brightness=light,
        findings=tuple(sorted(findings, key=lambda finding: order.index(finding.severity))),
        readings=read,
        terms=tuple(advice.terms(checkpoint)) if checkpoint.kind != "lora" else (),
        defaults=advice.defaults(checkpoint, prediction.value, snr.value),
        scan=scanned,
        measurement=measurement,
    )


def _measurement(
    checkpoint: Checkpoint, faults: Sequence[Finding]
) -> tuple[Measurement | None, list[Finding]]:
    if any(fault.severity == "problem" for fault in faults):
        text = "the network was not measured, since its weights are damaged"
        return None, [Finding("not-measured", "warning", text)]
    try:
        measurement = measure(checkpoint)
    except InputError as error:
        return None, [Finding("not-measured", "warning", str(error))]
    text = "its outputs fit no prediction type, as those of an untrained network"
    return measurement, [] if measurement.claims else [Finding("no-type-fits", "warning", text)]


def _verdicts(checkpoint: Checkpoint, measured: bool, *verdicts: Verdict) -> Iterator[Finding]:
    """Yield what is not known, or contradicts itself; `measured` where --deep says no more."""
    prediction, snr = (verdict.value for verdict in verdicts)
    way = "say it: --prediction, --terminal-snr" if measured else "--deep measures the network"
    for verdict in verdicts:
        if verdict.disagreement:
            remedy = "--fix writes all of them anew" if verdict.known else way
            text = f"sources disagree on the {verdict.subject}: {verdict.disagreement}"
            yield Finding("disagreement", "problem", text, remedy)
        elif not verdict.known:
            text = f"nothing says the {verdict.subject}"
            yield Finding("unknown", "warning", text, way)
    for text in not_understood(checkpoint.metadata):
        yield Finding("not-understood", "warning", f"metadata {text!r} is no prediction type")
    yield from named(checkpoint)
    yield from schedulers.contradictions(prediction, snr)
    offset = checkpoint.metadata.get("ss_noise_offset", "None")
    if offset not in ("None", "0", "0.0", ""):
        text = f"trained with noise offset {offset[:20]}: brightness varies more than expected here"
        yield Finding("noise-offset", "note", text)


def _misread(read: Sequence[Reading], prediction: Verdict, snr: Verdict) -> Iterator[Finding]:
    """Yield programs that take the checkpoint for something else than it is."""
    for reading in read:
        wrong = []
        if prediction.known and reading.prediction not in (prediction.value, UNKNOWN):
            wrong += [reading.prediction]
        ends = prediction.value not in ("epsilon", "flow_prediction")
        if snr.known and ends and reading.snr != snr.value:
            wrong += [f"terminal SNR {reading.snr}"]
        if wrong and prediction.known:
            marked = prediction.value in ("epsilon", "v_prediction") and not reading.repair
            text = f"{reading.program} takes it for {' with '.join(wrong)} ({reading.rule})"
            remedy = "--fix writes what it reads" if marked else reading.repair or "no mark says it"
            yield Finding("misread", "problem" if marked else "warning", text, remedy)


def _scheduler(checkpoint: Checkpoint, prediction: Verdict, snr: Verdict) -> Iterator[Finding]:
    config = dict(checkpoint.scheduler)
    if not config:
        return
    names = (str(config.get("_class_name", "")), checkpoint.loaded_scheduler)
    latents = checkpoint.latent is not None and checkpoint.latent[0] == 4
    text = "clip_sample cuts latents, which exceed 1, at every step"
    cut = Finding("clip-sample", "problem", text, "set clip_sample to false")
    seen = dict[Finding, None]()
    for name in dict.fromkeys(name for name in names if name or not any(names)):
        own = config | {"_class_name": name}
        try:
            seen |= dict.fromkeys(schedulers.findings(own, prediction.value, snr.value))
            if latents and schedulers.setting(own, "clip_sample"):
                seen[cut] = None
        except InputError as error:
            seen[Finding("scheduler", "problem", str(error), "--fix writes another")] = None
    yield from seen


def _dark(
    light: brightness.Brightness | None, checkpoint: Checkpoint, repaired: bool
) -> Iterator[Finding]:
    if light and brightness.DATA.mean - light.mean > 0.02:
        text = (
            f"samples of mean {brightness.DATA.mean} come out at {light.mean:.2f}: dark and bright "
        )
        text += "images are out of reach, the more so without guidance"
        remedy = "fine-tune: diffsteer train zero-snr-finetune"
        if repaired:
            remedy = "no training: it is the scheduler that never asks the last timestep"
        elif checkpoint.kind == "folder":
            remedy += f" --model {checkpoint.name} --set data.source=IMAGES"
        yield Finding("brightness", "warning", text, remedy)


def _last(checkpoint: Checkpoint) -> dict[int, bool]:
    config = checkpoint.scheduler
    discrete = config and not str(config.get("_class_name", "")).startswith("EDM")
    try:
        return schedulers.visits(config).reaches if discrete else {}
    except InputError:
        return {}


def _brightness(
    checkpoint: Checkpoint, prediction: Verdict, snr: Verdict
) -> brightness.Brightness | None:
    if checkpoint.latent is None or not snr.known or prediction.value.startswith(("flow", "edm")):
        return None
    base = trained_schedule(checkpoint.scheduler)
    trained = base.zero_snr() if snr.value == ZERO else base
    return brightness.expected(trained, checkpoint.latent, visited(checkpoint, trained))


def visited(checkpoint: Checkpoint, trained: Discrete) -> Sequence[Level]:
    """Levels of the checkpoint's scheduler at 50 steps; of trailing spacing where it has none."""
    try:
        times = schedulers.visits(checkpoint.scheduler, (DEFAULT_STEPS,)).times.get(DEFAULT_STEPS)
    except InputError:  # none, or one that cannot be made
        times = None
    if times is None:
        size = len(trained.alphas)
        times = [size - 1 - i * size / DEFAULT_STEPS for i in range(DEFAULT_STEPS)]
    kept = sorted({t for t in times if 0 <= t <= trained.last}, reverse=True)
    at = trained.at(torch.tensor(kept, dtype=torch.float64))
    levels = [Level(*row) for row in zip(*at, strict=True)]
    return [*(level for level in levels if level.sigma > 0), CLEAN]
