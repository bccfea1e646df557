"""Asking a run to stop: a request in its directory, which its supervisor reads."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from wan_train.base import codec
from wan_train.base.files import write_whole
from wan_train.run.directory import RunDirectory
from wan_train.run.events import StopMode, StopRequested


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRequest:
    """How soon to stop, and which signal's exit code the run shall have (INT or TERM)."""

    mode: StopMode
    signal: int


def request_stop(run: RunDirectory, request: StopRequest) -> None:
    write_whole(run.stop_request, codec.to_json(request))


def clear_stop_request(run: RunDirectory) -> None:
    run.stop_request.unlink(missing_ok=True)


def is_news(request: StopRequest, known: StopRequested | None) -> bool:
    """Whether it asks for more than the run was asked for before: stopping now is more than stopping later."""
    return known is None or (request.mode is StopMode.NOW and known.mode is not StopMode.NOW)


def read_stop_request(run: RunDirectory) -> StopRequest | None:
    """The request, None without one. A damaged one still asks to stop: in the way that loses nothing."""
    try:
        return codec.from_json(run.stop_request.read_bytes(), StopRequest, where=str(run.stop_request))
    except FileNotFoundError:
        return None
    except codec.CorruptRecordError:
        return StopRequest(mode=StopMode.AFTER_STATE, signal=signal.SIGTERM)
