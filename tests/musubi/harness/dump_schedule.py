"""Answers with where a saved state's learning-rate schedule stands: {"steps", "rate"}, as JSON on the last line.

Runs in the trainer's environment.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

schedule = torch.load(Path(sys.argv[1]) / "scheduler.bin", weights_only=True)
sys.stdout.write(f"{json.dumps({'steps': schedule['last_epoch'], 'rate': schedule['_last_lr'][0]})}\n")
