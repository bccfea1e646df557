"""Answers with the greatest difference between the tensors of each pair of safetensors files on stdin.

JSON on the last line; null where names or shapes differ. Runs in the trainer's environment.
"""

from __future__ import annotations

import json
import sys

from safetensors.torch import load_file


def difference(one: str, other: str) -> float | None:
    first, second = load_file(one), load_file(other)
    if {name: tensor.shape for name, tensor in first.items()} != {n: t.shape for n, t in second.items()}:
        return None
    return max(float((first[name].float() - second[name].float()).abs().max()) for name in first)


sys.stdout.write(f"\n{json.dumps([difference(*pair) for pair in json.load(sys.stdin)])}\n")
