"""Messages sent once to real receivers on loopback, by real senders that are killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from support.receiver import SECRET, Manners, Receiver, receiver
from wan_train.base import codec
from wan_train.notify.delivery_log import (
    MOST_TRIES,
    DeliveryState,
    Entry,
    Mark,
    delivery_state,
    read_deliveries,
    record,
)
from wan_train.notify.dispatcher import Dispatcher
from wan_train.notify.send import Message, Order, judge
from wan_train.notify.targets import Target, read_targets

FINISHED = Message(id="over-0", title="cat: finished in 3 h", body="LoRA: /workspace/cat.safetensors")


@pytest.fixture
def service() -> Iterator[Receiver]:
    with receiver() as made:
        yield made


def wait_for(condition: Callable[[], object]) -> None:
    while not condition():
        time.sleep(0.02)


class Guardian:
    """What a guardian does each round, as far as messages go."""

    def __init__(self, log: Path, *services: Receiver, pause: float = 0.1) -> None:
        self.log, self.said = log, list[str]()
        self.targets = read_targets([each.url for each in services])
        self.dispatcher = Dispatcher(pause=pause, say=self.said.append)

    def round(self, *messages: Message) -> bool:
        """Whether something is left to be done."""
        self.dispatcher.dispatch(self.log, messages, self.targets)
        self.dispatcher.settle(30)
        return self.dispatcher.is_open(self.log, messages, self.targets)


def test_a_message_is_sent_once_however_often_it_is_to_be_said(service: Receiver, tmp_path: Path) -> None:
    first = Guardian(tmp_path / "notices.jsonl", service)
    assert not first.round(FINISHED)
    assert not first.round(FINISHED)
    again = Guardian(tmp_path / "notices.jsonl", service)  # a new guardian after a reboot
    assert not again.round(FINISHED)
    assert service.titles == [FINISHED.title]
    assert service.taken[0]["message"] == FINISHED.body
    assert [entry.mark for entry in read_deliveries(first.log)] == [Mark.CLAIMED, Mark.SENT]
    assert first.said == []


def test_what_surely_did_not_arrive_is_sent_again_and_then_given_up(service: Receiver, tmp_path: Path) -> None:
    guardian = Guardian(tmp_path / "notices.jsonl", service, pause=0.001)
    service.manners = Manners.REFUSES
    assert guardian.round(FINISHED)
    service.manners = Manners.TAKES
    wait_for(lambda: not guardian.round(FINISHED))
    assert service.titles == [FINISHED.title]

    service.manners = Manners.REFUSES
    hopeless = Message(id="budget-3", title="cat: 80 % of the budget spent", body="")
    for mark in (Mark.CLAIMED, Mark.REFUSED) * (MOST_TRIES - 1):
        record(guardian.log, Entry(at=0.0, notice=hopeless.id, target=guardian.targets[0].name, mark=mark))
    assert not guardian.round(hopeless)
    assert not guardian.round(hopeless)
    assert len(service.seen) == 3
    assert guardian.said[-1].startswith("notification budget-3 to 1 JSON at 127.0.0.1 is not sent again:")
    assert "503" in guardian.said[-1]


def test_what_may_have_arrived_is_never_sent_again(service: Receiver, tmp_path: Path) -> None:
    guardian = Guardian(tmp_path / "notices.jsonl", service)
    service.manners = Manners.HANGS
    assert not guardian.round(FINISHED)
    service.manners = Manners.TAKES
    assert not guardian.round(FINISHED)
    assert len(service.seen) == 1
    assert "did not answer in time" in guardian.said[0]


def test_a_service_that_is_down_or_hangs_keeps_nothing_from_the_others(service: Receiver, tmp_path: Path) -> None:
    with receiver() as hanging, socket.create_server(("127.0.0.1", 0)) as closed:
        hanging.manners = Manners.HANGS
        nobody = Receiver(port=closed.getsockname()[1])
        closed.close()
        guardian = Guardian(tmp_path / "notices.jsonl", nobody, hanging, service, pause=60)
        began = time.monotonic()
        guardian.dispatcher.dispatch(guardian.log, [FINISHED], guardian.targets)
        returned = time.monotonic() - began
        wait_for(lambda: service.titles)
        assert guardian.round(FINISHED), "the first is tried again in a minute"
    assert returned < 0.5, "handing over waits for nobody"
    marks = {entry.target[0]: entry.mark for entry in read_deliveries(guardian.log)}
    assert marks == {"1": Mark.REFUSED, "2": Mark.UNCLEAR, "3": Mark.SENT}
    assert any("cannot be reached" in line for line in guardian.said)


def order_of(log: Path, *services: Receiver) -> str:
    targets = read_targets([each.url for each in services])
    order = Order(
        log=log,
        messages=(FINISHED,),
        urls=tuple(target.url for target in targets),
        names=tuple(target.name for target in targets),
        pause=0.0,
    )
    return codec.to_json(order)


def start_sender(order: str, *before: str) -> subprocess.Popen[bytes]:
    sender = subprocess.Popen(
        [*before, sys.executable, "-m", "wan_train.notify.send"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert sender.stdin is not None
    sender.stdin.write(order.encode())
    sender.stdin.close()
    sender.stdin = None
    return sender


def test_a_sender_that_is_killed_at_its_worst_moment_sends_nothing_twice(service: Receiver, tmp_path: Path) -> None:
    log = tmp_path / "notices.jsonl"
    service.manners = Manners.HANGS
    sender = start_sender(order_of(log, service))
    wait_for(lambda: service.seen)
    sender.send_signal(signal.SIGKILL)
    sender.communicate()
    service.manners = Manners.TAKES
    guardian = Guardian(log, service)
    assert not guardian.round(FINISHED)
    assert len(service.seen) == 1
    assert "outcome unknown" in guardian.said[0]


def test_two_senders_at_once_send_it_once(service: Receiver, tmp_path: Path) -> None:
    order = order_of(tmp_path / "notices.jsonl", service)
    for sender in [start_sender(order) for _ in range(2)]:
        sender.communicate()
    assert len(service.seen) == 1


def test_no_secret_of_an_address_is_left_anywhere(service: Receiver, tmp_path: Path) -> None:
    """The service hangs meanwhile, so that the sender's command line and environment can be read."""
    log = tmp_path / "notices.jsonl"
    guardian = Guardian(log, service)
    service.manners = Manners.HANGS
    guardian.dispatcher.dispatch(log, [FINISHED], guardian.targets)
    wait_for(lambda: service.seen)
    mine = [read for pid in _children_of(os.getpid()) for read in _argv_and_environment(pid)]
    assert any(b"wan_train.notify.send" in words for words in mine)
    assert not any(SECRET.encode() in words for words in mine)
    service.released.set()
    guardian.dispatcher.settle(30)

    broken = start_sender('{"urls": ["' + service.url + '"], "names": 3')
    lost = start_sender(order_of(tmp_path / "nowhere" / "notices.jsonl", service))
    printed = [*broken.communicate(), *lost.communicate()]
    assert (broken.returncode, lost.returncode) == (2, 3)
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    for text in (*printed, *files, *(line.encode() for line in guardian.said), repr(guardian.targets).encode()):
        assert SECRET.encode() not in text


