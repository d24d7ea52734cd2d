"""Pages that load nothing: images inside, style inside."""

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

THUMBNAIL = 256
"""Most pixels of a side of the images in the page."""
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1300px; padding: 0 1em;
  color: #1a1a1a; background: #fff }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: 14px }
th, td { padding: .35em .8em; text-align: right; border-bottom: 1px solid #ddd;
  vertical-align: top }
th:first-child { text-align: left } td small, th small { display: block; color: #555;
  font-weight: normal; white-space: nowrap }
td.better { background: #e3f3e6 } td.worse { background: #fbe6e2 }
.charts svg { max-width: 520px }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(340px, 1fr)); gap: 1em }
.key { margin-right: 1.2em; white-space: nowrap } .key i { display: inline-block; width: .9em;
  height: .9em; margin-right: .4em; vertical-align: -1px }
.grid td, .grid th { text-align: center; border: 0; padding: .2em } .grid td:first-child {
  text-align: right; min-width: 8em; max-width: 14em } .grid td small { white-space: normal;
  overflow-wrap: anywhere; max-height: 12em; overflow-y: auto }
.grid img { width: 100%; min-width: 64px; max-width: 256px; image-rendering: auto;
  display: block }
code { background: #f3f3f3; padding: .1em .3em; overflow-wrap: anywhere }
"""


def document(title: str, sections: Sequence[str], style: str = "") -> str:
    """Put the sections of a page, HTML each, into a document; empty ones are left out.

    Args:
        title: Of the window.
        sections: HTML.
        style: CSS beyond STYLE.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head><body>\n"
        + "\n".join(section for section in sections if section)
        + "\n</body></html>\n"
    )


def table(head: Sequence[str], rows: Sequence[str], kind: str = "") -> str:
    """A table that scrolls where it is too wide; heads and rows are HTML, `kind` its CSS class."""
    cells = "".join(f"<th>{cell}</th>" for cell in head)
    named = f' class="{kind}"' if kind else ""
    return (
        f'<div class="wide"><table{named}><tr>{cells}</tr>\n' + "\n".join(rows) + "\n</table></div>"
    )


def image(source: Path | Any, said: str) -> str:
    """An image, a file or a PIL image, of at most THUMBNAIL pixels a side, with what it shows."""
    from PIL import Image

    opened = Image.open(source) if isinstance(source, Path) else source
    with opened as picture:
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        file = io.BytesIO()
        picture.save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{escape(said)}" src="data:image/png;base64,{data}">'
