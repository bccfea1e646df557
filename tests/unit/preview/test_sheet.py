"""The sheet of a preview: every row and prompt has its place, whatever is missing or broken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from wan_train.preview.model import BASE, Cell, Lora, Precision, Preview, PreviewDirectory, Prompt, Row
from wan_train.preview.sheet import columns_of, draw_sheet, pages, row_notes, row_title, wrapped
from wan_train.recipe.terms import Expert, Task

PROMPT = Prompt(
    text="a red fox",
    negative=None,
    width=320,
    height=192,
    frames=1,
    steps=20,
    seed=7,
    guidance={Expert.HIGH: 4.0, Expert.LOW: 3.0},
    shift=12.0,
)
COLOURS = ["#ff0000", "#00ff00", "#0000ff"]


def row(epoch: int, high: float | None = None, low: float | None = None) -> Row:
    distances = {Expert.HIGH: high, Expert.LOW: low}
    return Row(
        name=str(epoch),
        loras={
            expert: Lora(path=Path(f"/loras/{epoch}"), sha256=f"{expert}{epoch}", epoch=epoch, distance=distance)
            for expert, distance in distances.items()
        },
    )


def preview_of(rows: int, prompts: tuple[Prompt, ...]) -> Preview:
    return Preview(
        name="prompts",
        run_id="20261129-fox",
        created=1.0,
        task=Task.T2V,
        trainer="0.3.4",
        models={},
        precision=Precision.AS_STORED,
        prompts=prompts,
        rows=(Row(name=BASE), *(row(10 * number, 0.2, 0.1) for number in range(1, rows))),
    )


def draw(directory: PreviewDirectory, preview: Preview, place: Row, number: int, colour: str) -> Cell:
    """A cell of one colour; the frames of a clip go through all."""
    stem, prompt = preview.stem(place, number), preview.prompts[number]
    names = [f"{stem}.png"] if prompt.frames == 1 else [f"{stem}/{at}.png" for at in range(prompt.frames)]
    for at, name in enumerate(names):
        path = directory.path / name
        path.parent.mkdir(exist_ok=True)
        shown = colour if len(names) == 1 else COLOURS[min(2, 3 * at // len(names))]
        Image.new("RGB", (prompt.width, prompt.height), shown).save(path)
    cell = Cell(
        key=preview.key(place, number),
        files=tuple(names),
        width=prompt.width,
        height=prompt.height,
        seconds=1.0,
        at=1.0,
        mean=1.0,
        deviation=1.0,
    )
    directory.keep(cell)
    return cell


@pytest.fixture
def directory(tmp_path: Path) -> PreviewDirectory:
    return PreviewDirectory(tmp_path)


def colours(path: Path) -> set[str]:
    """The strong colours of a sheet."""
    with Image.open(path) as sheet:
        found = sheet.convert("RGB").getcolors(2**24) or []
    return {
        name
        for name, wanted in zip(COLOURS, [(255, 0, 0), (0, 255, 0), (0, 0, 255)], strict=True)
        if sum(count for count, seen in found if all(abs(a - b) < 40 for a, b in zip(seen, wanted, strict=True))) > 500
    }


def test_drawn_cells_are_shown_and_others_are_missing(directory: PreviewDirectory) -> None:
    preview = preview_of(3, (PROMPT, replace(PROMPT, text="猫\n\x1b[31m" + "long " * 200)))
    draw(directory, preview, preview.rows[0], 0, COLOURS[0])
    broken = draw(directory, preview, preview.rows[1], 1, COLOURS[1])
    (directory.path / broken.files[0]).write_bytes(b"no picture")
    (path,) = draw_sheet(directory, preview)
    assert path == directory.sheet
    assert colours(path) == {COLOURS[0]}
    with Image.open(path) as sheet:
        assert sheet.width > 2 * 320
        assert sheet.height > 3 * 192


def test_a_clip_shows_three_frames_and_loops_in_a_file(directory: PreviewDirectory) -> None:
    preview = preview_of(2, (replace(PROMPT, frames=9),))
    draw(directory, preview, preview.rows[1], 0, "")
    (path,) = draw_sheet(directory, preview)
    assert colours(path) == set(COLOURS)
    (clip,) = directory.path.glob("*.webp")
    with Image.open(clip) as shown:
        # Frames that are the same as the one before are joined.
        assert shown.n_frames == 3
        assert shown.info["loop"] == 0
        durations = []
        for frame in range(shown.n_frames):
            shown.seek(frame)
            shown.load()
            durations.append(shown.info["duration"])
    assert sum(durations) == pytest.approx(9 * 1000 / 16, abs=9)


def test_many_rows_and_prompts_go_to_further_pages_that_hold_all() -> None:
    preview = preview_of(60, tuple(replace(PROMPT, seed=seed) for seed in range(40)))
    found = pages(preview.rows, columns_of(preview, {}))
    places = [(each.name, column.number) for page in found for each in page.rows for column in page.columns]
    assert sorted(places) == sorted((each.name, number) for each, number in preview.places())
    few = pages(preview.rows[:4], columns_of(preview, {})[:3])
    assert len(few) == 1


def test_pages_of_an_earlier_larger_sheet_are_removed(directory: PreviewDirectory) -> None:
    old = directory.path / "sheet-2.jpg"
    old.write_bytes(b"")
    draw_sheet(directory, preview_of(2, (PROMPT,)))
    assert not old.exists()


def test_a_row_says_what_it_is_and_how_far_from_the_last() -> None:
    assert row_title(Row(name=BASE)) == "base model"
    assert row_title(row(20)) == "epoch 20"
    assert row_title(replace(row(20), name="20:60")) == "epochs 20:60"
    assert row_title(Row(name="file 20")) == "file 20"
    assert row_title(Row(name="２０")) == "２０"  # noqa: RUF001  digits, but no epoch
    assert row_notes(row(20, 0.173, 0.044)) == ("high-noise 17 %", "low-noise 4.4 %", "from the last")
    assert row_notes(row(20, 0.173, 0.173)) == ("17 % from the last",)
    assert row_notes(row(100)) == ()


@pytest.mark.parametrize("text", ["", "one", "one two three four five six seven", "x" * 500, "a " * 300])
def test_text_stays_within_its_room(text: str) -> None:
    lines = wrapped(text, 10, 3, len)
    assert len(lines) <= 3
    assert all(len(line) <= 10 for line in lines)
    if "".join(lines).replace(" ", "") != text.replace(" ", ""):
        assert lines[-1].endswith("…")
