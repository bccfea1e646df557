"""Records the cells of a preview as they are drawn, and adopts drawn cells that are not recorded yet.

The trainer's exit code 0 proves nothing, so every frame is opened and checked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from wan_train.base.clock import Clock
from wan_train.base.text import one_line
from wan_train.preview.job import EventReader, frames_of, latents_of
from wan_train.preview.model import Cell, Prompt, Row, drawn
from wan_train.preview.prepared import PreparedPreview, known_cells
from wan_train.recipe.terms import Expert
from wan_train.run.results import link_or_copy

_BLANK = 0.5
"""Below this deviation of grey values a picture is blank. NaN latents decode to a single colour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Looks:
    """The first frame of a cell: size in pixels, mean and standard deviation of its grey values (0 to 255)."""

    width: int
    height: int
    mean: float
    deviation: float


def look(frames: Sequence[Path], prompt: Prompt) -> Looks | str:
    """Open every frame of a drawn cell. Return its looks, or a clause that says what is wrong."""
    from PIL import Image, ImageStat

    seen: list[Looks] = []
    for frame in frames:
        try:
            # Pillow raises one of these for a broken file.
            with Image.open(frame) as picture:
                grey = picture.convert("L")
        except (
            OSError,
            ValueError,
            SyntaxError,
            Image.DecompressionBombError,
        ) as error:
            return f"{frame.name} cannot be opened: {one_line(str(error)) or type(error).__name__}"
        statistics = ImageStat.Stat(grey)
        seen.append(
            Looks(width=grey.width, height=grey.height, mean=statistics.mean[0], deviation=statistics.stddev[0])
        )
    first = seen[0]
    if any((each.width, each.height) != (first.width, first.height) for each in seen):
        return "its frames have different sizes"
    # Image-to-video keeps the area and takes the proportions of the start picture.
    if prompt.image is None and (first.width, first.height) != (prompt.width, prompt.height):
        return f"it has {first.width}x{first.height} pixels instead of {prompt.width}x{prompt.height}"
    if all(each.deviation < _BLANK for each in seen):
        return "it is blank: every pixel has the same colour, as when the model computes NaN"
    return first


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Progress of a drawing: finished and total cells, and the current activity in words."""

    done: int
    total: int
    doing: str
    seconds_left: float | None = None
    """Until the end of this attempt. None before anything was timed."""
    cell: Cell | None = None
    """The cell that was just finished, at `row` and `prompt`."""
    row: str | None = None
    prompt: int | None = None


@dataclass(slots=True, kw_only=True)
class Recorder:
    """Records the cells of one preview. The caller holds its lock. Methods raise OSError from its records."""

    ready: PreparedPreview
    clock: Clock
    show: Callable[[Progress], None]
    say: Callable[[str], None]
    """Receives a sentence that should stay on the screen."""
    card: str | None = None
    seconds_left: float | None = None
    """The drawing session sets it; `Progress` shows it."""
    flawed: dict[tuple[str, int], str] = field(default_factory=dict)
    """Drawn but unusable cells, with the reason."""

    def left(self) -> list[tuple[Row, int]]:
        """Return the cells that are neither drawn nor unusable."""
        have = drawn(self.ready.directory, self.ready.preview)
        return [
            (row, number)
            for row, number in self.ready.preview.places()
            if (row.name, number) not in have and (row.name, number) not in self.flawed
        ]

    def adopt(self) -> None:
        """Record cells that are drawn but not recorded, from another preview of the run or from a killed call."""
        others = known_cells(self.ready)
        for row, number in self.left():
            key = self.ready.preview.key(row, number)
            frames = frames_of(self.ready.directory, self.ready.preview, row, number)
            other = others.get(key)
            if other is not None and not all(frame.is_file() for frame in frames):
                directory, files = other
                frames[0].parent.mkdir(parents=True, exist_ok=True)
                for file, frame in zip(files, frames, strict=True):
                    link_or_copy(directory.path / file, frame)
            if all(frame.is_file() for frame in frames):
                self.keep(row, number, seconds=self._recorded_seconds(key))

    def keep(self, row: Row, number: int, *, seconds: float) -> None:
        """Open a drawn cell and record it. If it is unusable, note the reason and delete it."""
        directory, preview = self.ready.directory, self.ready.preview
        frames = frames_of(directory, preview, row, number)
        found = look(frames, preview.prompts[number])
        if isinstance(found, str):
            self.flawed[row.name, number] = found
            for file in (*frames, *latents_of(directory, preview, row, number).values()):
                file.unlink(missing_ok=True)
            self.say(f"Row {one_line(row.name)}, prompt {number + 1}: {found}.")
            return
        cell = Cell(
            key=preview.key(row, number),
            files=tuple(str(frame.relative_to(directory.path)) for frame in frames),
            width=found.width,
            height=found.height,
            seconds=seconds,
            at=self.clock.now(),
            mean=found.mean,
            deviation=found.deviation,
            card=self.card,
        )
        directory.keep(cell)
        latents_of(directory, preview, row, number)[Expert.LOW].unlink(missing_ok=True)
        self.progress("drawn", cell=cell, row=row.name, prompt=number)

    def remember(self, negative: str | None) -> None:
        """Record the model's own negative prompt, which only the trainer knows."""
        preview = self.ready.preview
        if negative and preview.model_negative != negative:
            preview = replace(preview, model_negative=negative)
            self.ready = replace(self.ready, preview=preview)
            self.ready.directory.write(preview)

    def progress(
        self, doing: str, *, cell: Cell | None = None, row: str | None = None, prompt: int | None = None
    ) -> None:
        total = len(self.ready.preview.rows) * len(self.ready.preview.prompts)
        done = len(drawn(self.ready.directory, self.ready.preview))
        left = self.seconds_left
        self.show(Progress(done=done, total=total, doing=doing, seconds_left=left, cell=cell, row=row, prompt=prompt))

    def _recorded_seconds(self, key: str) -> float:
        """Return the seconds of a drawn but unrecorded cell from the events of its attempt. 0 if unknown."""
        for path in sorted(self.ready.directory.work.glob("*.events.jsonl")):
            for event in EventReader(path).new():
                if event.event == "cell" and event.key == key and event.seconds is not None:
                    return event.seconds
        return 0.0
