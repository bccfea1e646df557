"""What happened between two records of a launch, for its log."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from wan_train.launch.change_lines import change_lines
from wan_train.launch.model import Box, BoxState, Job, JobState, Launch, Offer, Wants

OFFER = Offer(id="1", machine="m", gpu="RTX 4090", gpus=2, gpu_bytes=24 * 10**9, per_hour=0.36)
BOX = Box(name="wt-0123abcd-001", offer=OFFER, began=0.0)
JOB = Job(name="cats", title="cats\x1b[2J", dataset=Path("d"), dataset_stamp="", options=())
LAUNCH = Launch(id="0123abcd", created=0.0, wants=Wants(max_hours=12), jobs=(JOB,))


def test_each_change_of_a_box_and_a_job_is_a_line() -> None:
    rented = replace(LAUNCH, boxes=(BOX,))
    ready = replace(BOX, state=BoxState.READY, job="cats")
    trains = replace(LAUNCH, jobs=(replace(JOB, state=JobState.TRAINING),), boxes=(ready,))
    lost = replace(
        LAUNCH,
        jobs=(replace(JOB, problem="outbid"),),
        boxes=(replace(ready, state=BoxState.DESTROYING, because="outbid"),),
    )
    gone = replace(lost, boxes=(replace(lost.boxes[0], state=BoxState.GONE, ended=3600.0),), halted_because="enough")
    assert list(change_lines(None, LAUNCH)) == list(change_lines(rented, rented)) == []
    assert list(change_lines(LAUNCH, rented)) == ["box 001 (2x RTX 4090): renting at $0.36 an hour"]
    [box, job] = change_lines(rented, trains)
    assert box == "box 001 (2x RTX 4090): ready"
    assert job.endswith(": training on box 001")
    assert "\x1b" not in job
    [box, job] = change_lines(trains, lost)
    assert box == "box 001 (2x RTX 4090): destroying: outbid"
    assert job.endswith(": waiting: outbid")
    assert list(change_lines(lost, gone)) == ["box 001 (2x RTX 4090): gone, $0.36 in all", "ends early: enough"]
