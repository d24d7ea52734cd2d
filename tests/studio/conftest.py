"""The studio as a process, and pages of it in headless Chromium."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@dataclass
class Server:
    url: str
    out: Path
    pid: int

    @property
    def resident(self) -> float:
        """Resident memory in MiB."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1024


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def served(out: Path, *models: str) -> Iterator[Server]:
    """A studio of these models, or of the one that it has by default."""
    port = free_port()
    words = ["studio", *models, "--no-browser", "--port", str(port), "--out", str(out)]
    proxy = {"http_proxy": "http://127.0.0.1:9"}  # of this machine's user; the page needs none
    process = subprocess.Popen(
        [sys.executable, "-m", "diffsteer.cli", *words],
        stdout=subprocess.PIPE, text=True, env={**os.environ, **proxy},
    )  # fmt: skip
    line = process.stdout.readline()
    assert "diffsteer studio: http://127.0.0.1" in line
    yield Server(f"http://127.0.0.1:{port}", out, process.pid)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=30)


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(tmp_path_factory.mktemp("studio") / "out") as server:
        yield server


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with sync_api.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def opened(browser: Any, server: Server, width: int = 1200) -> Any:
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.set_default_timeout(60_000)
    page.requests, page.faults = [], []
    page.on("request", lambda request: page.requests.append(request.url))
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.goto(server.url)
    page.wait_for_selector("#cost .status")
    return page


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    page = opened(browser, server)
    yield page
    assert page.faults == []
    assert {url.split("/")[2] for url in page.requests if url.startswith("http")} == {
        server.url.split("/")[2]
    }
    page.close()


def status(page: Any, pattern: str) -> str:
    page.wait_for_function(f"{pattern}.test(document.querySelector('#status').innerText)")
    return page.inner_text("#status")


def fill(page: Any, where: str, text: str) -> None:
    box = page.locator(where).locator("input, textarea").first
    box.fill(text)
    box.blur()
