"""The plots of a report, drawn by matplotlib: inline SVG in the colours of the page (light, dark, on paper)."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from wan_train.base.units import GIB
from wan_train.run.curves import Curve, Point, smoothed
from wan_train.run.live import EVERY_SECONDS, GpuSample
from wan_train.views import formatting

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_POINTS = 1200
"""The most points of a line. A plot is about 600 pixels wide: the lowest and highest point of each is drawn."""

_TOP, _RIGHT, _BOTTOM, _BETWEEN = 0.1, 0.26, 0.5, 0.14
"""Margins in inches, and the room between two axes as a share of their height."""
_LONGEST_LANE = 24
_GAP_SECONDS = 4 * EVERY_SECONDS
_LEAST_PERCENT = 1e-4
"""The smallest movement in the plot, because a logarithmic scale has no zero."""
_TYPICAL = 0.995
"""A plot ends at this quantile of the losses and begins at 1 minus it. Outliers would flatten all others."""

_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_LONG_NUMBER = re.compile(r"-?\d+\.\d{2,}")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_FONT = re.compile(r"font-family:[^;]*;?|font:[^;]*?(?P<size>[\d.]+)px[^;]*;?")

Pair = tuple[float, float]


class Ink(StrEnum):
    """Placeholder colours. Each is replaced by a variable of the page's style."""

    TEXT = "#010101"
    SOFT = "#020202"
    LINE = "#030303"
    HIGH = "#040404"
    LOW = "#050505"
    CACHE = "#060606"
    STOPS = "#070707"
    SECOND = "#080808"
    THIRD = "#090909"
    FOURTH = "#0a0a0a"


