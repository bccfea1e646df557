"""kill -9 in the middle of an upload: the next uploader sends only what is not there yet."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from upload_world import HIGH, LOW, Place, lora

from support.upload_hub import UploadHub
from wan_train.base import locks
from wan_train.base.errors import NotReadyError
from wan_train.upload.status import Stage, due, statuses, unverified

TARGET = "hf:me/cat"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def start(place: Place, hub: UploadHub) -> subprocess.Popen[bytes]:
    words = ["upload", "mylora", TARGET, "--runs-dir", str(place.runs)]
    return subprocess.Popen(
        [sys.executable, "-m", "wan_train", *words],
        env={**os.environ, **hub.environ()},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_a_killed_upload_continues_and_sends_nothing_twice(place: Place, hub: UploadHub) -> None:
    lora(place.path / LOW, 2.0, size=200_000)
    hub.stall_after = 65_536
    child = start(place, hub)
    hub.stalled.wait()
    while sha256(place.path / HIGH) not in hub.sent:
        assert child.poll() is None
    (status,) = statuses(place.run, [TARGET])
    assert status.stage is Stage.SENDING
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    hub.released.set()
    hub.stall_after = None
    assert due(place.run, [TARGET], now=place.clock.now()), "nothing was verified yet"
    place.upload(TARGET)
    assert unverified(place.run, [TARGET]) == ()
    assert hub.sent.count(sha256(place.path / HIGH)) == 1
    assert len(hub.repos["me/cat"].commits) == 1


def test_a_commit_that_was_made_before_the_kill_is_not_made_again(place: Place, hub: UploadHub) -> None:
    place.upload(TARGET)
    lines = place.run.uploads.read_text(encoding="utf-8").splitlines(keepends=True)
    assert "began" in lines[0]
    place.run.uploads.write_text(lines[0] + lines[1][:20], encoding="utf-8")  # a kill in the middle of a record
    place.upload(TARGET)
    assert unverified(place.run, [TARGET]) == ()
    assert len(hub.repos["me/cat"].commits) == 1


def test_there_is_one_uploader(place: Place, hub: UploadHub) -> None:
    with locks.held(place.run.uploads_lock), pytest.raises(NotReadyError, match="another upload of"):
        place.upload(TARGET)
    assert not hub.asked
    place.upload(TARGET)
    assert unverified(place.run, [TARGET]) == ()
