"""A run that was killed ends as one that nothing disturbed: checkpoints, snapshots, grids, result.

Here it ends before each of its writes. Each kind is killed at 20 random moments by kill -9 as well
(minutes) by `python -m pytest -m slow tests/train/test_killed_training.py`.
"""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
from interrupt import Dead, contents, dies, full, killed
from PIL import Image
from test_train import NETWORK, begun, preset

from diffsteer.cli.main import main
from diffsteer.cli.train import warn_of_bf16
from diffsteer.core.errors import InputError
from diffsteer.generate.recipe import Recipe
from diffsteer.io.atomic import InUse, owned
from diffsteer.train import loop
from diffsteer.train.checkpoints import Checkpoints
from diffsteer.train.loop import Trainer
from diffsteer.train.refiner.targets import make
from diffsteer.train.settings import Pictures

LENGTHS = {"images": 7, "batch": 4, "rate": 1e-3, "precision": "no", "checkpoint": 8}
LENGTHS |= {"snapshot": 4, "log": 4}
ADM = {"num_channels": 32, "channel_mult": "1", "num_res_blocks": 1, "attention_resolutions": "8"}
ADM |= {"dropout": 0.2}
EDM2 = {
    **{"img_resolution": 8, "img_channels": 3, "model_channels": 8, "channel_mult": [1]},
    **{"num_blocks": 1, "channels_per_head": 8, "logvar_channels": 8, "dropout": 0.2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and models to train."""
    folder = tmp_path_factory.mktemp("kinds")
    for i, name in enumerate(("cat", "dog")):
        (folder / f"data/{name}").mkdir(parents=True)
        Image.new("RGB", (8, 8), (200 * i, 50, 100)).save(folder / f"data/{name}/{i}.png")
        (folder / f"data/{name}/{i}.txt").write_text(f"a {name}")
    tiny.saved(folder)
    return folder


def kinds(folder: Path) -> dict[str, dict[str, Any]]:
    data = {"source": str(folder / "data"), "size": 8}
    start = str(folder / "pipe")
    return {
        "autoencoder": {"settings": {"network": NETWORK}, "data": data},
        "edm2": {"settings": {"network": EDM2}, "data": {**data, "label": "folder", "drop": 0.2}},
        "text-to-image": {"settings": {"start": start, "cache": True}, "data": data},
        "lora": {"settings": {"start": start, "lora": 2}, "data": data},
        "refiner": {
            "settings": {"start": start, "targets": str(folder / "targets"), "rank": 2, "steps": 2}
        },
        "adm": {"settings": {"flags": {**ADM, "image_size": 8}}, "data": data},
        "agd": {"settings": {"start": start, "targets": str(folder / "targets"), "rank": 2}},
    }


def written(folder: Path, kind: str) -> str:
    """Write the preset of a kind, two steps with a snapshot and a grid each."""
    table = {"task": "text-to-image" if kind == "lora" else kind, **kinds(folder)[kind]}
    if kind in ("refiner", "agd") and not (folder / "targets").exists():
        prompts = "a cat", "a dog"
        teacher = Recipe(str(folder / "pipe"), prompts=prompts, guidance="CFG(2)", steps=2)
        make(teacher, range(4), folder / "targets", trajectory=True)
    path = Path(preset(folder, {**table, "training": LENGTHS}))
    prompts = '["cat"]' if kind not in ("autoencoder", "edm2", "adm") else "[]"
    path.write_text(
        f"{path.read_text()}\n[pictures]\nevery = 4\nsteps = 1\nguidance = 2.0\nprompts = {prompts}"
    )
    return str(path)


def whole(path: str, out: Path) -> dict[str, Any]:
    begun(path, out).fit()
    return contents(out)


@pytest.mark.parametrize(
    ("kind", "moments"),
    [("edm2", range(100)), *((k, (6,)) for k in ("autoencoder", "lora", "refiner", "adm", "agd"))]
    + [("text-to-image", (7,))],
)
def test_a_run_that_died_before_any_write_ends_as_one_that_did_not(
    folder: Path, tmp_path: Path, kind: str, moments: Any
) -> None:
    path, out = written(folder, kind), tmp_path / "run"
    expected = whole(path, out)
    assert sum(name.startswith("averages/") for name in expected) >= 4
    assert sum(name.startswith("pictures/") for name in expected) == 2
    for at in moments:
        try:
            with dies(at):
                begun(path, out).fit()
        except Dead:
            assert whole(path, out) == expected, at
        else:
            break
    assert at < 99


def test_a_torn_line_of_the_log_is_written_again(folder: Path, tmp_path: Path) -> None:
    path, out = written(folder, "edm2"), tmp_path / "run"
    expected = whole(path, out)
    trainer = begun(path, out)

    def torn(line: dict[str, Any]) -> None:
        trainer.metrics.path.write_text(json.dumps(line)[:9])
        raise Dead

    trainer.metrics.write = torn
    with pytest.raises(Dead):
        trainer.fit()
    assert whole(path, out) == expected


def test_two_trainers_in_one_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    path, out = written(folder, "edm2"), tmp_path / "run"
    with owned(out), pytest.raises(InUse, match="run is in use: another program writes there"):
        begun(path, out)
    first = begun(path, out)
    with pytest.raises(InUse):
        begun(path, out)
    first.fit()
    assert begun(path, out).images == 8


def test_a_run_that_ends_within_a_batch_is_over_when_started_again(
    folder: Path, tmp_path: Path
) -> None:
    """Of 7 images in batches of 4 it makes 8, and its only checkpoint is not beyond its end."""
    path, out = written(folder, "edm2"), tmp_path / "run"
    begun(path, out).fit()
    assert Checkpoints(out / "checkpoints").counts() == [8]
    assert begun(path, out).images == 8


def test_checkpoints_without_the_settings_that_they_are_of_are_refused(
    folder: Path, tmp_path: Path
) -> None:
    path, out = written(folder, "edm2"), tmp_path / "run"
    begun(path, out).fit()
    (out / "run.json").unlink()
    with pytest.raises(InputError, match=r"has checkpoints, but no run\.json"):
        begun(path, out)


def test_a_folder_that_is_removed_meanwhile_ends_the_run(folder: Path, tmp_path: Path) -> None:
    path, out = written(folder, "edm2"), tmp_path / "run"
    trainer = begun(path, out)
    shutil.rmtree(out)
    with pytest.raises(FileNotFoundError, match=f"{out}"):
        trainer.fit()
    assert not out.exists()


def test_a_full_disk_is_an_error_of_the_system_and_loses_nothing(
    folder: Path, tmp_path: Path
) -> None:
    """In a snapshot, whose weights safetensors writes, and in a result that is there already."""
    path, out = written(folder, "edm2"), tmp_path / "run"
    expected = whole(path, out)
    trainer = begun(path, out)
    with full(2_000), pytest.raises(OSError, match="no checkpoint could be written at 4 images"):
        trainer.fit()
    assert whole(path, shutil.copytree(out, tmp_path / "copy")) == expected
    begun(path, out).fit()
    with full(2_000), pytest.raises(OSError, match="weights cannot be written"):
        begun(path, out).fit()
    assert contents(out) == expected


@pytest.mark.parametrize("lack", ["memory", "disk", "grid"])
def test_what_would_end_a_run_late_is_met_before_its_first_step(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lack: str
) -> None:
    """A byte less than what it takes, by hand: three checkpoints, two snapshots, a result."""
    trainer = begun(written(folder, "edm2"), tmp_path / "run")
    numbers = sum(p.numel() for p in trainer.trained.values())
    disk = numbers * (3 * 20 + 2 * 4 + 4)
    sizes = {"memory": 12 * numbers, "disk": disk}
    for name in ("memory", "disk"):
        sizes[name] -= name == lack
    monkeypatch.setattr(loop, "free_memory", lambda device: sizes["memory"])
    usage = shutil.disk_usage(tmp_path)._replace(free=sizes["disk"])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(trainer, "_step", lambda passes: pytest.fail("a step was taken"))
    if lack == "grid":
        monkeypatch.setattr(trainer.task, "pictures", fails)
    reason = {"memory": "are free: end other", "disk": "2 snapshots and the result"}
    with pytest.raises(InputError, match=reason.get(lack, "no grid in 1 steps")):
        trainer.fit()


def fails(how: Pictures) -> None:
    raise InputError(f"no grid in {how.steps} steps")


@pytest.mark.usefixtures("drawn_curves")
def test_curves_show_each_value_of_the_log(folder: Path, tmp_path: Path) -> None:
    trainer = begun(written(folder, "edm2"), tmp_path / "run")
    trainer.fit()
    image = Image.open(tmp_path / "run/curves.png")
    values = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert image.size == (700, round(100 * (1 + 1.6 * (len(values) - 2))))
    assert len(image.convert("L").getcolors()) > 20  # not blank


@pytest.mark.parametrize("snapshot", [4, 500, 1000])
def test_every_snapshot_has_a_name_of_its_own(folder: Path, tmp_path: Path, snapshot: int) -> None:
    """Spaced by less than a thousand images too, and read with their counts."""
    from diffsteer.models.edm2.posthoc import find, reconstruct

    path, batch = written(folder, "edm2"), min(snapshot, 300)
    changes = {"images": 4 * snapshot, "batch": batch, "snapshot": snapshot, "checkpoint": 10**6}
    trainer = begun(
        path,
        tmp_path / "run",
        "pictures.every=0",
        *(f"training.{k}={v}" for k, v in changes.items()),
    )
    trainer._step = lambda passes: {}
    trainer._report = lambda *_: None
    trainer._timed = lambda *_: iter([[]] * 99)
    trainer.fit()
    stored = find(tmp_path / "run/averages", "network-snapshot")
    places = [-(-k * snapshot // batch) * batch for k in (1, 2, 3, 4)]
    assert [one.count for one in stored] == [p for p in places for _ in (0.05, 0.1)]
    if snapshot < 1000:
        (made,) = reconstruct(
            tmp_path / "run/averages", tmp_path / "made", [0.07], kimg=places[1] / 1000
        )
        assert json.loads((made / "config.json").read_text())["images"] == places[1]


def test_a_run_says_what_it_does_and_what_ctrl_c_leaves(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    path, out, step = written(folder, "edm2"), tmp_path / "run", Trainer._step

    def asked(trainer: Trainer, passes: Any) -> Any:
        if trainer.images == 12:
            os.kill(os.getpid(), signal.SIGINT)
        return step(trainer, passes)

    command = ["diffsteer", "train", path, "--out", str(out), "--set", "training.images=24"]
    monkeypatch.setattr("sys.argv", command)
    monkeypatch.setattr(Trainer, "_step", asked)
    with pytest.raises(SystemExit, match="130"):
        main()
    output, notes = capsys.readouterr()
    assert "0 of 24 images are done; edm2 of 0.0" in output
    assert "in batches of 4, learning rate 0.001, float32 on cpu" in output
    for text in ("images per second: ends in", "ending after this step, with a checkpoint"):
        assert text in notes
    assert "the checkpoint at 16 images is whole: the same command resumes there" in notes
    monkeypatch.undo()
    monkeypatch.setattr("sys.argv", command)
    main()
    assert "16 of 24 images are done" in capsys.readouterr().out


@pytest.mark.parametrize(("precision", "ratio"), [("bf16", 31.2), ("bf16", 0.5), ("no", 31.2)])
def test_bf16_that_is_slow_here_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, precision: str, ratio: float
) -> None:
    from diffsteer.io import device

    assert 0 < device.bf16_slowdown() < 10_000
    monkeypatch.setattr(device, "bf16_slowdown", lambda: ratio)
    warn_of_bf16(precision, "cpu")
    slow = "bf16 is 31 times slower than float32 on this CPU" in capsys.readouterr().err
    assert slow == (precision == "bf16" and ratio > 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["autoencoder", "edm2", "text-to-image", "lora", "refiner", "adm", "agd"]
)
def test_a_run_killed_at_random_moments_ends_as_one_that_was_not(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    path, out = written(folder, kind), tmp_path / "run"
    changes = ("training.images=24", "training.keep=0.1")
    for _ in range(2):  # the first imports, too
        start = time.monotonic()
        begun(path, out, *changes).fit()
        length, expected = time.monotonic() - start, contents(out)
    draw, kills = random.Random(kind), 0
    while kills < 20:
        kills += killed(lambda: begun(path, out, *changes).fit(), draw.uniform(0, 1.2 * length))
        if draw.random() < 0.5:  # or killed again before it ends
            begun(path, out, *changes).fit()
            assert contents(out) == expected, kills
    print(f"{kind}: killed {kills} times within {length:.1f} s")
