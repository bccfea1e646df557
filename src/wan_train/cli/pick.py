"""`wan-train pick`: put the LoRAs of chosen epochs beside the results, under their own names."""

from __future__ import annotations

import time
from pathlib import Path

from wan_train.base.errors import BadInputError
from wan_train.cli import options
from wan_train.cli.call import Call
from wan_train.cli.output import Result, Sink
from wan_train.run.directory import find
from wan_train.run.picks import Epochs, Pick, offer
from wan_train.run.picks import pick as put
from wan_train.run.results import loras_of
from wan_train.views.json_records import pick_json
from wan_train.views.model import view_of


def pick(call: Call) -> Result:
    """Pick epochs of a run. Raises BadInputError for unusable LoRAs; without an epoch its hint lists the choices."""
    name, wanted = call.get(options.PICK_RUN), call.get(options.PICKED_EPOCHS)
    if wanted is None and name is not None and name.replace(":", "").isdigit():
        name, wanted = None, name  # a lone epoch belongs to the newest run
    run = find(call.settings.runs, name)
    view = view_of(run)
    if wanted is None:
        raise BadInputError(
            f"no epoch of {run.run_id} was named", hint=offer(run, loras_of(run, view.plan, view.state))
        )
    made, is_new = put(run, view.plan, view.state, Epochs.parse(wanted), time.time())
    return Result(
        data=lambda: {
            "event": "picked",
            "run_id": run.run_id,
            "run_dir": str(run.path),
            **pick_json(made),
            "new": is_new,
        },
        text=lambda sink: _show(sink, made, is_new=is_new),
    )


def _show(sink: Sink, made: Pick, *, is_new: bool) -> None:
    pair = " (high-noise:low-noise)" if made.epochs.is_pair else ""
    sink.line(f"{'Picked' if is_new else 'Already picked'}: epoch {made.epochs}{pair}")
    for file in made.files:
        sink.line(f"  {Path(file.path)}")
