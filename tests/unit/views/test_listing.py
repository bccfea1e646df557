"""The table of all runs."""

from __future__ import annotations

from rich.console import Console

from views.scenes import finished, rehearsal
from wan_train.views.result import runs_lines


def test_a_rehearsal_is_marked_and_a_training_is_not() -> None:
    (trained, _), (rehearsed, _) = finished(), rehearsal()
    console = Console(width=120)
    with console.capture() as captured:
        console.print(runs_lines([trained, rehearsed]))
    _, of_training, of_rehearsal = captured.get().splitlines()
    assert of_training.rstrip().endswith("  2 LoRAs")
    assert "rehearsal, " in of_rehearsal
