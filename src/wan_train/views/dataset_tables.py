"""A dataset check as text: the table of problems and fixes, and the table of what will be trained."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wan_train.base.units import count, file_size
from wan_train.dataset.buckets import Crop, batches_per_epoch
from wan_train.dataset.layout import NOTABLE_LOSS, Layout, Size, SubsetLayout, TrainedFile
from wan_train.dataset.model import MediaKind, Problem, ProblemKind, Severity, Subset
from wan_train.dataset.scan import Check, Group
from wan_train.views.formatting import cut, cut_middle, pad, safe
from wan_train.views.lines import Line, Row, Screenful, Span, grid, hanging, line, table, width_of, wrapped

if TYPE_CHECKING:
    from rich.console import RenderableType

_EXAMPLES = 3
_WIDEST = 120
_LONGEST_NAME = 60
_MOST_SIZES = 12
BLURRY = 1.5
"""The enlargement factor from which a picture is visibly soft."""
COUNTED = "Cannot start yet; figures assume the blocking problems are fixed, and leave out unreadable files."
_STYLES: Mapping[Severity, str] = {
    Severity.STOPS: "bold red",
    Severity.LOSES: "yellow",
    Severity.HARMS: "yellow",
    Severity.NOTE: "dim",
}
TITLES: Mapping[ProblemKind, str] = {
    ProblemKind.CONFIG_UNREADABLE: "unreadable dataset.toml",
    ProblemKind.CONFIG_SYNTAX: "invalid TOML in dataset.toml",
    ProblemKind.UNKNOWN_KEY: "unknown keys",
    ProblemKind.WRONG_TYPE: "values of the wrong type",
    ProblemKind.WRONG_VALUE: "invalid values",
    ProblemKind.MISSING_KEY: "missing keys",
    ProblemKind.UNUSED_KEY: "keys that this model does not use",
    ProblemKind.CONFLICTING_KEYS: "conflicting keys",
    ProblemKind.NO_SUCH_DIRECTORY: "missing folders or files",
    ProblemKind.SHARED_CACHE: "one cache for two datasets",
    ProblemKind.CACHE_PATH: "unusable cache folder",
    ProblemKind.EMPTY_DATASET: "nothing to train",
    ProblemKind.NO_CAPTIONS: "no captions at all",
    ProblemKind.MISSING_CAPTION: "missing captions",
    ProblemKind.EMPTY_CAPTION: "empty captions",
    ProblemKind.CAPTION_ENCODING: "captions that are not plain UTF-8 text",
    ProblemKind.CAPTION_LINE_ENDS: "captions with Windows line endings",
    ProblemKind.LONG_CAPTION: "captions longer than the text encoder reads",
    ProblemKind.ORPHAN_CAPTION: "captions without a picture",
    ProblemKind.UNREADABLE_MEDIA: "unreadable files",
    ProblemKind.TRUNCATED_MEDIA: "truncated files",
    ProblemKind.TOO_LARGE: "very large pictures",
    ProblemKind.TOO_SMALL: "small pictures",
    ProblemKind.NOT_A_FILE: "names without a file",
    ProblemKind.IGNORED_FILE: "ignored files",
    ProblemKind.ROTATED: "rotated photos and clips, trained lying on their side",
    ProblemKind.TRANSPARENT: "transparent pictures",
    ProblemKind.COLOURS: "colours that the trainer gets wrong",
    ProblemKind.ANIMATED: "animations, trained by their first frame only",
    ProblemKind.WRONG_ENDING: "wrong file extensions",
    ProblemKind.CROPPED: "heavily cropped pictures",
    ProblemKind.DUPLICATE: "duplicate files",
    ProblemKind.NEAR_DUPLICATE: "near-duplicate pictures",
    ProblemKind.SAME_STEM: "files that share a name",
    ProblemKind.LONG_NAME: "file names that are too long",
    ProblemKind.BAD_RECORD: "invalid lines in a jsonl file",
    ProblemKind.TOO_FEW_FRAMES: "clips that are too short",
    ProblemKind.UNUSED_FRAMES: "clips that are only partly trained",
    ProblemKind.FRAME_RATE: "clips with a frame rate other than 16 fps",
    ProblemKind.FRAMES_UNKNOWN: "clips of unknown length",
    ProblemKind.MIXED_SHAPES: "clips of several shapes in one batch",
}


def problem_lines(check: Check) -> RenderableType:
    """All problems by kind, the worst first, each with its count, examples and fix."""
    return Screenful(lambda width: _problem_table(check, min(width, _WIDEST)))


def trained_lines(layout: Layout, *, stops: bool) -> RenderableType:
    """Sizes, crops and steps of what can be trained; `stops` when blocking problems must be fixed first."""
    return Screenful(lambda width: _trained_table(layout, min(width, _WIDEST), stops=stops))


def severity_counts(check: Check) -> str:
    """`2 stop the training, 9 may reduce quality.`"""
    texts = {
        Severity.STOPS: ("stops the training", "stop the training"),
        Severity.LOSES: ("loses material", "lose material"),
        Severity.HARMS: ("may reduce quality", "may reduce quality"),
        Severity.NOTE: ("note", "notes"),
    }
    counts = Counter(problem.severity for problem in check.problems)
    return f"{', '.join(count(counts[each], *texts[each]) for each in Severity if counts[each])}."


def _problem_table(check: Check, width: int) -> Iterator[Line]:
    yield line(Span(safe(check.config), "bold"), whole=True)
    yield line(Span(f"as {check.reading.name} reads it", "dim"))
    yield line()
    if not check.problems:
        yield line(Span("No problems.", "green"))
    else:
        digits = max(len(f"{len(group.problems):,}") for group in check.groups)
        for group in check.groups:
            yield from _group(group, f"{len(group.problems):>{digits},}", _base(check), width)
            yield line()
        if check.inventory is None:
            yield line("The files were not checked: fix the dataset.toml first.")
        yield from wrapped(severity_counts(check), width, "bold red" if check.stops else "bold")
        fixable = [TITLES[group.kind] for group in check.groups if any(each.is_fixable for each in group.problems)]
        if fixable:
            yield from wrapped(f"--fix can safely fix: {', '.join(dict.fromkeys(fixable))}.", width, "green")
    for text in check.left_out:
        yield from wrapped(text, width, "dim")
    yield line()


def _group(group: Group, number: str, base: Path, width: int) -> Iterator[Line]:
    head = [Span(pad(group.severity.value, 7), _STYLES[group.severity]), Span(f"{number}  ")]
    margin = Span(" " * width_of(head))
    yield from hanging(head, TITLES[group.kind], width, "bold")
    fixes = list(dict.fromkeys(problem.fix for problem in group.problems))
    for text in _examples(group.problems, base, with_fix=len(fixes) > 1):
        yield from hanging([margin, Span("- ")], text, width)
    if len(fixes) == 1:
        yield from hanging([margin, Span("→ ", "green")], safe(group.problems[0].advice), width, "green")


def _examples(problems: Sequence[Problem], base: Path, *, with_fix: bool) -> Iterator[str]:
    shown = problems[:_EXAMPLES]
    left = len(problems) - len(shown)
    more = f"and {left:,} more" if left else ""
    if len({problem.what for problem in problems}) == 1 and not with_fix and len(problems) > 1:
        names = ", ".join(_where(problem, base) for problem in shown)
        yield f"{names}{f' {more}' if more else ''}: {safe(problems[0].what)}"
        return
    for problem in shown:
        where = _where(problem, base)
        yield f"{where}{': ' if where else ''}{safe(problem.sentences if with_fix else problem.what)}"
    if more:
        yield more


def _where(problem: Problem, base: Path) -> str:
    parts = [problem.key] if problem.key else []
    if problem.path is not None:
        path = problem.path
        shown = path.relative_to(base) if path != base and path.is_relative_to(base) else path
        parts.append(problem.place(os.fspath(shown)))
    return cut_middle(safe(" in ".join(parts)), _LONGEST_NAME)


def _base(check: Check) -> Path:
    """The folder that paths are shown relative to: the dataset's, or the dataset.toml's if there are several."""
    if check.inventory is not None and len(check.inventory.subsets) == 1:
        directory = check.inventory.subsets[0].subset.directory
        if directory is not None:
            return directory
    return check.config.parent


def nouns(subset: Subset) -> tuple[str, str]:
    """The singular and plural noun for the files of a dataset."""
    return ("picture", "pictures") if subset.kind is MediaKind.IMAGE else ("clip", "clips")


def settings_of(subset: Subset) -> str:
    """The settings of a dataset that decide its sizes and batches."""
    width, height = subset.resolution
    parts = [f"{width}x{height}", f"batch {subset.batch_size}", count(subset.num_repeats, "repeat")]
    # The trainer scales clips into buckets and enlarges them, whatever these two keys say.
    if subset.kind is MediaKind.IMAGE and not subset.enable_bucket:
        parts.append("no buckets: everything becomes this size")
    elif subset.kind is MediaKind.IMAGE and subset.bucket_no_upscale:
        parts.append("nothing is enlarged")
    return ", ".join(parts)


def sides_cut(crop: Crop) -> str:
    """Where a crop cuts: `left and right`, `top and bottom`, `all sides` or `nowhere`."""
    across, down = crop.left + crop.right > 0, crop.top + crop.bottom > 0
    if across and down:
        return "all sides"
    return "left and right" if across else "top and bottom" if down else "nowhere"


def steps_text(layout: Layout) -> str:
    """`72 per epoch x 100 epochs = 7,200 per expert`."""
    epochs = count(layout.epochs, "epoch")
    if layout.steps is None or layout.steps_per_epoch is None:
        return f"{epochs}; steps unknown until the clips are cached"
    return f"{layout.steps_per_epoch:,} per epoch x {epochs} = {layout.steps:,} per expert"


def percent(share: float) -> str:
    """A share in whole percent; `<1 %` for less, unless it is 0."""
    return "0 %" if share <= 0 else "<1 %" if share < 0.01 else f"{100 * share:.0f} %"


def times(scale: float) -> str:
    """`1.04x`, `2.1x`, `12x`."""
    return f"{scale:.0f}x" if scale >= 9.95 else f"{scale:.2g}x" if scale >= 1.1 else f"{scale:.2f}x"


def _trained_table(layout: Layout, width: int, *, stops: bool) -> Iterator[Line]:
    yield line(Span("What will be trained", "bold"))
    if stops:
        yield from wrapped(COUNTED, width, "yellow")
    for each in layout.subsets:
        yield line()
        yield from _subset(each, width)
    yield line()
    yield from table([*_totals(layout)], width)
    yield line()


def _subset(each: SubsetLayout, width: int) -> Iterator[Line]:
    yield line("  ", safe(each.subset.source), whole=True)
    yield line("  ", Span(cut(settings_of(each.subset), width - 2), "dim"))
    if not each.sizes:
        yield line("  ", Span("nothing to train", "yellow"))
        return
    rows = [(size_name(size), *size_cells((size,), each.subset)) for size in each.sizes[:_MOST_SIZES]]
    rest = each.sizes[_MOST_SIZES:]
    if rest:
        rows.append((f"{len(rest):,} more sizes", *size_cells(rest, each.subset)))
    is_video = each.subset.kind is MediaKind.VIDEO
    files, last = ("files", "clips x frames") if is_video else ("pictures", "batches per epoch")
    yield from grid(("size", files, "cut away", "enlarged", last), rows, width, indent=4)
    yield from table([*_remarks(each)], width, indent=4)


def size_name(size: Size) -> str:
    """`960x544`, or why there is no size."""
    if size.pixels:
        return f"{size.pixels[0]}x{size.pixels[1]}"
    return "not trained" if all(one.is_known for one in size.files) else "unknown"


def size_cells(sizes: Sequence[Size], subset: Subset) -> tuple[str, ...]:
    """The cells for files trained at these sizes: number, largest share cut away, enlarged ones, batches."""
    files = f"{sum(len(size.files) for size in sizes):,}"
    if not any(size.pixels for size in sizes):
        return files, "", "", _batches(sizes, subset)
    enlarged = sum(size.enlarged for size in sizes)
    loss = max(size.largest_loss for size in sizes)
    scale = max(size.largest_scale for size in sizes)
    return (
        files,
        f"to {percent(loss)}" if loss else "-",
        f"{enlarged:,}, to {times(scale)}" if enlarged else "-",
        _batches(sizes, subset),
    )


def _batches(sizes: Sequence[Size], subset: Subset) -> str:
    """For pictures, the batches of one epoch; for clips, the number of each length."""
    keys = [key for size in sizes for one in size.files for key in one.keys]
    if subset.kind is MediaKind.VIDEO:
        return ", ".join(f"{clips:,} x {frames}" for frames, clips in sorted(Counter(key[2] for key in keys).items()))
    return f"{batches_per_epoch(keys, batch_size=subset.batch_size, num_repeats=subset.num_repeats):,}"


def _remarks(each: SubsetLayout) -> Iterator[Row]:
    def counted(files: Sequence[TrainedFile]) -> str:
        return f"{count(len(files), *nouns(each.subset))} of {len(each.files):,}"

    if each.cropped:
        lose = f"{'loses' if len(each.cropped) == 1 else 'lose'} {percent(NOTABLE_LOSS)} or more"
        named = _named(each.cropped, lambda crop: f"{percent(crop.share_lost)}, {sides_cut(crop)}")
        yield Row(label="cut away", value=f"{counted(each.cropped)} {lose}: {named}", style="yellow")
    if each.enlarged:
        worst = each.enlarged[0].crop
        style = "yellow" if worst is not None and worst.scale >= BLURRY else ""
        named = _named(each.enlarged, lambda crop: times(crop.scale))
        yield Row(label="enlarged", value=f"{counted(each.enlarged)}: {named}", style=style)


def _named(files: Sequence[TrainedFile], fact: Callable[[Crop], str]) -> str:
    """The first few by name, and the number of the others."""
    named = [f"{safe(one.item.path.name)} ({fact(one.crop)})" for one in files[:_EXAMPLES] if one.crop is not None]
    left = len(files) - len(named)
    return ", ".join(named) + (f" and {left:,} more" if left else "")


def _totals(layout: Layout) -> Iterator[Row]:
    total = layout.summary
    items = [each.items for each in total.subsets if each.items is not None]
    files = f"from {count(total.files, 'file')}"
    if len(items) == len(total.subsets):
        seen = total.items_with_repeats or 0
        repeated = f", {seen:,} with repeats" if seen != sum(items) else ""
        yield Row(label="items", value=f"{sum(items):,} {files}{repeated}")
    else:
        yield Row(label="items", value=f"unknown, {files}")
    if layout.accumulation > 1 and total.batches_per_epoch is not None:
        value = f"{total.batches_per_epoch:,} per epoch, {layout.accumulation} per step"
        yield Row(label="batches", value=value)
    yield Row(label="steps", value=steps_text(layout), style="bold")
    latents, captions = file_size(total.latent_bytes), file_size(total.text_bytes)
    yield Row(label="caches", value=f"latents {latents}, captions about {captions}")
