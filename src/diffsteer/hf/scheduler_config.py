"""Schedule, prediction type and spacing of a scheduler config; reading it needs no diffusers.

A config mixes what the network was trained on, which has to be honoured to the letter, with the
settings of one particular solver, which another solver replaces.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from diffsteer.core.errors import InputError, brief
from diffsteer.core.fields import is_number, is_whole
from diffsteer.core.prediction import X0, Eps, Prediction, V, Velocity
from diffsteer.core.schedule import EDM, Discrete, Flow, Schedule
from diffsteer.io.strict import read_object

Config = Mapping[str, Any]

KINDS: dict[str, Prediction] = {
    "epsilon": Eps(),
    "sample": X0(),
    "v_prediction": V(),
    "flow_prediction": Velocity(),
}

SPACING_FLAGS = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "logsigma"}
"""Flags that choose a spacing, and the spacing."""

SOLVER = {
    *("algorithm_type", "corrector_order", "disable_corrector", "dynamic_thresholding_ratio"),
    *("eta", "euler_at_final", "final_sigmas_type", "flow_shift", "interpolation_type"),
    *("lambda_min_clipped", "lower_order_final", "noise_sampler_seed", "predict_x0"),
    *("predictor_order", "sample_max_value", "set_alpha_to_one", "skip_prk_steps", "solver_order"),
    *("solver_p", "solver_type", "tau_func", "time_shift_type", "variance_type"),
}
"""Settings of the solver that a config was written for. Another solver replaces them."""

OFF: dict[str, Any] = {"snr_shift_scale": 1.0, "timestep_type": "discrete"}
"""Values at which what alters a schedule changes nothing; None and False never do."""

REFUSED = {
    "LCMScheduler": "belongs to a distilled network, which only it samples",
    "TCDScheduler": "belongs to a distilled network, which only it samples",
    "IPNDMScheduler": "has a schedule of its own, which no betas say",
    "DDIMInverseScheduler": "goes from data to noise",
    "DPMSolverMultistepInverseScheduler": "goes from data to noise",
    "RePaintScheduler": "goes back and forth between levels",
}
"""Schedulers whose settings would mean something else in a sampler of ours."""

TYPES: dict[str, tuple[type, ...]] = {
    "_class_name": (str,),
    **dict.fromkeys(("shift", "flow_shift", "sigma_min", "sigma_max"), (float, int, type(None))),
    **dict.fromkeys(("num_train_timesteps", "steps_offset"), (int,)),
    **dict.fromkeys(("beta_start", "beta_end", "clip_sample_range"), (float, int)),
    "trained_betas": (list, tuple, type(None)),
    **dict.fromkeys(("beta_schedule", "prediction_type", "timestep_spacing", "sampler"), (str,)),
    **dict.fromkeys(("rescale_betas_zero_snr", "clip_sample"), (bool,)),
}
"""Types of the settings that we read."""


def read(path: Path) -> Config:
    """Read a scheduler config from a JSON file, a scheduler folder or a pipeline folder."""
    places = (path, path / "scheduler_config.json", path / "scheduler" / "scheduler_config.json")
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise InputError(
            f"{path} holds no scheduler config: give scheduler_config.json, or a folder of a "
            "scheduler or pipeline that has one"
        )
    return read_object(file)


def require_timesteps(config: Config) -> None:
    """Refuse a number of timesteps for which schedulers would take gigabytes."""
    steps = config.get("num_train_timesteps")  # null in configs of networks, which may say it too
    if steps is not None and not (is_whole(steps) and 1 <= steps <= 100_000):
        raise InputError(f"num_train_timesteps must be in [1, 100000], got {brief(steps)}")


def schedule_of(config: Config) -> Schedule:
    """Schedule of any diffusers scheduler config: variance preserving, flow matching or EDM."""
    _check_types(config)
    name = config.get("_class_name", "")
    if flows(config):
        if config.get("use_dynamic_shifting"):
            raise InputError(
                "use_dynamic_shifting makes the shift depend on the image size: "
                "give the shift itself, Flow(shift)"
            )
        return Flow(config.get("shift", config.get("flow_shift", 1.0)))
    if name.startswith("EDM"):
        return EDM(config.get("sigma_min", 0.002), config.get("sigma_max", 80.0))
    return discrete_of(config)


def trained(scheduler: Any) -> tuple[Schedule, Prediction]:
    """Schedule and prediction type that the network of a pipeline with this scheduler has.

    A shift that depends on the image size is left out.
    """
    config = scheduler.config
    named = {"_class_name": type(scheduler).__name__, **config}
    if not flows(named):
        return schedule_of(named), kind_of(config)
    return Flow() if config.get("use_dynamic_shifting") else schedule_of(named), Velocity()


def same_times(a: Schedule, b: Schedule) -> bool:
    """Whether a time means the same level on both; that of EDM and of flows is the level itself."""
    if isinstance(a, Discrete) and isinstance(b, Discrete):
        return len(a.alphas) == len(b.alphas) and torch.allclose(a.alphas, b.alphas, atol=1e-6)
    return type(a) is type(b)


def flows(config: Config) -> bool:
    """Whether a config is of flow matching."""
    name = str(config.get("_class_name", ""))
    return (
        name.startswith(("FlowMatch", "FlowMap"))
        or config.get("prediction_type") == "flow_prediction"
        or bool(config.get("use_flow_sigmas") and "beta_start" in config)
    )


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler of diffusers is of flow matching."""
    return flows({"_class_name": type(scheduler).__name__, **scheduler.config})


