"""Every Python block of the README and the docs runs, and links lead to files."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "lab/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
)
BLOCKS = [
    pytest.param(
        match.group(1), id=f"{page.name}:{page.read_text('utf-8')[: match.start()].count(chr(10))}"
    )
    for page in PAGES
    for match in re.finditer(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
]


@pytest.mark.parametrize("code", BLOCKS)
def test_block(code: str) -> None:
    exec(compile(code, "<docs>", "exec"), {"__name__": "docs"})


def test_readme_shows_what_the_command_prints() -> None:
    from diffsteer.cli.schedule import show

    printed = show("sd", 10, "trailing", True, None).splitlines()
    text = (ROOT / "README.md").read_text("utf-8")
    block = re.search(r"^```text\n(.*?)^\.\.\.\n```", text, re.M | re.S)
    assert block and block.group(1).splitlines() == printed[:5]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_and_benchmarks_that_are_named_are_there(page: Path) -> None:
    names = re.findall(r"\b(?:tests|benchmarks|examples)/[a-z0-9_/]*\.py", page.read_text("utf-8"))
    assert [name for name in names if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8"))
    files = [target for target in targets if "://" not in target]
    assert [target for target in files if not (page.parent / target).exists()] == []
