"""Units of memory and storage. GB is decimal, GiB is binary; everything else is derived from these two."""

from __future__ import annotations

from typing import Final

MB: Final = 10**6
GB: Final = 10**9
MIB: Final = 2**20
GIB: Final = 2**30
