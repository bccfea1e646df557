"""docs/exit-codes.md and the program agree, and real runs end with the codes it tells."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.trainers import ScriptedBox
from wan_train.base.errors import ExitCode

DOCUMENT = Path(__file__).parents[2] / "docs" / "exit-codes.md"


def test_every_code_is_documented_with_its_name_and_what_to_do() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| (.+?) \| (.+?) \|$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert {(int(code), name) for code, name, *_ in rows} == {(code.value, code.name) for code in ExitCode}


@pytest.mark.parametrize(
    ("fault", "code"),
    [("die@high,die@low", 4), ("die@low", 5)],
    ids=["both fail", "one fails"],
)
def test_a_run_ends_with_the_documented_code(scripted_box: ScriptedBox, fault: str, code: int) -> None:
    assert scripted_box.train(SCRIPTED_FAULT=fault).returncode == code
