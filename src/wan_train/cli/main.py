"""The console script: catches what may be raised, turns it into words and an exit code."""

from __future__ import annotations

import errno
import os
import sys
import time
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wan_train import __version__
from wan_train.errors import BadInputError, ExitCode, NotReadyError, WanTrainError
from wan_train.printable import redact

if TYPE_CHECKING:
    from wan_train.cli.invocation import Invocation
    from wan_train.cli.sink import Sink

_ROOT_FLAGS = {"--help", "-h", "--version", "--install-completion", "--show-completion"}


def main() -> None:
    """Run the program and exit; no traceback for anything a user can cause."""
    sys.exit(run(sys.argv[1:]))


def run(words: Sequence[str]) -> int:
    """One call of the program; returns its exit code."""
    if "--version" in words[:1]:
        sys.stdout.write(f"wan-train {__version__}\n")
        return ExitCode.DONE
    from wan_train.cli.app import app  # noqa: PLC0415  `--version` needs nothing
    from wan_train.cli.invocation import Invocation  # noqa: PLC0415  the same

    arguments, passthrough = split(words)
    invocation = Invocation(passthrough=passthrough)
    try:
        result = app(arguments, standalone_mode=False, obj=invocation, prog_name="wan-train")
        return int(result or ExitCode.DONE)
    except WanTrainError as error:
        _sink(invocation).error(error)
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted.\n")
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        return _reader_left()
    except SystemExit as ended:
        # Typer turns a broken pipe into exit code 1, which is a bug's.
        if isinstance(ended.__context__, BrokenPipeError):
            return _reader_left()
        raise
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            return _bug(error, words)
        full = _disk_full(error)
        _sink(invocation).error(full)
        return full.exit_code
    except Exception as error:  # noqa: BLE001  the last resort: a bug must be reported, with a log and no traceback
        return _usage_error(error, arguments) or _bug(error, words)


def split(words: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Our words, with `train` put in when no verb is named, and the trainer's words after `--`."""
    ours = list(words)
    passthrough: tuple[str, ...] = ()
    if "--" in ours:
        at = ours.index("--")
        ours, passthrough = ours[:at], tuple(words[at + 1 :])
    # While the shell completes words, Typer reads them from the environment instead.
    completing = "_WAN_TRAIN_COMPLETE" in os.environ
    if not completing and (not ours or (ours[0].startswith("-") and ours[0] not in _ROOT_FLAGS)):
        ours.insert(0, "train")
    return ours, passthrough


def _sink(invocation: Invocation) -> Sink:
    from wan_train.cli.sink import Sink as RealSink  # noqa: PLC0415  only needed when something went wrong

    return invocation.sink or RealSink()


def _reader_left() -> int:
    """The reader of stdout went away (`| head`); nothing of ours is wrong, and Python must not complain at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return ExitCode.DONE


def _disk_full(error: OSError) -> WanTrainError:
    what = str(error.filename) if error.filename is not None else "what has to be written"
    return NotReadyError(
        f"the disk is full: there is no room for {what}",
        hint="Free some space (`wan-train runs` lists old runs, whose directories may be removed), then say it again.",
    )


def _usage_error(error: Exception, arguments: Sequence[str]) -> int | None:
    """Typer's own errors: an unknown flag, a value that is no number. They come before `--json` was read."""
    message = getattr(error, "format_message", None)
    if message is None:
        return None
    from wan_train.cli.sink import Sink as RealSink  # noqa: PLC0415  only needed when something went wrong

    RealSink(as_json="--json" in arguments).error(BadInputError(message(), hint="See `wan-train --help`."))
    return ExitCode.BAD_INPUT


def _bug(error: Exception, words: Sequence[str]) -> int:
    from wan_train.settings import user_data_dir  # noqa: PLC0415  only needed for a bug

    report = "".join(
        [
            f"wan-train {__version__}, Python {sys.version.split()[0]}, {sys.platform}\n",
            f"wan-train {' '.join(words)}\n\n",
            *traceback.format_exception(error),
        ]
    )
    path = user_data_dir() / f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(redact(report), encoding="utf-8")
        where = f"The details are in {path}; please report it."
    except OSError:
        where = redact(report)
    sys.stderr.write(f"error: a bug in wan-train: {type(error).__name__}: {redact(str(error))}\n\nhint: {where}\n")
    return ExitCode.BUG
