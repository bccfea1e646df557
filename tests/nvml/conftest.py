from __future__ import annotations

from support.nvml import nvml_library, nvml_stub

__all__ = ["nvml_library", "nvml_stub"]  # fixtures, for the tests of this folder
