"""Amounts in words."""

from __future__ import annotations

import pytest

from wan_train.base.units import fine_percent


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        (0.535, "54 %"),
        (0.0996, "10 %"),
        (0.014, "1.4 %"),
        (0.00995, "1.0 %"),
        (0.0017, "0.17 %"),
        (0.0002, "0.020 %"),
        (0.00002, "0.002 %"),
        (0.000004, "under 0.001 %"),
        (0.0, "0 %"),
    ],
)
def test_a_tiny_share_keeps_its_digits(share: float, shown: str) -> None:
    assert fine_percent(share) == shown
