"""docs/exit-codes.md and the program agree. Real runs end with these codes in tests/e2e/test_failures.py."""

from __future__ import annotations

import re
from pathlib import Path

from wan_train.base.errors import ExitCode

DOCUMENT = Path(__file__).parents[2] / "docs" / "exit-codes.md"


def test_every_code_is_documented_with_its_name_and_what_to_do() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| (.+?) \| (.+?) \|$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert {(int(code), name) for code, name, *_ in rows} == {(code.value, code.name) for code in ExitCode}
