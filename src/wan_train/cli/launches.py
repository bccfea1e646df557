"""Commands for existing launches: attach, status, stop, logs, reap. Each first looks for unattended boxes."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from wan_train.base import codec
from wan_train.base.codec import CorruptRecordError
from wan_train.base.errors import BadInputError, NotReadyError
from wan_train.base.text import one_line
from wan_train.base.units import count
from wan_train.box.vast import VastError
from wan_train.cli import options, questions
from wan_train.cli.call import Call
from wan_train.cli.launch_watch import carry_on, finished, show_launch, watch_launch
from wan_train.cli.output import Result, Sink
from wan_train.launch import reap as reaping
from wan_train.launch.infra import VAST
from wan_train.launch.last_seen import read_last_seen
from wan_train.launch.launch_directory import LaunchDirectory, all_launches, directory_of, find, launch_of
from wan_train.launch.market import Listed, VastMarket
from wan_train.launch.model import BY_HAND, Halt, Launch
from wan_train.launch.transitions import settled
from wan_train.views.formatting import dollars_per_hour
from wan_train.views.launch import launch_json

_ID = re.compile(r"[0-9a-f]{8}")
_INFRA = re.compile(r'"infra": ?"([a-z0-9-]{1,40})"')
_FOLLOW_SECONDS = 0.5
_MOST_BYTES = 1_000_000


def attach(call: Call) -> Result:
    """Watch a launch. Continue it if no program carries it out."""
    directory = find(call.settings.runs, call.get(options.LAUNCH))
    launch = _read(directory)
    look_around(call, besides=directory)
    if launch.is_over:
        return finished(directory, launch)
    if not directory.is_held:
        call.sink.note(f"Launch {launch.id} was not running. It continues now.")
        carry_on(directory, call.settings, call.sink)
    return watch_launch(directory, call.settings, call.sink)


def status(call: Call) -> Result:
    """Show a launch once. A launch that is over needs no key."""
    directory = find(call.settings.runs, call.get(options.LAUNCH))
    launch = _read(directory)
    look_around(call)

    def text(sink: Sink) -> None:
        held = "running" if directory.is_held else "not running"
        sink.line(f"Launch {launch.id}: {'over' if launch.is_over else held}")
        show_launch(directory, launch, sink)

    return Result(data=lambda: launch_json(launch, time.time(), read_last_seen(directory)), text=text)


def stop(call: Call) -> Result:
    """Ask a launch to end. Start its program if none carries it out, so that its boxes end."""
    sink, now = call.sink, call[options.LAUNCH_NOW]
    directory = find(call.settings.runs, call.get(options.LAUNCH))
    launch = _read(directory)
    look_around(call, besides=directory)
    if launch.is_over:
        sink.note(f"Launch {launch.id} is already over. It has no rented boxes.")
        return Result(data=lambda: launch_json(launch, time.time(), read_last_seen(directory)))
    directory.ask(Halt.NOW if now else Halt.SAVE)
    if not any(launch.living) and (ended := _ended_here(directory)) is not None:
        launch = ended
    elif not directory.is_held:
        carry_on(directory, call.settings, call.sink)
    sink.note(f"Launch {launch.id} ends{_what_ends(launch, now=now)}.")
    sink.note(f"See the end of it: wan-train launch attach {launch.id}")
    return Result(data=lambda: launch_json(launch, time.time(), read_last_seen(directory)))


def _ended_here(directory: LaunchDirectory) -> Launch | None:
    """End a launch without boxes, which needs no key and no provider. None if it has boxes or a program holds it."""
    try:
        with directory.held():
            launch = replace(_read(directory), halt=Halt.NOW, halted_because=BY_HAND)
            if any(launch.living):
                return None
            launch = settled(launch, time.time())
            directory.write(launch)
            return launch
    except BlockingIOError:
        return None


def _what_ends(launch: Launch, *, now: bool) -> str:
    alive = sum(1 for _ in launch.living)
    if not alive:
        return "; nothing is rented"
    boxes = count(alive, "box is", "boxes are")
    return f": {boxes} destroyed now" if now else f": results come home, then {boxes} destroyed"


def logs(call: Call) -> Result:
    """Print what the program of a launch wrote."""
    sink = call.sink
    directory = find(call.settings.runs, call.get(options.LAUNCH))
    look_around(call)
    sink.note(f"== {directory.log}")
    for line in _lines(directory, follow=call[options.FOLLOW_LAUNCH]):
        about = {"event": "launch_log", "launch_id": directory.path.name, "text": line}
        sink.render(Result(data=lambda about=about: about, text=lambda sink, line=line: sink.text(line)))  # type: ignore[misc]  # bound in the loop
    return Result()


def reap(call: Call) -> Result:
    """End boxes that launches of this computer left, and those of a launch given by ID."""
    name = call.get(options.REAPED)
    if name is not None and not _ID.fullmatch(name):
        raise BadInputError(
            f"{one_line(name)!r} is not the ID of a launch",
            hint="An ID has 8 characters, 0-9 and a-f: the box wt-ID-001 belongs to launch ID.",
        )
    elsewhere = [infra for infra in reaping.infras(call.settings.runs) if infra != VAST]
    if elsewhere:
        call.sink.note(f"Looking at Vast only. For leftover boxes elsewhere see the console of {', '.join(elsewhere)}.")
    market = VastMarket.of(os.environ, Path.home(), call.settings.vast_url)
    ended: list[Listed] = []
    try:
        strays = reaping.end_strays(market, call.settings.runs)
        ended += [each.box for each in strays if each.is_ours]
        others = [each for each in strays if not each.is_ours]
        if name is not None:
            ended += _end_of(call, market, name)
            others = [each for each in others if each.launch_id != name]
    except VastError as error:
        raise NotReadyError(f"a box may be left: {error}", hint="Repeat it: `wan-train launch reap`") from None
    left = [(each.box, each.launch_id) for each in others]

    def text(sink: Sink) -> None:
        for box in ended:
            sink.line(f"Ended box {_named(box)}")
        if not ended:
            sink.line("No box was left behind by launches of this computer.")
        _say_others(left, sink)
        _say_unattended(call, None)

    return Result(
        data=lambda: {
            "event": "launch_reaped",
            "ended": [_box_json(box) for box in ended],
            "others": [_box_json(box) for box, _ in left],
        },
        text=text,
    )


def look_around(call: Call, *, besides: LaunchDirectory | None = None) -> None:
    """End unattended boxes of our launches, and name launches that no program carries out.

    Without a key, or while Vast does not answer, nothing can be ended: the command itself matters more.
    """
    try:
        market = VastMarket.of(os.environ, Path.home(), call.settings.vast_url)
        strays = reaping.end_strays(_impatient(market), call.settings.runs)
    except (NotReadyError, VastError) as error:
        unattended = reaping.unattended(call.settings.runs)
        if any(launch.wants.infra == VAST for each, launch in unattended.items() if each != besides):
            call.sink.note(f"Could not look for leftover boxes: {one_line(str(error))}")
    else:
        for each in strays:
            if each.is_ours:
                call.sink.note(f"Ended a forgotten box: {_named(each.box)}")
        _say_others([(each.box, each.launch_id) for each in strays if not each.is_ours], call.sink)
    _say_unattended(call, besides)


def say_others_going(call: Call) -> None:
    """Name launches that are carried out now, because they cost money besides the next one."""
    for directory in all_launches(call.settings.runs):
        launch: Launch | None = codec.read(directory.record, Launch)
        if launch is not None and not launch.is_over and directory.is_held:
            boxes = count(sum(1 for _ in launch.living), "box", "boxes")
            call.sink.note(f"Launch {launch.id} is also running, with {boxes}.")


def _impatient(market: VastMarket) -> VastMarket:
    def give_up(_: float) -> None:
        raise VastError("Vast did not answer")

    return VastMarket(api=market.api, pause=give_up)


def _say_unattended(call: Call, besides: LaunchDirectory | None) -> None:
    for directory in reaping.unattended(call.settings.runs):
        if directory != besides:
            name = directory.path.name
            call.sink.note(f"Launch {name} is unfinished and not running. Continue it:")
            call.sink.note(f"  wan-train launch attach {name}")


def _say_others(boxes: list[tuple[Listed, str]], sink: Sink) -> None:
    """List boxes by launch, with one command for all boxes of a launch."""
    for launch_id in dict.fromkeys(each for _, each in boxes):
        for box in [box for box, of in boxes if of == launch_id]:
            sink.note(f"Box of a launch that is not recorded here: {_named(box)}")
        sink.note(f"  To end it: wan-train launch reap {launch_id}")


def _end_of(call: Call, market: VastMarket, name: str) -> list[Listed]:
    """End the boxes of one launch by its ID, if the user agrees. Raises VastError."""
    boxes = [box for box in market.boxes() if launch_of(box.label) == name]
    if reaping.is_living(directory_of(call.settings.runs, name)):
        raise BadInputError(
            f"launch {name} belongs to this computer and is not over",
            hint=f"End it, results first: `wan-train launch stop {name}`",
        )
    if not boxes:
        call.sink.note(f"Vast lists no box of launch {name}.")
        return []
    if not call[options.YES]:
        for box in boxes:
            call.sink.note(f"Box {_named(box)}: {box.said}")
        call.sink.require_person("nothing was ended", "Add --yes.")
        if not questions.confirm("End them? Results that are only on them are lost.", default=False):
            call.sink.note("Nothing was ended.")
            return []
    for box in boxes:
        market.destroy(box.label)
    return boxes


def _named(box: Listed) -> str:
    price = f", {dollars_per_hour(box.per_hour)}" if box.per_hour is not None else ""
    return f"{box.id}, {one_line(box.label, 40)}{price}"


def _box_json(box: Listed) -> dict[str, object]:
    return {"id": box.id, "label": box.label, "said": box.said, "per_hour": box.per_hour}


def _read(directory: LaunchDirectory) -> Launch:
    try:
        return directory.read()
    except CorruptRecordError as error:
        raise NotReadyError(
            f"the record of launch {directory.path.name} is damaged: {one_line(error.message)}",
            hint=_about_boxes(directory),
        ) from None


def _about_boxes(directory: LaunchDirectory) -> str:
    """How to see and end the boxes of a launch whose record is damaged. Often its infrastructure can still be read."""
    try:
        found = _INFRA.search(directory.record.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        found = None
    if found is not None and found[1] != VAST:
        return f"See its boxes in the console of {found[1]}, and end them there."
    where = "See its boxes" if found is not None else "If it was on Vast, see its boxes"
    return f"{where} at https://cloud.vast.ai/instances/\nTo end them: `wan-train launch reap {directory.path.name}`"


def _lines(directory: LaunchDirectory, *, follow: bool) -> Iterator[str]:
    """The end of the log; with `follow` also what is added, until no program carries the launch out."""
    try:
        size = directory.log.stat().st_size
    except OSError:
        raise NotReadyError(f"launch {directory.path.name} has not written a log", hint=None) from None
    with directory.log.open(encoding="utf-8", errors="replace") as file:
        file.seek(max(0, size - _MOST_BYTES))
        while True:
            held = directory.is_held  # ask before reading the log: if it is not held, the log is complete
            for line in file:
                yield line.rstrip("\n")
            if not follow or not held:
                return
            time.sleep(_FOLLOW_SECONDS)
