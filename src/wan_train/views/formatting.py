"""Numbers, times, sizes and states as text; foreign text made safe and cut to columns. Needs no rendering library."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from wan_train.base.text import redact, visible
from wan_train.base.units import GIB
from wan_train.box.rental import PriceSource
from wan_train.caching.decide import WORDS
from wan_train.gpu.model import short_name
from wan_train.recipe.terms import Expert, Task
from wan_train.run.state import JobState

STATE_NAMES: Mapping[JobState, str] = {
    JobState.WAITING: "waiting",
    JobState.RUNNING: "running",
    JobState.STOPPING: "stopping",
    JobState.BACKOFF: "retrying",
    JobState.SUCCEEDED: "finished",
    JobState.FAILED: "failed",
    JobState.STOPPED: "stopped",
    JobState.SKIPPED: "skipped",
}
"""The name of a step's state on every screen; JSON has the value of the enum itself."""
_TASKS: Mapping[Task, str] = {Task.T2V: "text to video", Task.I2V: "image to video"}
_DAY = 86_400
_TINY_LOSS, _LARGE_LOSS = 0.001, 10.0


def gpu_memory(used: int, total: int) -> str:
    """`21.3/31.8 GiB`; GPU memory is binary."""
    return f"{used / GIB:.1f}/{total / GIB:.1f} GiB"


def gpu_name(name: str) -> str:
    """`RTX 5090` for `NVIDIA GeForce RTX 5090`."""
    return short_name(safe(name))


def loss(value: float) -> str:
    """A loss with its significant digits."""
    return f"{value:.4f}" if _TINY_LOSS <= abs(value) < _LARGE_LOSS else f"{value:.3g}"


def pace(seconds_per_step: float) -> str:
    return f"{seconds_per_step:.1f} s/step" if seconds_per_step >= 1 else f"{seconds_per_step:.2g} s/step"


def dollars_per_hour(value: float) -> str:
    """`$0.93/h`; three decimals below $0.10, where a cent is more than a tenth of the price."""
    return f"${value:,.3f}/h" if value < 0.1 else f"${value:,.2f}/h"


def price_basis(source: PriceSource, runs: int) -> str:
    """`from Vast`, `given, shared by 2 runs`."""
    shared = f", shared by {runs} runs" if runs > 1 else ""
    return f"{'from Vast' if source is PriceSource.VAST else 'given'}{shared}"


def expert_name(expert: Expert) -> str:
    """`high-noise`."""
    return f"{expert.value}-noise"


def task_name(task: Task) -> str:
    """`t2v-A14B (text to video)`."""
    return f"{task.value} ({_TASKS[task]})"


def reasons(counts: Mapping[str, int]) -> str:
    """Why caches are made or removed, from counts by `Reason`: `2 picture changed, 1 not cached yet`."""
    known: Mapping[str, str] = {reason.value: text for reason, text in WORDS.items()}
    return ", ".join(f"{number:,} {known.get(reason, safe(reason))}" for reason, number in counts.items())


def clock(at: float) -> str:
    """Local time of day for seconds since 1970."""
    return time.strftime("%H:%M:%S", time.localtime(at))


def date_time(at: float) -> str:
    """Local date and time with its zone, for seconds since 1970: `2026-11-22 16:52 UTC`."""
    return time.strftime("%Y-%m-%d %H:%M %Z", time.localtime(at))


def moment(at: float, now: float) -> str:
    """Local time to the minute, with the day unless it is today: `18:42`, `tomorrow 02:10`, `3 Dec 02:10`."""
    then, today = time.localtime(at), time.localtime(now)
    time_of_day = time.strftime("%H:%M", then)
    if then[:3] == today[:3]:
        return time_of_day
    if then[:3] == time.localtime(now + _DAY)[:3]:
        return f"tomorrow {time_of_day}"
    return f"{then.tm_mday} {time.strftime('%b', then)} {time_of_day}"


def safe(text: object) -> str:
    """Foreign text on one line, with visible control characters and hidden secrets."""
    return visible(redact(str(text)))


def several_lines(text: str | None) -> list[str]:
    """The lines of foreign text, each safe."""
    return [safe(line.strip()) for line in (text or "").splitlines() if line.strip()]


def joined_lines(text: str | None) -> str:
    """The lines of foreign text, each safe, joined into one line."""
    return " ".join(several_lines(text))


def columns(text: str) -> int:
    """Terminal columns of a text: two for wide characters, none for combining ones."""
    return len(text) if text.isascii() else sum(_columns(character) for character in text)


def _columns(character: str) -> int:
    if unicodedata.category(character) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if unicodedata.east_asian_width(character) in {"W", "F"} else 1


def cut(text: str, width: int) -> str:
    """The beginning of a text in at most `width` columns, with an ellipsis where it was cut."""
    if columns(text) <= width:
        return text
    return _take(text, width - 1) + "…" if width > 0 else ""


def cut_front(text: str, width: int) -> str:
    """The end of a text in at most `width` columns, for paths."""
    if columns(text) <= width:
        return text
    return "…" + _take(text[::-1], width - 1)[::-1] if width > 0 else ""


def cut_middle(text: str, width: int) -> str:
    """Both ends of a text in at most `width` columns, for file names."""
    if columns(text) <= width:
        return text
    end = (width - 1) // 3
    return cut(text, width - end) + _take(text[::-1], end)[::-1]


def _take(text: str, width: int) -> str:
    used = 0
    for index, character in enumerate(text):
        used += _columns(character)
        if used > width:
            return text[:index]
    return text


def pad(text: str, width: int) -> str:
    return text + " " * max(0, width - columns(text))


def wrap(text: str, width: int) -> Iterator[str]:
    """Lines of at most `width` columns, broken at spaces where possible."""
    width = max(2, width)
    line = ""
    for word in text.split(" "):
        joined = f"{line} {word}" if line else word
        if columns(joined) <= width:
            line = joined
            continue
        if line:
            yield line
        line = word
        while columns(line) > width:
            head = _take(line, width)
            slash = head.rfind("/") + 1
            head = head[:slash] if slash > len(head) // 2 else head  # prefer to break a path after a slash
            yield head
            line = line[len(head) :]
    yield line


def flow(parts: Sequence[str], width: int) -> Iterator[str]:
    """The parts joined by ` · `, on as many lines as needed."""
    joined = ""
    for part in parts:
        longer = f"{joined} · {part}" if joined else part
        if joined and columns(longer) > width:
            yield joined
            longer = part
        joined = longer
    yield joined


def to_ascii(text: str) -> str:
    """The text in ASCII, with every column kept."""
    return text if text.isascii() else "".join(_ASCII.get(c) or _replacement(c) for c in text)


_ASCII = {"█": "#", "░": ".", "·": "|", "│": "|", "…": "~", "°": " ", "→": ">", "○": "-", "✓": "+", "✗": "!", "▶": ">"}
_ASCII |= dict(zip("▁▂▃▄▅▆▇", "_.:-=+*", strict=True))


def _replacement(character: str) -> str:
    return character if character.isascii() else "?" * _columns(character)
