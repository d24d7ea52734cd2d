"""Hub ids without a connection: one line at once, and models from a warm cache."""

import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
import tiny

from diffsteer import Recipe
from diffsteer.doctor.diagnosis import diagnose
from diffsteer.generate.generator import open_generator
from diffsteer.generate.recipe_checks import require_consistent
from diffsteer.hf.load import load, network
from diffsteer.io import hub

NAME, COMMIT = "someone/model", "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a hub that cannot be reached."""

    def unreachable(*_: object) -> None:
        raise OSError(None, "no route to host")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "getproxies", dict)
    monkeypatch.setattr(socket, "create_connection", unreachable)
    return tmp_path / "hub"


def warm(cache: Path, folder: str, name: str = NAME) -> None:
    """Put a model where downloads of the hub lie."""
    place = cache / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text(COMMIT)
    shutil.copytree(folder, place / "snapshots" / COMMIT)


def test_a_hub_that_is_silent_is_told_at_once(cache: Path) -> None:
    for ask in (
        lambda: diagnose(NAME),
        lambda: require_consistent(Recipe(model=NAME)),
        lambda: load(NAME),
        lambda: network(NAME, None),
    ):
        with pytest.raises(FileNotFoundError, match=r"does not answer \(.*no route to host") as end:
            ask()
        assert "\n" not in str(end.value)


@pytest.mark.parametrize(
    "command",
    [
        ["doctor", NAME],
        ["sample", NAME, "--prompt", "a cat"],
        ["tune", NAME, "--reference", "none", "--space", "CFG(w), w=1..2"],
        ["train", "zero-snr-finetune", "--model", NAME, "--set", "data.source=none"],
    ],
    ids=lambda command: command[0],
)
def test_commands_tell_it_before_torch_is_imported(command: list[str], tmp_path: Path) -> None:
    code = (
        f"import sys\nsys.argv = ['diffsteer', *{command!r}]\n"
        "from diffsteer.cli.main import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    print(end, 'torch' in sys.modules)"
    )
    settings = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    run = [sys.executable, "-c", code]
    out = subprocess.check_output(run, env=os.environ | settings, cwd=tmp_path, text=True)
    assert out.count("\n") == 1 and "does not answer (HF_HUB_OFFLINE is set)" in out
    assert out.endswith("False\n")


def test_a_hub_that_hangs(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Event()

    def hang(*_: object) -> None:
        answers.wait(60)
        raise OSError("late")

    monkeypatch.setattr(hub, "PATIENCE", 0.05)
    monkeypatch.setattr(socket, "create_connection", hang)
    assert "did not answer in 0.05 s" in hub.silence()
    answers.set()


def test_switched_off_or_behind_a_proxy(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "getproxies", lambda: {"https": "http://proxy:1"})
    assert hub.silence() == ""
    monkeypatch.undo()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub, "getproxies", dict)
        assert hub.silence() == ""
    assert hub.silence() == "127.0.0.1: Connection refused"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert hub.silence() == "HF_HUB_OFFLINE is set"


def test_a_download_that_fails_is_told_in_a_line(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "getproxies", lambda: {"https": "http://proxy:1"})
    with pytest.raises(FileNotFoundError, match="the hub does not give a model of that") as end:
        diagnose(NAME)
    assert "\n" not in str(end.value)


def test_models_of_a_warm_cache_serve_by_their_id(cache: Path, tmp_path: Path) -> None:
    warm(cache, tiny.saved(tmp_path))
    diagnosis = diagnose(NAME)
    assert diagnosis.checkpoint.architecture.pipeline == "StableDiffusionPipeline"
    recipe = Recipe(model=NAME, prompt="a cat", steps=1, width=16, height=16, guidance="CFG(2)")
    with open_generator(recipe) as generator:
        images = generator([0])
    here = replace(recipe, model=str(tmp_path / "pipe"))
    with open_generator(here) as generator:
        assert (images == generator([0])).all()
    assert network(NAME, None).config.sample_size == 8
