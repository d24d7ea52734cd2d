"""Write the table of changed names in CHANGELOG.md from `diffsteer._renamed`."""

import re
from pathlib import Path

from diffsteer._renamed import MODULES, NAMES

PAGE = Path(__file__).parent.parent / "CHANGELOG.md"


def table() -> str:
    """Old and new names, one a row."""
    names = {f"{module}.{old}": new for module, rows in NAMES.items() for old, new in rows.items()}
    rows = [f"| `{old}` | `{new.replace(':', '.')}` |" for old, new in {**MODULES, **names}.items()]
    return "\n".join(["| 0.1.0 | 0.2.0 |", "|---|---|", *rows]) + "\n"


if __name__ == "__main__":
    text = PAGE.read_text("utf-8")
    PAGE.write_text(re.sub(r"^\| 0\.1\.0 \|.*?\n(?=\n)", table(), text, flags=re.M | re.S), "utf-8")
