"""Every reader: a damaged file gives a right result or one error, in bounded time and memory."""

import subprocess
import sys
from pathlib import Path

import pytest


def run(count: int) -> None:
    script = Path(__file__).with_name("readers.py")
    done = subprocess.run([sys.executable, script, str(count)], capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


def test_some_variants_of_each_file() -> None:
    run(12)


@pytest.mark.slow
def test_ten_thousand_variants_of_each_file() -> None:
    run(10_000)
