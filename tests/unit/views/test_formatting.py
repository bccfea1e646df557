from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_train.base import units
from wan_train.views import formatting


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (-3, "0 s"),
        (48.4, "48 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (2880, "48 min"),
        (3599.9, "1 h"),
        (4320, "1 h 12 min"),
        (86_400 * 2 + 3 * 3600, "2 d 3 h"),
        (float("inf"), "11574074 d 1 h"),
    ],
)
def test_duration(seconds: float, said: str) -> None:
    assert units.duration(seconds) == said


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999_700, "1 MB"),
        (153_400_000, "153 MB"),
        (1_240_000_000, "1.2 GB"),
        (99_960_000_000, "100 GB"),
        (212_000_000_000, "212 GB"),
        (2_000_000_000_000, "2.0 TB"),
    ],
)
def test_file_size(size: int, said: str) -> None:
    assert units.file_size(size) == said


@pytest.mark.parametrize(("loss", "said"), [(0.0831, "0.0831"), (0.91, "0.9100"), (12.3456, "12.3"), (1e-5, "1e-05")])
def test_loss(loss: float, said: str) -> None:
    assert formatting.loss(loss) == said


@given(st.text(), st.integers(2, 60))
def test_wrapped_text_fits_and_loses_nothing(text: str, width: int) -> None:
    lines = list(formatting.wrap(text, width))
    assert all(formatting.columns(line) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


@given(st.text(), st.integers(0, 60))
def test_cut_text_fits(text: str, width: int) -> None:
    assert formatting.columns(formatting.cut(text, width)) <= width
    assert formatting.columns(formatting.cut_front(text, width)) <= width


@given(st.text())
def test_ascii_keeps_the_columns(text: str) -> None:
    simple = formatting.to_ascii(text)
    assert simple.isascii()
    assert len(simple) >= formatting.columns(text)
