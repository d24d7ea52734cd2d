"""Evaluate and tune, whole, by their page in headless Chromium; `pytest -m studio tests/studio`."""

import json
import time
from typing import Any

import pytest

from studio.conftest import Server, fill

pytestmark = pytest.mark.studio
WHOLE = 600_000
"""Milliseconds that a job may take."""


@pytest.fixture
def measure(page: Any) -> Any:
    """The page at its tab of jobs, with a cheap recipe."""
    fill(page, "#steps", "2")
    page.get_by_role("tab", name="Measure").click()
    fill(page, "#count", "20")
    fill(page, "#minutes", "1")
    return page


def job(page: Any, pattern: str) -> str:
    line = f"{pattern}.test(document.querySelector('#job').innerText)"
    page.wait_for_function(line, timeout=WHOLE)
    return page.inner_text("#job")


def test_evaluate_ends_with_its_figures(measure: Any, server: Server) -> None:
    measure.click("#evaluate")
    job(measure, "/running/")
    text = job(measure, "/finished|diffsteer: |must|cannot/")
    assert "finished" in text
    assert "FD" in measure.inner_text("#log") or "KD" in measure.inner_text("#log")
    report = json.loads((server.out / "jobs" / "evaluated.json").read_text())
    assert report


def test_tune_ends_with_its_report(measure: Any, server: Server) -> None:
    fill(measure, "#space", "CFG(w), w=1..4, steps=2..3")
    measure.click("#tune")
    assert "finished" in job(measure, "/finished|failed/")
    assert list((server.out / "jobs" / "tuned").glob("*.html"))


def test_a_job_is_cancelled_and_the_page_lives_on(measure: Any) -> None:
    fill(measure, "#count", "1000")
    measure.click("#evaluate")
    job(measure, "/running/")
    measure.wait_for_function("document.querySelector('#log .cm-line')?.innerText")
    start = time.monotonic()
    measure.get_by_text("Cancel the job").click()
    assert "kept" in job(measure, "/Cancelled/")
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    ("space", "reason"),
    [("CGF(w), w=1..4", "did you mean 'CFG'"), ("CFG(w), steps=2..3", "has no range")],
)
def test_a_mistake_in_the_space_is_one_line(measure: Any, space: str, reason: str) -> None:
    fill(measure, "#space", space)
    measure.click("#tune")
    measure.wait_for_selector("#job .failed", timeout=WHOLE)
    text = measure.inner_text("#job").strip()
    assert reason in text and "\n" not in text
