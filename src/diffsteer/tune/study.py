"""A search that workers share: trials in a journal, of which a killed worker loses its own alone.

Every trial is measured on a few seeds first. Where finished trials of no more network evaluations
were better on the same seeds, it is pruned; else it is measured on all of them.
"""

import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffsteer.core.errors import InputError
from diffsteer.core.noise import number
from diffsteer.generate.recipe import Recipe
from diffsteer.generate.recipe_checks import require_consistent
from diffsteer.io.atomic import LOCK, InUse, owned_file
from diffsteer.io.hashing import differences, digest
from diffsteer.io.seeds import format_seeds
from diffsteer.tune.heartbeat import Pulse, beating
from diffsteer.tune.objective import Objective, Quality
from diffsteer.tune.space import Space
from diffsteer.tune.storage import open_storage

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

JOURNAL, WORKERS = "study.journal", "workers"
"""Names in the folder of a search: its trials, and locks of the workers that are alive."""
KEY, RECIPE, WORKER, FIRST, NFE, PLACE = "key", "recipe", "worker", "first", "nfe", "place"
"""Attributes of a study and of its trials."""
BEATEN = 3
"""Finished trials that prune one by being better on the first seeds at no more evaluations."""


@dataclass(frozen=True)
class Budget:
    """Effort of a search.

    Attributes:
        seeds: Of a trial; none of them may serve to report.
        first: How many of them decide whether a trial is pruned, >= 2.
        trials: Finished trials after which all workers stop.
        minutes: Time of this worker.
    """

    seeds: Sequence[int]
    first: int
    trials: int
    minutes: float

    def __post_init__(self) -> None:
        if not 2 <= self.first <= len(self.seeds):
            raise InputError(
                f"first must be in [2, {len(self.seeds)}], the number of seeds, got {self.first}"
            )
        if self.trials < 1 or not self.minutes > 0:
            raise InputError(
                f"trials={self.trials}, minutes={self.minutes}: give at least 1 and more than 0"
            )


