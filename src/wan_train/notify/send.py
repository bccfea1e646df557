"""The sender, a separate program: `python -m wan_train.notify.send`, with its whole input on stdin.

A service may be slow, dead or hostile, and a library may hang or crash. A separate process shields the caller from it.
It claims each message on disk before sending it. It ends by itself, even if its caller was killed.
"""

from __future__ import annotations

import json
import logging
import re
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from wan_train.base import codec
from wan_train.base.locks import held
from wan_train.notify.delivery_log import DeliveryState, Entry, Mark, delivery_state, read_deliveries, record
from wan_train.notify.targets import Target, plugin_of, quiet

DEADLINE_SECONDS = 60
_LOGGER = "apprise"
_STATUS = re.compile(r"error=(\d{3})\b")
_NEVER_ARRIVED = re.compile(
    r"NewConnectionError|NameResolutionError|ConnectTimeout|Connection refused|Failed to establish|getaddrinfo"
    r"|SSLError|ProxyError|SSL: ",
    re.IGNORECASE,
)

_SAID: ContextVar[list[str] | None] = ContextVar("said", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message. `id` is stable: the same news always has the same ID."""

    id: str
    title: str
    body: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The sender's input on stdin, which holds secrets. Without a `log`, as in a test, nothing is recorded."""

    log: Path | None
    messages: tuple[Message, ...]
    urls: tuple[str, ...]
    names: tuple[str, ...]
    pause: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The outcome of one try, as the sender prints it. Contains no address."""

    message: str
    target: str
    mark: Mark
    why: str | None
    seconds: float


class _Listener(logging.Handler):
    """Collects apprise's log while one message is sent. It quotes addresses, so it is judged and discarded.

    Several messages are sent at once. Apprise runs each in its own thread, with the sender's context.
    """

    def emit(self, record: logging.LogRecord) -> None:
        lines = _SAID.get()
        if lines is not None:
            with suppress(Exception):  # a log line that cannot be formatted must not stop the sending
                lines.append(record.getMessage())


def judge(said: str) -> tuple[Mark, str]:
    """Judge a failed send by apprise's log. A message is sent again only if it certainly did not arrive."""
    if re.search(r"^Sent ", said, re.MULTILINE):
        return Mark.UNCLEAR, "only some recipients got it"
    status = _STATUS.search(said)
    if status is not None:
        return Mark.REFUSED, f"the service refused it (status {status[1]})"
    if _NEVER_ARRIVED.search(said):
        return Mark.REFUSED, "the service cannot be reached"
    if re.search(r"timed? ?out", said, re.IGNORECASE):
        return Mark.UNCLEAR, "the service did not answer in time"
    return Mark.UNCLEAR, "the service did not confirm it"


def send(target: Target, message: Message) -> tuple[Mark, str | None]:
    """Try once; never raises."""
    from apprise import Apprise, NotifyFormat

    said: list[str] = []
    _SAID.set(said)
    try:
        service = plugin_of(target.url)
        if service is None:
            return Mark.REFUSED, "apprise cannot use the address"
        service.retry = 0  # our own retries know what may have arrived
        apprise = Apprise(service, asset=service.asset)
        sent = apprise.notify(
            body=message.body or message.title,  # apprise sends no empty body
            title=message.title,
            body_format=NotifyFormat.TEXT,
        )
    except Exception as error:  # noqa: BLE001  a plugin may raise anything; its text may quote the address
        return Mark.UNCLEAR, f"apprise failed ({type(error).__name__})"
    return (Mark.SENT, None) if sent else judge("\n".join(said))


class Sender:
    """Sends to all services at once, and to each service one message at a time."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._targets = [Target(url=url, name=name) for url, name in zip(order.urls, order.names, strict=True)]
        self._lock = threading.Lock()
        self.outcomes: list[Outcome] = []

    def run(self) -> None:
        quiet()
        logger = logging.getLogger(_LOGGER)
        logger.setLevel(logging.DEBUG)
        logger.addHandler(_Listener())
        entries = read_deliveries(self._order.log) if self._order.log is not None else ()
        threads = [
            threading.Thread(target=self._serve, args=(target, entries), daemon=True) for target in self._targets
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _serve(self, target: Target, entries: Sequence[Entry]) -> None:
        for message in self._order.messages:
            now = time.time()
            where = delivery_state(entries, message.id, target.name, now=now, pause=self._order.pause)
            if where is not DeliveryState.DUE:
                continue
            if not self._record(message, target, Mark.CLAIMED, None):
                return  # an unclaimed message could be sent twice
            began = time.monotonic()
            mark, why = send(target, message)
            self._record(message, target, mark, why)
            seconds = round(time.monotonic() - began, 2)
            with self._lock:
                self.outcomes.append(
                    Outcome(message=message.id, target=target.name, mark=mark, why=why, seconds=seconds)
                )

    def _record(self, message: Message, target: Target, mark: Mark, why: str | None) -> bool:
        if self._order.log is None:
            return True
        with self._lock:
            try:
                record(
                    self._order.log,
                    Entry(at=round(time.time(), 3), notice=message.id, target=target.name, mark=mark, why=why),
                )
            except OSError:
                return False
        return True


def main() -> int:
    signal.alarm(DEADLINE_SECONDS)  # the caller may be dead
    try:
        order: Order = codec.from_data(json.loads(sys.stdin.buffer.read()), Order)
    except Exception as error:  # noqa: BLE001  the text of the error would quote the order, which holds secrets
        sys.stderr.write(f"no order: {type(error).__name__}\n")
        return 2
    try:
        if order.log is None:
            return _run(order)
        with held(order.log.with_suffix(".lock")):
            return _run(order)
    except BlockingIOError:
        return 0  # another sender is at work, with the same orders
    except OSError as error:
        sys.stderr.write(f"{error.strerror}\n")
        return 3


def _run(order: Order) -> int:
    sender = Sender(order)
    sender.run()
    lines: list[Mapping[str, object]] = [codec.to_data(each) for each in sender.outcomes]
    with suppress(BrokenPipeError):
        sys.stdout.write("".join(json.dumps(line) + "\n" for line in lines))
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
