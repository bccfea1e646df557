"""`wan-train launch` at a terminal: its questions, and the live table of a launch that somebody carries out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tty_keys import CTRL_C, ENTER, Start, Terminal

from support.trainers import ScriptedBox
from support.vast_account import KEY, Account, offer_row, path_with, vast_account
from wan_train.launch.last_seen import LastSeen, Progress, publish
from wan_train.launch.launch_directory import LaunchDirectory, new
from wan_train.launch.model import Box, BoxState, Halt, Job, JobState, Launch, Offer, Wants

OFFER = Offer(id="1", machine="m", gpu="RTX 4090", gpus=1, gpu_bytes=24 * 10**9, per_hour=0.36)


@pytest.fixture
def account() -> Iterator[Account]:
    with vast_account() as found:
        found.offers = [
            offer_row(101, "RTX 4090", 1, 0.42, gpu_ram=24_564),
            offer_row(102, "RTX 4090", 1, 0.3512, gpu_ram=24_564),
            offer_row(103, "RTX 5090", 2, 1.30),
        ]
        yield found


def at(account: Account) -> dict[str, str]:
    return {"VAST_API_KEY": KEY, "WAN_TRAIN_VAST_URL": account.address}


def test_what_is_missing_is_asked_and_nothing_is_rented_without_a_yes(
    terminal: Start, scripted_box: ScriptedBox, account: Account
) -> None:
    path = path_with(scripted_box.root / "programs")
    screen = terminal("launch", str(scripted_box.dataset), columns=80, PATH=path, **at(account))
    screen.answers("Title of the LoRA", "blackcat")
    screen.answers("Author", "me")
    lines = screen.shows(lambda lines: any("GPU (a number above" in line for line in lines))
    assert [line.split()[:3] for line in lines if line[:3] in {"1  ", "2  "}] == [
        ["1", "RTX", "4090"],
        ["2", "2x", "RTX"],
    ], "one line for each kind"
    screen.types("3" + ENTER)
    screen.shows(lambda lines: "  must be a number from 1 to 2, kinds of GPUs, or any" in lines)
    screen.types("\x7f1" + ENTER)
    screen.sees("interruptible, from $0.21 an hour")
    screen.types("d")
    screen.answers("Most dollars an hour", "0.2")
    screen.shows(lambda lines: "  the lowest offer needs $0.36" in lines)
    screen.types("\x7f" * 3 + "0.40" + ENTER)
    lines = screen.shows(lambda lines: any("Rent and train?" in line for line in lines))
    assert any("blackcat (" in line for line in lines)
    assert any("1 box, on demand, at most $0.40/h (--max-price)" in line for line in lines)
    screen.types("n")
    screen.sees("Nothing was rented.")
    assert screen.ends() == 0
    assert not (scripted_box.runs / "launches").exists()


@pytest.fixture
def carried_out(scripted_box: ScriptedBox) -> Iterator[LaunchDirectory]:
    """A launch that trains, carried out by the test."""
    directory = new(scripted_box.runs)
    job = Job(name="cats", title="cats", dataset=Path("cats"), dataset_stamp="", options=(), state=JobState.TRAINING)
    box = Box(name=f"wt-{directory.path.name}-001", offer=OFFER, state=BoxState.READY, began=0.0, job="cats")
    directory.write(Launch(id=directory.path.name, created=0.0, wants=Wants(max_hours=12), jobs=(job,), boxes=(box,)))
    publish(directory, LastSeen(jobs={"cats": Progress(epoch=12, epochs=60, loss=0.0831)}))
    with directory.held():
        yield directory


def attached(terminal: Start, account: Account) -> Terminal:
    screen = terminal("launch", "attach", columns=80, **at(account))
    lines = screen.shows(lambda lines: any("12/60" in line for line in lines))
    assert any(line.startswith("cats  training  001  RTX 4090    0.36") for line in lines)
    return screen


@pytest.mark.parametrize("key", ["q", CTRL_C])
def test_who_leaves_does_not_end_the_launch(
    terminal: Start, carried_out: LaunchDirectory, account: Account, key: str
) -> None:
    screen = attached(terminal, account)
    screen.types(key)
    screen.sees(f"wan-train launch attach {carried_out.path.name}")
    assert screen.ends() == 0
    assert carried_out.requested() is None


def test_a_stop_is_asked_about(terminal: Start, carried_out: LaunchDirectory, account: Account) -> None:
    screen = attached(terminal, account)
    screen.types("s")
    screen.shows(lambda lines: any("Stop? y:" in line for line in lines))
    screen.types("x")
    screen.shows(lambda lines: not any("Stop? y:" in line for line in lines))
    assert carried_out.requested() is None
    screen.types("s")
    screen.shows(lambda lines: any("Stop? y:" in line for line in lines))
    screen.types("y")
    screen.shows(lambda lines: not any("Stop? y:" in line for line in lines))
    assert carried_out.requested() is Halt.SAVE
    launch = carried_out.read()
    jobs = tuple(replace(job, state=JobState.STOPPED) for job in launch.jobs)
    boxes = tuple(replace(box, state=BoxState.GONE, ended=3600.0) for box in launch.boxes)
    carried_out.write(replace(launch, jobs=jobs, boxes=boxes, halt=Halt.SAVE, halted_because="stopped by you"))
    screen.types("q")
    screen.ends()
