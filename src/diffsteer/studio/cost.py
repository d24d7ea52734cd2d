"""What a recipe costs before it runs: network evaluations, forward passes, seconds."""

import threading
from dataclasses import dataclass
from typing import Any

from diffsteer.core.parse import parse
from diffsteer.generate.pipelines import scheduler_of
from diffsteer.generate.recipe import Recipe
from diffsteer.guidance import Guidance
from diffsteer.guidance.cost import plans, total
from diffsteer.hf.time_arguments import Timeline
from diffsteer.refine.nlg import NLG, TrainingFreeRefiner, is_training_free

NONE = "1 * CFG(1)"
"""A guidance that asks for nothing."""


@dataclass(frozen=True)
class Cost:
    """Cost of one image.

    Attributes:
        nfe: Network evaluations (NFE), those of a guide among them.
        passes: Calls of the networks.
        seconds: Expected time; None before anything was measured.
    """

    nfe: int
    passes: int
    seconds: float | None

    def __str__(self) -> str:
        time = "time not measured yet" if self.seconds is None else f"about {self.seconds:.1f} s"
        return f"{self.nfe} network evaluations in {self.passes} passes, {time}"


class Speed:
    """Seconds of a network evaluation, measured by the samplings so far."""

    def __init__(self) -> None:
        self._lock, self._times = threading.Lock(), dict[str, list[float]]()

    def note(self, model: str, seconds: float, nfe: float) -> None:
        """Take note of a sampling."""
        with self._lock:
            self._times[model] = [*self._times.get(model, ()), seconds / max(nfe, 1)][-9:]

    def seconds(self, model: str, nfe: int) -> float | None:
        """Expected time of a number of evaluations: by the median of the last nine samplings."""
        with self._lock:
            times = sorted(self._times.get(model, ()))
        return times[(len(times) - 1) // 2] * nfe if times else None


def cost_of(recipe: Recipe, pipe: Any, speed: Speed) -> Cost:
    """Cost of one image of a recipe on its pipeline.

    Guidances that decide by what they see, such as Adaptive, are counted at their most.
    """
    scheduler = scheduler_with_steps(recipe, pipe)
    timeline = Timeline.of(scheduler)
    levels = [timeline.level(t) for t in scheduler.timesteps.double().tolist()]
    guidance = parse(recipe.guidance or NONE, Guidance)
    whole = total(plans(guidance, levels, timeline.schedule, timeline.prediction))
    more = refining(recipe)
    nfe, passes = sum(whole.rows.values()) + more, sum(whole.passes.values()) + more
    return Cost(nfe, passes, speed.seconds(recipe.model, nfe))


def scheduler_with_steps(recipe: Recipe, pipe: Any) -> Any:
    """Scheduler of a recipe, of its own, with its timesteps."""
    scheduler = scheduler_of(recipe, pipe.scheduler)
    scheduler = type(scheduler).from_config(scheduler.config)
    options = {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}
    scheduler.set_timesteps(recipe.steps, **options)
    return scheduler


def refining(recipe: Recipe) -> int:
    """Network evaluations for refined noise."""
    if not recipe.refiner:
        return 0
    if is_training_free(recipe.refiner):
        made = parse(recipe.refiner, TrainingFreeRefiner)
        return 2 * made.rounds if isinstance(made, NLG) else 0
    from diffsteer.refine.heads import HEADS
    from diffsteer.refine.metadata import read

    return HEADS[read(recipe.refiner)[0].head].rows
