"""Commands that end early: one owner a folder, work before its record, nothing lost.

`dies` ends a command before its k-th write takes its name, which covers every moment between
writes. `python -m pytest -m slow tests/cli/test_interrupted.py` kills each command at 20 random
moments by kill -9 as well (minutes).
"""

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from interrupt import Dead, contents, dies, killed
from PIL import Image

from diffsteer.cli.main import app
from diffsteer.core.errors import InputError
from diffsteer.io.atomic import InUse, owned, owned_file

SAMPLING = "--guidance CFG(2) --steps 2 --sampler DDIM()"
MEASURED = "--reference real.npz --size 32 --keep 8 --seeds 0-3 --at-once 2 --work out/work"
COMMANDS = {
    "sample": f"sample model --prompt cat {SAMPLING} --seeds 0-3 --batch 2 --out out",
    "stats": "stats real --size 32 --keep 8 --out out/real.npz",
    "evaluate": f"evaluate recipe.json {MEASURED} --resamples 0 --out out/figures.json",
    "compare": f"compare recipe.json other.json {MEASURED} --resamples 20 --show 1 --out out",
    "targets": f"refine targets model {SAMPLING} --prompts prompts.txt --seeds 0-3 --batch 2 "
    "--out out",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs of the commands, named as they name them."""
    folder = tmp_path_factory.mktemp("commands")
    Path(tiny.saved(folder)).rename(folder / "model")
    rng = np.random.RandomState(0)
    (folder / "real").mkdir()
    for i in range(8):
        image = rng.randint(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / f"real/{i}.png")
    (folder / "prompts.txt").write_text("a cat\na dog")
    for name, guidance in (("recipe", "CFG(2)"), ("other", "")):
        table = {"model": "model", "prompt": "cat", "guidance": guidance, "steps": 2}
        (folder / f"{name}.json").write_text(json.dumps({**table, "sampler": "DDIM()"}))
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, dict[str, Any]]:
    """What commands leave that nothing disturbed."""
    results = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("diffsteer.metrics.sampled.ROWS", 2)
        run(COMMANDS["stats"].replace("out/", ""))
        for name, command in COMMANDS.items():
            run(command)
            results[name] = contents(folder / "out")
    return results


@pytest.fixture(autouse=True)
def here(folder: Path, whole: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("diffsteer.metrics.sampled.ROWS", 2)


def run(command: str) -> None:
    app.cli(prog="diffsteer", args=command.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_died_at_any_write_is_made_whole_by_the_same_command(
    folder: Path, whole: dict[str, Any], name: str
) -> None:
    for at in range(0, 100, 3 if name == "compare" else 1):
        try:
            with dies(at):
                run(COMMANDS[name])
        except Dead:
            run(COMMANDS[name])
            assert contents(folder / "out") == whole[name], at
        else:
            break
    shutil.rmtree(folder / "out")
    assert 0 < at < 99


@pytest.mark.parametrize("name", COMMANDS)
def test_what_another_program_writes_is_refused_before_work(folder: Path, name: str) -> None:
    files = {"stats": "real.npz", "evaluate": "figures.json"}
    hold = owned_file(folder / "out" / files[name]) if name in files else owned(folder / "out")
    with hold, pytest.raises(InUse, match="is in use: another program"):
        run(COMMANDS[name])
    shutil.rmtree(folder / "out", ignore_errors=True)


@pytest.mark.parametrize("name", ["sample", "targets", "evaluate"])
@pytest.mark.parametrize("lost", ["file", "folder"])
def test_what_is_removed_meanwhile_is_missed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, Any], name: str, lost: str
) -> None:
    """After the second write: of the first file, or of everything; the next run makes it again."""
    from diffsteer.io import atomic

    flush, writes = atomic.flush, list[Path]()

    def harmed(path: Path) -> None:
        flush(path)
        writes.append(path)
        if len(writes) == 2:
            first = sorted(p for p in path.iterdir() if p.suffix in (".png", ".npz"))[0]
            first.unlink() if lost == "file" else shutil.rmtree(path)

    monkeypatch.setattr(atomic, "flush", harmed)
    with pytest.raises(InputError, match="meanwhile.* start again, which makes"):
        run(COMMANDS[name])
    run(COMMANDS[name])
    assert contents(folder / "out") == whole[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_killed_at_random_moments_is_made_whole_by_the_same_command(
    folder: Path, whole: dict[str, Any], name: str
) -> None:
    start = time.monotonic()
    run(COMMANDS[name])
    length, draw, kills = time.monotonic() - start, random.Random(name), 0
    shutil.rmtree(folder / "out")
    while kills < 20:
        kills += killed(lambda: run(COMMANDS[name]), draw.uniform(0, 1.2 * length))
        if draw.random() < 0.5:  # or killed again before it ends
            run(COMMANDS[name])
            assert contents(folder / "out") == whole[name], kills
    print(f"{name}: killed {kills} times within {length:.1f} s")
