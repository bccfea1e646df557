"""Parse the end of a log: the exception that ended the program, or the text that says what killed it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_HEADER = "Traceback (most recent call last)"
_GROUP_HEADER = "Exception Group Traceback"
_DIRECT = "The above exception was the direct cause of the following exception:"
_WHILE_HANDLING = "During handling of the above exception, another exception occurred:"

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_PREFIX = re.compile(
    r"^(?:\[(?:rank|default)\d+\]:\s?|\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)? )"
)
"""Prefixes that torchrun and `docker logs --timestamps` add to every line."""
_MARGIN = re.compile(r"^\s*\|\s?")
_PART = re.compile(r"^\s*\+(?:-\+)?-{4,} (?:\d+|\.\.\.) -{4,}$")
"""The separator before each exception of an exception group."""
_RULE = re.compile(r"^\s*\+-{8,}$")
_FRAME = re.compile(r'^\s*File "(?P<file>[^"]*)", line (?P<line>\d+)(?:, in (?P<function>\S+))?\s*$')
_RAISED = re.compile(r"^(?P<type>[A-Za-z_][\w.]*)(?::(?: (?P<text>.*))?)?$")
_LEVELS = frozenset({"INFO", "WARNING", "ERROR", "DEBUG", "CRITICAL"})
_LOGGED = re.compile(r"^(?:INFO|WARNING|DEBUG):|^epoch \d+/\d+$|^saving checkpoint: ")
"""Lines of a program that still runs. Progress bars do not count: tqdm redraws the last one after the program's end."""
_BAR = re.compile(r"\d+%\|.*\| *\d+/\d+ |^\d+it \[")
_AFTERWARDS = re.compile(
    r"^(?:INFO|WARNING|ERROR|DEBUG|CRITICAL):|^wandb: |^Exception ignored |^\[W\d+ |^terminate called "
    r"|^Fatal Python error"
    r"|^(?:\S*: )?(?:line \d+: +\d+ )?(?:Killed|Segmentation fault|Aborted|Bus error|Illegal instruction)\b"
    r"|resource_tracker|^usage: "
)
_USAGE = re.compile(r"^(?P<program>\S+\.py|accelerate\S*(?: launch)?|usage): error: (?P<text>.+)$")
"""argparse's last line."""
_TERMINATE = re.compile(r"^terminate called after throwing an instance of '(?P<type>[^']*)'")
_WHAT = re.compile(r"^\s*what\(\):\s*(?P<text>.*)$")
_HEADLESS = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?:Error|Exception|Interrupt|Exit)(?::(?: .*)?)?$")
_LAUNCHERS = re.compile(r"accelerate/commands/|/accelerate$|torch/distributed/(?:run|launcher|elastic)|/torchrun$")
_PYTHON_FAILED = re.compile(r"^Command '\['[^']*python[^']*', ")

