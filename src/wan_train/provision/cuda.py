"""Which drivers and GPUs the torch of an engine can work with, by the CUDA version it was built for."""

from __future__ import annotations

import re
from dataclasses import dataclass

from wan_train.provision.engine_file import EngineFile

Version = tuple[int, ...]
Capability = tuple[int, int]

BLACKWELL_DRIVER: Version = (570,)
"""The first driver branch for Blackwell GPUs. Source: NVIDIA's driver release notes, R570."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaBuild:
    """One CUDA version that torch is built for.

    `least_driver` runs it by NVIDIA's minor version compatibility, `own_driver` is the one it came with. Sources: "CUDA
    Compatibility", table of minor version compatibility; CUDA Toolkit release notes, table of driver versions.
    `oldest` and `newest` are compute capabilities, of which the second counts by its major number. Source: PyTorch's
    RELEASE.md, "CUDA support matrix" of 2.7 and later.
    """

    name: str
    least_driver: Version
    own_driver: Version
    oldest: Capability
    newest: Capability

    def supports(self, capability: Capability) -> bool:
        return self.oldest <= capability and capability[0] <= self.newest[0]


_BUILDS = {
    "126": CudaBuild(name="CUDA 12.6", least_driver=(525,), own_driver=(560, 28), oldest=(5, 0), newest=(9, 0)),
    "128": CudaBuild(name="CUDA 12.8", least_driver=(525,), own_driver=(570, 26), oldest=(7, 5), newest=(12, 0)),
    "130": CudaBuild(name="CUDA 13.0", least_driver=(580,), own_driver=(580, 65), oldest=(7, 5), newest=(12, 0)),
}
_INDEX = re.compile(r"/cu(\d{3})/?$")


def build_of(engine: EngineFile) -> CudaBuild | None:
    """The CUDA build of an engine's torch by its package index; None when it has none that is known here."""
    match = _INDEX.search(engine.first_index or "")
    return _BUILDS.get(match[1]) if match is not None else None


def driver_version(text: str | None) -> Version | None:
    """`570.124.06` as numbers; None for anything else."""
    return tuple(map(int, text.split("."))) if text and re.fullmatch(r"\d+(?:\.\d+)*", text) else None


def words(version: Version) -> str:
    return ".".join(map(str, version))
