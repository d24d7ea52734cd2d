"""The command line as a user meets it."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
from interrupt import command

from diffsteer.cli.main import COMMANDS, _show, app
from diffsteer.cli.schedule import show


def table(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line.strip()[:3].strip().isdigit()]


def test_schedule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "out.png"
    command("schedule", "sd", "--zero-snr", "--steps", "10", "--plot", str(plot))
    rows = table(capsys.readouterr().out)
    assert [r[1] for r in rows] == [str(t) for t in range(999, 0, -100)]
    assert rows[0][2:] == ["0.000000", "1.000000", "0", "inf"]
    assert plot.read_bytes().startswith(b"\x89PNG") and [*tmp_path.iterdir()] == [plot]


def test_mistakes_end_in_one_line() -> None:
    """Of a program of its own, to its error output."""
    words = [sys.executable, "-m", "diffsteer.cli", "schedule", "nowhere"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith("diffsteer: 'nowhere' is neither a schedule (sd, linear,")
    assert done.stderr.count("\n") == 1


def test_modules_that_docs_run_are_programs() -> None:
    """`-m diffsteer.cli.main` imports, does nothing and ends in success."""
    root = Path(__file__).parents[2]
    pages = [*root.glob("docs/*.md"), root / "README.md", *root.glob("src/diffsteer/cli/*.py")]
    names = {n for page in pages for n in re.findall(r"-m (diffsteer[\w.]*)", page.read_text())}
    assert names
    for name in names:
        assert find_spec(f"{name}.__main__"), name


def test_commands_of_other_packages(tmp_path: Path) -> None:
    """One that is broken, or has a name of ours, takes nothing but itself away."""
    (tmp_path / "other.py").write_text('def hello(n: int = 1) -> None:\n    print("hello" * n)\n')
    about = tmp_path / "other-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1\n")
    points = {"hello": "other:hello", "own hello": "other:hello", "refine hello": "other:hello"}
    points |= {"gone": "other:gone", "broken": "absent:hello", "plan": "other:hello"}
    lines = [f"{name} = {value}" for name, value in points.items()]
    (about / "entry_points.txt").write_text("\n".join(["[diffsteer.commands]", *lines]))

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, "-m", "diffsteer.cli", *words]
        env = {**os.environ, "PYTHONPATH": path}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=env)

    for name in ("hello", "own hello", "refine hello"):
        assert run(*name.split(), "--n", "2").stdout == "hellohello\n"
    done = run("plan", "CFG(2)")
    assert done.returncode == 0 and "In all main: 50 rows" in done.stdout
    for name in ("gone", "broken", "plan"):
        assert f"warning: no command '{name}' by {points[name]}: " in done.stderr
    assert "no command 'broken'; there are schedule" in run("broken").stderr


def config(folder: Path, **settings) -> Path:
    path = folder / "scheduler_config.json"
    path.write_text(json.dumps(settings))
    return path


def shown(source, steps=4, spacing="trailing", zero_snr=False) -> str:
    return show(str(source), steps, spacing, zero_snr, None)


def test_scheduler_configs(tmp_path: Path) -> None:
    sd = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    path = config(tmp_path, **sd)
    assert table(shown(path)) == table(shown("sd")) == table(shown(tmp_path))
    (tmp_path / "scheduler").mkdir()
    path.rename(tmp_path / "scheduler" / path.name)
    assert table(shown(tmp_path)) == table(shown("sd"))
    flow = config(tmp_path, _class_name="FlowMatchEulerDiscreteScheduler", shift=3.0)
    assert table(shown(flow)) == table(shown("sd3"))
    for more in ({}, {"sigma_max": 80.0, "sigma_min": 0.002}):
        edm = config(tmp_path, _class_name="EDMEulerScheduler", **more)
        assert table(shown(edm)) == table(shown("edm"))


def test_notes_tell_the_flaw(tmp_path: Path) -> None:
    assert "training left 0.0683 of the image" in shown("sd")
    assert "use trailing spacing" in shown("sd", spacing="leading")
    assert "pure noise, which a network trained on this" in shown("sd", zero_snr=True)
    eps = config(tmp_path, beta_schedule="linear", rescale_betas_zero_snr=True)
    assert "predicts epsilon, which cannot work at zero SNR" in shown(eps)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is no JSON"),
        ("[1]", "holds a JSON list"),
        ('{"num_train_timesteps": 10}', "has no betas"),
        (
            '{"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": true}',
            "depend on the image size",
        ),
    ],
)
def test_bad_configs(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "scheduler_config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=says):
        shown(path)


def test_more_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no scheduler config"):
        shown(tmp_path)
    with pytest.raises(ValueError, match="SNR never reaches 0"):
        shown("edm", zero_snr=True)
    with pytest.raises(ValueError, match="0 sampling steps"):
        shown("sd", steps=0)


def test_a_schedule_that_ends_in_noise_is_its_own_repair() -> None:
    assert shown("flow", zero_snr=True) == shown("flow") != shown("sd3", zero_snr=True)


def test_networks_are_listed_with_what_to_start_from(capsys: pytest.CaptureFixture[str]) -> None:
    command("models", "wan")
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["network", "pipeline"] and all("Wan" in row for row in rows)
    assert any("WanPipeline: start with CFG(5) (" in row for row in rows)
    command("models")
    assert len(capsys.readouterr().out.splitlines()) > 3 * len(rows)


def test_a_warning_for_programmers_is_as_python_shows_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: set[str] = set()
    for _ in range(2):
        _show(seen, "old", DeprecationWarning, "a.py", 3)
        _show(seen, "careful", UserWarning, "a.py", 3)
    old = "a.py:3: DeprecationWarning: old\n"
    assert capsys.readouterr().err == f"{old}warning: careful\n{old}"


def test_plan(capsys: pytest.CaptureFixture[str]) -> None:
    command("plan", "CFG(6) + PAG(3) + SAG(0.75).within(0, 2)", "--steps", "10")
    printed = capsys.readouterr().out
    assert "steps 1 to 5 (sigma/alpha 14.6 to 2.28): main: 3 rows in 1 pass" in printed
    assert "steps 6 to 10 (sigma/alpha 1.61 to 0.342): main: 4 rows in 2 passes" in printed
    assert "In all main: 35 rows in 15 passes; without guidance main: 10 rows." in printed
    assert "A row is one network evaluation" in printed


def test_a_model_that_ships_has_a_schedule(capsys: pytest.CaptureFixture[str]) -> None:
    assert "terminal SNR 0>" in show("critters", 10, "", False, None)
    assert "terminal SNR 0>" not in show("critters-eps", 10, "", False, None)


def test_plan_of_nonsense() -> None:
    with pytest.raises(SystemExit, match="unknown Guidance 'Magic'; there are ADG, APG"):
        command("plan", "CFG(6) + Magic(2)")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options of parts of a command may not share a name, and lines are as long as can be."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stopped:
        app.cli(args=[name, "--help"], prog="diffsteer")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert f"diffsteer {name}" in text
    texts = [line.replace("│", " ").rstrip() for line in text.splitlines()]
    for line, following in pairwise(texts):
        if line.startswith(10 * " ") and following.startswith(10 * " "):
            word = following.split()[0]
            assert not word[0].isalpha() or len(line) + 1 + len(word) > 77, (line, following)
