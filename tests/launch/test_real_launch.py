"""Launches with the real SkyPilot, ssh, rsync and wan-train, against a loopback Vast whose boxes are namespaces."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.launch_client import Client, draw_dataset
from support.loopback_vast import LoopbackVast, Rented
from wan_train.base.codec import from_json
from wan_train.engine.tensors import read_header
from wan_train.launch.model import BoxState, Job, JobState, Launch

EPOCHS, SAVE_EVERY = 200, 10
WORDS = ("--epochs", str(EPOCHS), "--save-every", str(SAVE_EVERY), "--resolution", "64x64", "--rank", "4")


@dataclass
class Story:
    """One user, one account, one launch."""

    client: Client
    vast: LoopbackVast
    directory: Path = Path()

    def begin(self, *words: str) -> None:
        done = self.client.run("launch", *words, "--gpu", "RTX4090", "--yes", "--json", "--detach")
        assert done.returncode == 0, done.stdout + done.stderr
        self.directory = Path(json.loads(done.stdout.splitlines()[-1])["launch_dir"])

    def read(self) -> Launch:
        path = self.directory / "launch.json"
        return from_json(path.read_bytes(), Launch, where=str(path))

    def wait_for(self, what: Callable[[Launch], bool]) -> Launch:
        while not what(launch := self.read()):
            assert not launch.is_over, self.log
            time.sleep(0.5)
        return launch

    @property
    def log(self) -> str:
        return (self.directory / "launch.log").read_text()

    def until_over(self) -> Launch:
        while not (launch := self.read()).is_over or self.programs():
            assert launch.is_over or self.programs(), self.log
            time.sleep(0.5)
        return launch

    def programs(self) -> dict[int, str]:
        """Processes of this user on this computer. SkyPilot's workers are in the session of its server."""
        own, others = f"{self.client.folder}/".encode(), {}
        sessions = set()
        for path in (path for path in Path("/proc").iterdir() if path.name.isdecimal()):
            with suppress(OSError):
                session = os.getsid(int(path.name))
                words = (path / "cmdline").read_bytes()
                others[int(path.name)] = (session, words.replace(b"\0", b" ").decode(errors="replace"))
                if own in words or own in (path / "environ").read_bytes():
                    sessions.add(session)
        sessions.discard(os.getsid(0))
        return {pid: words for pid, (session, words) in others.items() if session in sessions and words}

    def kill_program(self) -> None:
        [program] = [pid for pid, words in self.programs().items() if "launch.background" in words]
        os.kill(program, signal.SIGKILL)
        while "launch.background" in self.programs().get(program, ""):
            time.sleep(0.1)

    def attach(self) -> None:
        """Carry it on, and stop looking."""
        viewer = self.client.popen("-m", "wan_train", "launch", "attach", log=self.client.folder / "attach.log")
        while not any("launch.background" in words for words in self.programs().values()):
            assert viewer.poll() is None, (self.client.folder / "attach.log").read_text()
            time.sleep(0.1)
        viewer.kill()
        viewer.wait()

    def box_of(self, launch: Launch, job: str) -> Rented:
        name = next(box.name for box in launch.living if box.job == job)
        return next(each for each in self.vast.boxes if each.label.startswith(f"{name}-"))


@pytest.fixture
def story(client: Client, vast: LoopbackVast) -> Iterator[Story]:
    made = Story(client=client, vast=vast)
    yield made
    for pid in made.programs():  # of a test that failed
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def check(story: Story, launch: Launch) -> None:
    """What holds after every launch that went well."""
    assert [job.state for job in launch.jobs] == [JobState.DONE] * len(launch.jobs), story.log
    assert story.vast.boxes == []
    assert story.vast.leaks == []
    assert story.programs() == {}
    recorded = sum(((box.ended or 0.0) - box.began) / 3600 * box.offer.per_hour for box in launch.boxes)
    assert recorded == pytest.approx(story.vast.bill(), abs=0.002 * len(launch.boxes))
    for job in launch.jobs:
        check_job(story, job)


