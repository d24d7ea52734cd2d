"""A search on a quality that is known in closed form, shared, killed and started again."""

import os
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from interrupt import child
from optuna.trial import TrialState

from diffsteer.core.errors import InputError
from diffsteer.core.parse import parse
from diffsteer.generate.recipe import Recipe
from diffsteer.guidance import Guidance
from diffsteer.tune import heartbeat
from diffsteer.tune.objective import Quality
from diffsteer.tune.report import confirm
from diffsteer.tune.space import Space
from diffsteer.tune.storage import open_storage
from diffsteer.tune.study import Budget, Search, finished, front

SPACE = "CFG(w), w=1..8, steps=4..16"


class Parabola:
    """Best at weight 3 at each cost, and better with more steps; fewer seeds are off by 0.1."""

    metric, rising, key = "FD", False, {"metric": "FD"}

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def better(self, a: float, b: float) -> bool:
        return a < b

    def __call__(self, recipe: Recipe, seeds: Sequence[int]) -> Quality:
        time.sleep(self.seconds)
        weight = parse(recipe.guidance, Guidance).scale
        return Quality((weight - 3) ** 2 + 20 / recipe.steps + 1 / len(seeds), 2.0 * recipe.steps)


def search(folder: Path, trials: int = 40, seconds: float = 0.0, **more: object) -> Search:
    budget = Budget(range(100), first=10, trials=trials, minutes=2)
    options = {"space": Space.parse(SPACE), "base": Recipe(model="critters"), **more}
    return Search(folder, objective=Parabola(seconds), budget=budget, **options)


def test_the_front_is_found_and_beaten_trials_are_pruned(tmp_path: Path) -> None:
    study = search(tmp_path).run()
    trials = finished(study)
    assert len(trials) == 40
    pruned = [trial for trial in trials if trial.state.name == "PRUNED"]
    assert 5 < len(pruned) < 35
    best = front(study, 100)
    values = [trial.values for trial in best]
    assert values == sorted(values, key=lambda v: v[1])
    assert all(a[0] > b[0] and a[1] < b[1] for a, b in zip(values, values[1:], strict=False))
    weights = [parse(t.user_attrs["recipe"]["guidance"], Guidance).scale for t in best]
    assert min(abs(weight - 3) for weight in weights) < 0.5
    for trial in pruned:  # three measured ones were better at no more evaluations
        first, nfe = trial.user_attrs["first"], trial.user_attrs["nfe"]
        rivals = [t.user_attrs for t in trials if t.number != trial.number]
        assert sum(r["nfe"] <= nfe and r["first"] < first for r in rivals) >= 3
    assert [t.number for t in front(study, 2)] == [best[0].number, best[-1].number]


def test_of_equal_recipes_the_front_has_the_first() -> None:
    import optuna

    study = optuna.create_study(directions=["maximize", "minimize"])
    for values in ([0.5, 10], [0.9, 7], [0.9, 7], [0.95, 12], [0.9, 8]):
        study.add_trial(optuna.trial.create_trial(values=values))
    assert [trial.number for trial in front(study, 9)] == [1, 3]


def test_it_goes_on_and_refuses_another_search(tmp_path: Path) -> None:
    search(tmp_path, trials=5).run()
    study = search(tmp_path, trials=8).run()
    assert len(finished(study)) == 8
    assert len({str(trial.params) for trial in study.trials}) == 8  # proposals do not begin anew
    with pytest.raises(InputError, match="another search .*space was"):
        search(tmp_path, space=Space.parse("CFG(w), w=1..4, steps=4..16")).study()
    with pytest.raises(InputError, match="another search .*base was"):
        search(tmp_path, base=Recipe(model="other")).study()
    budget = Budget([*range(50), 150, *range(51, 100)], first=10, trials=8, minutes=2)
    with pytest.raises(InputError, match="seeds was '0-99' and is '0-49,51-99,150'"):
        replace(search(tmp_path), budget=budget).study()


def test_the_error_of_another_search_shows_what_differs(tmp_path: Path) -> None:
    search(tmp_path).study()
    with pytest.raises(InputError, match=r"high=16.* and is .*high=17"):
        search(tmp_path, space=Space.parse("CFG(w), w=1..8, steps=4..17")).study()