_VARIABLES: Mapping[str, str] = {ink.value: f"var(--{ink.name.lower()})" for ink in Ink}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One training to draw; `label` is its name in the legend."""

    curve: Curve
    ink: Ink
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One attempt on the timeline, in seconds since the start of the run."""

    lane: str
    label: str
    begin: float
    end: float
    ink: Ink
    failed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A plot with its texts; the macro `chart` of html/macros.html shows it."""

    title: str
    plot: Markup
    summary: str = ""
    source: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    """A table of values below the plot."""


def training_plot(lines: Sequence[Line], *, name: str, title: str, description: str) -> Markup:
    """Loss over steps: a faint line for each step, a strong smoothed one; below it the learning rate, where known."""
    rates = {line.label: _rates(line.curve) for line in lines}
    with_rates = any(rates.values())
    figure, axes = _figure(height=3.5 if with_rates else 2.6, parts=(3, 1) if with_rates else (1,))
    loss = axes[0]
    for line in lines:
        _draw_loss(loss, line, alone=len(lines) == 1)
    loss.set_ylabel("loss")
    loss.set_ylim(*_loss_range([line.curve for line in lines]))
    if len(lines) > 1:
        _legend(loss)
    if with_rates:
        for line in lines:
            xs, ys = _split(evenly(rates[line.label], MOST_POINTS // 4))
            axes[1].plot(xs, ys, color=line.ink.value, linewidth=1.6)
        axes[1].set_ylabel("learning rate")
        axes[1].set_ylim(bottom=0)
        axes[1].yaxis.set_major_formatter(
            lambda value, _place: "0" if value == 0 else f"{value:.0e}".replace("e-0", "e-")
        )
        axes[1].yaxis.set_major_locator(_locator(2))
    axes[-1].set_xlabel("step")
    axes[-1].xaxis.set_major_locator(_locator(6, whole=True))
    axes[-1].xaxis.set_major_formatter(lambda value, _place: f"{value:,.0f}")
    return _as_svg(figure, name=name, title=title, description=description)


def movement_plot(
    movements: Sequence[tuple[Ink, str, Sequence[Pair]]], *, name: str, title: str, description: str
) -> Markup:
    """Movement in percent over epochs, on a logarithmic scale; each training with its colour and label."""
    figure, (axes,) = _figure(height=2.6)
    for ink, label, pairs in movements:
        xs, ys = _split([(epoch, max(percent, _LEAST_PERCENT)) for epoch, percent in pairs])
        axes.plot(xs, ys, color=ink.value, linewidth=1.6, marker="o", markersize=3, label=label)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _place: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda _value, _place: "")
    axes.set_ylabel("movement, %")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(_locator(6, whole=True))
    _legend(axes)
    return _as_svg(figure, name=name, title=title, description=description)


def _draw_loss(axes: Axes, line: Line, *, alone: bool) -> None:
    counted = line.curve.points
    if alone:
        for segment in line.curve.segments:
            again = [p for p in segment.points if segment.counts_to is not None and p.step > segment.counts_to]
            xs, ys = _split(extremes(_losses(again), MOST_POINTS // 4))
            axes.plot(xs, ys, color=Ink.SOFT.value, linewidth=0.8, alpha=0.45, linestyle=(0, (2, 2)))
        for segment in line.curve.segments[1:]:
            begin = segment.points[0].step
            axes.axvline(begin, color=Ink.SOFT.value, linewidth=1, linestyle=(0, (4, 3)))
            axes.annotate(
                f"attempt {segment.attempt}", (begin, 1), xycoords=("data", "axes fraction"), xytext=(3, -3),
                textcoords="offset points", va="top", color=Ink.SOFT.value, fontsize=9,
            )  # fmt: skip
    xs, ys = _split(extremes(_losses(counted), MOST_POINTS))
    axes.plot(xs, ys, color=line.ink.value, linewidth=0.8, alpha=0.35 if alone else 0.15)
    average = zip((p.step for p in counted), smoothed([p.loss for p in counted]), strict=True)
    xs, ys = _split(evenly([pair for pair in average if math.isfinite(pair[1])], MOST_POINTS // 2))
    axes.plot(xs, ys, color=line.ink.value, linewidth=2, label=line.label)


def _losses(points: Iterable[Point]) -> list[Pair]:
    return [(point.step, point.loss) for point in points if math.isfinite(point.loss)]


def _rates(curve: Curve) -> list[Pair]:
    return [(p.step, p.lr) for p in curve.points if p.lr is not None and math.isfinite(p.lr)]


def _loss_range(curves: Sequence[Curve]) -> tuple[float, float]:
    values = sorted(loss for curve in curves for _, loss in _losses(curve.points))
    if not values:
        return 0.0, 1.0
    low, high = values[int((1 - _TYPICAL) * (len(values) - 1))], values[math.ceil(_TYPICAL * (len(values) - 1))]
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return max(0.0, low - room) if low >= 0 else low - room, high + room


def outside_plot(curves: Sequence[Curve]) -> int:
    """How many losses lie outside the plot."""
    low, high = _loss_range(curves)
    return sum(not low <= loss <= high for curve in curves for _, loss in _losses(curve.points))


def timeline_plot(bars: Sequence[Bar], *, until: float, name: str, title: str, description: str) -> Markup:
    """The attempts of every step in one lane for each GPU, with more rows if steps shared it. `until` is in seconds."""
    rows, lanes = _rows(bars)
    lanes = [formatting.cut(lane, _LONGEST_LANE) for lane in lanes]
    left = 0.25 + 0.085 * max((formatting.columns(lane) for lane in lanes), default=0)
    figure, (axes,) = _figure(width=10.5, height=0.75 + 0.36 * len(rows), left=left)
    unit, seconds = _unit(until)
    length = until / seconds or 1.0
    for number, row in enumerate(rows):
        for bar in row:
            begin, long = bar.begin / seconds, max((bar.end - bar.begin) / seconds, length / 400)
            edge = Ink.STOPS if bar.failed else bar.ink
            axes.barh(number, long, left=begin, height=0.7, color=bar.ink.value, alpha=0.28, linewidth=0)
            axes.barh(number, long, left=begin, height=0.7, color="none", edgecolor=edge.value, linewidth=1.4)
            label = f"✗ {bar.label}" if bar.failed else bar.label
            if long > length * (0.009 * len(label) + 0.01):
                axes.text(
                    begin + length * 0.006, number, label, va="center_baseline", color=Ink.TEXT.value, fontsize=9.5,
                    parse_math=False,
                )  # fmt: skip
    axes.set_yticks(range(len(rows)), lanes, parse_math=False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, length * 1.005)
    axes.set_xlabel(f"{unit} since the start")
    axes.tick_params(axis="y", length=0, labelcolor=Ink.TEXT.value)
    axes.grid(visible=False, axis="y")
    return _as_svg(figure, name=name, title=title, description=description, class_="plot wide")


def _rows(bars: Sequence[Bar]) -> tuple[list[list[Bar]], list[str]]:
    """Return rows and their names. Bars that do not overlap share a row. Only the first row of a lane has its name."""
    rows: list[list[Bar]] = []
    names: list[str] = []
    for lane in dict.fromkeys(bar.lane for bar in bars):
        of_lane: list[list[Bar]] = []
        for bar in sorted((bar for bar in bars if bar.lane == lane), key=lambda bar: bar.begin):
            free = next((row for row in of_lane if row[-1].end <= bar.begin), None)
            if free is None:
                of_lane.append([bar])
            else:
                free.append(bar)
        rows += of_lane
        names += [lane, *("" for _ in of_lane[1:])]
    return rows, names


def gpu_plot(samples: Sequence[GpuSample], *, since: float, name: str, title: str, description: str) -> Markup:
    """Memory and utilization of one GPU; `since` is the start of the run in seconds since 1970."""
    unit, seconds = _unit(samples[-1].at - since)
    total = max(sample.total_bytes for sample in samples) / GIB
    loads = [(sample.at, float(sample.utilization)) for sample in samples if sample.utilization is not None]
    figure, axes = _figure(height=2.9 if loads else 2.0, parts=(1, 1) if loads else (1,))
    memory = [(sample.at, sample.used_bytes / GIB) for sample in samples]
    for axis, series, ink in zip(axes, (memory, loads), (Ink.HIGH, Ink.LOW), strict=False):
        for piece in _pieces(series):
            xs, ys = _split(extremes(piece, MOST_POINTS // 2))
            xs = [(at - since) / seconds for at in xs]
            axis.fill_between(xs, ys, color=ink.value, alpha=0.15, linewidth=0)
            axis.plot(xs, ys, color=ink.value, linewidth=1.2)
    axes[0].axhline(total, color=Ink.SOFT.value, linewidth=1, linestyle=(0, (4, 3)))
    axes[0].set_ylim(0, total * 1.12)
    axes[0].set_ylabel("memory, GiB")
    axes[0].yaxis.set_major_locator(_locator(3))
    if loads:
        axes[1].set_ylim(0, 109)
        axes[1].set_yticks([0, 50, 100])
        axes[1].set_ylabel("utilization, %")
    axes[-1].set_xlabel(f"{unit} since the start")
    return _as_svg(figure, name=name, title=title, description=description)


def _pieces(series: Sequence[Pair]) -> list[list[Pair]]:
    """Split where no step used the GPU for a while. In a thinned record, all samples are further apart."""
    gaps = sorted(later[0] - earlier[0] for earlier, later in pairwise(series))
    limit = max(_GAP_SECONDS, 4 * gaps[len(gaps) // 2]) if gaps else _GAP_SECONDS
    pieces: list[list[Pair]] = []
    for pair in series:
        if not pieces or pair[0] - pieces[-1][-1][0] > limit:
            pieces.append([])
        pieces[-1].append(pair)
    return pieces


def _unit(seconds: float) -> tuple[str, float]:
    for unit, size, from_ in (("hours", 3600.0, 3 * 3600), ("minutes", 60.0, 180)):
        if seconds >= from_:
            return unit, size
    return "seconds", 1.0


def _figure(
    *, width: float = 6.0, height: float, left: float = 0.72, parts: Sequence[int] = (1,)
) -> tuple[Figure, Sequence[Axes]]:
    """An empty plot of stacked axes with relative heights `parts`. Sizes in inches; `left` is the label margin.

    The margins are fixed, because measuring them takes as long as drawing.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure as NewFigure

    with rc_context(_STYLE):
        figure = NewFigure(figsize=(width, height))
        axes: Any = figure.subplots(len(parts), 1, sharex=True, squeeze=False, height_ratios=list(parts))
    figure.subplots_adjust(
        left=left / width, right=1 - _RIGHT / width, top=1 - _TOP / height, bottom=_BOTTOM / height, hspace=_BETWEEN
    )
    column = [row[0] for row in axes]
    for axis in column:
        axis.grid(visible=True, linewidth=0.7)
        axis.margins(x=0.01)
        axis.spines[["top", "right"]].set_visible(False)
        axis.yaxis.set_label_coords(-(left - 0.24) / (width - left - _RIGHT), 0.5)
    return figure, column


