"""Text and plot of a diagnosis."""

from collections.abc import Iterator
from pathlib import Path

import torch

from diffsteer.core.level import Level
from diffsteer.core.schedule import EDM, Discrete, Flow, Schedule
from diffsteer.doctor.brightness import DATA
from diffsteer.doctor.diagnosis import Diagnosis, visited
from diffsteer.doctor.measure import trained_schedule
from diffsteer.doctor.schedulers import DEFAULT_STEPS, visits
from diffsteer.doctor.verdict import SOURCES, ZERO
from diffsteer.report.plots import Chart, Curve, Point, write_png


def text(diagnosis: Diagnosis) -> str:
    """Report of a diagnosis for people."""
    point = diagnosis.checkpoint
    kind = {"lora": "LoRA for", "network": "network of"}.get(point.kind, point.kind + ",")
    lines = [f"{point.name}: {kind} {point.architecture.name}", "", "Sources"]
    lines += list(_sources(diagnosis))
    lines += ["", "Verdicts", *_verdicts(diagnosis)]
    if diagnosis.findings:
        lines += ["", "Findings"]
    for finding in diagnosis.findings:
        remedy = f" -> {finding.remedy}" if finding.remedy else ""
        lines += [f"  {finding.severity:8} {finding.code}: {finding.text}{remedy}"]
    if diagnosis.readings:
        lines += ["", "What programs take it for"]
    lines += [f"  {r.program}: {r.prediction}, SNR {r.snr} ({r.rule})" for r in diagnosis.readings]
    lines += list(_advice(diagnosis))
    lines += ["", f"Weights: sha256 {diagnosis.scan.hash}"]
    return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)


def _sources(diagnosis: Diagnosis) -> Iterator[str]:
    for source in SOURCES:
        claims = [claim for claim in diagnosis.claims if claim.source == source]
        for claim in claims:
            yield f"  {source:9} {claim.subject}: {claim.value} ({claim.evidence})"
        if not claims and source != "user":
            silent = "says nothing" if source != "network" else "not measured (--deep)"
            if source == "network" and diagnosis.measurement:
                silent = "fits no prediction type"
            yield f"  {source:9} {silent}"


def _verdicts(diagnosis: Diagnosis) -> Iterator[str]:
    for verdict in (diagnosis.prediction, diagnosis.snr):
        yield f"  {verdict.subject:28} {verdict.value} ({verdict.confidence})"
    reached = diagnosis.last_timestep
    if reached:
        asked = ", ".join(str(n) for n, yes in sorted(reached.items()) if yes) or "no number"
        spacing = diagnosis.checkpoint.scheduler.get("timestep_spacing", "its")
        yield f"  {'last timestep sampled':28} at {asked} of steps ({spacing} spacing)"
    else:
        yield f"  {'last timestep sampled':28} unknown (no scheduler config of timesteps)"
    light = diagnosis.brightness
    if light:
        shape = "x".join(map(str, diagnosis.checkpoint.latent or ()))
        yield f"  {'DC gain at the last timestep':28} {light.gain:.3g} (0 at zero SNR)"
        wanted = f"(data {DATA.mean:.2f}+-{DATA.spread:.2f}, {shape})"
        yield f"  {'brightness of samples':28} {light.mean:.3f}+-{light.std:.3f} {wanted}"


def _advice(diagnosis: Diagnosis) -> Iterator[str]:
    if diagnosis.terms:
        yield from ("", "Guidance (network evaluations for a sample and step)")
    for term in diagnosis.terms:
        yield f"  {term.name}: {term.evaluations if term.works else f'no ({term.note})'}"
    start = diagnosis.defaults
    if start and diagnosis.checkpoint.kind == "folder":
        options = {"guidance": start.guidance, "sampler": start.sampler, "spacing": start.spacing}
        words = " ".join(f'--{k} "{v}"' for k, v in options.items() if v)
        words += f" --steps {start.steps} --prompt TEXT"
        yield from ("", "To start with")
        yield f"  diffsteer sample {diagnosis.checkpoint.name} {words}"
    elif start and diagnosis.checkpoint.kind == "file":
        yield from ("", "To start with")
        parts = (start.guidance, start.sampler, start.spacing, f"{start.steps} steps")
        yield f"  {', '.join(filter(None, parts))}"


def plot(diagnosis: Diagnosis, path: Path) -> None:
    """Draw the schedule with the levels that 50 steps visit, and the brightness of samples."""
    schedule, levels = _levels(diagnosis)
    signal = _curve("signal of the network", schedule, 0)
    dots = tuple(Point(level.t.item(), _share(level)) for level in levels)
    known = f"{diagnosis.prediction.value}, terminal SNR {diagnosis.snr.value}"
    time = "timestep" if isinstance(schedule, Discrete) else "time of the network"
    curves = (signal, *((Curve("visited in 50 steps", dots, 1),) if dots else ()))
    charts = [Chart(f"Signal: {known}", time, "alpha / sqrt(alpha^2 + sigma^2)", curves)]
    if light := diagnosis.brightness:
        shape = "x".join(map(str, diagnosis.checkpoint.latent or ()))
        curves = (
            bell("data", DATA.mean, DATA.spread, 0),
            bell("samples, expected", light.mean, light.std, 1),
        )
        charts += [Chart(f"Brightness of {shape} latents", "mean of a latent", "density", curves)]
    write_png(
        path, charts, f"{diagnosis.checkpoint.name} ({diagnosis.checkpoint.architecture.name})"
    )


def _levels(diagnosis: Diagnosis) -> tuple[Schedule, list[Level]]:
    """Schedule of a network, and the levels that its scheduler visits where they are known."""
    prediction, config = diagnosis.prediction.value, diagnosis.checkpoint.scheduler
    if prediction.startswith("edm"):
        return EDM(), []
    if prediction != "flow_prediction":
        base = trained_schedule(config)
        schedule = base.zero_snr() if diagnosis.snr.value == ZERO else base
        return schedule, [*visited(diagnosis.checkpoint, schedule)][:-1]
    steps = diagnosis.last_timestep and visits(config, (DEFAULT_STEPS,)).times.get(DEFAULT_STEPS)
    size = config.get("num_train_timesteps", 1000)
    flow = Flow()
    return flow, [flow.at(torch.tensor(t / size).double()) for t in steps or () if 0 <= t <= size]


def _share(level: Level) -> float:
    return float(level.alpha / torch.hypot(level.alpha, level.sigma))


def _curve(name: str, schedule: Schedule, turn: int) -> Curve:
    times = torch.linspace(0, schedule.last, 60, dtype=torch.float64)
    points = (Point(float(t), _share(schedule.at(t))) for t in times)
    return Curve(name, tuple(points), turn)


def bell(name: str, mean: float, std: float, turn: int) -> Curve:
    """Density of a Gaussian, on 60 points."""
    x = torch.linspace(-0.5, 1.7, 60, dtype=torch.float64)
    width = max(std, 0.01)
    y = torch.exp(-((x - mean) ** 2) / (2 * width**2)) / (width * 2.5066)
    return Curve(name, tuple(Point(*p) for p in zip(x.tolist(), y.tolist(), strict=True)), turn)
