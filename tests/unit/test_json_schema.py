"""docs/json-schema.json, the tables of the docs, and the types that the lines are made of say the same."""

from __future__ import annotations

import dataclasses
import re
from enum import Enum
from pathlib import Path
from typing import Any, get_args

import pytest
from jsonschema import Draft202012Validator

from support.json_output import schema
from wan_train.base import codec
from wan_train.base.errors import ExitCode
from wan_train.cli.output import SCHEMA
from wan_train.dataset.model import ProblemKind, Severity
from wan_train.engine.failures import Cause
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
TABLES = {
    "Status": "run",
    "Step of a status": "step",
    "Progress of a step": "progress",
    "Failure of a step": "failure",
    "Result of a step": "lora",
    "GPU of a status": "gpu",
    "Runs": "runs",
    "Explain": "explain",
    "Watching": "watching",
    "Still running": "still_running",
    "Clean": "clean",
    "Item of a clean": "clean_item",
    "Detached": "detached",
    "Resumed": "resumed",
    "Stopping": "stopping",
    "Log": "log",
    "Error": "error",
    "Dry run": "plan",
    "Plan": "plan_record",
    "Step of a plan": "plan_step",
    "GPU of a plan": "gpu_of_plan",
    "Report": "report",
    "Expert of a report": "report_expert",
    "Compare": "compare",
    "Recipe": "recipe",
    "Curve of a step": "curve",
    "Dataset check": "dataset_check",
    "Dataset written": "dataset_written",
    **{codec.tag_of(event): f"journal_{codec.tag_of(event)}" for event in get_args(Event)},
}


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


@pytest.mark.parametrize("heading", TABLES)
def test_a_table_of_the_docs_has_the_keys(heading: str) -> None:
    keys = set(definition(TABLES[heading])["properties"])
    assert told("json-output.md", heading) == (keys if heading == "Plan" else keys - OF_EVERY_LINE)


def test_tables_that_stand_elsewhere() -> None:
    provision = {*definition("provision")["properties"], *definition("provision_step")["properties"]}
    assert told("provision.md", "JSON") == provision - OF_EVERY_LINE
    assert told("doctor.md", "JSON") == set(definition("doctor")["properties"]) - OF_EVERY_LINE
    text = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8").partition("## JSON")[2]
    assert all(f"`{key}`" in text for key in definition("check")["properties"])


def test_every_line_has_a_table_and_every_table_a_line() -> None:
    assert lines() - set(TABLES.values()) == {"journal", "result", "status", "provision", "doctor"}


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
