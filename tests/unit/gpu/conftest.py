from __future__ import annotations

from pathlib import Path

import pytest

from wan_train.gpu.leases import LeaseRoom


@pytest.fixture
def room(tmp_path: Path) -> LeaseRoom:
    return LeaseRoom(tmp_path / "leases")
