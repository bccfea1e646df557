"""Answers with the relative L2 distance of the effective weights (up x down) of each pair of LoRAs on stdin.

Of [one, other] it is |one - other| / |other| over all modules. JSON on the last line. Runs in the trainer's
environment.
"""

from __future__ import annotations

import json
import sys

import torch
from safetensors.torch import load_file


def weights(path: str) -> torch.Tensor:
    """All products in one row: the models of these tests are small."""
    found = load_file(path)
    names = sorted(name.removesuffix(".lora_down.weight") for name in found if name.endswith(".lora_down.weight"))
    products = [found[f"{name}.lora_up.weight"].double() @ found[f"{name}.lora_down.weight"].double() for name in names]
    return torch.cat([product.flatten() for product in products])


def distance(one: str, other: str) -> float:
    first, second = weights(one), weights(other)
    return float((first - second).norm() / second.norm())


sys.stdout.write(f"\n{json.dumps([distance(*pair) for pair in json.load(sys.stdin)])}\n")
