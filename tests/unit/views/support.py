"""Screens as text, and their golden files."""

from __future__ import annotations

import os
from io import StringIO
from pathlib import Path

from rich.console import Console, RenderableType

GOLDEN = Path(__file__).parents[2] / "golden"


def shown(renderable: RenderableType, width: int, *, soft_wrap: bool = False) -> str:
    """What a terminal without colour shows, without the spaces at the ends of lines."""
    console = Console(width=width, file=StringIO(), color_system=None, highlight=False)
    console.print(renderable, soft_wrap=soft_wrap)
    assert isinstance(console.file, StringIO)
    return "".join(f"{line.rstrip()}\n" for line in console.file.getvalue().splitlines())


def check_golden(name: str, text: str) -> None:
    """Compare with tests/golden/NAME.txt; with WAN_TRAIN_UPDATE_GOLDEN=1 write it instead."""
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("WAN_TRAIN_UPDATE_GOLDEN") == "1":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{path.name} differs; WAN_TRAIN_UPDATE_GOLDEN=1 rewrites it"
