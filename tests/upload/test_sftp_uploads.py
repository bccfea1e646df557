"""Uploads by rclone over a network: a real SFTP server, its checksums, its refusals, and its death."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from upload_world import HIGH, LOW, Place, lora

from wan_train.upload.destinations import parse
from wan_train.upload.status import unverified

TARGET = "rclone:nas:loras"
RUN = "20261122-141500-mylora"


@dataclass(slots=True, kw_only=True)
class Nas:
    """A server that rclone itself offers, for a folder."""

    program: Path
    folder: Path
    address: str = "127.0.0.1:0"
    process: subprocess.Popen[str] | None = field(default=None)

    def start(self) -> None:
        words = ["serve", "sftp", "--addr", self.address, "--user", "me", "--pass", "secret", str(self.folder)]
        self.process = subprocess.Popen([self.program, *words], stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if found := re.search(r"127\.0\.0\.1:\d+", line):
                self.address = found[0]
                return
        raise AssertionError("the server did not start")

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


@pytest.fixture
def nas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rclone: Path) -> Iterator[Nas]:
    folder = tmp_path / "nas"
    folder.mkdir()
    made = Nas(program=rclone, folder=folder)
    made.start()
    host, _, port = made.address.partition(":")
    obscured = subprocess.run([rclone, "obscure", "secret"], capture_output=True, text=True, check=True).stdout.strip()
    for name, value in {"TYPE": "sftp", "HOST": host, "PORT": port, "USER": "me", "PASS": obscured}.items():
        monkeypatch.setenv(f"RCLONE_CONFIG_NAS_{name}", value)
    yield made
    made.stop()


def test_everything_arrives_and_a_dead_server_is_waited_for(place: Place, nas: Nas) -> None:
    lora(place.path / HIGH, 1.0, size=300_000)
    place.upload(TARGET)
    assert unverified(place.run, [TARGET]) == ()
    assert (nas.folder / "loras" / RUN / HIGH).read_bytes() == (place.path / HIGH).read_bytes()
    lora(place.path / LOW, 3.0)
    nas.stop()
    uploader = place.uploader()
    uploader.pauses = (2.0,)  # rclone itself is patient
    uploader.upload([parse(TARGET)])
    problem = uploader.problems[TARGET]
    assert not problem.final
    assert "connection refused" in problem.reason
    assert place.clock.slept == [2]
    nas.start()
    assert not place.upload(TARGET).problems
    assert (nas.folder / "loras" / RUN / LOW).read_bytes() == (place.path / LOW).read_bytes()


def test_a_wrong_password_is_final(place: Place, nas: Nas, monkeypatch: pytest.MonkeyPatch) -> None:
    assert nas.process is not None
    wrong = subprocess.run([nas.program, "obscure", "wrong"], capture_output=True, text=True, check=True).stdout.strip()
    monkeypatch.setenv("RCLONE_CONFIG_NAS_PASS", wrong)
    problem = place.upload(TARGET).problems[TARGET]
    assert problem.final
    assert "unable to authenticate" in problem.reason
    assert wrong not in problem.reason
