"""HTML that cannot be forgotten to be escaped: text is a `str`, markup is an `Html`, and only tags make markup.

A template engine escapes too, but nothing checks that what a template names exists and is escaped once; here the types
do.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass

_VOID = frozenset({"img", "meta", "rect", "path", "use", "br"})
"""Elements without an end: those of HTML that are used here, and shapes inside of svg."""
_SHAPES = frozenset({"rect", "path", "use"})


@dataclass(frozen=True, slots=True)
class Html:
    """Finished markup."""

    markup: str


Child = Html | str | None


def tag(name: str, /, *children: Child | Iterable[Child], **attributes: str | float | bool | None) -> Html:
    """An element. Strings inside are escaped; None is nothing.

    Attributes are escaped; `class_` loses its line, inner ones become hyphens; True is an attribute without value, None
    and False leave it out.
    """
    opening = f"<{name}{''.join(_attribute(key, value) for key, value in attributes.items())}"
    if name in _VOID:
        return Html(f"{opening}/>" if name in _SHAPES else f"{opening}>")
    return Html(f"{opening}>{join(children).markup}</{name}>")


def join(children: Iterable[Child | Iterable[Child]]) -> Html:
    """Several pieces after each other."""
    return Html("".join(_flat(children)))


def _flat(children: Iterable[Child | Iterable[Child]]) -> Iterable[str]:
    for child in children:
        match child:
            case None:
                continue
            case Html(markup=markup):
                yield markup
            case str():
                yield html.escape(child)
            case _:
                yield from _flat(child)


def _attribute(key: str, value: str | float | bool | None) -> str:  # noqa: FBT001  an attribute may be one
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{html.escape(str(value))}"'
