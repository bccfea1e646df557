"""`wan-train dataset` as people and scripts call it: words, exit codes, JSON, and files that change only by consent."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image
from rich.cells import cell_len

from support.trainers import ScriptedBox


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures without any problem."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number, mode in enumerate(("L", "radial")):
        picture = Image.linear_gradient("L") if mode == "L" else Image.radial_gradient("L")
        picture.resize((1000, 900 + number)).convert("RGB").save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text("a cat")
    return pictures


def test_a_sound_dataset_is_called_sound(quiet_box: ScriptedBox, folder: Path) -> None:
    done = quiet_box.run_cli("dataset", "check", str(folder))
    assert (done.returncode, done.stderr) == (0, "")
    assert "No problems." in done.stdout
    assert list(folder.iterdir()) == [path for path in folder.iterdir() if path.suffix in {".png", ".txt"}]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_all_problems_are_in_one_table_the_worst_first(quiet_box: ScriptedBox, folder: Path, width: int) -> None:
    (folder / "0.txt").write_bytes(b"\xff\xfea\0")
    (folder / "1.txt").write_text("")
    (folder / "orphan.txt").write_text("x")
    (folder / "evil\x1b[31m\nname.jpg").write_bytes(b"no picture")
    (folder / "evil\x1b[31m\nname.txt").write_text("x")
    (folder / f"{'n' * 240}.gif").touch()
    done = quiet_box.run_cli("dataset", "check", str(folder), COLUMNS=str(width))
    assert done.returncode == 2
    words = [line.split()[0] for line in done.stdout.splitlines() if re.match(r"(stops|loses|harms|note) ", line)]
    assert words == ["stops", "stops", "loses", "harms", "note"]
    assert "is UTF-16, not UTF-8" in done.stdout
    assert "\x1b" not in done.stdout
    assert "evil\\x1b[31m\\nname.jpg" in done.stdout
    lines = [line for line in done.stdout.splitlines() if str(folder) not in line]
    assert max(cell_len(line) for line in lines) <= width


def test_warnings_alone_do_not_fail(quiet_box: ScriptedBox, folder: Path) -> None:
    (folder / "0.txt").write_text("")
    done = quiet_box.run_cli("dataset", "check", str(folder))
    assert done.returncode == 0
    assert "1 may reduce quality." in done.stdout


def test_the_trainer_version_decides_what_stops(quiet_box: ScriptedBox, folder: Path) -> None:
    (folder / "0.txt").unlink()
    words = ("dataset", "check", str(folder), "--engine")
    assert quiet_box.run_cli(*words, "guide").returncode == 2
    newer = quiet_box.run_cli(*words, "v0.3.4")
    assert newer.returncode == 0
    assert "skips it" in newer.stdout


def test_json_is_one_documented_document_with_everything(quiet_box: ScriptedBox, folder: Path) -> None:
    for number in range(12):
        (folder / f"orphan{number}.txt").write_text("x")
    (folder / "0.txt").unlink()
    done = quiet_box.run_cli("dataset", "check", str(folder), "--json", "--engine", "guide")
    assert done.returncode == 2
    (line,) = done.stdout.splitlines()
    data = json.loads(line)
    assert {"mended", "left"}.isdisjoint(data)
    assert data["counts"] == {"stops": 1, "loses": 0, "harms": 0, "note": 12}
    assert [(group["kind"], len(group["found"])) for group in data["problems"]] == [
        ("missing-caption", 1),
        ("orphan-caption", 12),
    ]


def test_fixing_needs_consent_and_says_what_it_did(quiet_box: ScriptedBox, folder: Path) -> None:
    old = "fête".encode("cp1252")
    (folder / "0.txt").write_bytes(old)
    (folder / "1.txt").write_bytes(b"\x81\x8d")
    refused = quiet_box.run_cli("dataset", "check", str(folder), "--fix")
    assert refused.returncode == 2
    assert "--yes" in refused.stderr
    assert (folder / "0.txt").read_bytes() == old
    done = quiet_box.run_cli("dataset", "check", str(folder), "--fix", "--yes")
    assert done.returncode == 2
    assert "Windows-1252 to UTF-8: “fête”" in done.stdout
    assert "its encoding is unclear" in done.stdout
    assert (folder / "0.txt").read_text(encoding="utf-8") == "fête"
    (folder / "1.txt").write_text("a dog")
    (folder / "0.txt").write_bytes(old)
    found = json.loads(quiet_box.run_cli("dataset", "check", str(folder), "--fix", "--yes", "--json").stdout)
    assert [Path(each["path"]).name for each in found["mended"]] == ["0.txt"]
    assert Path(found["mended"][0]["kept"]).read_bytes() == old
    assert {"mended", "left"} <= set(found)


def test_a_dataset_toml_is_written_and_changed_only_by_consent(quiet_box: ScriptedBox, folder: Path) -> None:
    done = quiet_box.run_cli("dataset", "write", str(folder), "--resolution", "640", "--resolution", "480x320")
    assert done.returncode == 0, done.stderr
    file = folder / "dataset.toml"
    first = file.read_text(encoding="utf-8")
    assert first.count("\n[[datasets]]") == 2
    words = ("dataset", "write", str(folder), "--repeats", "5")
    refused = quiet_box.run_cli(*words)
    assert refused.returncode == 2
    assert "+num_repeats = 5" in refused.stdout
    assert file.read_text(encoding="utf-8") == first
    assert quiet_box.run_cli(*words, "--yes").returncode == 0
    assert file.read_text(encoding="utf-8").count("num_repeats = 5") == 2
    assert [path.read_text(encoding="utf-8") for path in folder.glob(".wan-train-backup/*/dataset.toml")] == [first]
    assert "is up to date" in quiet_box.run_cli(*words).stdout
    assert quiet_box.run_cli("dataset", "check", str(file)).returncode == 0


def test_a_preset_is_checked_and_planned_as_what_it_says(quiet_box: ScriptedBox, folder: Path) -> None:
    done = quiet_box.run_cli("dataset", "write", str(folder), "--preset", "several")
    assert done.returncode == 0, done.stderr
    assert "--epochs 25" in done.stdout
    found = json.loads(quiet_box.run_cli("dataset", "check", str(folder), "--json").stdout)
    assert found["trained"]["files"] == 2
    planned = quiet_box.run_cli("--dataset", str(folder), "--dry-run", COLUMNS="100").stdout
    assert "2 pictures, 2 captions, 8 items, no problems" in planned
    assert "320x320, 480x480, 640x640, 960x960, " in planned


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("dataset",), "check or write"),
        (("dataset", "fly"), "fly"),
        (("dataset", "check"), "PATH"),
        (("dataset", "check", "nowhere"), "nowhere"),
        (("dataset", "write", "nowhere"), "nowhere"),
        (("dataset", "write", ".", "/"), "--output"),
        (("dataset", "write", ".", "--output", "x.txt"), "x.txt"),
        (("dataset", "write", ".", "--target-frames", "many"), "many"),
        (("dataset", "write", ".", "--resolution", "big"), "big"),
        (("dataset", "write", ".", "--frame-extraction", "tail"), "tail"),
        (("dataset", "write", ".", "--preset", "best"), "'quality', 'balanced', 'turbo', 'several'"),
        (("dataset", "write", ".", "--preset", "turbo", "--resolution", "480"), "--preset turbo and --resolution"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_wrong_word_is_named(quiet_box: ScriptedBox, words: tuple[str, ...], named: str) -> None:
    done = quiet_box.run_cli(*words)
    assert done.returncode == 2
    assert named in done.stderr
    assert "Traceback" not in done.stderr