def test_recipes_that_cannot_be_do_not_stop_it(tmp_path: Path) -> None:
    space = Space.parse("CFG(w).within(lo, hi), w=1..8, lo=0.5..9.5, hi=0.5..9.5, steps=4..16")

    class Flat(Parabola):
        def __call__(self, recipe: Recipe, seeds: Sequence[int]) -> Quality:
            return Quality(1.0, 2.0 * recipe.steps)

    budget = Budget(range(100), first=10, trials=12, minutes=2)
    study = Search(tmp_path, space, Recipe(model="critters"), Flat(), budget).run()
    refused = [t.user_attrs["refused"] for t in finished(study) if "refused" in t.user_attrs]
    assert refused and all("within" in text for text in refused)


def test_workers_share_the_trials_and_a_killed_one_loses_its_own_alone(tmp_path: Path) -> None:
    run = search(tmp_path / "shared", trials=24, seconds=0.05).run
    workers = [child(run) for _ in range(2)]
    end = time.monotonic() + 60
    while time.monotonic() < end and not _measured_by(tmp_path / "shared", workers[0]):
        time.sleep(0.1)
    os.kill(workers[0], signal.SIGKILL)
    assert [os.waitpid(worker, 0)[1] for worker in workers] == [signal.SIGKILL, 0]
    study = search(tmp_path / "shared").study()
    states = [trial.state.name for trial in study.trials]
    done = states.count("COMPLETE") + states.count("PRUNED")
    assert done == 24 and states.count("FAIL") <= 1 and "RUNNING" not in states
    assert len({str(trial.params) for trial in study.trials}) == len(states)  # not the same twice
    owners = {t.user_attrs["worker"].split("-")[0] for t in finished(study)}
    assert owners == {str(worker) for worker in workers}


def test_a_trial_of_nobody_is_given_up_by_a_worker_that_is_alone(tmp_path: Path) -> None:
    search(tmp_path).study().ask()  # as one leaves it that is killed before it names itself
    study = search(tmp_path, trials=2).run()
    assert [trial.state.name for trial in study.trials][0] == "FAIL"
    assert len(finished(study)) == 2


def test_a_trial_of_nobody_may_be_of_a_worker_that_is_alive(tmp_path: Path) -> None:
    other = search(tmp_path)
    with other._worker():
        other.study().ask()
        study = search(tmp_path, trials=2).run()
    assert [trial.state.name for trial in study.trials][0] == "RUNNING"


def _measured_by(folder: Path, pid: int) -> bool:
    if not (folder / "study.journal").exists():
        return False
    try:
        trials = finished(search(folder).study())
    except KeyError:
        return False
    return any(t.user_attrs.get("worker", "").startswith(f"{pid}-") for t in trials)


def _machine(host: str, folder: Path, storage: str) -> None:
    """Search as a machine of that name does, in a folder of its own."""
    folder.mkdir()
    os.chdir(folder)
    socket.gethostname = lambda: host
    search(Path(host), trials=24, seconds=0.1, storage=storage).run()