_STYLE: Any = {  # matplotlib's stub accepts only a literal with its own names
    "font.size": 10.5,
    "axes.edgecolor": Ink.LINE.value,
    "axes.labelcolor": Ink.SOFT.value,
    "axes.axisbelow": True,
    "text.color": Ink.TEXT.value,
    "xtick.color": Ink.SOFT.value,
    "ytick.color": Ink.SOFT.value,
    "grid.color": Ink.LINE.value,
    "axes.unicode_minus": False,
}


def _legend(axes: Axes) -> None:
    legend = axes.legend(frameon=False, labelcolor=Ink.TEXT.value, fontsize=9.5, loc="upper right")
    for text in legend.get_texts():
        text.set_parse_math(False)


def _locator(bins: int, *, whole: bool = False) -> Any:  # noqa: ANN401  the library is untyped here
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=bins, integer=whole)


def _split(series: Sequence[Pair]) -> tuple[list[float], list[float]]:
    return [x for x, _ in series], [y for _, y in series]


def extremes(series: Sequence[Pair], most: int) -> list[Pair]:
    """At most `most` (even, at least 4) points: the first, the last, and the lowest and highest of each stretch.

    A plot of at most `most` / 2 pixels looks the same, spikes included. The values must be finite.
    """
    if len(series) <= most:
        return list(series)
    inner = series[1:-1]
    stretches = most // 2 - 1
    kept = [series[0]]
    for index in range(stretches):
        stretch = inner[index * len(inner) // stretches : (index + 1) * len(inner) // stretches]
        lowest = min(range(len(stretch)), key=lambda place: stretch[place][1])
        highest = max(range(len(stretch)), key=lambda place: stretch[place][1])
        kept += [stretch[place] for place in sorted({lowest, highest})]
    return [*kept, series[-1]]


def evenly(series: Sequence[Pair], most: int) -> list[Pair]:
    """At most `most` (at least 2) points, including the first and the last; for smooth lines."""
    if len(series) <= most:
        return list(series)
    return [series[index * (len(series) - 1) // (most - 1)] for index in range(most)]


def _as_svg(figure: Figure, *, name: str, title: str, description: str, class_: str = "plot") -> Markup:
    """The figure as SVG. `name` must be unique in the page. Screen readers read `title` and `description`."""
    import matplotlib as mpl
    from markupsafe import Markup as NewMarkup

    file = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawing = ET.fromstring(file.getvalue())  # noqa: S314  matplotlib wrote it
    svg = ET.Element(
        "svg",
        {
            "viewBox": drawing.get("viewBox", ""),
            "role": "img",
            "aria-labelledby": f"{name}-title",
            "aria-describedby": f"{name}-desc",
            "class": class_,
        },
    )
    for tag, text in (("title", title), ("desc", description)):
        ET.SubElement(svg, tag, id=f"{name}-{tag}").text = formatting.safe(text)
    used = {found for element in drawing.iter() for found in _references(element)}
    svg.extend(_element(child, name, used) for child in drawing if not _is_left_out(child))
    return NewMarkup(ET.tostring(svg, encoding="unicode"))  # noqa: S704  ElementTree escapes


def _is_left_out(element: ET.Element) -> bool:
    """Whether to leave out an element: metadata, or a style that would apply to the whole page."""
    return element.tag == f"{_SVG}metadata" or element.find(f"{_SVG}style") is not None


def _element(element: ET.Element, name: str, used: set[str]) -> ET.Element:
    """Copy an element without namespace, as in HTML, and without tails: matplotlib writes only line ends there."""
    cleaned = ET.Element(element.tag.removeprefix(_SVG), dict(_attributes(element, name, used)))
    cleaned.text = (element.text or "").strip()
    cleaned.extend(_element(child, name, used) for child in element)
    return cleaned


def _attributes(element: ET.Element, name: str, used: set[str]) -> Iterator[tuple[str, str]]:
    for key, value in element.attrib.items():
        match key:
            case "id":
                if value in used:
                    yield "id", f"{name}-{value}"
            case "style":
                yield "style", _style(value)
            case "clip-path":
                yield "clip-path", _REFERENCE.sub(rf"url(#{name}-\1)", value)
            case "d" | "points" | "transform" | "x" | "y":
                yield key, _LONG_NUMBER.sub(lambda found: f"{float(found[0]):.1f}", value).replace("\n", "")
            case _ if key == _HREF:
                yield "href", f"#{name}-{value.removeprefix('#')}"
            case _:
                yield key, value


def _style(text: str) -> str:
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return _FONT.sub(lambda found: f"font-size: {found['size']}px;" if found["size"] else "", text)


def _references(element: ET.Element) -> Iterator[str]:
    if _HREF in element.attrib:
        yield element.attrib[_HREF].removeprefix("#")
    yield from _REFERENCE.findall(element.get("clip-path", ""))
