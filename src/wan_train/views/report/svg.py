"""A drawing of the plotting library as part of a page: its colours follow the page's, light and dark and on paper."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from wan_train.views.markup.html import Html, tag

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_LONG_NUMBER = re.compile(r"-?\d+\.\d{2,}")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_FONT = re.compile(r"font-family:[^;]*;?|font:[^;]*?(?P<size>[\d.]+)px[^;]*;?")


class Ink(StrEnum):
    """Colours to draw with. Each stands for a variable of the page's style."""

    TEXT = "#010101"
    SOFT = "#020202"
    LINE = "#030303"
    HIGH = "#040404"
    LOW = "#050505"
    CACHE = "#060606"
    STOPS = "#070707"
    SECOND = "#080808"
    THIRD = "#090909"
    FOURTH = "#0a0a0a"


_VARIABLES: Mapping[str, str] = {ink.value: f"var(--{ink.name.lower()})" for ink in Ink}


def drawn(figure: Figure, *, name: str, title: str, description: str, class_: str = "plot") -> Html:
    """The figure as inline SVG. `name` is unique in the page; `title` and `description` are read aloud in its place."""
    import matplotlib as mpl

    file = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ET.fromstring(file.getvalue())  # noqa: S314  see the import
    used = {found for element in root.iter() for found in _references(element)}
    children = [_element(child, name, used) for child in root if not _is_left_out(child)]
    return tag(
        "svg",
        tag("title", title, id=f"{name}-title"),
        tag("desc", description, id=f"{name}-about"),
        children,
        viewBox=root.get("viewBox"),
        role="img",
        aria_labelledby=f"{name}-title",
        aria_describedby=f"{name}-about",
        class_=class_,
    )


def _is_left_out(element: ET.Element) -> bool:
    """Metadata, and a style for every element, which would reach the whole page."""
    return element.tag == f"{_SVG}metadata" or element.find(f"{_SVG}style") is not None


def _element(element: ET.Element, name: str, used: set[str]) -> Html:
    attributes = dict(_attributes(element, name, used))
    children: Iterator[Html | str | None] = (_element(child, name, used) for child in element)
    text = (element.text or "").strip()
    # The library writes no text beside elements, so tails are only line ends.
    return tag(element.tag.removeprefix(_SVG), text or None, children, **attributes)


def _attributes(element: ET.Element, name: str, used: set[str]) -> Iterator[tuple[str, str]]:
    for key, value in element.attrib.items():
        match key:
            case "id":
                if value in used:
                    yield "id", f"{name}-{value}"
            case "style":
                yield "style", _style(value)
            case "clip-path":
                yield "clip-path", _REFERENCE.sub(rf"url(#{name}-\1)", value)
            case "d" | "points" | "transform" | "x" | "y":
                yield key, _LONG_NUMBER.sub(lambda found: f"{float(found[0]):.1f}", value).replace("\n", "")
            case _ if key == _HREF:
                yield "href", f"#{name}-{value.removeprefix('#')}"
            case _:
                yield key, value


def _style(text: str) -> str:
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return _FONT.sub(lambda found: f"font-size: {found['size']}px;" if found["size"] else "", text)


def _references(element: ET.Element) -> Iterator[str]:
    if _HREF in element.attrib:
        yield element.attrib[_HREF].removeprefix("#")
    yield from _REFERENCE.findall(element.get("clip-path", ""))
