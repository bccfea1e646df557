"""A dataset check as text: the table of problems, and the table of what will be trained."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wan_train.dataset.buckets import batches_per_epoch
from wan_train.dataset.check import Check, Group
from wan_train.dataset.crops import Crop
from wan_train.dataset.fix import MENDABLE
from wan_train.dataset.layout import NOTABLE_LOSS, Outlook, Size, SubsetOutlook
from wan_train.dataset.model import MediaKind, Problem, ProblemKind, Severity, Subset
from wan_train.dataset.trained import Trained
from wan_train.views import formatting
from wan_train.views.lines import Line, Row, Screenful, Span, line, table

if TYPE_CHECKING:
    from rich.console import RenderableType


_EXAMPLES = 3
_WIDEST = 120
_LONGEST_NAME = 60
_MEANING: Mapping[Severity, tuple[str, str]] = {
    Severity.STOPS: ("stops", "bold red"),
    Severity.LOSES: ("loses", "yellow"),
    Severity.HARMS: ("harms", "yellow"),
    Severity.NOTE: ("note", "dim"),
}
TITLES: Mapping[ProblemKind, str] = {
    ProblemKind.CONFIG_UNREADABLE: "the dataset.toml cannot be read",
    ProblemKind.CONFIG_SYNTAX: "the dataset.toml is not valid TOML",
    ProblemKind.UNKNOWN_KEY: "keys that the trainer does not know",
    ProblemKind.WRONG_TYPE: "values of the wrong type",
    ProblemKind.WRONG_VALUE: "values that do not work",
    ProblemKind.MISSING_KEY: "keys that are missing",
    ProblemKind.UNUSED_KEY: "keys that this model does not use",
    ProblemKind.CONFLICTING_KEYS: "keys that exclude each other",
    ProblemKind.NO_SUCH_DIRECTORY: "folders or files that are not there",
    ProblemKind.SHARED_CACHE: "one cache for two datasets",
    ProblemKind.CACHE_PATH: "a cache folder that cannot be used",
    ProblemKind.EMPTY_DATASET: "nothing to train",
    ProblemKind.NO_CAPTIONS: "no captions at all",
    ProblemKind.MISSING_CAPTION: "no caption",
    ProblemKind.EMPTY_CAPTION: "empty captions",
    ProblemKind.CAPTION_ENCODING: "captions that are not plain UTF-8 text",
    ProblemKind.CAPTION_LINE_ENDS: "captions with Windows line ends",
    ProblemKind.LONG_CAPTION: "captions longer than the text encoder reads",
    ProblemKind.ORPHAN_CAPTION: "captions without a picture",
    ProblemKind.UNREADABLE_MEDIA: "files that cannot be read",
    ProblemKind.TRUNCATED_MEDIA: "files that are cut off",
    ProblemKind.TOO_LARGE: "very large pictures",
    ProblemKind.TOO_SMALL: "small pictures",
    ProblemKind.NOT_A_FILE: "names without a file behind them",
    ProblemKind.IGNORED_FILE: "files that are not read",
    ProblemKind.ROTATED: "photos and clips that would be trained lying on their side",
    ProblemKind.TRANSPARENT: "transparent pictures",
    ProblemKind.COLOURS: "colours that the trainer gets wrong",
    ProblemKind.ANIMATED: "animations of which only the first frame is trained",
    ProblemKind.WRONG_ENDING: "files of another kind than their name says",
    ProblemKind.CROPPED: "pictures that lose much to the crop",
    ProblemKind.DUPLICATE: "the same file twice",
    ProblemKind.NEAR_DUPLICATE: "pictures that look the same",
    ProblemKind.SAME_STEM: "files that share a name",
    ProblemKind.LONG_NAME: "names that are too long",
    ProblemKind.BAD_RECORD: "mistakes in lines of a jsonl file",
    ProblemKind.TOO_FEW_FRAMES: "clips that are too short",
    ProblemKind.UNUSED_FRAMES: "clips that are trained in part",
    ProblemKind.FRAME_RATE: "clips of another speed than Wan's 16 frames a second",
    ProblemKind.FRAMES_UNKNOWN: "clips of unknown length",
    ProblemKind.MIXED_SHAPES: "clips of several shapes in one batch",
}


def problem_lines(check: Check) -> RenderableType:
    """The table, or one line saying that there is nothing to mend."""
    return Screenful(lambda width: _problem_table(check, min(width, _WIDEST)))


def _problem_table(check: Check, width: int) -> Iterator[Line]:
    yield line(Span(formatting.safe(check.config), "bold"), whole=True)
    yield line(Span(f"as {check.reading.name} reads it", "dim"))
    yield line()
    if not check.problems:
        yield line(Span("Nothing to mend.", "green"))
        yield from _left_out(check, width)
        yield line()
        return
    counts = [(len(group.problems), group) for group in check.groups]
    digits = max(len(f"{count:,}") for count, _ in counts)
    for count, group in counts:
        yield from _group(group, f"{count:>{digits},}", _base(check), width)
        yield line()
    if check.inventory is None:
        yield line("No picture was looked at: the dataset.toml comes first.")
    for piece in formatting.wrap(verdict(check), width):
        yield line(Span(piece, "bold red" if check.stops else "bold"))
    mendable = [TITLES[group.kind] for group in check.groups if group.kind in MENDABLE]
    if mendable:
        said = f"--fix mends what is safe of: {', '.join(dict.fromkeys(mendable))}."
        for piece in formatting.wrap(said, width):
            yield line(Span(piece, "green"))
    yield from _left_out(check, width)
    yield line()


def _left_out(check: Check, width: int) -> Iterator[Line]:
    for said in check.left_out:
        for piece in formatting.wrap(said, width):
            yield line(Span(piece, "dim"))


def _group(group: Group, count: str, base: Path, width: int) -> Iterator[Line]:
    word, style = _MEANING[group.severity]
    head = (Span(formatting.pad(word, 7), style), f"{count}  ")
    start = 7 + len(count) + 2
    room = width - start
    margin = " " * start
    for number, piece in enumerate(formatting.wrap(TITLES[group.kind], room)):
        yield line(*(head if number == 0 else (margin,)), Span(piece, "bold"))
    mends = list(dict.fromkeys(problem.mend for problem in group.problems))
    for text in _examples(group.problems, base, with_mend=len(mends) > 1):
        for number, piece in enumerate(formatting.wrap(text, room - 2)):
            yield line(margin, "  " if number else "", piece)
    if len(mends) == 1:
        for number, piece in enumerate(formatting.wrap(formatting.safe(_sentence(mends[0])), room - 2)):
            yield line(margin, Span("  " if number else "→ ", "green"), Span(piece, "green"))


def _examples(problems: Sequence[Problem], base: Path, *, with_mend: bool) -> Iterator[str]:
    shown = problems[:_EXAMPLES]
    left = len(problems) - len(shown)
    more = f"and {left:,} more" if left else ""
    if len({problem.what for problem in problems}) == 1 and not with_mend and len(problems) > 1:
        names = [_where(problem, base) for problem in shown]
        yield f"{', '.join(names)}{f' {more}' if more else ''}: {formatting.safe(problems[0].what)}"
        return
    for problem in shown:
        mend = f". {_sentence(problem.mend)}" if with_mend else ""
        where = _where(problem, base)
        yield f"{where}{': ' if where else ''}{formatting.safe(problem.what + mend)}"
    if more:
        yield more


def _where(problem: Problem, base: Path) -> str:
    parts = [problem.key] if problem.key else []
    if problem.path is not None:
        path = problem.path
        shown = path.relative_to(base) if path != base and path.is_relative_to(base) else path
        parts.append(problem.place(os.fspath(shown)))
    return formatting.cut_middle(formatting.safe(" in ".join(parts)), _LONGEST_NAME)


def _sentence(mend: str) -> str:
    return mend if mend.endswith("?") else f"{mend}."


def _base(check: Check) -> Path:
    """The folder against which paths are shown: that of the dataset, or of its dataset.toml where there are several."""
    if check.inventory is not None and len(check.inventory.subsets) == 1:
        directory = check.inventory.subsets[0].subset.directory
        if directory is not None:
            return directory
    return check.config.parent


def verdict(check: Check) -> str:
    """How many problems there are of each severity, as a sentence."""
    said = {
        Severity.STOPS: ("stops the training", "stop the training"),
        Severity.LOSES: ("loses material", "lose material"),
        Severity.HARMS: ("harms what is learned", "harm what is learned"),
        Severity.NOTE: ("is only worth knowing", "are only worth knowing"),
    }
    counts = Counter(problem.severity for problem in check.problems)
    parts = [f"{counts[each]:,} {said[each][counts[each] > 1]}" for each in Severity if counts[each]]
    return f"{', '.join(parts)}."


_WIDEST = 120
_MOST_SIZES = 12
_EXAMPLES = 3
BLURRY = 1.5
"""From this enlargement on a picture is visibly soft, so it is worth a colour."""


COUNTED = "Nothing yet: counted as if what stops were mended, without the files that cannot be read."


def trained_lines(outlook: Outlook, *, stops: bool) -> RenderableType:
    """Sizes, crops and steps of what can be trained; `stops` when something has to be mended before."""
    return Screenful(lambda width: _trained_table(outlook, min(width, _WIDEST), stops=stops))


def nouns(subset: Subset) -> tuple[str, str]:
    """What the files of a dataset are called, one and many."""
    return ("picture", "pictures") if subset.kind is MediaKind.IMAGE else ("clip", "clips")


def settings_of(subset: Subset) -> str:
    """The settings of a dataset that decide about sizes and batches."""
    width, height = subset.resolution
    said = [f"{width}x{height}", f"batch {subset.batch_size}", formatting.count(subset.num_repeats, "repeat")]
    if not subset.enable_bucket:
        said.append("no buckets: everything becomes this size")
    elif subset.bucket_no_upscale:
        said.append("nothing is enlarged")
    return ", ".join(said)


def sides_cut(crop: Crop) -> str:
    """Where a picture loses: `left and right`, `top and bottom`, or both."""
    across, down = crop.left + crop.right > 0, crop.top + crop.bottom > 0
    if across and down:
        return "all sides"
    return "left and right" if across else "top and bottom" if down else "nowhere"


def steps_said(outlook: Outlook) -> str:
    """`72 an epoch x 100 epochs = 7,200 for each expert`, or why it is not known."""
    epochs = formatting.count(outlook.epochs, "epoch")
    if outlook.steps is None or outlook.steps_per_epoch is None:
        return f"{epochs}; how many steps is known once the clips are cached"
    return f"{outlook.steps_per_epoch:,} an epoch x {epochs} = {outlook.steps:,} for each expert"


def percent(share: float) -> str:
    """A share in whole percent; `<1%` for what is little but not nothing."""
    return "0%" if share <= 0 else "<1%" if share < 0.01 else f"{share:.0%}"  # noqa: PLR2004  one percent


def times(scale: float) -> str:
    """`1.04x`, `2.1x`, `12x`."""
    return f"{scale:.0f}x" if scale >= 9.95 else f"{scale:.2g}x" if scale >= 1.1 else f"{scale:.2f}x"  # noqa: PLR2004


def _trained_table(outlook: Outlook, width: int, *, stops: bool) -> Iterator[Line]:
    yield line(Span("What will be trained", "bold"))
    if stops:
        for piece in formatting.wrap(COUNTED, width):
            yield line(Span(piece, "yellow"))
    for each in outlook.subsets:
        yield line()
        yield from _subset(each, width)
    yield line()
    yield from table([*_totals(outlook)], width)
    yield line()


def _subset(each: SubsetOutlook, width: int) -> Iterator[Line]:
    yield line("  ", formatting.safe(each.subset.source), whole=True)
    yield line("  ", Span(formatting.cut(settings_of(each.subset), width - 2), "dim"))
    sizes = each.sizes
    if not sizes:
        yield line("  ", Span("nothing", "yellow"))
        return
    shown = sizes[:_MOST_SIZES]
    rows = [_size(size, each.subset) for size in shown]
    rest = sizes[_MOST_SIZES:]
    if rest:
        rows.append(_cells(f"{len(rest):,} more sizes", rest, each.subset))
    heads = ("size", nouns(each.subset)[1], "cut away", "enlarged", "batches an epoch")
    if each.subset.kind is MediaKind.VIDEO:
        heads = ("size", "files", "cut away", "enlarged", "clips x frames")
    yield from _columns(heads, rows, width)
    yield from table([*_remarks(each)], width, indent=4)


def _size(size: Size, subset: Subset) -> tuple[str, ...]:
    name = f"{size.pixels[0]}x{size.pixels[1]}" if size.pixels else "not trained" if _known(size) else "unknown"
    return _cells(name, (size,), subset)


def _known(size: Size) -> bool:
    return all(one.is_known for one in size.files)


def _cells(name: str, sizes: Sequence[Size], subset: Subset) -> tuple[str, ...]:
    files = sum(len(size.files) for size in sizes)
    enlarged = sum(size.enlarged for size in sizes)
    loss = max(size.largest_loss for size in sizes)
    scale = max(size.largest_scale for size in sizes)
    has_size = any(size.pixels for size in sizes)
    return (
        name,
        f"{files:,}",
        (f"to {percent(loss)}" if loss else "-") if has_size else "",
        (f"{enlarged:,}, to {times(scale)}" if enlarged else "-") if has_size else "",
        batches_said(sizes, subset),
    )


def batches_said(sizes: Sequence[Size], subset: Subset) -> str:
    """For pictures the batches of one epoch, for clips how many there are of each length."""
    keys = [key for size in sizes for one in size.files for key in one.keys]
    if subset.kind is MediaKind.VIDEO:
        return ", ".join(f"{count:,} x {frames}" for frames, count in sorted(Counter(key[2] for key in keys).items()))
    return f"{batches_per_epoch(keys, batch_size=subset.batch_size, num_repeats=subset.num_repeats):,}"


def _columns(heads: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[Line]:
    """A small table; numbers to the right, the first and the last column to the left."""
    last = len(heads) - 1
    widths = [max(formatting.columns(row[column]) for row in (heads, *rows)) for column in range(last)]
    for number, row in enumerate((heads, *rows)):
        cells = [
            formatting.pad(cell, widths[column])
            if column == 0
            else " " * (widths[column] - formatting.columns(cell)) + cell
            for column, cell in enumerate(row[:last])
        ]
        start = "    " + "  ".join(cells) + "  "
        style = "dim" if number == 0 else ""
        for piece_number, piece in enumerate(formatting.wrap(row[last], width - formatting.columns(start))):
            yield line(Span(start if piece_number == 0 else " " * formatting.columns(start), style), Span(piece, style))


def _remarks(each: SubsetOutlook) -> Iterator[Row]:
    noun, many = nouns(each.subset)
    if each.cropped:
        said = f"{formatting.count(len(each.cropped), noun, many)} of {len(each.files):,} {_lose(len(each.cropped))}"
        yield Row(label="cut away", value=f"{said}: {_named(each.cropped, _crop_loss)}", style="yellow")
    if each.enlarged:
        worst = each.enlarged[0].crop
        style = "yellow" if worst is not None and worst.scale >= BLURRY else ""
        said = f"{formatting.count(len(each.enlarged), noun, many)} of {len(each.files):,}"
        yield Row(label="enlarged", value=f"{said}: {_named(each.enlarged, _enlargement)}", style=style)


def _lose(count: int) -> str:
    return f"{'loses' if count == 1 else 'lose'} {percent(NOTABLE_LOSS)} or more"


def _named(files: Sequence[Trained], fact: Callable[[Crop], str]) -> str:
    """The first few by name, the rest counted."""
    named = [
        f"{formatting.safe(one.item.path.name)} ({fact(one.crop)})" for one in files[:_EXAMPLES] if one.crop is not None
    ]
    left = len(files) - len(named)
    return ", ".join(named) + (f" and {left:,} more" if left else "")


def _crop_loss(crop: Crop) -> str:
    return f"{percent(crop.share_lost)}, {sides_cut(crop)}"


def _enlargement(crop: Crop) -> str:
    return times(crop.scale)


def _totals(outlook: Outlook) -> Iterator[Row]:
    counted = outlook.summary
    items = [each.items for each in counted.subsets]
    if None not in items:
        number = sum(count or 0 for count in items)
        seen = counted.items_with_repeats or 0
        repeated = f", {seen:,} with repeats" if seen != number else ""
        yield Row(label="items", value=f"{number:,} from {formatting.count(counted.files, 'file')}{repeated}")
    else:
        yield Row(label="items", value=f"unknown, from {formatting.count(counted.files, 'file')}")
    if outlook.accumulation > 1 and counted.batches_per_epoch is not None:
        yield Row(
            label="batches", value=f"{counted.batches_per_epoch:,} an epoch, {outlook.accumulation} for each step"
        )
    yield Row(label="steps", value=steps_said(outlook), style="bold")
    yield Row(
        label="caches",
        value=f"latents {formatting.file_size(counted.latent_bytes)}, "
        f"captions about {formatting.file_size(counted.text_bytes)}",
    )
