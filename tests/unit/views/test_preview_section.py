"""Previews in the report: what was drawn is shown and can be enlarged, and the page stays one file."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

from support.runs import T0
from views.markup import HOSTILE, harmless, words_of
from views.reports import NO_PLOTS, report_of
from wan_train.preview.model import BASE, Cell, LeftOut, Lora, Precision, Preview, PreviewDirectory, Prompt, Row
from wan_train.preview.thumbnails import write_clip
from wan_train.recipe.terms import Expert, Task
from wan_train.run.directory import RunDirectory
from wan_train.run.picks import Epochs, Pick
from wan_train.views.report.page import page
from wan_train.views.report.preview_section import MOST_BYTES, MOST_SHOWN, shown_previews

PROMPT = Prompt(
    text="a red fox",
    negative=None,
    width=832,
    height=480,
    frames=1,
    steps=20,
    seed=7,
    guidance=dict.fromkeys(Expert, 4.0),
    shift=12.0,
)


def row(epoch: int, distance: float | None = None) -> Row:
    loras = {
        expert: Lora(path=Path("/loras"), sha256=f"{expert}{epoch}", epoch=epoch, distance=distance)
        for expert in Expert
    }
    return Row(name=str(epoch), loras=loras)


PREVIEW = Preview(
    name="prompts-1",
    run_id="fox",
    created=T0,
    task=Task.T2V,
    trainer="0.3.4",
    models={},
    precision=Precision.AS_STORED,
    prompts=(PROMPT,),
    rows=(Row(name=BASE), row(20, 0.173), row(60)),
)


@cache
def picture(size: tuple[int, int], *, noise: bool) -> bytes:
    buffer = io.BytesIO()
    (Image.effect_noise(size, 200) if noise else Image.new("RGB", size, "red")).save(buffer, "PNG")
    return buffer.getvalue()


def written(run: RunDirectory, preview: Preview, *, noise: bool = False, missing: int = 0, age: float = 0) -> None:
    """Draw every cell but the last `missing` ones."""
    directory = PreviewDirectory(run.path / "preview" / preview.name)
    directory.write(preview)
    os.utime(directory.preview, (T0 - age, T0 - age))
    places = list(preview.places())
    for place, number in places[: len(places) - missing]:
        stem, prompt = preview.stem(place, number), preview.prompts[number]
        names = [f"{stem}.png"] if prompt.frames == 1 else [f"{stem}/{frame}.png" for frame in range(prompt.frames)]
        for name in names:
            (directory.path / name).parent.mkdir(exist_ok=True)
            (directory.path / name).write_bytes(picture((prompt.width, prompt.height), noise=noise))
        cell = Cell(
            key=preview.key(place, number),
            files=tuple(names),
            width=prompt.width,
            height=prompt.height,
            seconds=1.0,
            at=T0,
            mean=1.0,
            deviation=1.0,
        )
        directory.keep(cell)
        write_clip(directory, cell)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def test_each_cell_is_a_picture_that_its_link_enlarges(run: RunDirectory) -> None:
    preview = replace(PREVIEW, left_out=(LeftOut(epoch=40, reason="differs from epoch 60 by 0.30 %"),))
    written(run, preview, missing=1)
    document = harmless(page(report_of(previews=shown_previews(run), **NO_PLOTS)))
    (table,) = (each for each in document.iter("table") if each.get("class") == "sheet")
    words = " ".join(words_of(table).split())
    assert "832x480, 20 steps, seed 7" in words
    assert "17 % from the last" in words
    assert words.endswith("epoch 60not drawn")
    links = [each for each in table.iter("a") if each.get("class") == "enlarge"]
    assert [next(link.iter("img")).get("alt") for link in links] == ["base model: a red fox", "epoch 20: a red fox"]
    assert all(link.get("href") == f"#{link.get('id')}" for link in links)
    assert "1 kept epoch not drawn Epoch 40 differs from epoch 60 by 0.30 %." in " ".join(words_of(document).split())


def test_a_report_without_previews_does_not_speak_of_them() -> None:
    assert "Preview" not in words_of(harmless(page(report_of(**NO_PLOTS))))


def test_the_picked_row_is_marked(run: RunDirectory) -> None:
    written(run, PREVIEW)
    report = report_of(previews=shown_previews(run), **NO_PLOTS)
    pick = Pick(at=T0, epochs=Epochs(high=20, low=20), files=())
    report = replace(report, view=replace(report.view, picks=(pick,)))
    rows = [words_of(each) for each in harmless(page(report)).iter("tr")]
    assert ["picked" in row for row in rows if row.startswith(("base", "epoch "))] == [False, True, False]


def test_a_clip_loops(run: RunDirectory) -> None:
    written(run, replace(PREVIEW, prompts=(replace(PROMPT, width=64, height=64, frames=5),)))
    sources = [
        each.get("src") or ""
        for each in harmless(page(report_of(previews=shown_previews(run), **NO_PLOTS))).iter("img")
    ]
    assert sum(source.startswith("data:image/webp;base64,") for source in sources) == len(PREVIEW.rows)


def test_many_large_pictures_stay_within_their_room(run: RunDirectory) -> None:
    prompts = tuple(replace(PROMPT, seed=seed, width=512, height=512) for seed in range(8))
    many = replace(PREVIEW, prompts=prompts, rows=tuple(row(epoch) for epoch in range(8)))
    written(run, many, noise=True)
    written(run, replace(PREVIEW, name="older"), age=60)
    (shown,) = shown_previews(run)
    assert len(shown.cells) == MOST_SHOWN
    assert all(cell is not None and len(cell.data) <= MOST_BYTES for cell in shown.cells.values())
    assert shown.more == "2 more prompts"
    assert "2 more prompts, not shown" in words_of(harmless(page(report_of(previews=(shown,), **NO_PLOTS))))


def test_the_newest_preview_is_first_and_a_broken_one_hides_no_other(run: RunDirectory) -> None:
    written(run, replace(PREVIEW, name="old"), age=60)
    written(run, replace(PREVIEW, name="new"))
    written(run, replace(PREVIEW, name="broken"), age=30)
    (run.path / "preview/broken/preview.json").write_text("{", encoding="utf-8")
    assert [shown.preview.name for shown in shown_previews(run)] == ["new", "old"]


def test_a_picture_that_cannot_be_read_is_said_so(run: RunDirectory) -> None:
    written(run, PREVIEW)
    for picture in run.path.glob("preview/*/base*.png"):
        picture.write_bytes(b"no picture")
    assert "unreadable" in words_of(harmless(page(report_of(previews=shown_previews(run), **NO_PLOTS))))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_prompts_and_file_names_stay_words(run: RunDirectory, text: str) -> None:
    words = text.replace("\ud800", "")
    other = replace(row(1), name=words)
    small = replace(PROMPT, text=words, width=16, height=16)
    written(run, replace(PREVIEW, prompts=(small,), rows=(Row(name=BASE), other)))
    made = page(report_of(previews=shown_previews(run), **NO_PLOTS))
    harmless(made)
    assert not any(character in made for character in "\x1b\0\x07\u202e\u202c\u2028\ufffe")
