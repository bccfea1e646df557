"""Cancel the ending of the box when a person runs any command at a terminal."""

from __future__ import annotations

import sys
from contextlib import suppress

from wan_train.base.clock import SystemClock, moment
from wan_train.base.errors import WanTrainError
from wan_train.base.text import one_line
from wan_train.cli.call import Call
from wan_train.run.box_ending import Phase, ask_to_keep, ending_of_this_box, seconds_left
from wan_train.run.duties import registered
from wan_train.run.guardian_process import try_ensure_guardian


def cancel_ending(call: Call, command: str) -> None:
    """Cancel a pending ending of the box, and say so. Never raises: no command may fail because of it.

    Scripts have no terminal and cancel nothing. A dead guardian is restarted in passing.
    """
    if not sys.stdin.isatty():
        return
    with suppress(OSError, WanTrainError):
        settings = call.settings
        if registered(settings.lease_dir):
            try_ensure_guardian(settings)
        ending = ending_of_this_box(settings.lease_dir)
        if ending is None or ending.phase not in {Phase.COUNTDOWN, Phase.ENDING}:
            return
        ask_to_keep(settings.lease_dir, ending, by=f"`wan-train {command}`")
        from wan_train.views.box_end import cancelled_texts

        for text in cancelled_texts(ending, seconds_left(ending, moment(SystemClock()))):
            call.sink.note(text)
        if ending.by_hand is not None:
            call.sink.note(f"To end it later: {one_line(ending.by_hand)}")
