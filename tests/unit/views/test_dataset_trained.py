from __future__ import annotations

import re

import pytest

from views.datasets import inventory_of, mixed
from views.support import check_golden, shown
from wan_train.dataset.layout import outlook
from wan_train.views.dataset_tables import trained_lines


@pytest.mark.parametrize("width", [60, 80, 120])
def test_what_will_be_trained(width: int) -> None:
    ahead = outlook(mixed(), epochs=100, accumulation=1, image_to_video=False)
    text = shown(trained_lines(ahead, stops=False), width)
    # A source is a path to copy and stays whole.
    assert max(map(len, text.splitlines())) <= width
    check_golden(f"view_trained_{width}", text)


def test_many_sizes_are_summed_up() -> None:
    sizes = [(960, 300 + 20 * number) for number in range(40)]
    ahead = outlook(inventory_of(sizes), epochs=1, accumulation=1, image_to_video=False)
    text = shown(trained_lines(ahead, stops=False), 80)
    listed = [int(found[1]) for found in re.finditer(r"^    \d+x\d+ +(\d+) ", text, re.MULTILINE)]
    (rest,) = [line for line in text.splitlines() if "more sizes" in line]
    assert len(listed) == 12
    assert sum(listed) + int(rest.split()[3]) == 40


def test_names_cannot_act_on_the_terminal() -> None:
    ahead = outlook(
        inventory_of([(9000, 300)], name="\x1b[2J\u202e{}.png"), epochs=1, accumulation=1, image_to_video=False
    )
    text = shown(trained_lines(ahead, stops=False), 120)
    assert "\\x1b[2J\\u202e" in text
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_what_stops_is_said_before_the_counts() -> None:
    ahead = outlook(inventory_of([(960, 960)]), epochs=1, accumulation=1, image_to_video=False)
    assert "Nothing yet" in shown(trained_lines(ahead, stops=True), 60)
    assert "Nothing yet" not in shown(trained_lines(ahead, stops=False), 60)
