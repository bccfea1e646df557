"""Records of previews: read back as written, keyed by what decides a picture, never half a line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from wan_train.base.errors import BadInputError
from wan_train.preview.model import (
    BASE,
    Cell,
    Lora,
    Precision,
    Preview,
    PreviewDirectory,
    Prompt,
    Row,
    drawn,
    previews_of,
)
from wan_train.recipe.terms import Expert, Task

PROMPT = Prompt(
    text="a red fox",
    negative=None,
    width=832,
    height=480,
    frames=1,
    steps=20,
    seed=7,
    guidance={Expert.HIGH: 4.0, Expert.LOW: 3.0},
    shift=12.0,
)


def row(epoch: int, digest: str, *, low: str | None = None) -> Row:
    return Row(
        name=str(epoch),
        loras={
            Expert.HIGH: Lora(path=Path(f"/loras/high-{epoch}"), sha256=digest, epoch=epoch, distance=0.2),
            Expert.LOW: Lora(path=Path(f"/loras/low-{epoch}"), sha256=low or digest, epoch=epoch, distance=0.1),
        },
    )


PREVIEW = Preview(
    name="prompts-3f2a",
    run_id="20261129-fox",
    created=1.0,
    task=Task.T2V,
    trainer="30c658c4f4b0bf05038b3346eff9670259b10fc7",
    models={"vae": "1:ab"},
    precision=Precision.AS_STORED,
    prompts=(PROMPT, replace(PROMPT, text="a blue fox")),
    rows=(Row(name=BASE), row(20, "aa"), row(40, "bb")),
)


def cell(key: str, *files: str) -> Cell:
    return Cell(key=key, files=files, width=832, height=480, seconds=4.5, at=2.0, mean=100.0, deviation=30.0)


def test_a_preview_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    directory = PreviewDirectory(tmp_path / "preview" / PREVIEW.name)
    directory.write(PREVIEW)
    assert directory.read() == PREVIEW
    assert previews_of(tmp_path) == (directory,)


def test_a_file_that_an_older_version_named_like_another_row_is_read_as_a_file(tmp_path: Path) -> None:
    directory = PreviewDirectory(tmp_path)
    files = {Expert.HIGH: Lora(path=Path("/elsewhere/20.safetensors"), sha256="cc")}
    older = tuple(Row(name=name, loras=files) for name in ("base", "20", "20:60", "cat"))
    directory.write(replace(PREVIEW, rows=(*PREVIEW.rows, *older)))
    read = directory.read()
    assert [row.name for row in read.rows] == ["base", "20", "40", "file base", "file 20", "file 20:60", "cat"]
    (tmp_path / "old.png").touch()
    directory.keep(cell(PREVIEW.key(older[1], 0), "old.png"))
    assert drawn(directory, read)["file 20", 0].files == ("old.png",)


def test_a_folder_without_a_preview_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"has no preview\.json"):
        PreviewDirectory(tmp_path).read()


@pytest.mark.parametrize(
    "other",
    [
        replace(PREVIEW, strength=0.8),
        replace(PREVIEW, precision=Precision.FP8_SCALED),
        replace(PREVIEW, trainer="another"),
        replace(PREVIEW, models={"vae": "2:cd"}),
        replace(PREVIEW, prompts=(replace(PROMPT, seed=8), PROMPT)),
        replace(PREVIEW, prompts=(replace(PROMPT, guidance={Expert.HIGH: 4.0, Expert.LOW: 3.5}), PROMPT)),
        replace(PREVIEW, rows=(Row(name=BASE), row(20, "aa", low="cc"))),
    ],
)
def test_whatever_decides_a_picture_is_in_its_key(other: Preview) -> None:
    assert other.key(other.rows[1], 0) != PREVIEW.key(PREVIEW.rows[1], 0)


def test_what_decides_no_picture_is_not_in_its_key() -> None:
    moved = replace(
        PREVIEW,
        name="elsewhere",
        created=9.0,
        prompts=(replace(PROMPT, image=Path("/copy"), guidance={Expert.LOW: 3.0, Expert.HIGH: 4.0}),),
        rows=(Row(name="renamed", loras=row(20, "aa").loras),),
    )
    assert moved.key(moved.rows[0], 0) == PREVIEW.key(PREVIEW.rows[1], 0)
    stronger = replace(PREVIEW, strength=0.5)
    assert stronger.key(stronger.rows[0], 0) == PREVIEW.key(PREVIEW.rows[0], 0), "the base has no LoRA to multiply"


def test_cells_are_found_by_their_place_once_their_files_are_there(tmp_path: Path) -> None:
    directory = PreviewDirectory(tmp_path)
    directory.write(PREVIEW)
    keys = {(each.name, number): PREVIEW.key(each, number) for each, number in PREVIEW.places()}
    (tmp_path / "base.png").touch()
    directory.keep(cell(keys[BASE, 0], "base.png"))
    directory.keep(cell(keys["20", 1], "missing.png"))
    assert drawn(directory, PREVIEW) == {(BASE, 0): cell(keys[BASE, 0], "base.png")}


def test_a_line_cut_by_a_full_disk_costs_that_cell_alone(tmp_path: Path) -> None:
    directory = PreviewDirectory(tmp_path)
    (tmp_path / "a.png").touch()
    directory.keep(cell("a", "a.png"))
    with directory.cells.open("a") as file:
        file.write('{"key": "b", "fil')
    directory.keep(cell("c", "a.png"))
    assert set(directory.read_cells()) == {"a", "c"}


def test_two_cells_of_one_row_name_have_files_of_their_own() -> None:
    retrained = replace(PREVIEW, rows=(row(20, "dd"),))
    assert retrained.stem(retrained.rows[0], 0) != PREVIEW.stem(PREVIEW.rows[1], 0)
    assert Row(name="../20:60 é").slug == "..-20-60--"


def test_the_distance_of_a_row_is_its_larger_one() -> None:
    assert PREVIEW.rows[1].distance == 0.2
    assert PREVIEW.rows[0].distance is None
