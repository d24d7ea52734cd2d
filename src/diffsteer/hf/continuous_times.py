"""Schedulers of diffusers whose timesteps are continuous and that no betas describe.

Networks of EDM see samples that are scaled to the variance of the noise, so that in their own input
x they are variance preserving, and their output is a v prediction or its negative.
"""

from diffsteer.core.errors import InputError
from diffsteer.core.prediction import Eps, Preconditioned, Prediction, V
from diffsteer.core.schedule import Cosine, LogSigma, OffsetCosine, Schedule
from diffsteer.hf.protocols import SchedulerLike


def continuous(scheduler: SchedulerLike) -> tuple[Schedule, Prediction] | None:
    """Schedule of a scheduler's timesteps and prediction type of the network; None for others."""
    config, name = scheduler.config, type(scheduler).__name__
    if name == "DDPMWuerstchenScheduler":
        if config.get("scaler", 1.0) != 1:
            raise InputError(
                f"scaler={config['scaler']} of {name} bends its times: sample with scaler=1"
            )
        return OffsetCosine(config.get("s", 0.008)), Eps()
    if "sigma_data" in config and "sigma_schedule" in config:  # EDM
        # the output F of x0 = c_skip x + c_out F, where v predictions have the other sign of c_out
        v = config["prediction_type"] == "v_prediction"
        return _edm(scheduler), V() if v else Preconditioned(1.0)
    if config.get("timestep_type") == "continuous" and config["prediction_type"] == "v_prediction":
        return LogSigma(1.0, *_range(scheduler)), V()
    return None


def _edm(scheduler: SchedulerLike) -> Schedule:
    """Schedule of EDM: times are log(sigma) / 4, or, of Stable Audio, atan(sigma) / (pi / 2)."""
    config, name = scheduler.config, type(scheduler).__name__
    if not name.startswith("Cosine"):
        return LogSigma(config["sigma_data"], *_range(scheduler))
    if config["sigma_data"] != 1:
        raise InputError(
            f"sigma_data={config['sigma_data']} of {name} is of no network that is known: give 1"
        )
    return Cosine()


def _range(scheduler: SchedulerLike) -> tuple[float, float]:
    """Least and most noise of a scheduler, in units of the data."""
    config = scheduler.config
    return config.get("sigma_min") or 0.002, config.get("sigma_max") or 80.0
