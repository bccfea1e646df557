"""Checks `--json` output against docs/json-schema.json. The schema allows new keys; here every key must be documented.

(line,) = json_lines(done.stdout)
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

DOCUMENT = Path(__file__).parents[2] / "docs" / "json-schema.json"


def json_lines(text: str) -> list[dict[str, Any]]:
    """Return every line as JSON of the documented shape. NaN and Infinity are errors: no other language reads them."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    lines = [json.loads(line, parse_constant=refuse) for line in text.splitlines()]
    for line in lines:
        problems = [f"{error.json_path}: {error.message}" for error in _validator(_name(line)).iter_errors(line)]
        assert problems == [], f"not as docs/json-schema.json has it: {problems}"
    return lines


@functools.cache
def schema() -> dict[str, Any]:
    """Return the unchanged document."""
    data: dict[str, Any] = json.loads(DOCUMENT.read_text(encoding="utf-8"))
    return data


def _name(line: dict[str, Any]) -> str:
    """Return the definition for a line. A lookup reports problems of this one, not of all alternatives."""
    return f"journal_{line.get('kind')}" if line.get("event") == "journal" else str(line.get("event"))


@functools.cache
def _validator(name: str) -> Draft202012Validator:
    assert name in schema()["$defs"], f"docs/json-schema.json has no {name}"
    return Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": _closed(schema()["$defs"])})


def _closed(value: Any) -> Any:
    """Return the schema with no other keys allowed in any object that names its keys."""
    match value:
        case dict():
            closed = {key: _closed(each) for key, each in value.items()}
            if value.get("type") == "object" and "properties" in value:
                closed.setdefault("additionalProperties", False)
            return closed
        case list():
            return [_closed(each) for each in value]
        case _:
            return value
