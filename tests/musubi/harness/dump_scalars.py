"""Answers with the TensorBoard scalars below a folder: {tag: [[step, value], ...]}, as JSON on the last line.

Runs in the trainer's environment.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

found: dict[str, list[list[float]]] = {}
for folder in sorted({path.parent for path in Path(sys.argv[1]).rglob("events.out.tfevents.*")}):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    for tag in events.Tags()["scalars"]:
        found.setdefault(tag, []).extend([event.step, event.value] for event in events.Scalars(tag))
sys.stdout.write(f"{json.dumps(found)}\n")
