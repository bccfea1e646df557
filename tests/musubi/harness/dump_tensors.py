"""Answers with {file: {tensor: [dtype, shape, finite, all zero]}} for safetensors files.

JSON on the last line. The files are read by the safetensors library and torch of the trainer's environment,
where this runs.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from safetensors.torch import load_file


def described(tensor: torch.Tensor) -> list[Any]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return [dtype, list(tensor.shape), bool(torch.isfinite(tensor).all()), not bool(tensor.any())]


found = {name: {key: described(tensor) for key, tensor in load_file(name).items()} for name in sys.argv[1:]}
sys.stdout.write(f"{json.dumps(found)}\n")
