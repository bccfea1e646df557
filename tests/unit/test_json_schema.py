"""docs/json-schema.json, the tables of the docs, and the types that the lines are made of say the same."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from enum import Enum
from pathlib import Path
from typing import Any, get_args

import pytest
from jsonschema import Draft202012Validator

from support.json_output import json_lines, schema
from wan_train.base import codec
from wan_train.base.errors import ExitCode
from wan_train.cli.output import SCHEMA
from wan_train.dataset.model import ProblemKind, Severity
from wan_train.engine.failures import Cause
from wan_train.launch.model import BoxState
from wan_train.launch.model import JobState as LaunchJobState
from wan_train.provision.doctor import Group, Level
from wan_train.provision.status_table import Phase
from wan_train.provision.steps import State
from wan_train.recipe.terms import EngineKind, Expert, Task
from wan_train.run.events import Event, StopMode
from wan_train.run.plan import Devices, Plan, StepKind
from wan_train.run.progress import Progress
from wan_train.run.state import JobState
from wan_train.views.run_status import RunStatus

ROOT = Path(__file__).parents[2]
OF_EVERY_LINE = {"schema", "event"}


def definition(name: str) -> dict[str, Any]:
    found: dict[str, Any] = schema()["$defs"][name]
    return found


def lines() -> set[str]:
    return {each["$ref"].rpartition("/")[2] for each in schema()["oneOf"]}


def told(document: str, heading: str) -> set[str]:
    """The keys in the first column of the tables below a heading; keys of keys, such as `a.b`, are left out."""
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"docs/{document} has no section {heading!r}"
    return {key for row in re.findall(r"^\| (`.*?`) \|", found[1], re.MULTILINE) for key in re.findall(r"`(\w+)`", row)}


def test_the_document_is_a_schema() -> None:
    Draft202012Validator.check_schema(schema())


def test_it_has_the_number_that_the_program_prints() -> None:
    for name in [*lines() - {"journal", "result", "status"}, "run"]:
        assert definition(name)["properties"]["schema"] == {"const": SCHEMA}, name


def test_every_event_that_the_program_prints_is_in_it() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src" / "wan_train").rglob("*.py"))
    assert set(re.findall(r'"event": "(\w+)"', source)) == lines()


def test_no_definition_is_left_over() -> None:
    used = set(re.findall(r"#/\$defs/(\w+)", str(schema())))
    assert used == set(schema()["$defs"])


def test_the_tables_are_made_from_it() -> None:
    done = subprocess.run([sys.executable, ROOT / "docs" / "generate_json.py", "--check"], check=False)
    assert done.returncode == 0, "run `make docs`"


def test_every_key_of_a_table_is_described() -> None:
    common = OF_EVERY_LINE | {"kind", "at", "step", "attempt"}
    for name, found in schema()["$defs"].items():
        if "title" in found or name.startswith("journal_"):
            assert "title" in found or found["description"], name
            without = {key for key, value in found["properties"].items() if "description" not in value}
            assert without <= (common if name.startswith("journal_") else OF_EVERY_LINE), name


def test_examples_are_lines_that_the_schema_allows() -> None:
    examples = [each for found in schema()["$defs"].values() for each in found.get("examples", ())]
    assert len(examples) >= 10
    assert json_lines("".join(f"{json.dumps(each)}\n" for each in examples)) == examples


def test_tables_that_stand_elsewhere() -> None:
    provision = {*definition("provision")["properties"], *definition("provision_step")["properties"]}
    assert told("provision.md", "JSON") == provision - OF_EVERY_LINE
    assert told("doctor.md", "JSON") == set(definition("doctor")["properties"]) - OF_EVERY_LINE
    text = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8").partition("## JSON")[2]
    assert all(f"`{key}`" in text for key in definition("check")["properties"])


def test_every_line_has_a_section() -> None:
    titled = {name for name, found in schema()["$defs"].items() if "title" in found}
    assert lines() - titled == {"journal", "result", "status", "provision", "doctor"}


@pytest.mark.parametrize("event", get_args(Event), ids=codec.tag_of)
def test_keys_of_the_journal_are_those_of_its_events(event: type[Any]) -> None:
    found = definition(f"journal_{codec.tag_of(event)}")
    names = {field.name for field in dataclasses.fields(event)}
    assert set(found["properties"]) == set(found["required"]) == {*names, "schema", "event", "kind"}
    assert found["properties"]["kind"] == {"const": codec.tag_of(event)}


@pytest.mark.parametrize(("name", "record"), [("progress", Progress), ("plan_record", Plan)])
def test_keys_of_records(name: str, record: type[Any]) -> None:
    assert set(definition(name)["properties"]) == {field.name for field in dataclasses.fields(record)}


@pytest.mark.parametrize(
    ("name", "key", "kind"),
    [
        ("run", "state", RunStatus),
        ("run", "task", Task),
        ("run", "engine", EngineKind),
        ("run", "exit_code", ExitCode),
        ("error", "exit_code", ExitCode),
        ("launch_job", "state", LaunchJobState),
        ("launch_box", "state", BoxState),
        ("step", "kind", StepKind),
        ("step", "expert", Expert),
        ("step", "state", JobState),
        ("failure", "cause", Cause),
        ("diagnosis", "cause", Cause),
        ("explained_failure", "cause", Cause),
        ("stopping", "mode", StopMode),
        ("journal_stop_requested", "mode", StopMode),
        ("plan_record", "devices", Devices),
        ("plan_step", "kind", StepKind),
        ("provision_step", "state", State),
        ("provision_step", "phase", Phase),
        ("check", "group", Group),
        ("check", "level", Level),
        ("dataset_problem", "kind", ProblemKind),
        ("dataset_problem", "severity", Severity),
    ],
)
def test_words_are_those_of_the_program(name: str, key: str, kind: type[Enum]) -> None:
    found = definition(name)["properties"][key]
    words = found if "enum" in found else found["anyOf"][0]
    assert words["enum"] == [member.value for member in kind]
