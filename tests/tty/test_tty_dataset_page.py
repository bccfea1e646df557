"""A file that `--html` names and that is no such page is replaced only after a yes, which Enter is not."""

from __future__ import annotations

import pytest
from tty_keys import CTRL_C, ENTER, Start

from support.trainers import ScriptedBox

MINE = "<p>my own page"


@pytest.mark.parametrize(("key", "code", "is_kept"), [(ENTER, 2, True), (CTRL_C, 130, True), ("y", 0, False)])
def test_another_file_is_asked_about(
    terminal: Start, scripted_box: ScriptedBox, key: str, code: int, is_kept: bool
) -> None:
    target = scripted_box.root / "mine.html"
    target.write_text(MINE, encoding="utf-8")
    screen = terminal("dataset", "check", str(scripted_box.dataset), "--html", str(target))
    screen.sees("Replace it?")
    screen.types(key)
    assert screen.ends() == code
    assert (target.read_text(encoding="utf-8") == MINE) == is_kept
