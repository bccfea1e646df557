"""Python packages by the names that programs import; only those whose names differ are listed."""

from __future__ import annotations

_PIP_NAMES = {
    "adabelief_pytorch": "adabelief-pytorch",
    "adam_mini": "adam-mini",
    "apollo_torch": "apollo-torch",
    "came_pytorch": "came-pytorch",
    "cv2": "opencv-python-headless",
    "dadaptation": "dadaptation",
    "flash_attn": "flash-attn",
    "galore_torch": "galore-torch",
    "google": "protobuf",
    "lion_pytorch": "lion-pytorch",
    "lycoris": "lycoris-lora",
    "PIL": "pillow",
    "prodigyplus": "prodigy-plus-schedule-free",
    "pytorch_optimizer": "pytorch-optimizer",
    "torch_optimizer": "torch-optimizer",
    "yaml": "pyyaml",
}


def pip_name(module: str) -> str:
    """The package to install for a module, or a part of one."""
    top = module.partition(".")[0]
    return _PIP_NAMES.get(top, top)
