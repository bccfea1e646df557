"""Until when a training goes on, as people write it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_train.recipe.until import AllEpochs, Epoch, Share, parse, read, spelled


@pytest.mark.parametrize(
    ("written", "kept", "meaning"),
    [
        ("all", "all", AllEpochs()),
        (" ALL ", "all", AllEpochs()),
        ("50", "50", Epoch(number=50)),
        (50, "50", Epoch(number=50)),
        ("050", "50", Epoch(number=50)),
        ("99.8%", "99.8%", Share(part=0.998)),
        ("99.80 %", "99.8%", Share(part=0.998)),
        ("5%", "5%", Share(part=0.05)),
        ("100%", "all", AllEpochs()),
    ],
)
def test_each_value_has_one_spelling(written: object, kept: str, meaning: object) -> None:
    assert read(written) == (kept, None)
    assert parse(kept) == meaning


@pytest.mark.parametrize(
    "written", ["0", 0, -1, "-5", "0%", "120%", "1000000", 100_001, "99.8", 0.998, True, None, "", "half", "50 epochs"]
)
def test_what_is_no_end_is_refused_with_the_valid_forms(written: object) -> None:
    value, problem = read(written)

    assert value is None
    assert problem is not None
    assert problem.startswith("must be ")


@given(st.integers(min_value=1, max_value=9_999))
def test_a_share_keeps_its_digits(hundredths: int) -> None:
    text = f"{hundredths / 100:.2f}%"

    kept, _ = read(text)

    assert kept is not None
    assert spelled(parse(kept)) == kept
    assert float(kept.removesuffix("%")) == hundredths / 100
