"""What a person is shown of offers and of a launch, within 80 columns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from wan_train.launch.last_seen import LastSeen, Progress
from wan_train.launch.model import Box, BoxState, GpuWant, Halt, Job, JobState, Launch, Offer, Wants
from wan_train.launch.offers import Choice, Priced, Unfit
from wan_train.views.launch import launch_lines, launch_screen, offer_lines
from wan_train.views.lines import Line

OFFER = Offer(
    id="1",
    machine="m",
    gpu="RTX 5090",
    gpus=2,
    gpu_bytes=32 * 10**9,
    per_hour=0.834,
    reliability=0.9951,
    down_mbps=812.3,
)
WANTS = Wants(gpus=(GpuWant(name="RTX5090", count=2),), max_hours=12, budget=10.0)


def text(lines: Iterable[Line]) -> list[str]:
    found = ["".join(span.text for span in each.spans) for each in lines]
    assert all(len(each) <= 80 for each in found), found
    return found


def test_time_and_cost_have_their_basis() -> None:
    known = Priced(
        offer=OFFER,
        prepare_seconds=680.0,
        train_seconds=10_840.0,
        measured=1_764_300_000.0,
        scaled_from="768x768",
        without=("installation",),
    )
    unknown = Priced(offer=replace(OFFER, id="2", gpus=1, per_hour=0.4), prepare_seconds=680.0)
    shown = text(offer_lines(Choice(fit=(known, unknown)), WANTS))
    assert "2x RTX 5090" in shown[1]
    assert shown[1].endswith("3 h 12 min    $2.67")
    assert shown[2].endswith("not measured")
    assert shown[3].endswith(", scaled from 768x768")
    assert shown[4] == "Not included, because it was never timed: installation"


def test_without_an_offer_the_reasons_and_the_nearest_are_shown() -> None:
    choice = Choice(
        fit=(),
        unfit=((Unfit.PRICE, 3), (Unfit.NETWORK, 1)),
        nearest=Priced(offer=OFFER, prepare_seconds=None),
    )
    shown = text(offer_lines(choice, WANTS))
    assert shown[1:] == [
        "  3 offers: over the price",
        "  1 offer: download below 100 Mbit/s",
        "The nearest: 2x RTX 5090 at $0.83 an hour",
    ]


def test_jobs_have_their_box_and_their_progress() -> None:
    jobs = tuple(
        Job(name=name, title=f"{name}\x1b[2J", dataset=Path("/d"), dataset_stamp="", options=(), state=state)
        for name, state in (("cats", JobState.TRAINING), ("dogs", JobState.WAITING))
    )
    box = Box(name="wt-0123abcd-001", offer=OFFER, state=BoxState.READY, began=0.0, job="cats")
    launch = Launch(id="0123abcd", created=0.0, wants=WANTS, jobs=jobs, boxes=(box,))
    seen = LastSeen(jobs={"cats": Progress(epoch=12, epochs=100, loss=0.0831, ends_at=7200.0)})
    shown = text(launch_lines(launch, 3600.0, seen))
    assert shown[1].split()[1:] == [
        "training",
        "001",
        "2x",
        "RTX",
        "5090",
        "0.83",
        "0.83",
        "12/100",
        "0.0831",
        "1",
        "h",
    ]
    assert shown[2].split()[1:] == ["waiting"]
    assert shown[3] == "Spent $0.83 of at most $10.00; 1 box rented now"
    assert not any("\x1b" in each for each in shown)
    halted = replace(launch, halt=Halt.SAVE, halted_because="stopped by you")
    assert "Ends early: stopped by you" in text(launch_lines(halted, 3600.0, LastSeen()))


def test_an_end_that_is_over_is_not_shown_and_a_lost_box_is() -> None:
    job = Job(name="cats", title="cats", dataset=Path("/d"), dataset_stamp="", options=(), state=JobState.TRAINING)
    box = Box(name="wt-0123abcd-002", offer=OFFER, state=BoxState.READY, began=0.0, job="cats")
    launch = Launch(id="0123abcd", created=0.0, wants=WANTS, jobs=(replace(job, problem="outbid"),), boxes=(box,))
    seen = LastSeen(jobs={"cats": Progress(epoch=1, epochs=2, ends_at=3000.0)})
    shown = text(launch_lines(launch, 3600.0, seen))
    assert shown[1].endswith("1/2")
    assert len(shown) == 3
    waiting = replace(launch, jobs=(replace(job, state=JobState.WAITING, problem="outbid"),), boxes=())
    assert "cats lost its last box: outbid" in text(launch_lines(waiting, 3600.0, seen))


def test_boxes_that_come_are_shown_at_jobs_that_wait_and_why_there_is_none() -> None:
    jobs = tuple(
        Job(
            name=str(number),
            title=f"a long title that ends with {number}",
            dataset=Path("/d"),
            dataset_stamp="",
            options=(),
        )
        for number in range(3)
    )
    box = Box(name="wt-0123abcd-001", offer=OFFER, state=BoxState.PROVISIONING, began=0.0)
    launch = Launch(id="0123abcd", created=0.0, wants=WANTS, jobs=jobs, boxes=(box,))
    shown = text(launch_lines(launch, 60.0, LastSeen()))
    assert "provisioning  001" in shown[1]
    assert [line.rstrip()[-7:] for line in shown[2:4]] == ["waiting", "waiting"]
    assert "with 2" in shown[3], "the end of a title tells them apart"
    none = replace(launch, boxes=())
    seen = LastSeen(searching="no offer matches (3 over the price)")
    assert f"Searching offers every minute: {seen.searching}" in text(launch_lines(none, 60.0, seen))


def test_a_low_terminal_keeps_the_first_and_the_last_line() -> None:
    jobs = tuple(
        Job(name=str(number), title=str(number), dataset=Path("/d"), dataset_stamp="", options=())
        for number in range(40)
    )
    launch = Launch(id="0123abcd", created=0.0, wants=WANTS, jobs=jobs)
    shown = text(launch_screen(launch, 60.0, LastSeen(), (80, 24)))
    assert len(shown) == 24
    assert shown[0] == "Launch 0123abcd  1 min so far"
    assert "more lines: wan-train launch status" in shown[21]
    assert shown[-1].startswith("q leaves")
