"""Answers with the learning rates that the trainer's own functions give each step of trainings, as JSON.

Reads [{"words": options of the training script, "steps": their number}, ...] from stdin; the first argument is our file
with which wan-train itself asks those functions. Of each training: a list of rates, or what was raised, as a text. Runs
in the trainer's environment.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

spec = importlib.util.spec_from_file_location("child", sys.argv[1])
assert spec is not None
assert spec.loader is not None
child = importlib.util.module_from_spec(spec)
spec.loader.exec_module(child)
package = Path(sys.argv[2])
sys.path[0] = str(package)
warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)

import torch  # noqa: E402  after the path of the trainer

excerpts = [child.Excerpt(path) for name in child._SOURCES if (path := package / name).is_file()]
make_parser = next(made for each in excerpts if (made := each.function("setup_parser_common")) is not None)
trainer = next(each for each in excerpts if each.methods).trainer()


def rates(words: list[str], steps: int) -> list[float] | str:
    args = make_parser().parse_known_args(words)[0]
    args.max_train_steps = steps
    try:
        optimizer = trainer.get_optimizer(args, [torch.nn.Parameter(torch.zeros(1))])[2]
        scheduler: Any = trainer.get_lr_scheduler(args, optimizer, 1)
    except Exception as error:  # noqa: BLE001  what the trainer raises is the answer
        return f"{type(error).__name__}: {error}"
    found = []
    for _ in range(steps):
        found.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return found


answer = [rates(each["words"], each["steps"]) for each in json.load(sys.stdin)]
sys.stdout.write(f"{json.dumps(answer)}\n")
