"""Every error message has the same form: `error: what, where, why`, and a hint with the next action."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "wan_train"
# Shown to a user as they are raised, by `Sink.error`; what is raised from within other errors stands inside a sentence.
ERRORS = {"BadInputError", "NotReadyError", "GpuUnavailableError", "CorruptRecordError", "DatasetError"}
NAMES = ("PyAV", "NVML", "HF_", "WAN_TRAIN")
WITHOUT_A_HINT = {
    "provision/downloads.py",  # tried again; the last error has a hint
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


def problems(path: Path, node: ast.Call) -> Iterator[str]:
    message = text_of(node.args[0])
    if message[0].isupper() and not message.startswith(NAMES):
        yield "the message begins with a capital"
    if message.endswith((".", "!")):
        yield "the message ends like a sentence"
    if str(path) not in WITHOUT_A_HINT and not any(keyword.arg == "hint" for keyword in node.keywords):
        yield "there is no hint"
    for hint in filter(None, (text_of(keyword.value) for keyword in node.keywords if keyword.arg == "hint")):
        if hint[0].islower() and not hint.startswith("auto "):
            yield f"the hint begins with a small letter: {hint}"
        if not hint.endswith((".", "?", "`", "}", "resume {}")) and "wan-train" not in hint:
            yield f"the hint is no sentence: {hint}"


def test_a_message_is_a_clause_and_its_hint_a_sentence() -> None:
    messages = [(path, node) for path, node in raised() if node.args and text_of(node.args[0])]
    assert len(messages) > 60
    found = [
        f"{path}:{node.lineno}: {problem} ({text_of(node.args[0])!r})"
        for path, node in messages
        for problem in problems(path, node)
    ]
    assert not found, "\n".join(found)
