"""Pages that mkdocs makes of other files: commands, contributing, changes; links out of docs."""

import io
import os
import re
import textwrap
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
COPIED = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "comfyui/README.md": "comfyui.md",
}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that have no file in docs."""
    for source, page in COPIED.items():
        text = (
            (ROOT / source).read_text("utf-8").replace("](docs/", "](").replace("](../docs/", "](")
        )
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, "cli.md", content=commands()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Lead links to files outside of docs to the repository, or to their copy here.

    A page without sections has no contents beside it, which leaves its tables the width.
    """

    def target(match: re.Match[str]) -> str:
        name = match[1].removeprefix("../")
        return f"]({COPIED.get(name) or f'{config.repo_url}/blob/main/{name}'}{match[2]})"

    if not re.search(r"^(##|:::)", markdown, re.MULTILINE):
        page.meta["hide"] = ["toc"]
    return re.sub(r"\]\((\.\./[^)#\s]+)((?:#[^)\s]*)?)\)", target, markdown)


def commands() -> str:
    """Return the help of each command as a page."""
    os.environ["COLUMNS"] = "100"
    os.environ["NO_COLOR"] = "1"
    from diffsteer.cli.main import FUNCTIONS, app

    sections = ["# Commands", "Each command's `--help`, as the installed version prints it."]
    for args in sorted(name.split() for name in FUNCTIONS):
        text = io.StringIO()
        with redirect_stdout(text), suppress(SystemExit):
            app.cli(args=[*args, "--help"], prog="diffsteer")
        lines = [line.rstrip() for line in text.getvalue().strip().splitlines()]
        block = "\n".join(textwrap.fill(line, 100) if len(line) > 100 else line for line in lines)
        sections.append(f"## diffsteer {' '.join(args)}\n\n```text\n{block}\n```")
    return "\n\n".join(sections) + "\n"