def _children_of(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            found += [int(word) for word in (task / "children").read_text().split()]
    return found


def _argv_and_environment(pid: int) -> list[bytes]:
    with suppress(OSError):
        return [Path(f"/proc/{pid}/cmdline").read_bytes(), Path(f"/proc/{pid}/environ").read_bytes()]
    return []


def test_a_full_disk_sends_nothing_since_it_could_be_sent_twice(service: Receiver, tmp_path: Path) -> None:
    log = tmp_path / "notices.jsonl"
    sender = start_sender(order_of(log, service), "/bin/sh", "-c", 'ulimit -f 0; exec "$@"', "sh")
    sender.communicate()
    assert service.seen == []
    start_sender(order_of(log, service)).communicate()
    assert len(service.seen) == 1, "once there is room again"


@pytest.mark.parametrize(
    ("said", "mark"),
    [
        ("Failed to send JSON POST notification: Unauthorized, error=401.", Mark.REFUSED),
        ("Socket Exception: ... NewConnectionError(... Connection refused')", Mark.REFUSED),
        ("Socket Exception: ... Read timed out. (read timeout=4.0)", Mark.UNCLEAR),
        ("Socket Exception: ('Connection aborted.', ConnectionResetError(104, 'x'))", Mark.UNCLEAR),
        ("Sent Telegram notification.\nFailed to send Telegram notification to 7: error=403", Mark.UNCLEAR),
        ("", Mark.UNCLEAR),
    ],
)
def test_only_certain_failures_count_as_such(said: str, mark: Mark) -> None:
    assert judge(said)[0] is mark


def test_waits_grow_and_a_clock_that_is_set_back_waits_for_nothing(tmp_path: Path) -> None:
    log = tmp_path / "notices.jsonl"
    for at in (1000.0, 1010.0, 1030.0):
        for mark in (Mark.CLAIMED, Mark.REFUSED):
            record(log, Entry(at=at, notice="over-0", target="1 ntfy", mark=mark))
    entries = read_deliveries(log)

    def at(now: float) -> DeliveryState:
        return delivery_state(entries, "over-0", "1 ntfy", now=now, pause=10)

    assert (at(1069), at(1071), at(500)) == (DeliveryState.LATER, DeliveryState.DUE, DeliveryState.DUE)
    assert delivery_state(entries, "over-0", "2 ntfy", now=1031, pause=10) is DeliveryState.DUE


def test_names_of_services_show_hosts_and_no_secrets() -> None:
    urls = [
        "discord://123456789012345678/webhooktokenwebhooktoken",
        "tgram://123456789:abcdefg_hijklmnop/12315544",
        "ntfy://my-secret-topic",
        "ntfys://ntfy.example.com/my-secret-topic",
        "mailto://user:password@gmail.com",
        "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ/#general",
        "json://user:password@localhost:8080/secret",
    ]
    names = [target.name for target in read_targets(urls)]
    assert names == [
        "1 Discord",
        "2 Telegram",
        "3 ntfy",
        "4 ntfy at ntfy.example.com",
        "5 E-Mail at gmail.com",
        "6 Slack",
        "7 JSON at localhost",
    ]
    assert "password" not in repr(Target(url=urls[-1], name=names[-1]))
