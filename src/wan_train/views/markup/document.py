"""The frame of every page: one file that loads nothing, readable on a phone, in the dark and on paper."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from wan_train.views.markup.html import Child, Html, tag

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Nothing is fetched and nothing runs, whatever a caption or a file name may hold."""


def style(package: str, name: str) -> Html:
    """A style sheet that lies beside a module."""
    return Html(files(package).joinpath(name).read_text(encoding="utf-8"))


def document(*, title: str, generator: str, styles: Sequence[Html], body: Sequence[Child]) -> str:
    """The whole document. `generator` stands in its first thousand bytes, so that a page can be known as ours."""
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", name="generator", content=generator),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", style("wan_train.views.html", "base.css"), *styles),
    ]
    return f"<!DOCTYPE html>\n{tag('html', tag('head', head), tag('body', body), lang='en').markup}\n"
