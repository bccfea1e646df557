"""The store of each kind of target."""

from __future__ import annotations

import os
from pathlib import Path
from typing import assert_never

from wan_train.base.settings import Settings
from wan_train.upload.destinations import HubTarget, RcloneTarget, Target
from wan_train.upload.hub import HubStore
from wan_train.upload.rclone import RcloneStore, find_rclone
from wan_train.upload.store import Store


def rclone_folder(settings: Settings) -> Path:
    """Where provision puts an rclone of our own."""
    return settings.box_dir / "rclone"


def store_of(target: Target, settings: Settings, *, run_id: str = "", lock: int | None = None) -> Store:
    match target:
        case HubTarget():
            return HubStore(target=target, run_id=run_id, environ=os.environ)
        case RcloneTarget():
            program = find_rclone(rclone_folder(settings))
            return RcloneStore(target=target, run_id=run_id, program=program, lock=lock)
        case _:
            assert_never(target)
