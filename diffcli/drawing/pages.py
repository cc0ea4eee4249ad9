"""HTML pages from templates, and pictures inside them: one file that opens without network.

The templates are files in `templates/`. Everything that they insert is escaped, unless it is marked as safe there.
"""

import base64
import io
import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from diffcli.drawing.pictures import Pixels


def render(template: str, **values: Any) -> str:
    """The page that a template of `templates/` makes of the values."""
    return _environment().get_template(template).render(values)


def breakable(text: object) -> Markup:
    """A name, escaped, that a narrow window may break behind slashes, dots, dashes and underscores."""
    pieces = re.findall(r"[^/._-]*[/._-]|[^/._-]+", str(text))
    return Markup("<wbr>").join(pieces)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("diffcli.drawing"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = breakable
    return environment


def data_url(pixels: Pixels, *, width: int, photograph: bool) -> str:
    """An H,W,3 image as a `data:` URL, at most `width` wide: JPEG for a photograph, PNG for anything drawn."""
    image = Image.fromarray(pixels)
    if image.width > width:
        size = (width, max(1, round(image.height * width / image.width)))
        image = image.resize(size, Image.Resampling.BOX if photograph else Image.Resampling.NEAREST)
    data = io.BytesIO()
    if photograph:
        image.save(data, "JPEG", quality=85)
    else:
        image.quantize(256).save(data, "PNG", optimize=True)
    kind = "jpeg" if photograph else "png"
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode('ascii')}"


def css_color(color: Any) -> str:
    """#rrggbb of three numbers 0..255."""
    red, green, blue = (int(part) for part in color)
    return f"#{red:02x}{green:02x}{blue:02x}"
