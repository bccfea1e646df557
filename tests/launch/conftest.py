from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.launch_client import Client
from support.loopback_vast import LoopbackVast, loopback_vast

VARIABLE = "WAN_TRAIN_TEST_LAUNCH"
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            # A guard against a launch that never ends: SkyPilot alone takes minutes of CPU for each box.
            item.add_marker(pytest.mark.timeout(3600))


@pytest.fixture(scope="session")
def roots() -> Path:
    if not os.environ.get(VARIABLE):
        pytest.skip(f"set {VARIABLE}=DIR to test with the real SkyPilot (tests/launch/prepare.sh makes DIR)")
    made = Path(os.environ[VARIABLE]).absolute()
    for needed in (made / "rootfs/usr/sbin/sshd", made / "sky/env/ready"):
        # Whoever sets the variable wants the proof: a broken DIR must not pass as skipped.
        assert needed.exists(), f"{needed} is missing: {VARIABLE} must name a folder made by prepare.sh"
    assert os.geteuid() == 0, "boxes are namespaces of this machine, which only root can make"
    return made


@pytest.fixture
def vast(tmp_path: Path, roots: Path) -> Iterator[LoopbackVast]:
    with loopback_vast(tmp_path / "vast", roots / "rootfs") as made:
        yield made


@pytest.fixture
def client(tmp_path: Path, roots: Path, vast: LoopbackVast) -> Client:
    made = Client(folder=tmp_path / "client", vast=vast.address, key=vast.key)
    made.install(roots / "sky/env", {"transitions.WATCH_SECONDS": 3.0, "model.fetch_seconds": 10.0})
    return made
