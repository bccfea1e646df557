from __future__ import annotations

import re

from views.datasets import inventory_of
from views.support import shown
from wan_train.dataset.layout import layout_of
from wan_train.views.dataset_tables import trained_lines


def test_many_sizes_are_summed_up() -> None:
    sizes = [(960, 300 + 20 * number) for number in range(40)]
    ahead = layout_of(inventory_of(sizes), epochs=1, accumulation=1, image_to_video=False)
    text = shown(trained_lines(ahead, stops=False), 80)
    listed = [int(found[1]) for found in re.finditer(r"^    \d+x\d+ +(\d+) ", text, re.MULTILINE)]
    (rest,) = [line for line in text.splitlines() if "more sizes" in line]
    assert len(listed) == 12
    assert sum(listed) + int(rest.split()[3]) == 40


def test_names_cannot_act_on_the_terminal() -> None:
    ahead = layout_of(
        inventory_of([(9000, 300)], name="\x1b[2J\u202e{}.png"), epochs=1, accumulation=1, image_to_video=False
    )
    text = shown(trained_lines(ahead, stops=False), 120)
    assert "\\x1b[2J\\u202e" in text
    assert "\x1b" not in text
    assert "\u202e" not in text
