"""Malformed input ends in one line that names it, whichever library first noticed."""

from pathlib import Path

import pytest

from diffsteer.cli.main import app, main


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cut.toml").write_text("a = [", "utf-8")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model_index.json").write_text('{"_class_name": 3}', "utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train cut.toml", "cut.toml is no preset in TOML"),
        ("train binary.toml", "binary.toml cannot be read"),
        ("train absent.toml", "absent.toml"),
        ("train fast-model", "'fast-model' is no preset: there are "),
        ("sample a/b/c --prompt x", "no model 'a/b/c': there is no such folder"),
        ("sample model --prompt x", "'model' cannot be loaded as a model of diffusers"),
        ("sample pocket --device cudas", "device='cudas' cannot be used here"),
        ("sample pocket --device meta:-1", "device='meta:-1' cannot be used here"),
    ],
)
def test_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, command: str, message: str
) -> None:
    monkeypatch.setattr("sys.argv", ["diffsteer", *command.split()])
    with pytest.raises(SystemExit, match=f"diffsteer: .*{message}") as stop:
        main()
    assert "\n" not in str(stop.value)
    assert not list(folder.glob("*.part")) and not (folder / "out").exists()


@pytest.mark.parametrize(
    ("module", "extra"), [("diffusers.models", "hf"), ("matplotlib", "plot"), ("unknown", "")]
)
def test_a_package_that_is_missing_names_its_extra(
    monkeypatch: pytest.MonkeyPatch, module: str, extra: str
) -> None:
    def missing(*args: object, **kwargs: object) -> None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr(app, "cli", missing)
    monkeypatch.setattr("sys.argv", ["diffsteer", "plan", "CFG(2)"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert (f'"diffsteer[{extra}]"' in str(stop.value)) == bool(extra)
