"""How the page looks; nothing is loaded from elsewhere."""

from typing import Any

import gradio as gr

FONT = ("system-ui", "sans-serif")
INTRODUCTION = """
<div class="head"><h1>diffsteer studio</h1>
<p>Type a prompt, choose a guidance, press Generate. Everything runs on this machine.</p></div>
"""
CSS = """
.gradio-container {max-width: 1280px !important; margin: auto}
.head h1 {font-size: 1.4rem; margin: 0} .head p {margin: 0; opacity: .75}
.status {padding: .5rem .75rem; border-radius: .5rem; background: var(--block-background-fill);
  border: 1px solid var(--border-color-primary); overflow-wrap: anywhere}
.html-container:has(.status) {padding: 0 !important}
.status.failed {border-color: #b3123f; color: #b3123f; background: #fdf1f4}
.dark .status.failed {background: #3a1420; color: #ffb3c4}
.bar {height: .35rem; margin-top: .35rem; border-radius: .2rem; background: #8883}
.bar div {height: 100%; border-radius: .2rem; background: var(--color-accent)}
#image .image-frame, #image .image-frame img {width: 100%; height: 420px; object-fit: contain}
#image {min-height: 420px}
#image .empty::after {content: "Your image appears here, step by step"; opacity: .6}
#strip:has(.empty), #grid:has(.empty) {display: none}
#actions {position: sticky; top: 0; z-index: 20; background: var(--body-background-fill);
  padding: .4rem 0}
#strip img, #grid img {width: 100% !important; object-fit: contain}
#slider img {image-rendering: auto}
#cost .status {font-size: .85rem}
@media (max-width: 740px) {
  #results {padding-bottom: 5rem}
  #actions {position: fixed; inset: auto 0 0 0; padding: .6rem 1rem; z-index: 100;
    border-top: 1px solid var(--border-color-primary)}
  #status {scroll-margin-top: .5rem}
  #image, #image .image-frame, #image .image-frame img {min-height: 0; height: 300px}
}
"""
TO_STATUS = """() => {
  const status = document.querySelector('#status'), top = status.getBoundingClientRect().top;
  if (top < 0 || top > innerHeight / 2) status.scrollIntoView({behavior: 'smooth'});
}"""
"""Shows what a click does, where it lies outside of the window, as on a phone."""


def theme() -> Any:
    """Theme with fonts of the system."""
    look = gr.themes.Default(
        primary_hue="indigo", font=FONT, font_mono=("ui-monospace", "monospace")
    )
    return look.set(block_info_text_color="*neutral_600")  # of 400 hints are hard to read
