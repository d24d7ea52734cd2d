"""Pages put together from HTML texts, on the template that all pages have."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from markupsafe import Markup

from diffsteer.report.page import render, thumbnail


def document(title: str, sections: Sequence[str], style: str = "") -> str:
    """Put the sections of a page, HTML each, into a document; empty ones are left out.

    Args:
        title: Of the window.
        sections: HTML.
        style: CSS beyond that of the template.
    """
    body = Markup("\n".join(section for section in sections if section))
    return render("sections.html", title=title, style=Markup(style), body=body)


def table(head: Sequence[str], rows: Sequence[str], kind: str = "") -> str:
    """A table that scrolls where it is too wide; heads and rows are HTML, `kind` its CSS class."""
    cells = "".join(f"<th>{cell}</th>" for cell in head)
    named = f' class="{kind}"' if kind else ""
    return (
        f'<div class="wide"><table{named}><tr>{cells}</tr>\n' + "\n".join(rows) + "\n</table></div>"
    )


def image(source: Path | Any, said: str) -> str:
    """An image, a file or a PIL image, with what it shows."""
    return f'<img alt="{escape(said)}" src="{thumbnail(source)}">'
