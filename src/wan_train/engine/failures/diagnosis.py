"""Find the cause of a failure: which exception of a chain explains it, and its kind."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from wan_train.engine.failures import Cause, Diagnosis
from wan_train.engine.failures.environment import ENVIRONMENT_KINDS
from wan_train.engine.failures.gpu import GPU_KINDS
from wan_train.engine.failures.hub import HUB_KINDS
from wan_train.engine.failures.inputs import INPUTS_KINDS
from wan_train.engine.failures.kinds import Kind
from wan_train.engine.failures.log_end import Raised, Reading, read
from wan_train.engine.failures.machine import MACHINE_KINDS
from wan_train.engine.failures.settings import SETTINGS_KINDS

# The first match wins, so specific kinds come before general ones. A missing file is the most general.
KINDS: tuple[Kind, ...] = (
    *GPU_KINDS,
    *MACHINE_KINDS,
    *HUB_KINDS,
    *SETTINGS_KINDS,
    *ENVIRONMENT_KINDS,
    *INPUTS_KINDS,
)

_SAMPLING = frozenset({"sample_images", "process_sample_prompts"})
"""Sampling functions (both versions). The trainer catches nothing there, so an exception ends it."""
_OF_SAMPLING = frozenset(
    {Cause.OUT_OF_MEMORY, Cause.BAD_INPUT, Cause.SETTING, Cause.ENVIRONMENT, Cause.MISSING_FILE, Cause.UNKNOWN}
)
"""Causes that sampling itself may have. A full disk or a lost GPU would have ended the training too."""

_ENDED_BY_OTHERS = frozenset({"SIGKILL", "SIGTERM", "SIGINT", "SIGHUP"})
_IMPORTS = re.compile(r"^(?:[\w.]*\.)?(?:ModuleNotFoundError|ImportError)\b")
"""Errors that libraries catch and print when an optional package is missing."""
_NO_EVIDENCE = re.compile(r"^(?:INFO|DEBUG|WARNING):|Warning: |CalledProcessError: Command|^\s*warnings\.warn")
"""Lines of a program that still runs, and the launcher's line, which repeats the user's arguments."""
_COMPLAINS = re.compile(
    r"error|exception|fail|fatal|cannot|can't|couldn't|could not|unable|denied|exceeded|not found|missing"
    r"|no space|no such"
    r"|too many|lost|full|unavailable|out of memory|must be|no module",
    re.IGNORECASE,
)
_BOILERPLATE = re.compile(
    r"^(?:CUDA kernel errors might be asynchronously|For debugging consider passing|Compile with `TORCH_USE_CUDA_DSA`"
    r"|Device-side assertions? )"
)
_EVIDENCE_LINES = 6
_EVIDENCE_LENGTH = 1200


def killing_signal(tail: str) -> tuple[str, str] | None:
    """The name of the signal that ended the trainer and the text that says so; None if the log does not.

    `accelerate launch` exits with code 1 when its trainer was killed, and so does a trainer whose data loader was
    killed. Only their output names the signal (accelerate 1.6, torch 2.13).
    """
    log = read(tail)
    if log.death is None or (log.death.line < log.after and not _loader_killed(log)):
        return None
    if _raised(log) is not None and not _loader_killed(log) and not _overrules(log):
        return None
    return log.death.signal, log.death.words


def diagnose(tail: str) -> Diagnosis:
    """The cause of a failure from the end of a log; UNKNOWN with the exception's own text if it is not recognised.

    SAMPLING if a sample failed, not the training itself.
    """
    log = read(tail)
    found = _diagnose(log, tail)
    if found.cause not in _OF_SAMPLING or not _in_samples(log):
        return found
    because = "" if found.cause is Cause.UNKNOWN else f": {found.meaning}"
    smaller = found.cause is Cause.OUT_OF_MEMORY
    return replace(
        found,
        cause=Cause.SAMPLING,
        meaning=f"a sample could not be made{because}",
        advice="Give the prompts smaller --w, --h or --f." if smaller else "Read the end of the log.",
    )


def _in_samples(log: Reading) -> bool:
    return any(frame.function in _SAMPLING for raised in log.chain for frame in raised.frames)


def _diagnose(log: Reading, tail: str) -> Diagnosis:
    if killing_signal(tail) is not None:
        assert log.death is not None, "just seen"
        return died(log.death.signal, log.death.words)
    ended = _raised(log)
    if ended is not None and _IMPORTS.match(ended[-1].whole) and (found := _anywhere(log)):
        return found  # an optional package was missing, but something else ended the program
    if ended is not None:
        return _known(log, ended) or _unknown(ended)
    if log.headless is not None and (found := _known(log, (log.headless,))):
        return found
    if found := _anywhere(log):
        return found
    if log.chain and not _IMPORTS.match(log.chain[-1].whole):
        return _known(log, log.chain) or _unknown(log.chain)
    return _unknown((log.headless,) if log.headless is not None else ())


def _raised(log: Reading) -> tuple[Raised, ...] | None:
    """The exceptions that ended the program; None if the log shows none."""
    if log.complaint is not None:
        return (log.complaint,)
    return log.chain if log.chain and not log.went_on else None


def _overrules(log: Reading) -> bool:
    """Whether a signal explains the end better than the exception before it.

    A program that an exception ends is not killed as well, so a killed program survived the printed exception. This
    does not hold for crash signals, which may come from the program's own clean-up.
    """
    if log.death is None or log.complaint is not None:
        return False
    if _IMPORTS.match(log.chain[-1].whole):
        return True
    return log.death.signal in _ENDED_BY_OTHERS and _known(log, log.chain) is None


def _loader_killed(log: Reading) -> bool:
    return log.death is not None and "DataLoader worker" in log.death.words


def _known(log: Reading, chain: Sequence[Raised]) -> Diagnosis | None:
    symptom = None
    for group in _groups(chain):
        for each in KINDS:
            for raised in group:
                found = each.fits(raised)
                if found is None or (each.wrapper and symptom is not None):
                    continue
                diagnosis = each.says(found, _evidence(raised, chain[-1]))
                if each.wrapper:
                    symptom = diagnosis
                    continue
                return _reason(log, each, raised) or diagnosis
    return symptom


def _groups(chain: Sequence[Raised]) -> Iterator[list[Raised]]:
    """Groups of exceptions linked by `raise … from`, the last group first, each group from its root on.

    An exception that was only being handled when the next was raised may be harmless.
    """
    group: list[Raised] = []
    for raised in reversed(chain):
        group.insert(0, raised)
        if not raised.direct:
            yield group
            group = []
    if group:
        yield group


def _reason(log: Reading, symptom: Kind, raised: Raised) -> Diagnosis | None:
    for line in reversed(log.lines):
        for each in symptom.reasons:
            if found := each.pattern.search(line):
                return each.says(found, _cut([line.strip(), *_evidence(raised, raised).splitlines()]))
    return None


def _anywhere(log: Reading) -> Diagnosis | None:
    """The diagnosis from the last line after the last traceback that any kind matches."""
    for line in reversed(log.lines[log.after :]):
        if not _COMPLAINS.search(line) or _NO_EVIDENCE.search(line):
            continue
        for each in KINDS:
            if (
                each.at is None
                and not each.wrapper
                and not _IMPORTS.match(line)
                and (found := each.pattern.search(line))
            ):
                return each.says(found, _cut([line.strip()]))
    return None


def died(name: str, words: str | None) -> Diagnosis:
    """The meaning of a signal that ended the trainer; `words` are the evidence."""
    match name:
        case "SIGSEGV" | "SIGBUS" | "SIGABRT" | "SIGFPE":
            shared = " A bus error is most often a full /dev/shm (`df -h /dev/shm`)." if name == "SIGBUS" else ""
            return Diagnosis(
                cause=Cause.CRASHED,
                meaning=f"the program crashed in native code ({name})",
                advice=(
                    f"If it happens again, start a new run with `--attention sdpa`; `dmesg | tail` may show "
                    f"more.{shared}"
                ),
                evidence=words,
            )
        case "SIGILL":
            return Diagnosis(
                cause=Cause.ENVIRONMENT,
                meaning="a package uses instructions that this CPU does not have (SIGILL)",
                advice="Rent a box with a newer CPU (AVX2 or AVX-512).",
                evidence=words,
            )
        case "SIGINT":
            helps = "Ctrl-C was pressed or the signal was sent. If that was not intended, resume."
        case "SIGKILL":
            helps = (
                "It was killed, most often by the kernel because the box ran out of RAM: look at `dmesg | grep "
                "-i oom`. "
                "With too little RAM, train the experts one after the other or use a larger box."
            )
        case _:
            helps = "If you did not end it, look at `dmesg | tail` for the reason."
    return Diagnosis(cause=Cause.INTERRUPTED, meaning=f"the trainer was ended by {name}", advice=helps, evidence=words)


def _unknown(chain: Sequence[Raised]) -> Diagnosis:
    if chain and chain[-1].type == "KeyboardInterrupt":
        return died("SIGINT", chain[-1].whole)
    return Diagnosis(
        cause=Cause.UNKNOWN,
        meaning="the trainer stopped with an error that is not in wan-train's table",
        advice="Read the end of the log.",
        evidence=_evidence(chain[0] if len(chain) > 1 and chain[-1].direct else chain[-1], chain[-1])
        if chain
        else None,
    )


def _evidence(raised: Raised, last: Raised) -> str:
    """The exception's own text, or the line that raised it if it has none; then the last exception, if another."""
    lines = [line.strip() for line in raised.whole.splitlines() if line.strip() and not _BOILERPLATE.match(line)]
    if not raised.text and raised.frames:
        frame = raised.frames[-1]
        source = f": {frame.source}" if frame.source else ""
        lines = [f"{raised.type} in {frame.file}, line {frame.line}{source}"]
    if last is not raised:
        lines = [*lines[: _EVIDENCE_LINES - 1], last.whole.splitlines()[0]]
    return _cut(lines)


def _cut(lines: Sequence[str]) -> str:
    return "\n".join(lines[:_EVIDENCE_LINES])[:_EVIDENCE_LENGTH]
