"""Every message that a user may meet has the same form: `error: what, where, why`, and a hint that says what next."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "wan_train"
# Shown to a user as they are raised, by `Sink.error`; what is raised from within other errors stands inside a sentence.
ERRORS = {"BadInputError", "NotReadyError", "GpuUnavailableError", "CorruptRecordError", "DatasetError"}
NAMES = ("PyAV", "NVML", "HF_", "WAN_TRAIN")
WITHOUT_A_HINT = {
    "provision/downloads.py",  # retried; the last error has one
    "provision/work.py",
}


def raised() -> Iterator[tuple[Path, ast.Call]]:
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS:
                yield path.relative_to(SOURCE), node


def text_of(node: ast.expr) -> str:
    """The words of a literal, with what is filled in as `{}`; empty for what is no literal."""
    match node:
        case ast.Constant(value=str() as text):
            return text
        case ast.JoinedStr(values=values):
            return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in values)  # type: ignore[misc]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return text_of(left) + (text_of(right) or "{}")
        case _:
            return ""


RAISED = [(path, node) for path, node in raised() if node.args and text_of(node.args[0])]


def test_there_are_messages() -> None:
    assert len(RAISED) > 60


@pytest.mark.parametrize("node", [node for _, node in RAISED], ids=[f"{path}:{node.lineno}" for path, node in RAISED])
def test_a_message_is_a_clause_and_its_hint_a_sentence(node: ast.Call) -> None:
    message = text_of(node.args[0])
    assert message[0].islower() or not message[0].isalpha() or message.startswith(NAMES), message
    assert not message.endswith((".", "!")), message
    hints = [text_of(keyword.value) for keyword in node.keywords if keyword.arg == "hint"]
    for hint in filter(None, hints):
        assert not hint[0].islower() or hint.startswith("auto "), hint
        assert hint.endswith((".", "?", "`", "}", "resume {}")) or "wan-train" in hint, hint


@pytest.mark.parametrize(("path", "node"), RAISED, ids=[f"{path}:{node.lineno}" for path, node in RAISED])
def test_what_a_user_did_is_followed_by_what_helps(path: Path, node: ast.Call) -> None:
    if str(path) not in WITHOUT_A_HINT:
        assert any(keyword.arg == "hint" for keyword in node.keywords), text_of(node.args[0])
