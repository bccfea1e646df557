"""What will be trained, as a table: the sizes with what each of them costs the pictures, and the steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from wan_train.dataset.buckets import batches_per_epoch
from wan_train.dataset.crops import Crop
from wan_train.dataset.layout import NOTABLE_LOSS, Outlook, Size, SubsetOutlook
from wan_train.dataset.model import MediaKind, Subset
from wan_train.dataset.trained import Trained
from wan_train.views import formatting
from wan_train.views.lines import Line, Row, Screenful, Span, line, table

if TYPE_CHECKING:
    from rich.console import RenderableType

_WIDEST = 120
_MOST_SIZES = 12
_EXAMPLES = 3
BLURRY = 1.5
"""From this enlargement on a picture is visibly soft, so it is worth a colour."""


COUNTED = "Nothing yet: counted as if what stops were mended, without the files that cannot be read."


def trained_lines(outlook: Outlook, *, stops: bool) -> RenderableType:
    """Sizes, crops and steps of what can be trained; `stops` when something has to be mended before."""
    return Screenful(lambda width: _lines(outlook, min(width, _WIDEST), stops=stops))


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


def _lines(outlook: Outlook, width: int, *, stops: bool) -> Iterator[Line]:
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
        yield Row(label="cut away", value=f"{said}: {_named(each.cropped, _loss)}", style="yellow")
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


def _loss(crop: Crop) -> str:
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
