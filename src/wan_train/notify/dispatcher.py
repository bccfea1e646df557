"""Starts senders for messages that are due, and follows them without waiting."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from wan_train.base import codec, process
from wan_train.notify.delivery_log import DeliveryState, Mark, delivery_state, read_deliveries
from wan_train.notify.send import DEADLINE_SECONDS, Message, Order, Outcome
from wan_train.notify.targets import Target

_ARGV = [sys.executable, "-m", "wan_train.notify.send"]


class Dispatcher:
    """Sends the messages of one process's runs. `say` writes to its log, which never contains an address.

    The first retry of a message waits `pause` seconds; each later one waits twice as long.
    """

    def __init__(self, *, pause: float, say: Callable[[str], None]) -> None:
        self._pause = pause
        self._say = say
        self._at_work: dict[Path, threading.Thread] = {}
        self._reported: set[tuple[Path, str, str]] = set()

    def dispatch(self, log: Path, messages: Sequence[Message], targets: Sequence[Target]) -> None:
        """Start sending the messages that are due; return at once."""
        thread = self._at_work.get(log)
        if thread is not None and thread.is_alive():
            return
        due = self._in(log, messages, targets, {DeliveryState.DUE})
        if not due:
            return
        order = Order(
            log=log,
            messages=tuple(message for message in messages if message.id in due),
            urls=tuple(target.url for target in targets),
            names=tuple(target.name for target in targets),
            pause=self._pause,
        )
        self._at_work[log] = threading.Thread(target=self._send, args=(log, order), daemon=True)
        self._at_work[log].start()

    def is_open(self, log: Path, messages: Sequence[Message], targets: Sequence[Target]) -> bool:
        """Whether something is being sent or will be tried again."""
        thread = self._at_work.get(log)
        if thread is not None and thread.is_alive():
            return True
        return bool(self._in(log, messages, targets, {DeliveryState.DUE, DeliveryState.LATER}))

    def settle(self, seconds: float) -> None:
        """Before the box goes down, wait at most `seconds` for messages being sent."""
        until = time.monotonic() + seconds
        for thread in list(self._at_work.values()):
            thread.join(max(0.0, until - time.monotonic()))

    def _in(
        self, log: Path, messages: Sequence[Message], targets: Sequence[Target], wanted: set[DeliveryState]
    ) -> set[str]:
        """The IDs of messages in a wanted state at one service or more."""
        if not messages or not targets:
            return set()
        entries, now = read_deliveries(log), time.time()
        found = set()
        for message in messages:
            for target in targets:
                where = delivery_state(entries, message.id, target.name, now=now, pause=self._pause)
                if where in wanted:
                    found.add(message.id)
                if where is DeliveryState.LOST and (key := (log, message.id, target.name)) not in self._reported:
                    self._reported.add(key)
                    why = next((e.why for e in reversed(entries) if (e.notice, e.target) == key[1:]), None)
                    self._say(
                        f"notification {message.id} to {target.name} is not sent again: {why or 'outcome unknown'}"
                    )
        return found

    def _send(self, log: Path, order: Order) -> None:
        done = process.run(_ARGV, seconds=DEADLINE_SECONDS + 5, cwd=Path("/"), stdin=codec.to_json(order))
        for outcome in outcomes(done.output):
            if outcome.mark is not Mark.SENT:
                self._say(f"notification {outcome.message} to {outcome.target}: {outcome.why}")
        if not done.succeeded:
            self._say(f"notifications of {log.parent.name}: {done.trouble or f'the sender ended with {done.code}'}")


def send_now(message: Message, targets: Sequence[Target]) -> tuple[Outcome, ...]:
    """Try each service once, unrecorded, while a person waits. A service that never finished has no outcome."""
    order = Order(
        log=None,
        messages=(message,),
        urls=tuple(target.url for target in targets),
        names=tuple(target.name for target in targets),
        pause=1.0,
    )
    done = process.run(_ARGV, seconds=DEADLINE_SECONDS + 5, cwd=Path("/"), stdin=codec.to_json(order))
    return tuple(outcomes(done.output))


def outcomes(printed: str) -> list[Outcome]:
    """The outcomes that a sender printed; other lines are skipped."""
    found: list[Outcome] = []
    for line in printed.splitlines():
        with suppress(codec.CorruptRecordError):
            found.append(codec.from_json(line, Outcome, where="the sender"))
    return found
