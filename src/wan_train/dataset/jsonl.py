"""The records of a jsonl file (one picture or clip with its caption on each line) and their problems.

A run gets its own copy (`text`) with absolute paths and without anything that stops the trainer. d0a1930 does not know
`image_path_0`. Both versions resolve relative paths against their working directory, fail at a blank line or a byte
order mark, and require every control picture.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wan_train.base.home import expanded
from wan_train.dataset.listing import is_windows_path
from wan_train.dataset.model import Item, MediaKind, Problem, ProblemKind, Severity
from wan_train.dataset.schema import type_names, unused

_OTHER_MODELS = ("control_path", "image_path_")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One valid line: `path` is absolute and exists, `caption` is as written."""

    path: Path
    caption: str
    row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """The valid records of a jsonl file, and its problems."""

    records: tuple[Record, ...] = ()
    problems: tuple[Problem, ...] = ()


class _BadRecordError(Exception):
    """What is wrong with one line, and how to fix it."""

    def __init__(self, what: str, fix: str, kind: ProblemKind = ProblemKind.BAD_RECORD) -> None:
        super().__init__(what)
        self.what, self.fix, self.kind = what, fix, kind


def read(source: Path, kind: MediaKind, bases: Sequence[Path]) -> Records:
    """Every record of the file; relative paths are looked up in `bases`, in order. Never raises for its content."""
    try:
        text = source.read_bytes().decode("utf-8")
    except OSError as error:
        what = f"cannot be read: {error.strerror or error}"
        return Records(problems=(_about(source, what, "Check the permissions", ProblemKind.BAD_RECORD),))
    except UnicodeDecodeError:
        return Records(problems=(_about(source, "is not UTF-8", "Save it as UTF-8", ProblemKind.CAPTION_ENCODING),))
    problems: list[Problem] = []
    if text.startswith("\ufeff"):
        what = "starts with a byte order mark, which the run ignores"
        fix = "Save it as UTF-8 without BOM to use it elsewhere"
        problems.append(_about(source, what, fix, ProblemKind.CAPTION_ENCODING, severity=Severity.NOTE))
    records: list[Record] = []
    extra: Counter[str] = Counter()
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")
    for row, line in enumerate(lines, start=1):
        if not line.strip():
            what, fix = "is a blank line, which the run ignores", "Remove it to use the file elsewhere"
            if len(lines) > 1:
                problems.append(_about(source, what, fix, row=row, severity=Severity.NOTE))
            continue
        try:
            record = _object(line)
            named, caption = _named(record, kind), _caption(record)
            path = _located(named, bases)
        except _BadRecordError as error:
            problems.append(_about(source, error.what, error.fix, error.kind, row=row))
        else:
            records.append(Record(path=path, caption=caption, row=row))
            extra.update(key for key in record if key.startswith(_OTHER_MODELS) and key != "image_path_0")
    if not any(line.strip() for line in lines):
        problems.append(_about(source, "contains no records", _example(kind), ProblemKind.EMPTY_DATASET))
    for key, count in extra.items():
        problems.append(unused(path=source, what=f"{key} of {count} record{'' if count == 1 else 's'}"))
    return Records(records=tuple(records), problems=tuple(problems))


def text(kind: MediaKind, items: Iterable[Item]) -> str:
    """A jsonl file of these items that every trainer version reads the same way."""
    return "".join(f"{line}\n" for line in _lines(kind, items))


def _lines(kind: MediaKind, items: Iterable[Item]) -> Iterator[str]:
    for item in items:
        # Write only ASCII, since readers disagree about which characters end a line.
        yield json.dumps({f"{kind}_path": os.fspath(item.path), "caption": item.caption or ""})


def _object(line: str) -> dict[str, object]:
    try:
        record = json.loads(line)
    except RecursionError:
        raise _BadRecordError("is nested too deeply", "Write one record on the line") from None
    except ValueError as error:
        if isinstance(error, json.JSONDecodeError) and error.msg.startswith("Invalid \\escape"):
            what = f"is not JSON: a single backslash at column {error.colno}"
            raise _BadRecordError(what, "Write paths with /; a Windows path does not exist on this machine") from None
        where = f", column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        message = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise _BadRecordError(f"is not JSON ({message}{where})", 'Write one {"…": "…"} per line') from None
    if not isinstance(record, dict):
        what = f"is {type_names.get(type(record), 'no object')}, not an object"
        raise _BadRecordError(what, 'Write one {"…": "…"} per line, without a list around them')
    return record


def _named(record: dict[str, object], kind: MediaKind) -> str:
    key = f"{kind}_path"
    given = key
    if key not in record and kind is MediaKind.IMAGE and f"{key}_0" in record:
        given = f"{key}_0"
    if given not in record:
        other = MediaKind.IMAGE if kind is MediaKind.VIDEO else MediaKind.VIDEO
        if f"{other}_path" in record:
            raise _BadRecordError(f"has {other}_path instead of {key}", f"Use {other}_jsonl_file for this file")
        has = f"; it has {', '.join(list(record)[:5])}" if record else ""
        raise _BadRecordError(f"has no {key}{has}", _example(kind))
    value = record[given]
    if not isinstance(value, str):
        raise _BadRecordError(f"has {_type(value)} as {given}", f"Write {given} as text in quotes")
    if not value.strip():
        raise _BadRecordError(f"has an empty {given}", "Write the path of the file")
    if not _is_possible(value):
        raise _BadRecordError("has an invalid path", "Correct the path")
    return value


def _located(value: str, bases: Sequence[Path]) -> Path:
    tried = [base / expanded(value) for base in bases]
    found = next((path for path in tried if os.path.lexists(path)), None)
    if found is not None:
        return Path(os.path.abspath(found))
    if is_windows_path(value):
        raise _BadRecordError(f"has a Windows path: {value}", "Write the path of the file on this machine")
    if Path(value).is_absolute():
        raise _BadRecordError(f"has the path {value}, which does not exist", "Correct the path", ProblemKind.NOT_A_FILE)
    what = f"has the path {value}, which is not in {' or '.join(map(str, bases))}"
    raise _BadRecordError(what, "Write an absolute path, or one relative to this file", ProblemKind.NOT_A_FILE)


def _caption(record: dict[str, object]) -> str:
    if "caption" not in record:
        raise _BadRecordError(f"has no caption; it has {', '.join(list(record)[:5])}", 'Add "caption": "…"')
    value = record["caption"]
    if not isinstance(value, str):
        raise _BadRecordError(f"has {_type(value)} as caption", "Write the caption as text in quotes")
    try:
        value.encode()
    except UnicodeEncodeError:
        what = "has an invalid Unicode escape (half of a surrogate pair) in its caption"
        raise _BadRecordError(what, "Write the caption in UTF-8") from None
    return value


def _type(value: object) -> str:
    return "nothing (null)" if value is None else type_names.get(type(value), "another type")


def _example(kind: MediaKind) -> str:
    return f'Write one {{"{kind}_path": "…", "caption": "…"}} per line'


def _is_possible(path: str) -> bool:
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write and UTF-8 cannot
        return False


def _about(
    source: Path,
    what: str,
    fix: str,
    kind: ProblemKind = ProblemKind.BAD_RECORD,
    *,
    row: int | None = None,
    severity: Severity = Severity.STOPS,
) -> Problem:
    return Problem(severity, kind, what, fix, source, row=row)
