"""jsonl files: each mistake has its own sentence with file and line, and a run's copy is read alike everywhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dataset.support import draw
from wan_train.dataset import jsonl
from wan_train.dataset.config import load
from wan_train.dataset.model import GUIDE_READING, NEWEST_READING, Inventory, MediaKind, Problem, ProblemKind, Severity
from wan_train.dataset.scan import scan


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    return draw(tmp_path / "pictures" / "a.png", (320, 320), caption=None)


def look(tmp_path: Path, data: str | bytes, kind: str = "image") -> Inventory:
    (tmp_path / "items.jsonl").write_bytes(data if isinstance(data, bytes) else data.encode())
    path = tmp_path / "dataset.toml"
    path.write_text(
        f"[[datasets]]\n{kind}_jsonl_file = '{tmp_path}/items.jsonl'\ncache_directory = '{tmp_path}/c'\n"
        "enable_bucket = true\nresolution = [320, 320]\n"
    )
    return scan(load(path))


def line(**record: object) -> str:
    return json.dumps(record) + "\n"


def only(inventory: Inventory) -> Problem:
    (found,) = inventory.problems
    return found


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ('{"image_path": "/x" "caption": ""}', ":2: is not JSON (Expecting ',' delimiter, column 21). Write one"),
        ("/data/a.png\ta cat", ":2: is not JSON"),
        ('["/data/a.png", "a cat"]', ":2: is a list, not an object. Write one"),
        ("3", ":2: is a whole number, not an object"),
        ('{"file": "a.png", "caption": "a cat"}', ":2: has no image_path; it has file, caption. Write one"),
        (
            '{"video_path": "a.mp4", "caption": "a cat"}',
            ":2: has video_path instead of image_path. Use video_jsonl_file",
        ),
        ('{"image_path": "PICTURE", "text": "a cat"}', ":2: has no caption; it has image_path, text. Add"),
        ('{"image_path": 3, "caption": "a cat"}', ":2: has a whole number as image_path. Write image_path as text"),
        (
            '{"image_path": "PICTURE", "caption": null}',
            ":2: has nothing (null) as caption. Write the caption as text",
        ),
        ('{"image_path": " ", "caption": "a cat"}', ":2: has an empty image_path. Write the path of the file"),
        ('{"image_path": "a\\u0000", "caption": "a cat"}', ":2: has an invalid path"),
        (
            '{"image_path": "/no/a.png", "caption": "a cat"}',
            ":2: has the path /no/a.png, which does not exist. Correct",
        ),
        ('{"image_path": "no/a.png", "caption": "a cat"}', ":2: has the path no/a.png, which is not in "),
        (
            '{"image_path": "C:\\\\cats\\\\a.png", "caption": "a cat"}',
            r":2: has a Windows path: C:\cats\a.png. Write",
        ),
        ('{"image_path": "D:/cats/a.png", "caption": "a cat"}', ":2: has a Windows path: D:/cats/a.png"),
        ('{"image_path": "\\\\\\\\box\\\\a.png", "caption": "a cat"}', r":2: has a Windows path: \\box\a.png"),
        (r'{"image_path": "C:\cats\a.png", "caption": "a cat"}', ":2: is not JSON: a single backslash at column 19"),
        ('{"image_path": "PICTURE", "caption": "\\ud800"}', ":2: has an invalid Unicode escape"),
    ],
)
def test_each_mistake_has_its_sentence_with_file_and_line(picture: Path, tmp_path: Path, wrong: str, said: str) -> None:
    good = line(image_path=str(picture), caption="a cat")
    inventory = look(tmp_path, good + wrong.replace("PICTURE", str(picture)) + "\n")
    assert f"{tmp_path}/items.jsonl{said}" in only(inventory).line
    assert only(inventory).severity is Severity.STOPS
    assert len(inventory.subsets[0].items) == 1


@pytest.mark.parametrize("data", ["", "\n", "\n \n"])
def test_a_file_without_records_stops(tmp_path: Path, data: str) -> None:
    kinds = {problem.kind for problem in look(tmp_path, data).stopping}
    assert kinds == {ProblemKind.EMPTY_DATASET}


def test_what_the_runs_copy_leaves_out_is_a_note(picture: Path, tmp_path: Path) -> None:
    record = line(image_path=str(picture), caption="a cat", control_path="/x.png", image_path_1="/y.png")
    inventory = look(tmp_path, f"\ufeff{record}\r\n".replace("\r\n", "\r\n\r\n"))
    assert {problem.severity for problem in inventory.problems} == {Severity.NOTE}
    said = [problem.line for problem in inventory.problems]
    assert "starts with a byte order mark" in said[0]
    assert any(":2: is a blank line" in each for each in said)
    assert any("control_path of 1 record is not used by Wan 2.2 A14B" in each for each in said)
    assert any("image_path_1 of 1 record is not used" in each for each in said)
    copy = jsonl.text(MediaKind.IMAGE, inventory.subsets[0].items)
    assert json.loads(copy) == {"image_path": str(picture), "caption": "a cat"}


def test_the_first_of_several_pictures_is_the_picture(picture: Path, tmp_path: Path) -> None:
    """`image_path_0` stops d0a1930, so the copy calls it what both versions read."""
    inventory = look(tmp_path, line(image_path_0=str(picture), caption=" a cat "))
    assert inventory.problems == ()
    copy = jsonl.text(MediaKind.IMAGE, inventory.subsets[0].items)
    assert json.loads(copy) == {"image_path": str(picture), "caption": " a cat "}
    assert ":1: has no video_path" in only(look(tmp_path, line(video_path_0="/x.mp4", caption="c"), "video")).line


def test_a_relative_path_counts_from_the_jsonl_file_then_from_here_then_from_the_trainer(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, root = tmp_path / "here", tmp_path / "musubi-tuner"
    for folder in (here, root):
        (folder / "pictures").mkdir(parents=True)
    monkeypatch.chdir(here)
    second = draw(here / "pictures" / "b.png", (320, 320), caption=None)
    third = draw(root / "pictures" / "c.png", (320, 320), caption=None)
    for name in ("a", "b", "c"):
        draw(root / "pictures" / f"{name}.png", (320, 320), caption=None)
    lines = "".join(line(image_path=f"./pictures/{name}.png", caption=name) for name in "abc")
    assert len(look(tmp_path, lines).stopping) == 1
    for reading in (GUIDE_READING, NEWEST_READING):
        inventory = scan(load(tmp_path / "dataset.toml"), reading=replace(reading, root=root))
        assert inventory.stopping == ()
        assert [item.path for item in inventory.subsets[0].items] == [picture, second, third]


def test_captions_of_records_are_judged_like_those_of_files(picture: Path, tmp_path: Path) -> None:
    others = [draw(picture.with_name(f"{n}.png"), (320, 321 + n), caption=None) for n in range(5)]
    texts = ["", " \n", "\ufeffa cat", "a\0cat", "words " * 2000]
    lines = "".join(line(image_path=str(path), caption=text) for path, text in zip(others, texts, strict=True))
    found = look(tmp_path, lines).problems
    assert [(each.row, each.kind, each.severity) for each in found if each.path == tmp_path / "items.jsonl"] == [
        (1, ProblemKind.EMPTY_CAPTION, Severity.HARMS),
        (2, ProblemKind.EMPTY_CAPTION, Severity.HARMS),
        (3, ProblemKind.CAPTION_ENCODING, Severity.NOTE),
        (4, ProblemKind.CAPTION_ENCODING, Severity.HARMS),
        (5, ProblemKind.LONG_CAPTION, Severity.HARMS),
    ]


def test_another_encoding_is_named(picture: Path, tmp_path: Path) -> None:
    text = json.dumps({"image_path": str(picture), "caption": "un chât"}, ensure_ascii=False)
    found = only(look(tmp_path, text.encode("latin-1")))
    assert (found.kind, found.severity) == (ProblemKind.CAPTION_ENCODING, Severity.STOPS)
    assert "items.jsonl: is not UTF-8. Save it as UTF-8." in found.line
