"""One file of a dataset on the page: its picture with the trained part framed, what happens to it, its caption."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence

from wan_train.base.text import redact, visible
from wan_train.dataset.buckets import Crop
from wan_train.dataset.layout import TrainedFile, is_cropped
from wan_train.dataset.model import MediaKind, Problem, Severity
from wan_train.dataset.previews import Preview
from wan_train.views import formatting
from wan_train.views.dataset_tables import BLURRY, percent, sides_cut, times
from wan_train.views.markup.html import Html, tag

_LONGEST_CAPTION = 1000
_MOST_PROBLEMS = 5
_ORDER = tuple(Severity)


def card(
    one: TrainedFile,
    kind: MediaKind,
    *,
    anchor: str,
    preview: Preview | None,
    caption: str | None,
    problems: Sequence[Problem],
) -> Html:
    """A list item; `caption` None where there is none or where it is not text."""
    worst = min((problem.severity for problem in problems), key=_ORDER.index, default=None)
    name = formatting.safe(one.item.path.name)
    return tag(
        "li",
        _picture(name, one.crop, preview, kind),
        tag(
            "div",
            tag("p", tag("bdi", name, dir="ltr"), class_="name"),
            tag("p", _fate(one, kind), class_="what"),
            _caption(one, caption),
            tag("ul", [_problem(problem) for problem in problems[:_MOST_PROBLEMS]], _more(problems))
            if problems
            else None,
        ),
        id=anchor,
        class_="card" if worst is None else f"card {worst.value}",
    )


def severity_mark(severity: Severity) -> Html:
    return tag("span", severity.value, class_=f"how {severity.value}")


def _picture(name: str, crop: Crop | None, preview: Preview | None, kind: MediaKind) -> Html:
    if preview is None:
        what = "first frame not readable here" if kind is MediaKind.VIDEO else "no preview"
        return tag("div", what, class_="blank")
    frame = "the trained part is framed" if crop is not None and crop.share_lost > 0 else "trained whole"
    what = f"First frame of {name}" if kind is MediaKind.VIDEO else f"Preview of {name}"
    data = base64.b64encode(preview.jpeg).decode("ascii")
    return tag(
        "div",
        tag(
            "img",
            src=f"data:image/jpeg;base64,{data}",
            alt=f"{what}; {frame}",
            width=preview.width,
            height=preview.height,
            decoding="async",
        ),
        _frame(crop) if crop is not None and crop.share_lost > 0 else None,
        class_="picture",
    )


def _frame(crop: Crop) -> Html:
    """The part that is cut away darkened, the trained one framed, in pixels of the stored picture."""
    (width, height), (left, top, across, down) = crop.stored, crop.frame
    inner = f"M{left:.2f} {top:.2f}h{across:.2f}v{down:.2f}h{-across:.2f}z"
    return tag(
        "svg",
        tag("path", d=f"M0 0h{width}v{height}h-{width}z{inner}", fill_rule="evenodd"),
        tag(
            "rect",
            x=f"{left:.2f}",
            y=f"{top:.2f}",
            width=f"{across:.2f}",
            height=f"{down:.2f}",
            vector_effect="non-scaling-stroke",
        ),
        viewBox=f"0 0 {width} {height}",
        preserveAspectRatio="none",
        aria_hidden="true",
    )


def _fate(one: TrainedFile, kind: MediaKind) -> list[Html | str]:
    crop = one.crop
    if crop is None:
        return ["size unknown" if one.item.width is None else "not trained: nothing would be left of it"]
    said: list[Html | str] = [f"{crop.stored[0]}x{crop.stored[1]} → {crop.bucket[0]}x{crop.bucket[1]}"]
    if crop.is_enlarged:
        enlarged = f"enlarged {times(crop.scale)}"
        said += [", ", tag("b", enlarged) if crop.scale >= BLURRY else enlarged]
    elif crop.scale < 1:
        said.append(f", shrunk to {percent(crop.scale)}")
    if crop.share_lost > 0:
        lost = f"{percent(crop.share_lost)} cut away, {sides_cut(crop)}"
        said += [", ", tag("b", lost) if is_cropped(one) else lost]
    else:
        said.append(", nothing cut away")
    if kind is MediaKind.VIDEO:
        said += [tag("br"), _clips(one)]
    elif not one.cuts:
        said += [tag("br"), "not trained: another file has its place"]
    return said


def _clips(one: TrainedFile) -> str:
    if one.item.frames is None:
        return "length unknown"
    length = formatting.count(one.item.frames, "frame")
    if not one.cuts:
        return f"{length}: no clip is taken"
    counted = sorted(Counter(frames for _, frames in one.cuts).items())
    return f"{length}: " + ", ".join(f"{formatting.count(count, 'clip')} of {frames}" for frames, count in counted)


def _caption(one: TrainedFile, caption: str | None) -> Html:
    if caption:
        shown = caption if len(caption) <= _LONGEST_CAPTION else f"{caption[:_LONGEST_CAPTION]}…"
        lines = "\n".join(visible(line) for line in redact(shown).split("\n"))
        rest = f" ({one.item.caption_characters:,} characters in all)" if shown is not caption else None

        return tag("p", lines, tag("span", rest, class_="soft") if rest else None, class_="caption", dir="auto")
    if one.item.caption_path is None:
        what = "no caption"
    else:
        what = "empty caption" if caption == "" else "caption not readable as UTF-8"
    return tag("p", what, class_="caption soft")


def _problem(problem: Problem) -> Html:
    return tag(
        "li",
        severity_mark(problem.severity),
        formatting.safe(problem.what),
        ". ",
        formatting.safe(sentence(problem.fix)),
    )


def _more(problems: Sequence[Problem]) -> Html | None:
    left = len(problems) - _MOST_PROBLEMS
    return tag("li", f"and {formatting.count(left, 'more problem')}") if left > 0 else None


def sentence(mend: str) -> str:
    """A mend as a sentence of its own."""
    return mend if mend.endswith("?") else f"{mend}."
