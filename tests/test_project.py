"""Files of the project state what the code does."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from diffsteer import _renamed

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
LAB = tomllib.loads((ROOT / "lab/pyproject.toml").read_text("utf-8"))


def test_changelog_lists_names_that_changed() -> None:
    listed = dict(
        re.findall(r"^\| `(.+)` \| `(.+)` \|$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    )
    names = {
        f"{module}.{old}": new.replace(":", ".")
        for module, rows in _renamed.NAMES.items()
        for old, new in rows.items()
    }
    renamed = {**_renamed.MODULES, **names}
    assert listed.keys() <= renamed.keys(), "run `python tools/changelog_names.py`"


def test_citation_names_the_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    required = {"cff-version", "message", "title", "authors"}
    assert required <= citation.keys() and citation["cff-version"] == "1.2.0"
    assert citation["version"] == PYPROJECT["project"]["version"] == LAB["project"]["version"]
    assert citation["license"] == PYPROJECT["project"]["license"]
    assert all({"type", "title", "authors"} <= source.keys() for source in citation["references"])


@pytest.mark.parametrize("project", [PYPROJECT, LAB], ids=["diffsteer", "lab"])
def test_urls(project: dict) -> None:
    assert {"Homepage", "Source", "Changelog", "Issues"} <= project["project"]["urls"].keys()


def test_workflow_runs_what_every_machine_runs() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text("utf-8"))
    job = workflow["jobs"]["tests"]
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"][0][
        "hooks"
    ]
    assert [hook["id"] for hook in hooks] == ["ruff", "ruff-format", "mypy"]


def test_files_that_the_contributing_guide_names_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    paths = re.findall(r"`((?:src|tests|docs|examples|lab)/[\w/.]+)`", text)
    assert len(paths) > 15
    assert [p for p in paths if "NAME" not in p and not (ROOT / p).exists()] == []
