"""Screenshots of pages at the width of a desk and of a phone, and what does not fit there.

    python tools/screenshots.py OUT PAGE...     # files, or folders of a site

Prints elements that reach beyond the window without a box that scrolls, images that do not load or
have no text, and links inside of a page that lead nowhere. Needs playwright and Chromium.
"""

import argparse
import os
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

WIDTHS = (1200, 390)
TALLEST = 6000
FAULTS = """() => {
    const scrolls = e => e && e !== document.body && e !== document.documentElement
        && (["auto", "scroll", "hidden"].includes(getComputedStyle(e).overflowX)
            || scrolls(e.parentElement));
    const name = e => `${e.tagName}.${e.getAttribute("class")} `
        + (e.textContent || "").trim().slice(0, 40);
    const wide = [...document.body.querySelectorAll("*")].filter(e => {
        const box = e.getBoundingClientRect();
        return box.width > 0 && box.right > innerWidth + 1 && !scrolls(e.parentElement);
    });
    const images = [...document.images].filter(e => e.complete && !e.naturalWidth || !e.alt);
    const links = [...document.querySelectorAll("a[href^='#']")].filter(e => e.hash.length > 1
        && !document.getElementById(decodeURIComponent(e.hash.slice(1))));
    return [...wide.slice(0, 5).map(e => "too wide: " + name(e)),
        ...images.map(e => "image without content or text: " + e.src.slice(0, 80)),
        ...links.map(e => "link to nothing: " + e.hash)];
}"""


def shown(page: Page, file: Path, out: Path, name: str) -> None:
    """Photograph a page at each width, and print its faults."""
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        page.goto(file.absolute().as_uri())
        page.wait_for_timeout(300)
        for fault in page.evaluate(FAULTS):
            print(f"{file} at {width}: {' '.join(fault.split())}", flush=True)
        tall = min(TALLEST, page.evaluate("document.documentElement.scrollHeight"))
        page.set_viewport_size({"width": width, "height": tall})
        page.screenshot(path=out / f"{name}-{width}.png")


def main() -> None:
    """Photograph the pages that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("pages", type=Path, nargs="+")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    files = [f for p in args.pages for f in ([p] if p.is_file() else sorted(p.rglob("*.html")))]
    root = os.path.commonpath([file.absolute().parent for file in files])
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium")
        )
        page = browser.new_page()
        for file in files:
            name = str(file.absolute().relative_to(root).with_suffix("")).replace("/", "-")
            shown(page, file, args.out, name)
        browser.close()


if __name__ == "__main__":
    main()