@pytest.mark.parametrize(
    "scheme",
    ["sqlite:///", pytest.param("", marks=pytest.mark.slow)],
    ids=["database", "journal"],
)
def test_machines_share_one_store_and_a_killed_one_loses_its_trial(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with a folder and a host name of its own; the survivor finishes all trials."""
    storage = f"{scheme}{tmp_path / 'shared.journal'}"
    machines = [child(partial(_machine, h, tmp_path / f"home-{h}", storage)) for h in ("a", "b")]
    one = search(tmp_path / "here", storage=storage)
    end = time.monotonic() + 60
    while time.monotonic() < end and len({place(t)[0] for t in finished(one.study())}) < 2:
        time.sleep(0.2)
    os.kill(machines[0], signal.SIGKILL)
    assert [os.waitpid(machine, 0)[1] for machine in machines] == [signal.SIGKILL, 0]
    trials = one.study().trials
    done = [t for t in trials if t.state.name in ("COMPLETE", "PRUNED")]
    assert len(done) == 24 and {place(t)[0] for t in done} == {"a", "b"}
    rest = [t for t in trials if t not in done]  # none of the survivor, at most one of the killed
    assert len(rest) <= 1 and all(place(t)[0] in "a?" for t in rest)
    assert len({str(t.params) for t in done}) == len(done)  # machines propose different recipes
    monkeypatch.setattr(heartbeat, "GRACE", 0.0)  # lost where no beat came between two looks
    after = search(tmp_path / "c", trials=26, storage=storage).run()
    assert len(finished(after)) == 26
    assert [t.state.name for t in after.trials if t not in finished(after)] == ["FAIL"] * len(rest)


def test_a_trial_of_another_machine_is_lost_once_its_beats_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(monotonic=lambda: clock.now, now=0.0)
    monkeypatch.setattr(heartbeat, "time", clock)
    monkeypatch.setattr(heartbeat, "EVERY", 0.01)
    one, pulse = search(tmp_path), heartbeat.Pulse()
    study = one.study()
    trial = study.ask()
    study.ask()  # killed before it gave its name
    trial.set_user_attr("place", "b:/elsewhere")
    trial.set_user_attr("worker", "1-b")

    def states(now: float) -> list[str]:
        clock.now = now
        with one._worker():  # another one, which may have asked for the trial without a name
            one._drop_lost(study, pulse, "2-c")
        return [t.state.name for t in study.trials]

    assert states(0) == states(heartbeat.GRACE) == ["RUNNING", "RUNNING"]
    with heartbeat.beating(trial):
        end = time.monotonic() + 30
        while time.monotonic() < end and not study.trials[0].user_attrs.get("beat"):
            time.sleep(0.01)
    last = study.trials[0].user_attrs["beat"]
    assert states(heartbeat.GRACE + 1) == states(2 * heartbeat.GRACE + 1) == ["RUNNING", "FAIL"]
    assert states(2 * heartbeat.GRACE + 2) == ["FAIL", "FAIL"]
    assert study.trials[0].user_attrs["beat"] == last  # none comes after the end


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_store_that_takes_no_beat_stops_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the trial was given up meanwhile."""
    monkeypatch.setattr(heartbeat, "EVERY", 0.001)
    study = search(tmp_path).study()
    trial = study.ask()
    study.tell(trial, state=TrialState.FAIL)
    with heartbeat.beating(trial):
        time.sleep(0.02)
    assert "beat" not in study.trials[0].user_attrs


def test_a_search_without_a_trial_has_no_front(tmp_path: Path) -> None:
    one = search(tmp_path)
    with pytest.raises(InputError, match="no trial is finished, so that there is no front"):
        confirm(one, one.study(), range(200, 210), {})


def test_a_worker_whose_trial_was_given_up_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a pause of its machine, while it measures or as it tells."""

    class GivenUp(Parabola):
        def __call__(self, recipe: Recipe, seeds: Sequence[int]) -> Quality:
            study, own = one.study(), one.study().trials[-1]
            if own.number == 0 and len(seeds) == 10 or own.number == 1 and len(seeds) == 100:
                study.tell(own.number, state=TrialState.FAIL)
            return super().__call__(recipe, seeds)

    one = replace(search(tmp_path, trials=3), objective=GivenUp())
    trials = one.run().trials
    assert [t.state.name for t in trials[:2]] == ["FAIL", "FAIL"]
    assert len(finished(one.study())) == 3 and len(trials) == 5
    assert "trial 0: given up by another worker" in capsys.readouterr().out


def place(trial) -> str:
    return trial.user_attrs.get("place", "?")


@pytest.mark.parametrize(
    ("storage", "reason"),
    [
        ("shared", "neither a URL of a database"),
        ("nobase://here", "cannot be opened"),
        ("oracle+cx_oracle://here", "needs the package cx_Oracle: install it"),
        ("sqlite:////nowhere/at/all.db", "cannot be opened: .*unable to open"),
    ],
)
def test_a_store_that_cannot_be_opened(storage: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=reason) as error:
        open_storage(storage, tmp_path / "a.journal")
    assert "\n" not in str(error.value)


def _open(url: str, together: Any) -> None:
    import optuna

    together.wait()
    optuna.create_study(
        storage=open_storage(url, Path("nowhere")), study_name="a", load_if_exists=True
    )


def test_workers_that_start_together_open_one_new_database(tmp_path: Path) -> None:
    processes = get_context("fork")
    for i in range(3):
        arguments = (f"sqlite:///{tmp_path}/{i}.db", processes.Barrier(2))
        workers = [processes.Process(target=_open, args=arguments) for _ in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert [worker.exitcode for worker in workers] == [0, 0]


def test_a_budget_that_measures_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="first must be in"):
        Budget(range(4), first=5, trials=1, minutes=1)
    with pytest.raises(InputError, match="minutes=0"):
        Budget(range(4), first=2, trials=1, minutes=0)
