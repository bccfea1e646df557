"""Write the tables of json-output.md from json-schema.json: `python docs/generate_json.py`, or `make docs`.

A definition with a `title`, and each event of a run, becomes a section. Neighbouring keys with one description share a
row. `examples` are shown as they are; a test checks them against the schema.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SCHEMA = HERE / "json-schema.json"
DOCUMENT = HERE / "json-output.md"
MARK = "<!-- Generated from json-schema.json by `make docs`; edit that file. -->\n"
EVENT = "journal_"
EVENTS = """## Events

A line with `"event": "journal"` is a line of `events.jsonl`. It has `kind`, the heading below, and `at`, its time.
`step` is a step ID. `attempt` counts from 1.
"""
_OF_EVERY_LINE = {"schema", "event"}
_OF_EVERY_EVENT = {"kind", "at", "step", "attempt"}


def document(schema: dict[str, Any], present: str) -> str:
    """The document with its tables made anew; everything above the mark stays."""
    head, _, _ = present.partition(MARK)
    return head + MARK + "\n" + "\n".join(sections(schema["$defs"]))


def sections(definitions: dict[str, Any]) -> Iterator[str]:
    for definition in definitions.values():
        if "title" in definition:
            yield from _section(f"## {definition['title']}", definition, without=_OF_EVERY_LINE)
    yield EVENTS
    for name, definition in definitions.items():
        if name.startswith(EVENT):
            yield from _section(f"### {name.removeprefix(EVENT)}", definition, without=_OF_EVERY_LINE | _OF_EVERY_EVENT)


def _section(heading: str, definition: dict[str, Any], *, without: set[str]) -> Iterator[str]:
    yield f"{heading}\n"
    if "description" in definition:
        yield f"{definition['description']}\n"
    described = [
        (key, value["description"])
        for key, value in definition["properties"].items()
        if key not in without or "description" in value
    ]
    if described:
        yield "| Key | Value |\n| --- | --- |"
        for text, rows in groupby(described, key=lambda row: row[1]):
            keys = ", ".join(f"`{key}`" for key, _ in rows)
            yield f"| {keys} | {text} |"
        yield ""
    for example in definition.get("examples", ()):
        yield f"```json\n{json.dumps(example, ensure_ascii=False)}\n```\n"


def dumped(value: object, indent: int = 0, width: int = 118) -> str:
    """JSON with everything on one line that fits there, so that the schema can be read and edited."""
    flat = json.dumps(value, ensure_ascii=False)
    if len(flat) + indent <= width or not isinstance(value, dict | list) or not value:
        return flat
    space = " " * (indent + 2)
    match value:
        case dict():
            parts = [f"{space}{json.dumps(key)}: {dumped(each, indent + 2)}" for key, each in value.items()]
            return "{\n" + ",\n".join(parts) + "\n" + " " * indent + "}"
        case _:
            return "[\n" + ",\n".join(space + dumped(each, indent + 2) for each in value) + "\n" + " " * indent + "]"


def main() -> int:
    """Write the document; with `--check` only say whether it is up to date."""
    present = DOCUMENT.read_text(encoding="utf-8")
    made = document(json.loads(SCHEMA.read_text(encoding="utf-8")), present)
    if "--check" in sys.argv[1:]:
        return int(re.sub(r"\s+", " ", made) != re.sub(r"\s+", " ", present))
    DOCUMENT.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
