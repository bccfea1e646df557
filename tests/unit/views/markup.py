"""Pages read as a browser reads them, and words that would like to be more than words."""

from __future__ import annotations

from typing import Any
from xml.etree.ElementTree import Element

import html5lib

HOSTILE = [
    "<script>alert(1)</script>",
    "</style></title><img src=x onerror=alert(1)>",
    "\" onload='alert(1)' x=\"",
    "--> ]]> &lt; &amp; &#x41;",
    "\u202egnp.exe\u202c",
    "\x1b[2J\x00\x07\r\n\ud800",
    "שלום עולם",
    "猫\ufffe\u2028",
]


def parsed(text: str) -> Element:
    """The document by a parser that takes no fault in it."""
    text.encode("utf-8")
    parser: Any = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False)
    document: Element = parser.parse(text)
    return document


def words_of(element: Element) -> str:
    return "".join(element.itertext())


def harmless(written: str) -> Element:
    """The document: valid, without script, and nothing in it leads outside."""
    document = parsed(written)
    for element in document.iter():
        assert element.tag not in {"script", "link", "iframe", "object", "embed", "form", "base"}
        for key, value in element.attrib.items():
            assert not key.startswith("on")
            if key == "src":
                assert value.startswith(("data:image/jpeg;base64,", "data:image/webp;base64,"))
            if key.endswith("href"):
                assert value.startswith("#")
            if key in {"style", "clip-path"}:
                assert "url(" not in value.replace("url(#", "")
    (style,) = document.iter("style")
    assert "url(" not in (style.text or "")
    assert "@import" not in (style.text or "")
    return document
