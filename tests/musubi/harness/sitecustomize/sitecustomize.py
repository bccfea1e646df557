"""Shrinks musubi-tuner's Wan 2.2 models so that its real scripts run on a CPU in seconds.

Python imports this file by itself in every process that has its folder on PYTHONPATH, so it only leaves an
import hook behind: a process that imports neither torch nor musubi_tuner pays one look-up per import.

Nothing of the trainer's own logic is replaced. What changes is sizes, and two things that a machine without
CUDA and torchvision lacks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

DIT = {"dim": 64, "ffn_dim": 128, "num_heads": 4, "num_layers": 4}
VAE = {"dim": 8}
# `dim` stays at its real 4096: the DiT reads text embeddings of that width.
UMT5 = {
    "vocab_size": 300,
    "dim_attn": 64,
    "dim_ffn": 64,
    "num_heads": 4,
    "encoder_layers": 1,
}

# The trainer imports torchvision for pictures that it draws: of it they need `make_grid`, image-to-video `to_tensor`.
STUBS = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "torchvision.utils")

# On a GPU autocast joins T5's bfloat16 to the DiT's weights; a CPU has no autocast for float32 weights. Whoever draws
# sets this variable, and then everything is float32.
FLOAT32_TEXT = "MUSUBI_TEST_FLOAT32_TEXT"

# `FUNCTION FILE`: that function of wan_generate_video runs out of memory once, while the file is there.
OUT_OF_MEMORY = "MUSUBI_TEST_OUT_OF_MEMORY"

Patch = Callable[[ModuleType], None]


def _current_device(module: ModuleType) -> None:
    # wan/modules/t5.py evaluates `torch.cuda.current_device()` as a default argument while it is imported.
    if not module.is_available():
        module.current_device = lambda: "cpu"


def _dit(name: str) -> Patch:
    def patch(module: ModuleType) -> None:
        config = getattr(module, name)
        config.update(DIT)
        if os.environ.get(FLOAT32_TEXT):
            config.t5_dtype = import_module("torch").float32

    return patch


def _with_sizes(name: str, sizes: dict[str, int]) -> Patch:
    def patch(module: ModuleType) -> None:
        real = getattr(module, name)

        def shrunken(*args: Any, **kwargs: Any) -> Any:
            return real(*args, **{**sizes, **kwargs})

        setattr(module, name, shrunken)

    return patch


def _out_of_memory(module: ModuleType) -> None:
    name, _, file = os.environ.get(OUT_OF_MEMORY, "").partition(" ")
    if not name:
        return
    real = getattr(module, name)

    def short(*args: Any, **kwargs: Any) -> Any:
        flag = import_module("pathlib").Path(file)
        if flag.exists():
            flag.unlink()
            raise import_module("torch").OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(*args, **kwargs)

    setattr(module, name, short)


PATCHES: dict[str, Patch] = {
    "torch.cuda": _current_device,
    "musubi_tuner.wan.configs.wan_t2v_A14B": _dit("t2v_A14B"),
    "musubi_tuner.wan.configs.wan_i2v_A14B": _dit("i2v_A14B"),
    "musubi_tuner.wan.modules.vae": _with_sizes("_video_vae", VAE),
    "musubi_tuner.wan_generate_video": _out_of_memory,
    "musubi_tuner.wan.modules.t5": _with_sizes("umt5_xxl", UMT5),
}


def _make_grid(pictures: Any, nrow: int) -> Any:
    """What torchvision's own returns for one picture: that picture."""
    assert len(pictures) == nrow == 1
    return pictures[0]


def _to_tensor(picture: Any) -> Any:
    """What torchvision's own returns for pictures of bytes: channels first, 0 to 1."""
    torch, numpy = import_module("torch"), import_module("numpy")
    return torch.from_numpy(numpy.array(picture)).permute(2, 0, 1).contiguous().float().div(255)


class _PatchedLoader(Loader):
    """Loads a module as its own loader would, then changes it."""

    def __init__(self, loader: Loader, patch: Patch) -> None:
        self.loader = loader
        self.patch = patch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        self.patch(module)


class _Patches(MetaPathFinder):
    """First in line: finds the module where Python would and has it changed once it has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        patch = PATCHES.get(fullname)
        if patch is None:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _PatchedLoader(spec.loader, patch)
        return spec


class _Stubs(MetaPathFinder, Loader):
    """Last in line: a torchvision that is installed is used as it is."""

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if fullname in STUBS else None

    def create_module(self, _spec: ModuleSpec) -> None:
        """Python makes an ordinary empty module."""

    def exec_module(self, module: ModuleType) -> None:
        """It stays empty, but for the functions that pictures go through."""
        match module.__name__:
            case "torchvision":
                import_module("torchvision.utils")  # which makes it an attribute
            case "torchvision.utils":
                module.__dict__["make_grid"] = _make_grid
            case "torchvision.transforms.functional":
                module.__dict__["to_tensor"] = _to_tensor
            case _:
                pass


sys.meta_path.insert(0, _Patches())
sys.meta_path.append(_Stubs())
