"""HTML pages from jinja2 templates; a page holds its images, charts and style and loads nothing."""

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

if TYPE_CHECKING:
    from PIL.Image import Image

PACKAGE = "diffsteer.report"
THUMBNAIL = 256
"""Largest side of an embedded image, in pixels."""


def render(template: str, /, *, package: str = PACKAGE, **values: object) -> str:
    """Fill in a template; values are escaped unless they are `Markup`.

    Args:
        template: File name in `templates/` of the package. It may extend `base.html` and import
            `macros.html`, which every package has.
        package: Package with a folder `templates`; other distributions name theirs.
        values: Variables of the template.
    """
    folders = [PackageLoader(name) for name in dict.fromkeys((package, PACKAGE))]
    environment = Environment(
        loader=ChoiceLoader(folders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["thumbnail"] = thumbnail
    return environment.get_template(template).render(values)


def thumbnail(image: "Path | Image") -> str:
    """PNG of an image file or a PIL image, at most THUMBNAIL pixels a side, as a `data:` URL."""
    from PIL import Image

    with Image.open(image) if isinstance(image, Path) else image.copy() as small:
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        file = io.BytesIO()
        small.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
