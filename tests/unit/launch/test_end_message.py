"""The message at the end of a launch, and what its program publishes meanwhile."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from wan_train.launch.background import Reporter
from wan_train.launch.end_message import end_message
from wan_train.launch.last_seen import LastSeen, Progress, publish, read_last_seen
from wan_train.launch.launch_directory import new
from wan_train.launch.model import Box, BoxState, Job, JobState, Launch, Offer, Wants

OFFER = Offer(id="1", machine="m", gpu="RTX 4090", gpus=1, gpu_bytes=24 * 10**9, per_hour=0.36)


def test_the_end_names_every_job_the_money_and_why_it_came_early() -> None:
    jobs = tuple(
        Job(name=name, title=name, dataset=Path("d"), dataset_stamp="", options=(), state=state, problem=problem)
        for name, state, problem in (
            ("cats", JobState.DONE, ""),
            ("dogs", JobState.DONE, ""),
            ("fish", JobState.FAILED, "no\nroom"),
        )
    )
    box = Box(name="wt-0123abcd-001", offer=OFFER, state=BoxState.GONE, began=0.0, ended=7200.0)
    launch = Launch(id="0123abcd", created=0.0, wants=Wants(max_hours=12), jobs=jobs, boxes=(box,))
    message = end_message(launch, 7260.0, is_swept=True)
    assert message.title == "wan-train: launch over: 2 done, 1 failed"
    assert "fish: failed (no room)" in message.body
    assert message.body.endswith("Spent $0.72 on 1 box in 2 h 1 min. Nothing is rented now.")
    halted = replace(launch, halted_because="the limit of 12 hours is reached")
    assert "before its jobs: the limit of 12 hours is reached." in end_message(halted, 1, is_swept=True).body


def test_the_end_does_not_promise_what_could_not_be_checked() -> None:
    launch = Launch(id="0123abcd", created=0.0, wants=Wants(max_hours=12), jobs=())
    told = end_message(launch, 60.0, is_swept=False).body
    assert "Nothing is rented now." not in told
    assert told.endswith("Could not check Vast's list for leftover boxes. Check it: wan-train launch reap")
    elsewhere = replace(launch, wants=Wants(max_hours=12, infra="runpod"))
    assert "see the console of runpod" in end_message(elsewhere, 60.0, is_swept=False).body


def test_what_was_seen_is_read_by_others_and_damage_is_nothing_seen(tmp_path: Path) -> None:
    directory = new(tmp_path)
    assert read_last_seen(directory) == LastSeen()
    seen = LastSeen(jobs={"cats": Progress(epoch=3, epochs=9, loss=0.1)}, searching="none")
    publish(directory, seen)
    assert read_last_seen(directory) == seen
    (directory.path / "seen.json").write_text("{")
    assert read_last_seen(directory) == LastSeen()


def test_the_program_of_a_launch_logs_what_happened_and_publishes_what_it_saw(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = new(tmp_path)
    launch = Launch(id=directory.path.name, created=0.0, wants=Wants(max_hours=12), jobs=())
    reporter = Reporter(directory, lambda: LastSeen(searching="none"), launch)
    box = Box(name=f"wt-{launch.id}-001", offer=OFFER, began=0.0)
    with caplog.at_level(logging.INFO):
        reporter.changed(replace(launch, boxes=(box,)))
        reporter.changed(replace(launch, boxes=(replace(box, state=BoxState.CHECKING),)))
    assert caplog.messages == ["box 001 (RTX 4090): renting at $0.36 an hour", "box 001 (RTX 4090): checking"]
    assert read_last_seen(directory).searching == "none"
