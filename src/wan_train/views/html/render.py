"""HTML pages made from Jinja2 templates. Every text is made safe and escaped, even if a template forgets it."""

from __future__ import annotations

import base64
from functools import cache
from pathlib import PurePath
from typing import TYPE_CHECKING

from wan_train.base import units
from wan_train.base.units import count
from wan_train.views import formatting

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup


def render(template: str, **values: object) -> str:
    """A page; `template` is a path below `views/`. An unknown name in a template raises jinja2.UndefinedError."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    from jinja2 import Environment as NewEnvironment
    from jinja2 import PackageLoader, StrictUndefined

    environment = NewEnvironment(
        loader=PackageLoader("wan_train.views", "."),
        autoescape=True,
        finalize=_safe,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "amount": count,
        "clock": formatting.clock,
        "cut": lambda text, width: formatting.cut(formatting.safe(text), width),
        "data_url": _data_url,
        "date_time": formatting.date_time,
        "duration": units.duration,
        "file_name": lambda path: PurePath(path).name,
        "file_size": units.file_size,
        "gpu_name": formatting.gpu_name,
        "lines": _lines,
        "loss": formatting.loss,
        "pace": formatting.pace,
        "thousands": lambda number: f"{number:,}",
    }
    return environment


def _safe(value: object) -> object:
    """Make control characters visible and hide secrets in a printed value. Jinja2 escapes it afterwards."""
    return value if hasattr(value, "__html__") else formatting.safe(value)


def _lines(text: str) -> Markup:
    """A text of several lines, each made safe and escaped."""
    from markupsafe import Markup as NewMarkup

    return NewMarkup("\n").join(formatting.safe(line) for line in text.split("\n"))


def _data_url(picture: bytes, kind: str = "jpeg") -> Markup:
    from markupsafe import Markup as NewMarkup

    # Base64 needs no escaping, and hiding supposed secrets could damage the picture.
    return NewMarkup("data:image/{};base64,").format(kind) + NewMarkup(base64.b64encode(picture).decode("ascii"))  # noqa: S704  base64
