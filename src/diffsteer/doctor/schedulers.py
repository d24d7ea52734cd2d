"""Schedulers of diffusers as a checkpoint's config sets them up: what they visit, and their bugs.

Each is made and asked for its timesteps, so that findings hold for the installed version.
"""

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from typing import Any, Literal

from diffsteer.core.errors import InputError, brief
from diffsteer.core.schedule import Discrete, Schedule
from diffsteer.doctor.verdict import ABOVE, PREDICTIONS, ZERO
from diffsteer.hf.scheduler_config import flows, require_timesteps, schedule_of

DEFAULT_STEPS = 50
COMMON = (4, 8, 10, 15, 20, 25, 28, 30, 40, 50)
"""Numbers of steps that people use."""
BETAS = ("beta_start", "beta_end", "beta_schedule", "trained_betas")
LEVELS = (
    *(*BETAS, "num_train_timesteps", "rescale_betas_zero_snr"),
    *("shift", "flow_shift", "sigma_min", "sigma_max"),
)
"""Settings that say the levels of a scheduler."""
KNOWN = ("linear", "scaled_linear", "squaredcos_cap_v2")
STRIDED = ("DDIM", "CogVideoX", "PNDM", "RePaint")
"""Begin the names of schedulers that step by T // S instead of to the next node."""
CLIPPED = ("Euler", "EulerAncestral", "DPMSolverMultistep", "UniPCMultistep")
"""Begin the names of those that put 2^-24 in place of a zero."""
MIRRORED = ("DPMSolverMultistep", "UniPCMultistep", "DEISMultistep", "DPMSolverSinglestep")
SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
Severity = Literal["problem", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """Something that a user should know.

    Attributes:
        code: Its name, which stays the same.
        severity: A problem makes wrong images or none; a warning may; a note is for some uses.
        text: What is so.
        remedy: What to do.
    """

    code: str
    severity: Severity
    text: str
    remedy: str = ""


@dataclass(frozen=True)
class Visits:
    """Timesteps of a scheduler.

    Attributes:
        last: The last timestep that the network was trained on.
        times: By number of steps, the timesteps in the order of sampling.
        failures: By number of steps, why there are none.
    """

    last: float
    times: Mapping[int, Sequence[float]]
    failures: Mapping[int, str]

    @property
    def reaches(self) -> dict[int, bool]:
        """Whether the last timestep is asked, by number of steps."""
        return {n: max(times) >= self.last - 0.5 for n, times in self.times.items()}


def make(config: Mapping[str, Any]) -> Any:
    """Make the scheduler that a config names.

    Raises:
        InputError: diffusers has none of this name, or it refuses the config.
    """
    import diffusers

    name = str(config.get("_class_name", ""))
    kind: Any = getattr(diffusers, name, None)
    if not hasattr(kind, "set_timesteps"):
        raise InputError(f"diffusers has no scheduler {name!r}")
    require_timesteps(config)
    try:
        return kind.from_config({k: v for k, v in config.items() if not k.startswith("_")})
    except Exception as error:
        raise InputError(f"{name} refuses its config: {error}") from error


def setting(config: Mapping[str, Any], name: str) -> Any:
    """Setting of a config's scheduler, its default included; None where it knows no such name."""
    scheduler = make(config)
    known = inspect.signature(type(scheduler).__init__).parameters
    return scheduler.config[name] if name in known else None


def visits(config: Mapping[str, Any], counts: Iterable[int] = COMMON) -> Visits:
    """Timesteps of a config's scheduler for numbers of steps."""
    return _visits(json.dumps(config, sort_keys=True), tuple(counts))


@lru_cache(maxsize=64)
def _visits(text: str, counts: tuple[int, ...]) -> Visits:
    config: dict[str, Any] = json.loads(text)
    scheduler = make(config)
    times: dict[int, Sequence[float]] = {}
    failures: dict[int, str] = {}
    options = {"mu": 1.0} if config.get("use_dynamic_shifting") else {}
    most = scheduler.config.get("num_train_timesteps") or inf
    for count in (n for n in counts if n <= most):
        try:
            scheduler.set_timesteps(count, **options)
            times[count] = scheduler.timesteps.double().tolist()
        except Exception as error:  # of the scheduler, which has no bounds
            failures[count] = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    flow = str(config.get("_class_name", "")).startswith("FlowMatch")
    last = config.get("num_train_timesteps", 1000) - (0 if flow else 1)
    return Visits(last, times, failures)


def sound(config: Mapping[str, Any]) -> bool:
    """Whether a config makes timesteps, and levels that become noisier to the end."""
    try:
        seen, levels = visits(config), _levels(config)
    except InputError:
        return False
    if isinstance(levels, Discrete):
        rising = bool((levels.betas.diff() > -1e-9).all())
        beyond = max((max(times) for times in seen.times.values()), default=0) > seen.last + 0.5
        return bool(seen.times) and rising and not beyond and float(levels.alphas[-1]) < 0.3
    return bool(seen.times)


def _levels(config: Mapping[str, Any]) -> Schedule | None:
    """Levels by the settings that say them; None where there are none of a known schedule."""
    keys = {"prediction_type": "flow_prediction"} if flows(config) else {}
    stated = {name: config[name] for name in LEVELS if config.get(name) is not None} | keys
    edm = str(config.get("_class_name", "")).startswith("EDM")
    if config.get("beta_schedule", "linear") not in KNOWN or not (
        edm or keys or {*BETAS} & {*stated}
    ):
        return None
    return schedule_of(stated | ({"_class_name": "EDM"} if edm else {}))


def findings(config: Mapping[str, Any], prediction: str, snr: str) -> Iterator[Finding]:
    """Yield what goes wrong with a config on a network of this prediction type and SNR."""
    seen, name = visits(config), str(config.get("_class_name", ""))
    betas = bool({*BETAS} & {*config}) or name.startswith(("EDM", "FlowM"))
    if not (seen.times or betas):
        reason = next(iter(seen.failures.values()), "it trains on 3 levels at most")
        text = f"{name} makes no timesteps of their number alone ({reason}): it was not examined"
        yield Finding("scheduler-not-examined", "note", text)
        return
    word = config.get("prediction_type", PREDICTIONS[0])
    if betas and word not in (*PREDICTIONS, prediction):
        text = f"prediction_type = {brief(word)} is no word of diffusers, and fails when it samples"
        yield Finding("prediction-type", "problem", text, "--fix writes the right one")
    if not sound(config):
        words = ", ".join(
            f"{k}={brief(config[k])}" for k in (*LEVELS, "timestep_spacing") if k in config
        )
        text = f"its settings make no schedule from data to noise: {words}"
        yield Finding("schedule", "problem", text, "--fix writes the usual ones")
    zero = snr == ZERO and prediction != "flow_prediction"
    yield from _nodes(config, seen, zero and prediction != "epsilon")
    if zero:
        yield from _zero(config, prediction)
    if name.startswith("PNDM") and prediction == "v_prediction":
        yield Finding(
            *("pndm-v", "warning", "PNDM combines raw v outputs of different timesteps"),
            remedy="use UniPC, Euler or DDIM",
        )
    if name.startswith("UniPC") and _is_nan_at_zero(config):
        text = "UniPC with bh1, predict_x0=False or without a lower order is NaN at its last step"
        remedy = "set solver_type to bh2, predict_x0 and lower_order_final to true"
        yield Finding("unipc-nan", "problem", text, remedy)
    if name.startswith(MIRRORED):
        text = f"{name}.add_noise before set_timesteps takes times in reverse"
        yield Finding(
            "mirrored-noise", "note", text, "call set_timesteps first (training does not)"
        )


def _is_nan_at_zero(config: Mapping[str, Any]) -> bool:
    """Whether UniPC divides by the infinite log-SNR of sigma 0, at which it ends by default."""
    high = not config.get("lower_order_final", True) and config.get("solver_order") != 1
    other = config.get("solver_type") == "bh1" or not config.get("predict_x0", True)
    return config.get("final_sigmas_type", "zero") == "zero" and (other or high)


def _nodes(config: Mapping[str, Any], seen: Visits, ends: bool) -> Iterator[Finding]:
    name = str(config.get("_class_name", ""))
    if seen.failures:
        reason = next(iter(seen.failures.values()))
        text = f"{name} fails at {_numbers(seen.failures)} steps ({reason})"
        yield Finding("timesteps-fail", "problem", text, "use another scheduler or spacing")
    missed = [n for n, reached in seen.reaches.items() if not reached]
    if ends and missed:
        text = f"{config.get('timestep_spacing', 'its')} spacing never asks the last timestep"
        text += f" at {_numbers(missed)} steps; this network starts there"
        yield Finding("last-timestep", "problem", text, "set timestep_spacing to trailing")
    if config.get("timestep_spacing") == "trailing":
        more = visits(config, range(1, 101)).times
        below = [n for n, times in more.items() if min(times) < 0]
        if below:
            worse = ends and name.startswith(("DDIM", "DDPM"))
            text = f"trailing spacing visits timestep -1 at {_numbers(below)} steps of 1 to 100"
            text += ", which destroys the image" if worse else ""
            yield Finding("timestep-minus-one", "warning" if worse else "note", text, "avoid these")
    if name.startswith(STRIDED):
        wrong = [n for n, times in seen.times.items() if not _strided(times, seen.last)]
        if wrong:
            text = (
                f"{name} steps by T // steps, not to its next timestep, at {_numbers(wrong)} steps"
            )
            yield Finding("stride", "warning", text, "take a divisor of T, or Euler or UniPC")


def _strided(times: Sequence[float], last: float) -> bool:
    stride = int(last + 1) // len(times)
    return all(abs(a - b - stride) < 0.5 for a, b in zip(times[:-1], times[1:], strict=True))


def _zero(config: Mapping[str, Any], prediction: str) -> Iterator[Finding]:
    """Yield what goes wrong at zero terminal SNR alone."""
    name = str(config.get("_class_name", ""))
    if setting(config, "rescale_betas_zero_snr") is None:
        text = f"{name} has no zero SNR: it drops the flag, and keeps SNR 0.0047 without a word"
        yield Finding("flag-dropped", "problem", text, "use UniPC, Euler or DDIM")
    if prediction == "epsilon":
        return
    sigmas = [flag for flag in SIGMAS if config.get(flag)]
    if sigmas and name.startswith(CLIPPED):
        fails = name.startswith(("DPMSolver", "UniPC"))
        text = f"{sigmas[0]} at zero SNR " + (
            "repeats timesteps and fails at many numbers of steps"
            if fails
            else "spends most steps next to the last timestep, and loses diversity"
        )
        yield Finding(
            "sigmas-at-zero", "problem" if fails else "warning", text, f"drop {sigmas[0]}"
        )
    if name.startswith(CLIPPED) and config.get("beta_schedule", "linear") == "linear":
        text = (
            f"{name} puts 2^-24 in place of the zero, which linear betas undercut: sigmas go back"
        )
        yield Finding("clipped-zero", "warning", text, "take at most 250 steps, or DDIM")
    if name.startswith("DDIM"):
        text = "DDIM with eta=1 at zero SNR is NaN at half of all numbers of steps"
        yield Finding("ddim-eta", "note", text, "keep eta=0, or use DDPM or EulerAncestral")
    if str(config.get("algorithm_type", "")) == "sde-dpmsolver":
        text = "sde-dpmsolver blows up at zero SNR"
        yield Finding("sde-at-zero", "problem", text, "use sde-dpmsolver++ or dpmsolver++")


def contradictions(prediction: str, snr: str) -> Iterator[Finding]:
    """Yield what no network can be."""
    if prediction == "epsilon" and snr == ZERO:
        yield Finding(
            *("epsilon-at-zero", "problem"),
            "epsilon at zero SNR says nothing of the image: NaN in DDIM, biased in Euler and UniPC",
            "--terminal-snr above if a mark is wrong; else train on with v-prediction, and until "
            "then start below the last timestep: leading spacing",
        )
    if prediction == "flow_prediction" and snr == ABOVE:
        text = "a flow ends in pure noise, and a source says that its terminal SNR is above zero"
        yield Finding("flow-above-zero", "note", text)


def _numbers(counts: Sequence[int] | Mapping[int, Any]) -> str:
    return ", ".join(map(str, counts))
