"""Our samplers as a diffusers scheduler, so that an untouched pipeline samples exactly at zero SNR.

pipe.scheduler = SteerScheduler.from_config(pipe.scheduler.config, sampler="UniPC()")
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.core.level import Level, upcast
from diffsteer.core.parse import parse
from diffsteer.core.prediction import Eps, V
from diffsteer.core.sampler import Sampler
from diffsteer.core.schedule import Schedule
from diffsteer.core.spacing import SPACINGS, grid, times_of
from diffsteer.hf import scheduler_config as hf_config

Generators = torch.Generator | list[torch.Generator] | None


class SteerScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """Any of our one-evaluation samplers behind the scheduler interface of diffusers.

    Settings have the names and meanings of diffusers'. Timesteps are exact integers of Lin et al.
    2023, table 2, each step goes to the next of them, and the last ends in clean data.

    Args:
        num_train_timesteps: Timesteps of the network.
        beta_start: First beta.
        beta_end: Last beta.
        beta_schedule: "linear", "scaled_linear" or "squaredcos_cap_v2".
        trained_betas: All betas; replaces the three above.
        prediction_type: "epsilon", "sample" or "v_prediction".
        timestep_spacing: "trailing", "leading", "linspace", "logsigma", "karras", or a table of
            Align Your Steps: "ays-sd", "ays-sdxl".
        steps_offset: Added to "leading" timesteps.
        rescale_betas_zero_snr: Rescale to zero terminal SNR; not with "epsilon".
        clip_sample: Clamp every predicted x0.
        clip_sample_range: To plus or minus this.
        sampler: Text of a sampler with one evaluation a step: "DDIM(eta=0.0)", "DPMpp2M()",
            "UniPC()".

    Source: Lin et al. 2023, https://arxiv.org/abs/2305.08891.
    """

    order = 1
    init_noise_sigma = 1.0
    has_compatibles = False

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "trailing",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        sampler: str = "DDIM()",
    ) -> None:
        self.schedule = hf_config.discrete_of(self.config)
        self.prediction = hf_config.kind_of(self.config)
        self.sampler = parse(sampler, Sampler, Schedule)
        self._refuse_contradictions()
        self.register_to_config(_use_default_values=[])  # other classes would not honour those
        self.alphas_cumprod = self.schedule.alphas.float() ** 2
        self.betas = self.schedule.betas.float()
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)
        self._levels: tuple[Level, ...] = ()
        self._begin: int | None = None
        self._index: int | None = None
        self._past: list[tuple[Level, Tensor]] = []

    @classmethod
    @override
    def from_config(
        cls, config: hf_config.Config, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """Build from the config of any variance-preserving diffusers scheduler.

        Its own way of stepping is not taken over: without `sampler` the result is deterministic
        DDIM, also where the old scheduler was ancestral.

        Args:
            config: The config. Settings of its own solver are dropped, all others honoured.
            return_unused_kwargs: Return a pair, whose second part is always empty here.
            **kwargs: Settings that replace those of the config.
        """
        own = frozenset(cls._get_init_keys(cls)) - {"self"}
        if unknown := kwargs.keys() - own:
            raise InputError(f"{cls.__name__} has no setting {', '.join(sorted(unknown))}")
        made = cls(**{**hf_config.own_settings(config, own), **kwargs})
        return (made, {}) if return_unused_kwargs else made

    def _refuse_contradictions(self) -> None:
        c = self.config
        zero = self.schedule.alphas[-1] == 0
        if zero and self.prediction == Eps():
            raise InputError(
                "prediction_type='epsilon' with zero terminal SNR cannot be: at the last timestep "
                "the input is pure noise and epsilon says nothing about the image. Set "
                "prediction_type='v_prediction' if the network was trained so, or drop zero SNR"
            )
        if c.prediction_type == "flow_prediction":
            raise InputError("flow_prediction does not belong to a variance-preserving schedule")
        if c.timestep_spacing not in SPACINGS:
            raise InputError(
                f"timestep_spacing={c.timestep_spacing!r} is not known: "
                f"there are {', '.join(SPACINGS)}"
            )
        if self.sampler.evaluations != 1:
            raise InputError(
                f"{self.sampler!r} evaluates the network {self.sampler.evaluations} times a step, "
                "which a scheduler cannot ask for: take DDIM, DPMpp2M or UniPC"
            )
        if zero and c.timestep_spacing == "leading":
            warnings.warn(
                "timestep_spacing='leading' never visits the last timestep, so that zero terminal "
                "SNR has no effect on sampling: set timestep_spacing='trailing'",
                stacklevel=4,
            )

    def __len__(self) -> int:
        """Timesteps of the network."""
        return len(self.schedule.alphas)

    @property
    def step_index(self) -> int | None:
        """Steps taken since `set_timesteps`, or None before the first."""
        return self._index

    @property
    def begin_index(self) -> int | None:
        """Index at which the pipeline begins, for image to image."""
        return self._begin

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at this of the timesteps."""
        self._begin = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | str | None = None,
    ) -> None:
        """Choose the timesteps to visit, and forget earlier steps.

        Args:
            num_inference_steps: How many, by the spacing; or one of the two below.
            device: Where `timesteps` are.
            timesteps: One by one, falling.
            sigmas: sigma / alpha of each, falling; a 0 at the end is the data, where all end. Or
                the name of a table of Align Your Steps, "ays-sd", "ays-sdxl" or "ays-svd".
        """
        given = (num_inference_steps, timesteps, sigmas)
        if sum(value is not None for value in given) != 1:
            raise InputError("give one of num_inference_steps, timesteps and sigmas")
        if num_inference_steps is not None:
            self._levels = self._grid(num_inference_steps)
        elif timesteps is not None:
            self._levels = self._visit(torch.as_tensor(timesteps, dtype=torch.float64))
        elif sigmas is not None:
            self._levels = self._visit(times_of(self.schedule, sigmas))
        times = torch.stack([level.t for level in self._levels[:-1]])
        whole = bool((times == times.round()).all())
        self.timesteps = times.to(torch.int64 if whole else torch.float32).to(device)
        self._times: list[float] = self.timesteps.tolist()
        self.num_inference_steps = len(times)
        self._begin = self._index = None
        self._past = []

    def _grid(self, n: int) -> tuple[Level, ...]:
        spacing = self.config.timestep_spacing
        levels = grid(self.schedule, n, spacing)
        offset = self.config.steps_offset
        if spacing != "leading" or not offset:
            return levels
        times = torch.stack([level.t for level in levels[:-1]]) + offset
        if times[0] > self.schedule.last:
            raise InputError(
                f"steps_offset={offset} moves the first of {n} leading timesteps to {times[0]:g}, "
                f"past the last, {self.schedule.last:g}: set steps_offset=0, or take fewer steps"
            )
        return self._visit(times)

    def _visit(self, times: Tensor) -> tuple[Level, ...]:
        return grid(self.schedule, len(times), lambda *_: times)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """Return `sample`: variance-preserving networks take it as it is."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """Step from `timestep` to the next; computes in float32, keeps the dtype of the sample.

        Args:
            model_output: Of the network, `(B, *D)`.
            timestep: One of `timesteps`. On an accelerator it is read at the first step only, so as
                not to wait for it; from then on the next of them is taken.
            sample: Of the same shape.
            eta: Pipelines of DDIM pass it. It belongs to the sampler here; 0 says nothing.
            use_clipped_model_output: Pipelines of DDIM pass it. A clipped x0 is always used whole.
            generator: For the fresh noise of ancestral samplers, one or one a sample.
            return_dict: Return a `SchedulerOutput` instead of a tuple.
        """
        if eta not in (0, getattr(self.sampler, "eta", 0)):
            raise InputError(
                f"eta={eta} contradicts {self.sampler!r}: set it there, sampler='DDIM(eta={eta})'"
            )
        i = self._position(timestep)
        now, nxt = self._levels[i : i + 2]
        x = upcast(sample)
        x0 = self.prediction.x0(x, upcast(model_output), now)
        if self.config.clip_sample:
            x0 = x0.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)

        def noise(like: Tensor) -> Tensor:
            return randn_tensor(like.shape, generator, like.device, like.dtype)  # type: ignore[no-any-return]

        answers = [x0]

        def denoise(*_: object) -> Tensor:
            if not answers:
                raise InputError(f"{self.sampler!r} asks twice a step: it needs `evaluations = 2`")
            return answers.pop()

        x, _ = self.sampler.step(x, now, nxt, denoise, self._past, noise)
        self._past = [*self._past[-2:], (now, x0)]
        self._index = i + 1
        out = x.to(sample.dtype)
        return SchedulerOutput(prev_sample=out) if return_dict else (out,)

    def _position(self, timestep: float | Tensor) -> int:
        """Index of this step; a step out of turn starts a new past."""
        if not self._levels:
            raise InputError("no timesteps are set: call set_timesteps(num_inference_steps) first")
        expected = self._begin if self._index is None else self._index
        on_device = isinstance(timestep, Tensor) and timestep.device.type != "cpu"
        if on_device and expected is not None and expected < len(self._times):
            return expected  # reading the timestep would wait for the device
        t = float(timestep)
        if t not in self._times:
            raise InputError(f"timestep {t:g} is none of the {len(self._times)} that are set")
        i = self._times.index(t)
        if i != self._index:
            self._past = []
        return i

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noise data to `timesteps`, `(B,)` or one; exactly `noise` at zero SNR."""
        return self._level(timesteps, original_samples).mix(original_samples, noise)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Target of v-prediction, alpha noise - sigma sample, at `timesteps`."""
        return V().target(sample, noise, self._level(timesteps, sample))

    def _level(self, timesteps: Tensor, like: Tensor) -> Level:
        t = timesteps.flatten()
        if not len(t):
            raise InputError("no timestep is left to start from: raise strength or the steps")
        level = self.schedule.at(t)
        return Level(*(value.expand(len(like)) for value in level)) if len(t) == 1 else level
