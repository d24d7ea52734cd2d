"""Table of mistakes: what each command says, and the CPU seconds from its start until it does.

python tests/cli/mistakes.py [COUNT]   # of each process, imports of Python and torch included
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from test_mistakes import MISTAKES, prepare

SPREAD = 40
"""Mistakes of the table, at even distances in the list of the tests."""


def told(command: str, folder: Path) -> tuple[str, float]:
    """What a command says, and after how many CPU seconds, which a busy clock spares."""
    start = os.times()
    words = [sys.executable, "-m", "diffsteer.cli", *command.split()]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    end = os.times()
    spent = end.children_user + end.children_system - start.children_user - start.children_system
    return done.stderr.strip(), spent


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else SPREAD
    chosen = [MISTAKES[i * len(MISTAKES) // count][0] for i in range(count)]
    print("| diffsteer ... | message | CPU seconds |\n|---|---|---|")
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        for command in chosen:
            message, seconds = told(command, Path(folder))
            slowest = max(slowest, seconds)
            if "\n" in message or not message.startswith("diffsteer: "):
                sys.exit(f"{command}: {message}")
            text = message.removeprefix("diffsteer: ").replace("|", "\\|")
            print(f"| `{command}` | {text} | {seconds:.1f} |", flush=True)
    print(f"\n{count} mistakes, the slowest told after {slowest:.1f} CPU seconds")


if __name__ == "__main__":
    main()
