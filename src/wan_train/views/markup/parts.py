"""Pieces that several pages use: tables, paths, blocks to copy."""

from __future__ import annotations

from collections.abc import Sequence

from wan_train.views import formatting
from wan_train.views.markup.html import Child, Html, tag


def table(heads: Sequence[str], rows: Sequence[Sequence[Child]], *, text_columns: Sequence[int] = ()) -> Html:
    """A table whose first column names its rows; `text_columns` (from 0) are read from the left, others are numbers."""
    body = [
        tag(
            "tr",
            [
                tag(
                    "td" if number else "th", cell, scope=None if number else "row", class_=_class(number, text_columns)
                )
                for number, cell in enumerate(row)
            ],
        )
        for row in rows
    ]
    head = tag("tr", [tag("th", name, scope="col", class_=_class(n, text_columns)) for n, name in enumerate(heads)])
    return tag("div", tag("table", tag("thead", head), tag("tbody", body)), class_="scroll", tabindex=0)


def _class(number: int, text_columns: Sequence[int]) -> str | None:
    return "text" if number in text_columns else None


def path_text(path: object) -> Html:
    """A path or a file name from outside: safe, in its own direction, breakable anywhere."""
    return tag("bdi", formatting.safe(path), dir="ltr", class_="path")


def code_block(text: str) -> Html:
    """Something to copy. Each line is made safe."""
    return tag("pre", tag("code", "\n".join(formatting.safe(line) for line in text.split("\n"))), tabindex=0)
