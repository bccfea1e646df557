"""What a person reads of a preview: before, after, and in `wan-train status`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from PIL import Image
from test_preview_model import PREVIEW, cell

from support.json_output import json_lines
from wan_train.base import locks
from wan_train.preview.estimate import Basis, Estimate
from wan_train.preview.model import PreviewDirectory, drawn, lock_of
from wan_train.run.directory import RunDirectory
from wan_train.views.lines import plain
from wan_train.views.preview import Shown, after_lines, before_lines, of_run, preview_json

RUN = "20261129-fox"


def place(run: Path) -> PreviewDirectory:
    return PreviewDirectory(run / "preview" / PREVIEW.name)


def fill(directory: PreviewDirectory, cells: int) -> None:
    directory.write(PREVIEW)
    for row, number in list(PREVIEW.places())[:cells]:
        stem = PREVIEW.stem(row, number)
        Image.new("RGB", (8, 8)).save(directory.path / f"{stem}.png")
        directory.keep(cell(PREVIEW.key(row, number), f"{stem}.png"))


def shown(directory: PreviewDirectory, **more: object) -> Shown:
    made = Shown(directory=directory, preview=PREVIEW, cells=drawn(directory, PREVIEW))
    return replace(made, **more)  # type: ignore[arg-type]  # fields of it


def test_the_quote_has_its_basis_and_the_pictures_that_are_there_already(tmp_path: Path) -> None:
    directory = place(tmp_path)
    found = Estimate(cells=60.0, loading=30.0, basis=Basis.TRAINED)
    said = plain(before_lines(shown(directory, estimate=found, per_hour=2.0, have=2), 80))
    assert "base, 20 (20 %), 40 (20 %); in brackets: distance to the last LoRA" in " ".join(said.split())
    assert "2: 832x480; 20 steps" in said
    assert "6, 2 already drawn" in said
    assert "about 1 min 30 s, about $0.05 (rough: from the speed of training here)" in " ".join(said.split())
    assert "Time" not in plain(before_lines(shown(directory, estimate=found, have=6), 80))


def test_what_was_drawn_stands_beside_what_was_expected(tmp_path: Path) -> None:
    directory = place(tmp_path)
    fill(directory, 6)
    found = Estimate(cells=60.0, loading=30.0, basis=Basis.DRAWN)
    said = plain(after_lines(shown(directory, estimate=found, drawn_now=4, drawing_seconds=100.0), 80))
    assert "4 pictures drawn in 1 min 40 s (expected: 1 min 30 s). All 6 pictures are ready." in " ".join(said.split())
    assert f"wan-train pick {RUN} EPOCH" in said
    assert "drawn in" not in plain(after_lines(shown(directory), 80))


def test_pictures_that_cannot_be_used_are_not_called_there(tmp_path: Path) -> None:
    directory = place(tmp_path)
    fill(directory, 5)
    said = plain(after_lines(shown(directory, failed={("40", 1): "it is blank"}), 80))
    assert "5 of 6 pictures are ready." in said
    assert "Row 40, prompt 2 is not usable: it is blank." in said


def test_what_programs_read_is_documented(tmp_path: Path) -> None:
    directory = place(tmp_path)
    fill(directory, 5)
    data = preview_json(shown(directory, failed={("40", 1): "it is blank"}, drawn_now=5, seconds=9.0))
    json_lines(json.dumps({"schema": 1, **data}))
    assert (data["total"], data["drawn"], len(data["failed"])) == (6, 5, 1)


def test_status_says_how_far_a_preview_is_and_how_it_goes_on(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / RUN)
    run.path.mkdir()
    assert plain(of_run(run)) == ""
    run.preview_prompts.write_text("[]")
    assert "Preview  not drawn yet" in plain(of_run(run))
    fill(place(run.path), 4)
    assert f"Preview  4 of 6 pictures\n    Draw the rest:\n    wan-train preview {RUN}" in plain(of_run(run))
    with locks.held(lock_of(run.path)):
        assert f"4 of 6 pictures, being drawn\n    Follow it:\n    wan-train preview {RUN}" in plain(of_run(run))
    fill(place(run.path), 6)
    place(run.path).sheet.touch()
    said = plain(of_run(run))
    assert "Preview  6 of 6 pictures\n" in said
    assert str(place(run.path).sheet) in said
    assert "wan-train preview" not in said