def discrete_of(config: Config) -> Discrete:
    """Schedule of a variance-preserving config, with zero terminal SNR if the config says so."""
    _check_types(config)
    _check_betas(config)
    shifts = str(config.get("_class_name", "")).startswith("CogVideoX")
    for key in OFF.keys() & config.keys() - ({"snr_shift_scale"} if shifts else set()):
        _check_foreign(key, config[key])
    n = config.get("num_train_timesteps", 1000)
    start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    betas, shape = config.get("trained_betas"), config.get("beta_schedule", "linear")
    if betas is not None:
        if len(betas) != n:
            raise InputError(f"{len(betas)} trained_betas do not fit num_train_timesteps={n}")
        schedule = Discrete.from_betas(torch.as_tensor(betas, dtype=torch.float64))
    elif shape == "linear":
        schedule = Discrete.linear(start, end, n)
    elif shape == "scaled_linear":
        schedule = Discrete.scaled_linear(start, end, n)
    elif shape == "squaredcos_cap_v2":
        schedule = Discrete.cosine(n)
    else:
        raise InputError(
            f"beta_schedule={brief(shape)} is not known: linear, scaled_linear, "
            "squaredcos_cap_v2 are, and trained_betas take any other"
        )
    if shifts:
        bar, scale = schedule.alphas**2, config.get("snr_shift_scale", 3.0)
        schedule = Discrete((bar / (scale + (1 - scale) * bar)).sqrt())  # SNR / scale
    return schedule.zero_snr() if config.get("rescale_betas_zero_snr") else schedule


def spacing_of(config: Config) -> str | None:
    """Name of the spacing that a config asks for, or None."""
    for flag, spacing in SPACING_FLAGS.items():
        if config.get(flag):
            return spacing
    return config.get("timestep_spacing")


def kind_of(config: Config) -> Prediction:
    """Prediction type of a config; epsilon where it says none, as in diffusers."""
    _check_types(config)
    name = config.get("prediction_type", "epsilon")
    if name not in KINDS:
        raise InputError(
            f"prediction_type={brief(name)} is not known: there are {', '.join(KINDS)}"
        )
    return KINDS[name]


def own_settings(config: Config, own: frozenset[str]) -> dict[str, Any]:
    """Keep the settings that a variance-preserving sampler of ours takes from a diffusers config.

    Values that a class of diffusers filled in by itself count: they were in force. `own` are the
    names that the sampler knows.
    """
    if not isinstance(config, Mapping):
        raise InputError(f"a config maps settings to values, {config!r} does not")
    _check_types(config)
    if (name := config.get("_class_name")) in REFUSED:
        raise InputError(f"{name} {REFUSED[str(name)]}")
    _check_betas(config)
    settings = {k: v for k, v in config.items() if not k.startswith("_")}
    for flag, spacing in SPACING_FLAGS.items():
        if settings.pop(flag, False):
            settings["timestep_spacing"] = spacing
    for key in settings.keys() - own:
        _check_foreign(key, settings.pop(key))
    return settings


def _check_types(config: Config) -> None:
    """Check types and ranges of the settings that we read."""
    for key, types in TYPES.items():
        value = config.get(key, types[0]())
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            names = " or ".join(t.__name__ for t in types)
            raise InputError(f"{key}={brief(value)} is a {type(value).__name__}: give {names}")
    require_timesteps(config)
    if not all(is_number(beta) for beta in config.get("trained_betas") or ()):
        raise InputError(f"trained_betas={brief(config['trained_betas'])} must be numbers")
    if config.get("steps_offset", 0) < 0:
        raise InputError(f"steps_offset={config['steps_offset']} must be >= 0")
    if not 0 < config.get("clip_sample_range", 1.0) < float("inf"):
        raise InputError(f"clip_sample_range={config['clip_sample_range']} must be > 0")


def _check_betas(config: Config) -> None:
    if not {"beta_schedule", "beta_start"} & config.keys() and not config.get("trained_betas"):
        raise InputError(
            f"{brief(config.get('_class_name', 'the config'))} has no betas: it is not a "
            "variance-preserving scheduler"
        )


def _check_foreign(key: str, value: Any) -> None:
    if key == "variance_type" and str(value).startswith("learned"):
        raise InputError(
            f"variance_type={brief(value)}: this network also predicts its variance, "
            "which our samplers do not use"
        )
    if key not in SOLVER and value not in (None, False, OFF.get(key)):
        raise InputError(
            f"{key}={brief(value)} cannot be honoured: sample without it or keep the old scheduler"
        )