def check_job(story: Story, job: Job) -> None:
    assert job.home is not None
    events = events_of(job)
    placed = {Path(each["path"]).name: each["sha256"] for each in events if each["kind"] == "result_placed"}
    assert len(placed) == 2
    for name, digest in placed.items():
        assert hashlib.sha256((job.home / name).read_bytes()).hexdigest() == digest
        stem = name.removesuffix(".safetensors")
        for epoch in range(SAVE_EVERY, EPOCHS, SAVE_EVERY):
            read_header(job.home / f"{stem}-{epoch:06d}.safetensors")
    for step in ("train-high", "train-low"):
        started = [each for each in events if each["kind"] == "step_started" and each["step"] == step]
        assert {each["schedule_epochs"] for each in started} == {EPOCHS}
    status = story.client.run("status", job.home.name, "--json")
    assert json.loads(status.stdout.splitlines()[-1])["state"] == "finished"
    assert story.client.run("report", job.home.name).returncode == 0
    assert "not resumed" in (resumed := story.client.run("resume", job.home.name)).stdout or resumed.returncode == 0


def events_of(job: Job) -> list[dict[str, Any]]:
    assert job.home is not None
    return [json.loads(line) for line in (job.home / "events.jsonl").read_text().splitlines()]


def states_of(launch: Launch) -> set[str]:
    return {*(box.state.value for box in launch.living), *(job.state.value for job in launch.jobs)}


def is_at_home(launch: Launch) -> bool:
    """Whether a state and the records after it have come home: without these the job would begin anew."""
    job = launch.jobs[0]
    if job.home is None or not any(job.home.glob("*/*/output/*-state")) or not (job.home / "plan.json").is_file():
        return False
    arrived = (job.home / "plan.json").stat().st_ctime
    return any((box.fetched or 0.0) >= arrived for box in launch.boxes)


def test_one_job_undisturbed(story: Story) -> None:
    cats = draw_dataset(story.client.folder / "cats")
    done = story.client.run("launch", str(cats), "--gpu", "RTX4090", "--yes", "--json", *WORDS)
    assert done.returncode == 0, done.stdout + done.stderr
    story.directory = next((story.client.runs / "launches").iterdir())
    launch = story.until_over()
    check(story, launch)
    assert len(launch.boxes) == 1


def test_one_that_is_outbid_in_mid_training(story: Story) -> None:
    draw_dataset(story.client.folder / "cats")
    story.begin("cats", "--spot", *WORDS)
    launch = story.wait_for(is_at_home)
    story.vast.outbid(story.box_of(launch, launch.jobs[0].name))
    launch = story.until_over()
    check(story, launch)
    assert [box.because for box in launch.boxes] == ["outbid", "no job is left for it"]
    started = [each for each in events_of(launch.jobs[0]) if each["kind"] == "step_started"]
    assert any(each["epochs_before"] > 0 for each in started)


def test_three_jobs_over_two_boxes(story: Story) -> None:
    for name in ("cats", "dogs", "owls"):
        draw_dataset(story.client.folder / name)
    story.begin("cats", "dogs", "owls", "--boxes", "2", *WORDS)
    launch = story.until_over()
    check(story, launch)
    assert len(launch.boxes) == 2
    assert len({job.home for job in launch.jobs}) == 3


def test_a_wrong_gpu_is_destroyed_and_avoided(story: Story) -> None:
    story.vast.plan.delivers.append("RTX 3060")
    draw_dataset(story.client.folder / "cats")
    story.begin("cats", *WORDS)
    launch = story.until_over()
    check(story, launch)
    wrong, right = launch.boxes
    assert "RTX 3060" in wrong.because
    assert wrong.offer.machine != right.offer.machine


def test_the_program_is_killed_in_every_state(story: Story) -> None:
    draw_dataset(story.client.folder / "cats")
    story.begin("cats", *WORDS)
    for state in ("renting", "provisioning", "sending", "training", "fetching", "destroying"):
        story.wait_for(lambda launch: state in states_of(launch))  # noqa: B023  it is called at once
        story.kill_program()
        story.attach()
    launch = story.until_over()
    check(story, launch)
    assert len(launch.boxes) == 1


def test_skypilots_server_is_killed_while_it_rents(story: Story) -> None:
    draw_dataset(story.client.folder / "cats")
    story.begin("cats", *WORDS)
    story.wait_for(lambda _: bool(story.vast.boxes))
    for pid, words in story.programs().items():
        if "sky.server.server" in words:
            os.kill(pid, signal.SIGKILL)
    launch = story.until_over()
    check(story, launch)
    assert [box.state for box in launch.boxes] == [BoxState.GONE] * len(launch.boxes)
