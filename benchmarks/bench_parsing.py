"""Reading the trainer's output: records per second over a log as the real trainer writes it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from figures import Figure
from wan_train.run.progress import LogFollower, ProgressTracker

_RECORDS = 400_000
_STEPS_PER_EPOCH = 200


def measure() -> Iterator[Figure]:
    with tempfile.TemporaryDirectory(prefix="wan-train-bench-") as folder:
        log = Path(folder) / "output.log"
        log.write_text(real_looking_log(_RECORDS), encoding="utf-8")
        follower = LogFollower(log)
        started = time.process_time()
        count = sum(1 for _ in follower.new_records())
        parsing = time.process_time() - started
        follower = LogFollower(log)
        tracker = ProgressTracker()
        started = time.process_time()
        tracker.add(follower.new_records(), 0.0)
        folding = time.process_time() - started
        size = log.stat().st_size
        started = time.process_time()
        lines = sum(chunk.count(b"\r") for chunk in iter_chunks(log))
        scanning = time.process_time() - started
    assert count >= _RECORDS, (count, lines)
    yield Figure(
        what=f"log parsing, {count:,} records, {size / 1e6:.0f} MB",
        measured=f"{count / parsing:,.0f} records/s",
        against=f"counting its bars only: {lines / scanning:,.0f}/s",
        ratio=parsing / scanning,
        goal="> 200,000 records/s",
        met=count / parsing > 200_000,
    )
    yield Figure(
        what="the same, folded into a progress",
        measured=f"{count / folding:,.0f} records/s",
        goal="> 200,000 records/s",
        met=count / folding > 200_000,
    )


def iter_chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(262_144):
            yield chunk


def real_looking_log(records: int) -> str:
    """Two bar redraws a step, the second with the loss; epoch lines and words between them."""
    steps = records // 2
    epochs = -(-steps // _STEPS_PER_EPOCH)
    parts = ["INFO:musubi_tuner.wan.modules.model:Loading DiT model from /workspace/model.safetensors, device=cuda\n"]
    for step in range(1, steps + 1):
        if step % _STEPS_PER_EPOCH == 1:
            parts.append(f"\nepoch {step // _STEPS_PER_EPOCH + 1}/{epochs}\n")
            parts.append("INFO:musubi_tuner.dataset.config_utils:epoch is incremented. current_epoch: 0\n")
        share = 100 * step // steps
        blocks = "█" * (share // 10)
        clock = f"{step // 3600:02d}:{step // 60 % 60:02d}:{step % 60:02d}"
        bar = f"\rsteps: {share:3d}%|{blocks:<10}| {step}/{steps} [{clock}<9:59:59,  1.02s/it"
        parts.append(f"{bar}]")
        parts.append(f"{bar}, avr_loss={0.1 + 1 / step:.3g}]")
    return "".join(parts)
