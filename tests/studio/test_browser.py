"""The studio in headless Chromium: what a user clicks, and what comes of it.

`pytest -m studio tests/studio` on two cores takes some four minutes. Skipped where playwright or
Chromium is missing.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import tiny
from PIL import Image

from studio.conftest import Server, fill, opened, served, status

pytestmark = pytest.mark.studio
DONE = "/network evaluations,/"


def generated(page: Any, seed: str = "0", steps: int = 4) -> str:
    fill(page, "#seeds", seed)
    fill(page, "#steps", str(steps))
    page.click("#generate")
    return status(page, f"/Seed {seed}: .*network evaluations,/")


def pixels(path: Path) -> bytes:
    return Image.open(path).convert("RGB").tobytes()


def newest(server: Server) -> Path:
    return max(server.out.glob("*.png"), key=lambda path: path.stat().st_mtime_ns)


def copied(page: Any, name: str) -> str:
    page.get_by_text("Copy these settings").click()
    page.get_by_role("tab", name=name).click()
    lines = page.locator(f"#copy-{name.lower()} .cm-line")
    lines.first.wait_for()
    return "\n".join(lines.all_inner_texts())


def test_first_image_comes_within_ten_seconds(page: Any) -> None:
    start = time.monotonic()
    page.click("#generate")
    page.wait_for_selector("#image img")
    first = time.monotonic() - start
    status(page, DONE)
    print(f"first image {first:.1f} s, finished {time.monotonic() - start:.1f} s after the click")
    assert first < 10
    page.wait_for_selector("#strip img")


def test_slider_moves_the_expression_and_its_cost(page: Any) -> None:
    fill(page, ".number:visible >> nth=0", "4.5")
    box = "document.querySelector('#expression textarea, #expression input')"
    page.wait_for_function(f"{box}.value == 'CFG(4.5)'")
    fill(page, ".number:visible >> nth=0", "1")
    cost = "document.querySelector('#cost').innerText"
    page.wait_for_function(f"/^16 network|: 16 network/.test({cost})")  # CFG(1) is off


def test_compare_shows_two_images_of_one_noise(page: Any, server: Server) -> None:
    fill(page, "#steps", "4")
    page.get_by_role("tab", name="Compare").click()
    page.click("#compare")
    text = status(page, "/left A:.*right B:/")
    assert "no guidance" in text and "CFG(3)" in text
    assert page.locator("#slider img").count() == 2


def test_grid_over_two_numbers(page: Any) -> None:
    fill(page, "#steps", "2")
    page.get_by_role("tab", name="Grid").click()
    fill(page, "#columns", "1, 3")
    fill(page, "#rows", "1, 2")
    page.click("#make-grid")
    status(page, "/Grid finished/")
    page.wait_for_selector("#grid img")


def test_cancel_ends_within_a_step(page: Any) -> None:
    fill(page, "#steps", "100")
    page.click("#generate")
    status(page, "/Step [1-9]/")
    start = time.monotonic()
    page.click("#cancel")
    status(page, "/Cancelled/")
    assert time.monotonic() - start < 5
    generated(page)


def test_copied_python_makes_the_same_pixels(page: Any, server: Server, tmp_path: Path) -> None:
    generated(page, "5")
    code = copied(page, "Python")
    (tmp_path / "made.py").write_text(code)
    subprocess.run([sys.executable, "made.py"], cwd=tmp_path, check=True, env={**os.environ})
    assert pixels(tmp_path / "000005.png") == pixels(newest(server))


def test_dropped_png_restores_its_settings(page: Any, server: Server) -> None:
    fill(page, "#expression", "CFG(2)")
    generated(page, "6")
    made = newest(server)
    fill(page, "#expression", "CFG(7)")
    fill(page, "#seeds", "0")
    page.get_by_role("tab", name="History").click()
    page.set_input_files("#drop input[type=file]", str(made))
    status(page, "/restored/")
    assert page.input_value("#seeds input, #seeds textarea") == "6"
    assert page.input_value("#expression input, #expression textarea") == "CFG(2)"
    before = pixels(made)
    page.click("#generate")
    status(page, "/Seed 6:.*network evaluations,/")
    assert newest(server) == made and pixels(made) == before


def test_history_survives_a_reload(page: Any) -> None:
    generated(page, "8")
    page.reload()
    page.wait_for_selector("#cost .status")
    page.get_by_role("tab", name="History").click()
    page.wait_for_selector("#history img")
    page.locator("#history button:has(img)").first.click()
    status(page, "/restored/")
    assert page.input_value("#seeds input, #seeds textarea") == "8"


def test_two_tabs_do_not_mix(browser: Any, server: Server) -> None:
    first, second = opened(browser, server), opened(browser, server)
    for page, text in ((first, "CFG(2)"), (second, "CFG(5)")):
        fill(page, "#expression", text)
        fill(page, "#steps", "12")
    first.click("#generate")
    second.click("#generate")
    status(first, "/Step/")
    first.click("#cancel")
    status(first, "/Cancelled/")
    status(second, DONE)  # the other goes on
    assert first.input_value("#expression input, #expression textarea") == "CFG(2)"
    assert second.input_value("#expression input, #expression textarea") == "CFG(5)"
    first.close()
    second.close()


def test_a_click_in_an_old_history_restores_what_it_shows(browser: Any, server: Server) -> None:
    first, second = opened(browser, server), opened(browser, server)
    generated(first, "21")
    first.reload()
    first.wait_for_selector("#cost .status")
    first.get_by_role("tab", name="History").click()
    first.wait_for_selector("#history img")
    generated(second, "22")  # now the newest, which the first tab does not show
    first.locator("#history button:has(img)").first.click()
    status(first, "/restored/")
    assert first.input_value("#seeds input, #seeds textarea") == "21"
    first.close()
    second.close()


def test_guidances_words_and_references_follow_the_model(browser: Any, tmp_path: Path) -> None:
    """Their menus take what they show, which Gradio checks against what they were made with."""
    with served(tmp_path / "out", tiny.saved(tmp_path), "critters") as server:
        page = opened(browser, server)
        assert not page.is_visible("#critters-body")
        page.get_by_label("Model", exact=True).click()
        page.get_by_role("option", name="critters", exact=True).click()
        page.wait_for_selector("#critters-body input", state="visible")
        page.locator("#critters-body input").click()
        page.get_by_role("option", name="green", exact=True).click()
        prompt = "document.querySelector('textarea').value"
        page.wait_for_function(f"/a green/.test({prompt})")
        page.locator("#menu input").click()
        page.get_by_role("option").filter(has_text="Auto: ").first.click()
        box = "document.querySelector('#expression textarea, #expression input')"
        page.wait_for_function(f"/Auto/.test({box}.value)")
        generated(page)
        page.get_by_role("tab", name="Measure").click()
        assert page.locator("#reference input").input_value() == "data of critters"
        fill(page, "#count", "20")
        page.click("#evaluate")
        page.wait_for_function("/running|finished/.test(document.querySelector('#job').innerText)")
        page.get_by_text("Cancel the job").click()
        page.wait_for_function("/Cancelled|fini/.test(document.querySelector('#job').innerText)")
        assert page.faults == []


def test_error_shows_in_one_line_and_the_page_lives_on(page: Any) -> None:
    fill(page, "#expression", "CGF(3)")
    page.click("#generate")
    text = status(page, "/did you mean/")
    assert "CFG" in text and "\n" not in text.strip()
    fill(page, "#expression", "CFG(3)")
    generated(page)


def test_hundred_clicks_take_no_more_memory(page: Any, server: Server) -> None:
    sizes = []
    for i in range(100):
        generated(page, str(i % 7), steps=1)
        sizes.append(server.resident)
    print(
        f"resident MiB after 20, 60, 100 clicks: {sizes[19]:.0f}, {sizes[59]:.0f}, {sizes[99]:.0f}"
    )
    assert sizes[-1] < sizes[19] + 60


REQUESTS = {
    "a file of the machine": ("GET", "/gradio_api/file=/etc/passwd", {}, None),
    "a way out of the folder": ("GET", "/gradio_api/file={out}/../../x.png", {}, None),
    "a project file": ("GET", "/gradio_api/file=pyproject.toml", {}, None),
    "another server": ("GET", "/gradio_api/file=http://127.0.0.1:1/x", {}, None),
    "a foreign origin": ("GET", "/config", {"origin": "http://evil.example"}, None),
    "another name of this machine": ("GET", "/", {"host": "evil.example"}, None),
    "a foreign run": ("POST", "/gradio_api/queue/join", {"origin": "null"}, None),
    "a pickled upload": ("POST", "/gradio_api/upload", {}, ("a.pt", b"\x80\x02}q")),
    "a checkpoint named PNG": ("POST", "/gradio_api/upload", {}, ("a.png", b"PK\x03\x04")),
    "an upload with a path": ("POST", "/gradio_api/upload", {}, ("../a.png", b"\x89PNG\r\n\x1a\n")),
    "an oversized upload": ("POST", "/gradio_api/upload", {}, ("a.png", bytes(2**25 + 1))),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_request_is_refused(server: Server, name: str) -> None:
    method, path, headers, upload = REQUESTS[name]
    files = {"files": upload} if upload else None
    url = server.url + path.format(out=server.out)
    answer = httpx.request(method, url, headers=headers, files=files)
    assert answer.status_code in (403, 404, 413, 415), answer.text[:200]
    assert "root:" not in answer.text


def test_an_image_of_the_history_is_shown(page: Any, server: Server) -> None:
    generated(page)
    url = f"{server.url}/gradio_api/file={newest(server)}"
    assert httpx.get(url).content == newest(server).read_bytes()


def test_on_a_phone_a_click_shows_the_image_and_every_button_is_reached(
    browser: Any, server: Server
) -> None:
    page = opened(browser, server, width=390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    generated(page)
    page.wait_for_function("document.querySelector('#image').getBoundingClientRect().top < 700")
    page.get_by_role("tab", name="Grid").first.click()
    page.click("#make-grid")  # at the end of the page, not below the bar
    status(page, "/Image 1 of|Grid finished/")
    page.click("#cancel")
    status(page, "/Cancelled|Grid finished/")
    page.close()
