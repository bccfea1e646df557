"""The uploads of a run as text: one line for each target, and how to download the files."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import assert_never

from wan_train.base.units import count, file_size
from wan_train.upload.destinations import HubTarget, RcloneTarget
from wan_train.upload.status import Stage, TargetStatus
from wan_train.views.formatting import clock, safe

STAGE_STYLES: Mapping[Stage, str] = {
    Stage.WAITING: "dim",
    Stage.PENDING: "dim",
    Stage.SENDING: "",
    Stage.FAILED: "yellow",
    Stage.VERIFIED: "green",
}


def upload_text(status: TargetStatus) -> str:
    """`hf:me/cat: 5 files verified (307 MB)`."""
    return f"{safe(status.target)}: {stage_text(status)}"


def stage_text(status: TargetStatus) -> str:
    there = f"{status.verified} of {count(status.ready, 'file')} verified"
    match status.stage:
        case Stage.WAITING:
            return "waiting for the first LoRA"
        case Stage.PENDING:
            return there
        case Stage.SENDING:
            return f"sending; {there}"
        case Stage.VERIFIED:
            return f"{count(status.ready, 'file')} verified ({file_size(status.bytes)})"
        case Stage.FAILED:
            assert status.failed is not None, "what failed has a reason"
            tried = f"; next try {clock(status.next_try)}" if status.next_try is not None else ""
            return f"{there}{tried}: {safe(status.failed.reason)}"
        case _:
            assert_never(status.stage)


def download_command(status: TargetStatus) -> str | None:
    """The command that downloads the LoRAs to your own computer; None if impossible, or none is there yet."""
    if status.where is None:
        return None
    match status.target:
        case HubTarget() as target:
            include = shlex.quote("/".join(part for part in (status.where, "*.safetensors") if part))
            return f"hf download {target.repo} --include {include} --local-dir ."
        case RcloneTarget(remote=None):
            return None  # a folder on this box
        case RcloneTarget() as target:
            return f"rclone copy {shlex.quote(target.below(status.where))} . --include '*.safetensors'"
        case _:
            assert_never(status.target)