_MOST_LINES = 60
"""Limit for one exception's text. What follows is taken for something else."""
_MISSING_MODULE = re.compile(r"ModuleNotFoundError: No module named '[^']*'(?:; .*)?")
"""Python's own message, which never exceeds its line."""
_MOST_STRAY = 20
"""Limit for other programs' and threads' lines between the frames of one traceback."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One traceback frame, with the source line below it if there is one."""

    file: str
    line: int
    function: str
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Raised:
    """An exception with its whole text. `follows`: an exception led to it; `direct`: by `raise … from`."""

    type: str
    text: str
    frames: tuple[Frame, ...] = ()
    follows: bool = False
    direct: bool = False

    @property
    def whole(self) -> str:
        return f"{self.type}: {self.text}" if self.text else self.type


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """Text that a shell, a launcher or the kernel prints when a signal ends a program."""

    signal: str
    words: str
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A log's lines as a terminal finally shows them, and what ended the program, if they say so.

    `chain`: the exceptions of the last traceback, in log order. `went_on`: ordinary lines follow the traceback, so
    something caught it. `complaint`: a later argparse error or C++ terminate message.
    """

    lines: tuple[str, ...]
    chain: tuple[Raised, ...] = ()
    went_on: bool = False
    complaint: Raised | None = None
    headless: Raised | None = None
    death: Death | None = None
    after: int = 0
    """Index of the first line after the last traceback."""


def read(text: str) -> Reading:
    """Parse the end of a log. Never raises."""
    lines = _cleaned(text)
    found: list[tuple[tuple[Raised, ...], int]] = []
    at = 0
    while at < len(lines):
        if not _opens(lines[at]):
            at += 1
            continue
        chain, at = _chain(lines, at)
        if chain and not _is_launchers(chain[-1]):
            found.append((chain, at))
    chain, after = found[-1] if found else ((), 0)
    rest = lines[after:]
    return Reading(
        lines=tuple(lines),
        chain=chain,
        went_on=any(_LOGGED.match(line) for line in rest),
        complaint=_complaint(lines, after),
        headless=_headless(lines, after),
        death=_death(lines),
        after=after,
    )


def _cleaned(text: str) -> list[str]:
    """Lines as a terminal finally shows them, without escapes, prefixes and boxes around tracebacks."""
    lines: list[str] = []
    for line in _ESCAPES.sub("", text).split("\n"):
        shown = next((part for part in reversed(line.split("\r")) if part.strip()), "")
        shown = _PREFIX.sub("", _PREFIX.sub("", shown))
        before, header, _ = shown.partition(_HEADER)
        if header and before.strip() and _BAR.search(before):
            lines.append(before)  # a progress bar has no line end
            shown = shown[len(before) :]
        lines.append(shown)
    return _without_boxes(_without_margins(_without_prefixes(lines)))


def _without_prefixes(lines: list[str]) -> list[str]:
    """Remove what a wrapping program put before each traceback line, such as its name or a time."""
    made = list(lines)
    for number, line in enumerate(lines):
        before, header, _ = line.partition(_HEADER)
        if not header or not before.strip() or _GROUP_HEADER.startswith(before.strip(" +|")) or before[0] in "╭|+":
            continue
        shape = _shape(before)
        for later in range(number, len(lines)):
            if _shape(lines[later][: len(before)]) != shape:
                break
            made[later] = lines[later][len(before) :]
    return made


def _shape(text: str) -> str:
    return re.sub(r"\d", "0", text)


def _without_margins(lines: list[str]) -> list[str]:
    """Turn exception groups into consecutive tracebacks."""
    made: list[str] = []
    inside = False
    for line in lines:
        if _GROUP_HEADER in line:
            inside = True
            made.append(f"{_HEADER}:")
        elif inside and _PART.match(line):
            made += [_DIRECT, f"{_HEADER}:"]
        elif inside and _RULE.match(line):
            inside = False
        elif inside and _MARGIN.match(line):
            inner = _innermost(line)
            # An exception in a group may or may not have its own header.
            if not inner.startswith(_HEADER):
                made.append(inner)
        else:
            inside = False
            made.append(line)
    return made


def _innermost(line: str) -> str:
    while (inner := _MARGIN.sub("", line)) != line:
        line = inner
    return line


def _without_boxes(lines: list[str]) -> list[str]:
    """Turn tracebacks that rich drew into plain ones without frames. The exception is below the box."""
    made: list[str] = []
    for line in lines:
        if line.startswith("╭") and _HEADER in line:
            made.append(f"{_HEADER}:")
        elif line.startswith(("│", "╰")):
            made.append("  " + line.strip("│╰╯─ "))
        else:
            made.append(line)
    return made


def _opens(line: str) -> bool:
    return line.startswith(_HEADER) or _FRAME.match(line) is not None


def _chain(lines: Sequence[str], at: int) -> tuple[tuple[Raised, ...], int]:
    """The linked exceptions of one traceback, and the index of the line after them."""
    chain: list[Raised] = []
    follows = direct = False
    while True:
        raised, at = _one(lines, at, follows=follows, direct=direct)
        if raised is not None:
            chain.append(raised)
        here = at
        while here < len(lines) and not lines[here].strip():
            here += 1
        if here >= len(lines) or lines[here].strip() not in {_DIRECT, _WHILE_HANDLING}:
            return tuple(chain), at
        follows, direct = raised is not None, lines[here].strip() == _DIRECT
        at = here + 1
        while at < len(lines) and not lines[at].strip():
            at += 1


def _one(lines: Sequence[str], at: int, *, follows: bool, direct: bool) -> tuple[Raised | None, int]:
    """Parse one traceback from its header on; None if its exception is missing."""
    frames: list[Frame] = []
    if at < len(lines) and lines[at].startswith(_HEADER):
        at += 1
    stray = 0
    while at < len(lines):
        line = lines[at]
        if frame := _FRAME.match(line):
            frames.append(Frame(file=frame["file"], line=int(frame["line"]), function=frame["function"] or ""))
        elif line.startswith(_HEADER):
            return None, at
        elif line[:1].isspace():
            if frames and not frames[-1].source and set(line) - set(" ^~"):
                frames[-1] = Frame(
                    file=frames[-1].file, line=frames[-1].line, function=frames[-1].function, source=line.strip()
                )
        elif _names_exception(line):
            return _with_text(lines, at, tuple(frames), follows=follows, direct=direct)
        elif line.strip():
            stray += 1
            if stray > _MOST_STRAY:
                return None, at
        at += 1
    return None, at


def _names_exception(line: str) -> bool:
    """Whether an unindented line names an exception, unlike lines of other programs and threads."""
    raised = _RAISED.match(line.rstrip())
    if raised is None or raised["type"] in _LEVELS or _BAR.search(line):
        return False
    last = raised["type"].rpartition(".")[2]
    return "." in raised["type"].strip(".") or last[:1].isupper()


def _with_text(
    lines: Sequence[str], at: int, frames: tuple[Frame, ...], *, follows: bool, direct: bool
) -> tuple[Raised, int]:
    raised = _RAISED.match(lines[at].rstrip())
    assert raised is not None, "a line that names an exception"
    name = raised["type"]
    text = [raised["text"] or ""]
    at += 1
    most = 1 if _MISSING_MODULE.fullmatch(f"{name}: {text[0]}") else _MOST_LINES
    while at < len(lines) and len(text) < most and not _ends_text(lines[at]):
        if name.endswith("Warning") and _names_exception(lines[at]):
            # A warning printed between the frames and the exception.
            return _with_text(lines, at, frames, follows=follows, direct=direct)
        text.append(lines[at].rstrip())
        at += 1
    return (
        Raised(type=name, text="\n".join(text).strip(), frames=frames, follows=follows, direct=direct),
        at,
    )


def _ends_text(line: str) -> bool:
    return bool(
        _HEADER in line
        or line.strip() in {_DIRECT, _WHILE_HANDLING}
        or _AFTERWARDS.search(line)
        or _BAR.search(line)
        or _FRAME.match(line)
    )


def _is_launchers(raised: Raised) -> bool:
    """Whether the launcher raised it. It only says that its child failed, and repeats the whole command line."""
    name = raised.type.rpartition(".")[2]
    if name == "ChildFailedError":
        return True
    if name != "CalledProcessError":
        return False
    if any(_LAUNCHERS.search(frame.file) for frame in raised.frames):
        return True
    return _PYTHON_FAILED.match(raised.text) is not None


def _complaint(lines: Sequence[str], after: int) -> Raised | None:
    found = None
    for number in range(after, len(lines)):
        if usage := _USAGE.match(lines[number]):
            found = Raised(type=usage["program"], text=f"error: {usage['text'].strip()}")
        elif ended := _TERMINATE.match(lines[number]):
            what = _WHAT.match(lines[number + 1]) if number + 1 < len(lines) else None
            found = Raised(type=ended["type"], text=what["text"].strip() if what else "")
    return found


def _headless(lines: Sequence[str], after: int) -> Raised | None:
    """The last line that looks like an exception, because the log may lack the head of its traceback."""
    for number in range(len(lines) - 1, after - 1, -1):
        if _HEADLESS.match(lines[number].rstrip()) and not _names_launcher(lines[number]):
            return _with_text(lines, number, (), follows=False, direct=False)[0]
    return None


def _names_launcher(line: str) -> bool:
    raised = _RAISED.match(line.rstrip())
    return raised is not None and _is_launchers(Raised(type=raised["type"], text=raised["text"] or ""))


_DEATHS: tuple[tuple[re.Pattern[str], str | None], ...] = (
    # The last line of accelerate 1.6, which itself exits with code 1.
    (re.compile(r"died with <Signals\.(?P<signal>SIG\w+): -?\d+>\.$"), None),
    # torch 2.13 names the worker, not what ended it.
    (re.compile(r"DataLoader worker .*is killed by signal: Killed"), "SIGKILL"),
    (
        re.compile(r"^(?:\S+: )?(?:line \d+: +\d+ )?Killed(?: |$)|\bOOMKilled\b|[Oo]ut of memory: Killed process"),
        "SIGKILL",
    ),
    (re.compile(r"^(?:\S+: )?(?:line \d+: +\d+ )?Terminated(?: |$)"), "SIGTERM"),
    (re.compile(r"Segmentation fault|^Fatal Python error: Segmentation"), "SIGSEGV"),
    (re.compile(r"^(?:\S+: )?(?:line \d+: +\d+ )?Bus error|^Fatal Python error: Bus error"), "SIGBUS"),
    (re.compile(r"^(?:\S+: )?(?:line \d+: +\d+ )?Aborted(?: |$)|^Fatal Python error: Aborted"), "SIGABRT"),
    (re.compile(r"Illegal instruction(?: |$)"), "SIGILL"),
    (re.compile(r"Floating point exception(?: |$)"), "SIGFPE"),
    (re.compile(r"terminated by signal 9\b|exit(?:ed)?(?: with)?(?: code| status)? 137\b"), "SIGKILL"),
    # torchrun and its table of failures.
    (re.compile(r"\bSignal \d+ \((?P<signal>SIG\w+)\) received by PID \d+"), None),
    (re.compile(r"^\s*exitcode\s*:\s*-9\b"), "SIGKILL"),
    (re.compile(r"^\s*exitcode\s*:\s*-11\b"), "SIGSEGV"),
)


def _death(lines: Sequence[str]) -> Death | None:
    """The last text about a signal, unless ordinary lines follow it."""
    for number in range(len(lines) - 1, -1, -1):
        line = lines[number].rstrip()
        if _LOGGED.match(line):
            return None
        for pattern, name in _DEATHS:
            if found := pattern.search(line):
                words = line.strip()
                if (start := found.start()) and name is None:
                    words = line[start:].strip()  # the launcher puts the whole command line before it
                return Death(signal=name or found["signal"], words=words, line=number)
    return None
