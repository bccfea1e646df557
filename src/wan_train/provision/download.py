"""A file fetched whole: tries that go on where the last one ended, as long as they bring something."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from wan_train.base.errors import NotReadyError
from wan_train.provision.hub import HubError, RemoteFile
from wan_train.provision.part import Part
from wan_train.provision.transport import DiskError, Transport, UnexplainedError
from wan_train.provision.work import EndedError, Work

_UNEXPLAINED = 3
"""Fruitless tries without a reason after which the next way is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a download is believed in. All times in seconds.

    A try that brings `progress_bytes` gives all `tries` back. Pauses double from `pause` to `longest_pause`; a server
    that names its own is waited for up to `longest_wait`.
    """

    tries: int = 8
    pause: float = 2.0
    longest_pause: float = 60.0
    longest_wait: float = 300.0
    silence: float = 30.0
    """For one connection."""
    stall: float = 75.0
    """For all of them together."""
    progress_bytes: int = 1024 * 1024

    def before(self, failures: int, asked: float | None) -> float:
        """The pause before the next try, up to a half longer by chance, so that boxes do not come back together."""
        pause = min(self.pause * 2.0 ** (failures - 1), self.longest_pause) * random.uniform(1.0, 1.5)  # noqa: S311  no secret
        return max(pause, min(asked or 0.0, self.longest_wait))


def download(
    remote: RemoteFile, part: Part, ways: Sequence[Transport], work: Work, patience: Patience = Patience()
) -> None:
    """Fetch what is missing of the part; its bytes are not compared here.

    Raises:
        HubError: the hub refuses for good.
        DiskError: it cannot be written.
        NotReadyError: no try brought anything any more.
        EndedError: the user ended the provision.
    """
    part.folder.mkdir(parents=True, exist_ok=True)
    way, *others = ways
    failures = unexplained = 0
    while not part.is_whole():
        work.look()
        before = part.done()
        failure = _try(remote, part, way, work, patience)
        if part.is_whole():
            return
        if part.done() - before >= patience.progress_bytes:
            failures = unexplained = 0
        failures += 1
        unexplained = unexplained + 1 if isinstance(failure, UnexplainedError) else 0
        if failures > patience.tries:
            raise NotReadyError(
                f"{failure.message}, {failures} times in a row without progress",
                hint=failure.hint or "Run `wan-train provision` again; what is there is kept.",
            )
        if unexplained >= _UNEXPLAINED and others:
            work.say(f"{failure.message}; going on with {others[0].name}")
            way, *others = others
            failures = unexplained = 0
            continue
        pause = patience.before(failures, failure.retry_after if isinstance(failure, HubError) else None)
        reason = failure.reason if isinstance(failure, HubError) else failure.message
        work.say(f"{reason}; again in {pause:.0f} s ({failures} of {patience.tries})")
        work.pause(pause)


def _try(remote: RemoteFile, part: Part, way: Transport, work: Work, patience: Patience) -> NotReadyError:
    """One try; the reason why it may be tried again, if it did not bring everything."""
    watch = _Watch(part, work, patience.stall)
    try:
        way.fetch(remote, part, work, watch.alive)
    except (EndedError, DiskError):
        raise
    except HubError as error:
        if error.final:
            raise
        return error
    except NotReadyError as error:  # it stood still, was killed for memory, or could not be started
        return error
    finally:
        watch.count()
    return NotReadyError("the connection ended before everything had come")


class _Watch:
    """Sees a part grow, tells the board, and notices when it stands still."""

    def __init__(self, part: Part, work: Work, stall: float) -> None:
        self._part = part
        self._work = work
        self._stall = stall
        self._done = part.done()
        self._grown = time.monotonic()
        work.progress(self._done, part.size)

    def count(self) -> None:
        done = self._part.done()
        if done > self._done:
            self._work.fetched(done - self._done)
        if done != self._done:
            self._done, self._grown = done, time.monotonic()
        self._work.progress(done, self._part.size)

    def alive(self) -> bool:
        self.count()
        return time.monotonic() - self._grown < self._stall
