"""Measured speed settings as text and JSON: rows during the measurement, the result, a table of all cards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from wan_train.base.units import duration
from wan_train.recipe.levers import LEVERS, describe
from wan_train.recipe.measured import Length, Measurement, Outcome, best, day
from wan_train.views.formatting import cut, gpu_memory, gpu_name, safe
from wan_train.views.json_records import Json
from wan_train.views.lines import Line, Row, Span, line, table, wrapped

_NUMBERS = 40
"""The width of the figures beside the settings."""
_FEWEST = 16
_EXPORT_HEADS = ("card", "driver", "trainer", "torch", "size", "settings", "s/step", "the guide's", "peak", "on")


def heading(width: int) -> Line:
    return _columns("Settings", ("s/step", "±", "peak", "load"), width, "dim")


def row_lines(row: Measurement, width: int) -> Iterator[Line]:
    """The row of one measured candidate."""
    added = next((lever.words for lever in LEVERS if lever.id == row.lever), None)
    # Show only what differs from the fastest so far: all settings would not fit, and would hide the new one.
    words = f"+ {added}" if added is not None else f"{describe(row.settings)}{' (guide)' if row.is_guide else ''}"
    match row.outcome:
        case Outcome.MEASURED:
            peak = gpu_memory(row.peak_bytes, row.basis.total_bytes) if row.peak_bytes is not None else "unknown"
            load = duration(row.load_seconds) if row.load_seconds is not None else ""
            yield _columns(words, (f"{row.seconds_per_step:.2f}", f"{row.spread:.2f}", peak, load), width)
        case Outcome.SLOWER:
            fastest = f"over {min(row.step_seconds):.2f}"
            yield _columns(words, (fastest, "", "slower", ""), width, "dim")
        case Outcome.OUT_OF_MEMORY:
            yield _columns(words, ("", "", "out of memory", ""), width, "yellow")
        case Outcome.FAILED:
            yield _columns(words, ("", "", "failed", ""), width, "yellow")
            yield from wrapped(safe(row.note), width, "yellow", indent=4)


def _columns(words: str, numbers: tuple[str, str, str, str], width: int, style: str = "") -> Line:
    room = max(_FEWEST, width - _NUMBERS - 2)
    first, second, third, fourth = numbers
    text = f"  {cut(words, room):<{room}}{first:>9}{second:>6}{third:>15}{fourth:>10}"
    return line(Span(text, style))


def result_lines(rows: Sequence[Measurement], length: Length, *, is_left: bool, width: int) -> Iterator[Line]:
    """The fastest settings and what to do next."""
    fastest = best(rows, length)
    if fastest is None:
        return
    guide = next((row for row in rows if row.is_guide and row.outcome is Outcome.MEASURED), None)
    yield line()
    text = f"Fastest: {describe(fastest.settings)}, {pace_of(fastest)}, measured here on {day(fastest.at)}."
    if guide is not None and guide is not fastest:
        share = 1 - fastest.seconds_per_step / guide.seconds_per_step
        text += f" The guide's settings: {pace_of(guide)}, {100 * share:.0f} % less time per step."
    elif guide is not None:
        text += " These are the guide's settings."
    yield from wrapped(text, width)
    yield from wrapped("Trainings of this size on this kind of card use them unless you choose others.", width)
    if changed := effects(fastest):
        yield from wrapped(f"Changes the result: {changed}.", width)
    if is_left:
        yield from wrapped("Some settings were not tried. To continue: wan-train tune", width)


def pace_of(row: Measurement) -> str:
    return f"{row.seconds_per_step:.2f} s/step"


def effects(row: Measurement) -> str:
    """How the levers of a row change the result; empty if they do not."""
    found = {
        lever.effect.value: None
        for lever in LEVERS
        if lever.effect.value != "no"
        and not row.is_guide
        and all(row.settings.get(name) == value for name, value in lever.changes.items())
    }
    return ", ".join(found)


def all_lines(measured: Sequence[Measurement], width: int) -> Iterator[Line]:
    """All stored measurements, by card, software and size."""
    for number, group in enumerate(_groups(measured)):
        if number:
            yield line()
        basis = group[0].basis
        card = gpu_name(basis.card)
        yield line(Span(f"{card}, {size_of(group[0])}", "bold"))
        software = f"musubi-tuner {basis.trainer}, torch {basis.torch}, driver {basis.driver}"
        yield from table([Row(label="Software", value=safe(software))], width)
        yield heading(width)
        for row in group:
            yield from row_lines(row, width)


def export_text(measured: Sequence[Measurement]) -> str:
    """Rows for a public Markdown table: the fastest for each card, software and size, without personal data."""
    rows = [f"| {' | '.join(_EXPORT_HEADS)} |", "|" + " --- |" * len(_EXPORT_HEADS)]
    for group in _groups(measured):
        fastest = best(group, Length())
        if fastest is None:
            continue
        guide = next((row for row in group if row.is_guide and row.outcome is Outcome.MEASURED), None)
        basis = fastest.basis
        cells = (
            gpu_name(basis.card),
            basis.driver,
            basis.trainer,
            basis.torch,
            size_of(fastest),
            describe(fastest.settings),
            f"{fastest.seconds_per_step:.2f}",
            f"{guide.seconds_per_step:.2f}" if guide is not None else "",
            gpu_memory(fastest.peak_bytes, basis.total_bytes) if fastest.peak_bytes is not None else "",
            day(fastest.at),
        )
        rows.append(f"| {' | '.join(safe(cell).replace('|', '/') for cell in cells)} |")
    return "\n".join(rows)


def size_of(row: Measurement) -> str:
    """`960x960, batch 1`, with the largest bucket if it is a different one."""
    work = row.workload
    more = f", largest {work.largest}" if work.largest != work.commonest else ""
    return f"{work.commonest}, batch {work.batch_size}{more}"


def _groups(measured: Sequence[Measurement]) -> list[list[Measurement]]:
    ordered = sorted(measured, key=lambda row: repr((row.basis, row.workload)))
    return [list(group) for _, group in groupby(ordered, key=lambda row: (row.basis, row.workload))]


def row_json(row: Measurement) -> Json:
    """One candidate, without anything that identifies a person or a machine."""
    is_timed = bool(row.step_seconds)
    return {
        "at": row.at,
        "card": row.basis.card,
        "gpu_bytes": row.basis.total_bytes,
        "driver": row.basis.driver,
        "trainer": row.basis.trainer,
        "torch": row.basis.torch,
        "size": size_of(row),
        "settings": dict(row.settings),
        "words": describe(row.settings),
        "is_guide": row.is_guide,
        "outcome": row.outcome.value,
        "seconds_per_step": row.seconds_per_step if is_timed else None,
        "steps_timed": len(row.step_seconds),
        "peak_bytes": row.peak_bytes,
        "load_seconds": row.load_seconds,
        "warmup_seconds": row.warmup_seconds,
        "epoch_seconds": row.epoch_seconds,
        "note": row.note,
    }


def tune_json(rows: Sequence[Measurement], length: Length, *, is_left: bool) -> Json:
    """All rows valid for this card and size, and the fastest."""
    fastest = best(rows, length)
    return {
        "event": "tune",
        "rows": [row_json(row) for row in rows],
        "fastest": row_json(fastest) if fastest is not None else None,
        "is_complete": not is_left,
    }