@dataclass(frozen=True, eq=False)
class Search:
    """A search in a folder.

    Attributes:
        folder: Of its journal.
        space: Recipes to search.
        base: Recipe whose guidance and varied fields are replaced.
        objective: Measures them.
        budget: When to stop.
        storage: What many machines share instead of the journal, as of `open_storage`; there the
            folder of each may have any name.
    """

    folder: Path
    space: Space
    base: Recipe
    objective: Objective
    budget: Budget
    storage: str = ""

    def run(self) -> "Study":
        """Work on the search until its trials are finished or the time is over.

        Raises:
            InputError: the folder holds another search.
        """
        study, end = self.study(), time.monotonic() + 60 * self.budget.minutes
        pulse = Pulse()
        with self._worker() as worker:
            study.sampler = self._sampler(study, worker)
            while time.monotonic() < end and len(finished(study)) < self.budget.trials:
                self._drop_lost(study, pulse, worker)
                self._work(study, worker)
            self._drop_lost(study, pulse, worker)
        return study

    def _work(self, study: "Study", worker: str) -> None:
        """Measure one trial."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        trial = study.ask()
        try:
            trial.set_user_attr(PLACE, self._place)
            trial.set_user_attr(WORKER, worker)
            with beating(trial):
                quality = self._measure(study, trial)
            self._tell(study, trial, quality)
        except InUse:  # another worker measures the same
            study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            time.sleep(1)
        except UpdateFinishedTrialError:  # of a machine that paused
            print(f"trial {trial.number}: given up by another worker", flush=True)

    def study(self) -> "Study":
        """The search as Optuna stores it, made where it is missing."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder.mkdir(parents=True, exist_ok=True)
        key = self._key()
        name = f"diffsteer-{digest(key)[:16]}" if self.storage else self.folder.resolve().name
        study = optuna.create_study(
            storage=open_storage(self.storage, self.folder / JOURNAL),
            study_name=name,
            directions=["maximize" if self.objective.rising else "minimize", "minimize"],
            load_if_exists=True,
        )
        stored = study.user_attrs.setdefault(KEY, key)
        if stored != key:
            raise InputError(
                f"{self.folder} holds another search ({differences(stored, key)}): name another "
                "folder, or give the same options"
            )
        study.set_user_attr(KEY, key)
        return study

    def _sampler(self, study: "Study", worker: str) -> "BaseSampler":
        """Proposals of a worker: again those of before where it is alone, else its own."""
        from optuna.samplers import TPESampler

        seed = len(study.trials)
        if self.storage or {*self._alive()} - {worker}:
            seed += number(self._place.encode()) + os.getpid()
        return TPESampler(seed=seed % 2**32, multivariate=True, constant_liar=True)

    def _key(self) -> dict[str, Any]:
        """All that makes values of two workers comparable, as JSON holds it."""
        return {
            **self.objective.key,
            "space": repr(self.space),
            "base": self.base.hash,
            "seeds": format_seeds(self.budget.seeds),
            "first": self.budget.first,
        }

    def _measure(self, study: "Study", trial: "Trial") -> Quality | None:
        """Quality of a trial's recipe; None where it is pruned or cannot be."""
        try:
            recipe = self.space.recipe(self.base, self.space.suggest(trial))
            require_consistent(recipe)
        except InputError as error:
            trial.set_user_attr("refused", str(error))
            return None
        trial.set_user_attr(RECIPE, recipe.to_dict())
        first = self.objective(recipe, self.budget.seeds[: self.budget.first])
        trial.set_user_attr(FIRST, first.value)
        trial.set_user_attr(NFE, first.nfe)
        rivals = [t.user_attrs for t in finished(study) if FIRST in t.user_attrs]
        beaten = [
            rival
            for rival in rivals
            if rival[NFE] <= first.nfe and self.objective.better(rival[FIRST], first.value)
        ]
        if len(beaten) >= BEATEN:
            return None
        return self.objective(recipe, self.budget.seeds)

    def _tell(self, study: "Study", trial: "Trial", quality: Quality | None) -> None:
        """Store the value of a trial, unless others took it for lost, and print a line of it."""
        from optuna.trial import TrialState

        state = TrialState.PRUNED if quality is None else TrialState.COMPLETE
        study.tell(trial, quality, state, skip_if_finished=True)
        attributes = trial.user_attrs
        recipe = attributes.get(RECIPE)
        if recipe is None:
            print(f"trial {trial.number}: {attributes['refused']}", flush=True)
            return
        value = attributes[FIRST] if quality is None else quality.value
        n = self.budget.first if quality is None else len(self.budget.seeds)
        print(
            f"trial {trial.number}: {self.objective.metric} {value:.4g} on {n} seeds, "
            f"{attributes[NFE]:.4g} NFE, {describe(recipe, self.space)}"
            + (" (pruned)" if quality is None else ""),
            flush=True,
        )

    @contextmanager
    def _worker(self) -> Iterator[str]:
        """Hold a lock, by which others see that this worker is alive."""
        name = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        with owned_file(self.folder / WORKERS / name):
            yield name

    def _alive(self) -> Iterator[str]:
        for lock in (self.folder / WORKERS).glob(f".*{LOCK}"):
            name = lock.name[1 : -len(LOCK)]
            if self._is_alive(name):
                yield name

    def _is_alive(self, worker: str) -> bool:
        try:
            with owned_file(self.folder / WORKERS / worker):
                return False
        except InUse:
            return True

    @property
    def _place(self) -> str:
        """Machine and folder, which workers share whose locks are seen here."""
        return f"{socket.gethostname()}:{self.folder.resolve()}"

    def _drop_lost(self, study: "Study", pulse: Pulse, by: str) -> None:
        """Fail the running trials of workers that were killed, as the worker `by` sees it.

        By their locks where these lie in this folder, else by their beats. A worker that was killed
        before it wrote its name into its trial is lost where no other one is alive.
        """
        from optuna.trial import TrialState

        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            worker = trial.user_attrs.get(WORKER)
            here = (self.folder / WORKERS / f".{worker}{LOCK}").exists()
            if worker and (here or trial.user_attrs.get(PLACE, self._place) == self._place):
                lost = not self._is_alive(worker)
            else:
                alone = not worker and not self.storage and set(self._alive()) <= {by}
                lost = alone or pulse.lost(trial)
            if lost:
                study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def finished(study: "Study") -> "list[FrozenTrial]":
    """Trials that were measured, in full or until they were pruned."""
    from optuna.trial import TrialState

    states = (TrialState.COMPLETE, TrialState.PRUNED)
    return study.get_trials(deepcopy=False, states=states)


def describe(recipe: Mapping[str, Any], space: Space) -> str:
    """Text of what a space varies in a recipe."""
    varied = [name for name in space.variables if name in recipe]
    parts = [recipe["guidance"] or "no guidance"] if space.guidances else []
    return ", ".join([*parts, *(f"{name} {recipe[name] or 'none'}" for name in varied)])


def front(study: "Study", most: int) -> "list[FrozenTrial]":
    """Best measured trials at each cost, cheapest first; of more than `most` some, evenly."""
    best = {tuple(trial.values): trial for trial in reversed(study.best_trials)}  # first of equals
    trials = sorted(best.values(), key=lambda trial: trial.values[1])
    if len(trials) <= most:
        return trials
    places = {round(i * (len(trials) - 1) / (most - 1)) for i in range(most)} if most > 1 else {-1}
    return [trials[place] for place in sorted(places)]
