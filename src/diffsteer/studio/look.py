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
.status.failed {border-color: #b3123f; color: #b3123f; background: #fdf1f4}
.dark .status.failed {background: #3a1420; color: #ffb3c4}
.bar {height: .35rem; margin-top: .35rem; border-radius: .2rem; background: #8883}
.bar div {height: 100%; border-radius: .2rem; background: var(--color-accent)}
#image .image-frame, #image .image-frame img {width: 100%; height: 420px; object-fit: contain}
#image {min-height: 420px}
#strip img, #grid img {width: 100% !important; object-fit: contain}
#slider img {image-rendering: auto}
#cost .status {font-size: .85rem}
@media (max-width: 640px) {
  .gradio-container {padding: .5rem !important}
  #image, #image .image-frame, #image .image-frame img {min-height: 0; height: 300px}
}
"""


def theme() -> Any:
    """Theme with fonts of the system."""
    look = gr.themes.Default(
        primary_hue="indigo", font=FONT, font_mono=("ui-monospace", "monospace")
    )
    return look.set(block_info_text_color="*neutral_600")  # of 400 hints are hard to read
