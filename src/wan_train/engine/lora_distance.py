"""The distance between two LoRAs, measured on what they add to the model: up x down of every module.

These products are never built. Their difference is written as `(U1 - U0) D1 + U0 (D1 - D0)`, so its Frobenius norm
needs only small Gram matrices of the rank factors. The shorter form, three inner products of the two LoRAs, loses all
digits when the LoRAs are close.
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self, TypeAlias

from wan_train.engine.tensors import BrokenFileError, Header, Tensor, read_header

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Matrix: TypeAlias = NDArray[np.float32]

_DOWN, _UP, _ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"


def load_numpy() -> None:
    """Load numpy with one linear-algebra thread instead of one per CPU of the box.

    OpenBLAS and MKL count the CPUs that the loading thread may use. Their environment variables would also affect
    our child processes.
    """
    if not hasattr(os, "sched_getaffinity"):  # macOS: a single-user machine
        importlib.import_module("numpy")
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        importlib.import_module("numpy")
    finally:
        os.sched_setaffinity(0, allowed)


class LoraFile:
    """An open LoRA, or the network's weights in a training state. It stays readable after the file is deleted.

    Raises BrokenFileError for an incomplete file, or one without up and down matrices (LoHa, LoKr). Data is read, not
    memory-mapped: with a mapped file, a failing disk would kill the process.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._header: Header = read_header(path)
        self.modules = frozenset(name.removesuffix(_DOWN) for name in self._header.tensors if name.endswith(_DOWN))
        if not self.modules or any(module + _UP not in self._header.tensors for module in self.modules):
            raise BrokenFileError(f"{path} has no LoRA modules")
        for name, tensor in self._header.tensors.items():
            if name.endswith((_DOWN, _UP)) and (len(tensor.shape) < 2 or 0 in tensor.shape):  # matrices
                raise BrokenFileError(f"{path} holds no matrix {name}")
        try:
            self._file: BinaryIO = path.open("rb")
        except OSError as error:
            raise BrokenFileError(f"{path} cannot be read: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def factors(self, module: str) -> tuple[Matrix, Matrix]:
        """Up (out x rank), scaled by alpha / rank, and down (rank x in)."""
        tensors = self._header.tensors
        up, down = self._matrix(tensors[module + _UP]), self._matrix(tensors[module + _DOWN])
        rank = down.shape[0]
        alpha = float(self._values(tensors[module + _ALPHA])[0]) if module + _ALPHA in tensors else float(rank)
        return up * (alpha / rank), down

    def _matrix(self, tensor: Tensor) -> Matrix:
        return self._values(tensor).reshape(tensor.shape[0], -1)

    def _values(self, tensor: Tensor) -> Matrix:
        import numpy as np

        try:
            self._file.seek(self._header.data_begins + tensor.begin)
            raw = np.frombuffer(self._file.read(tensor.end - tensor.begin), np.uint8)
        except OSError as error:
            raise BrokenFileError(f"{self._path} cannot be read: {error.strerror}") from error
        if raw.size != tensor.end - tensor.begin:
            raise BrokenFileError(f"{self._path} is incomplete")
        match tensor.dtype:
            case "BF16":  # the upper half of a float32
                return (raw.view("<u2").astype("<u4") << 16).view("<f4")
            case "F16" | "F32" | "F64":
                return raw.view(f"<f{int(tensor.dtype[1:]) // 8}").astype(np.float32, copy=False)
            case other:
                raise BrokenFileError(f"a LoRA of element type {other} cannot be compared")


def distance(earlier: LoraFile, later: LoraFile) -> float:
    """The relative change from one LoRA to the other: the norm of the difference over the norm of the later one.

    0.004 is 0.4 %. Raises BrokenFileError if they cannot be compared.
    """
    if earlier.modules != later.modules:
        raise BrokenFileError("the two LoRAs have different modules")
    moved = total = 0.0
    for difference, size in _squares(earlier, later):
        moved += difference
        total += size
    if not math.isfinite(moved) or not math.isfinite(total):
        raise BrokenFileError("a LoRA holds numbers that are not finite")
    return math.sqrt(moved / total) if total else 0.0


def _squares(earlier: LoraFile, later: LoraFile) -> Iterator[tuple[float, float]]:
    """The squared norms of the difference and of the later LoRA, for each module."""
    import numpy as np

    for module in sorted(later.modules):
        (up0, down0), (up1, down1) = earlier.factors(module), later.factors(module)
        if up0.shape[0] != up1.shape[0] or down0.shape[1] != down1.shape[1]:
            raise BrokenFileError(f"the two LoRAs have different shapes of {module}")
        if up0.shape == up1.shape:
            left, right = np.hstack([up1 - up0, up0]), np.vstack([down1, down1 - down0])
        else:  # different ranks: no cancellation that matters
            left, right = np.hstack([up1, -up0]), np.vstack([down1, down0])
        yield _product_square(left, right), _product_square(up1, down1)


def _product_square(left: Matrix, right: Matrix) -> float:
    """The squared Frobenius norm of left @ right. Rounding may make the sum slightly negative, hence `abs`."""
    return abs(float(((left.T @ left) * (right @ right.T)).sum(dtype="f8")))
