"""The console script: turns exceptions into messages and exit codes."""

from __future__ import annotations

import errno
import os
import shlex
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wan_train import __version__
from wan_train.base.errors import (
    AmbiguousRunError,
    BadInputError,
    ExitCode,
    InterruptionError,
    NotReadyError,
    WanTrainError,
)
from wan_train.base.text import one_line, redact

if TYPE_CHECKING:
    from wan_train.cli.call import Invocation

_YES = frozenset({"1", "true", "t", "yes", "y", "on"})
"""Values that Typer reads as true in a variable."""
_MOST_RUNS = 10
"""Most runs listed when a name matches several."""


def main() -> None:
    """Run the program and exit; no traceback for anything a user can cause."""
    sys.exit(run(sys.argv[1:]))


def run(words: Sequence[str]) -> int:
    """Run one call of the program; returns its exit code."""
    if words[:1] in (["--version"], ["-V"]):
        sys.stdout.write(f"wan-train {__version__}\n")
        return ExitCode.DONE
    from wan_train.cli import signals
    from wan_train.cli.call import Invocation

    signals.settle()
    arguments, passthrough = split(words)
    invocation = Invocation(passthrough=passthrough)
    try:
        return _run(arguments, words, invocation)
    except BrokenPipeError:
        return _reader_left()
    except SystemExit as ended:
        # Typer turns a broken pipe into exit code 1, which stands for a bug.
        if isinstance(ended.__context__, BrokenPipeError):
            return _reader_left()
        raise


def _run(arguments: list[str], words: Sequence[str], invocation: Invocation) -> int:
    from wan_train.base import home
    from wan_train.cli.app import app

    try:
        home.ensure(os.environ)
        _warn_of_variables()
        result = app(arguments, standalone_mode=False, obj=invocation, prog_name="wan-train")
        return int(result or ExitCode.DONE)
    except BrokenPipeError:
        raise
    except AmbiguousRunError as error:
        return _report(_with_commands(error, arguments), arguments, invocation)
    except WanTrainError as error:
        return _report(error, arguments, invocation)
    except KeyboardInterrupt:
        return _report(InterruptionError("interrupted"), arguments, invocation)
    except OSError as error:
        return _report(_known(error) or _bug(error, words), arguments, invocation)
    except Exception as error:  # noqa: BLE001  the last resort: a bug must be reported, with a log and no traceback
        from wan_train.cli.usage_errors import usage_error

        return _report(usage_error(error, arguments) or _bug(error, words), arguments, invocation)


def split(words: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Return our arguments, and the trainer's arguments after `--`."""
    ours = list(words)
    passthrough: tuple[str, ...] = ()
    if "--" in ours:
        at = ours.index("--")
        ours, passthrough = ours[:at], tuple(words[at + 1 :])
    return ours, passthrough


def _warn_of_variables() -> None:
    """Warn about unknown variables: a misspelled one would otherwise be ignored silently."""
    if any(name.startswith("WAN_TRAIN_") for name in os.environ):
        from wan_train.cli.usage_errors import unknown_variables

        sys.stderr.write("".join(f"{line}\n" for line in unknown_variables(os.environ)))


def _with_commands(error: AmbiguousRunError, arguments: Sequence[str]) -> WanTrainError:
    """Return the error with the full command for each matching run as its hint."""
    commands = [["wan-train", *(run if word == error.name else word for word in arguments)] for run in error.matches]
    listed = [shlex.join(command) for command in commands[:_MOST_RUNS]]
    more = ["The others: `wan-train runs`."] if len(commands) > _MOST_RUNS else []
    return BadInputError(error.message, hint="\n".join([*listed, *more]))


def _report(error: WanTrainError, arguments: Sequence[str], invocation: Invocation) -> int:
    """Report an error, with `--json` also as JSON; returns its exit code."""
    from wan_train.cli.output import Sink

    # Errors before the options are parsed must also respect --json.
    said = "--json" in arguments or os.environ.get("WAN_TRAIN_JSON", "").lower() in _YES
    if isinstance(error, InterruptionError) and sys.stderr.isatty():
        sys.stderr.write("\n")  # the terminal has echoed ^C
    (invocation.sink or Sink(as_json=said)).error(error)
    return error.exit_code


def _reader_left() -> int:
    """Handle a closed stdout (`| head`): it is not our error, and Python must not complain at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return ExitCode.DONE


def _known(error: OSError) -> WanTrainError | None:
    """Return the error if a user can fix it, else None."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return _disk_full(error)
    try:
        Path.cwd()
    except FileNotFoundError:
        return BadInputError("the folder of this shell was removed", hint="Go to one that is there: `cd`")
    return None


def _disk_full(error: OSError) -> WanTrainError:
    what = str(error.filename) if error.filename is not None else "what has to be written"
    return NotReadyError(
        f"the disk is full: no space for {what}",
        hint="Free some disk space: `wan-train clean` removes unneeded files. Then rerun the command.",
    )


def _bug(error: Exception, words: Sequence[str]) -> WanTrainError:
    """Return the error for a bug in wan-train; its details go to a file, or to stderr if that fails."""
    from wan_train.base.settings import user_data_dir

    report = "".join(
        [
            f"wan-train {__version__}, Python {sys.version.split()[0]}, {sys.platform}\n",
            f"wan-train {' '.join(words)}\n\n",
            *traceback.format_exception(error),
        ]
    )
    try:
        path = user_data_dir() / f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(redact(report), encoding="utf-8")
        where = f"The details are in {path}; please report it."
    except (OSError, WanTrainError):
        where = "The details are above, since no file could be written; please report them."
        sys.stderr.write(redact(report))
    return WanTrainError(f"a bug in wan-train: {type(error).__name__}: {one_line(str(error))}", hint=where)
