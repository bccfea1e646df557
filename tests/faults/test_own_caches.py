"""Where caches go: beside the pictures, below the runs directory, or where the user says."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from support.trainers import ScriptedBox

ONE = ["--experts", "high", "--epochs", "1"]


def caches(folder: Path) -> dict[str, int]:
    """Every cache below a folder, with the time it was written."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns for path in sorted(folder.rglob("*_wan*.safetensors"))
    }


@pytest.fixture
def read_only_box(scripted_box: ScriptedBox) -> ScriptedBox:
    """A box whose every `wan-train` sees the pictures on a mount that nobody can write, not even root."""
    enter = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    through = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", enter, str(scripted_box.dataset))
    tried = subprocess.run([*through, "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {tried.stderr.strip()}")
    scripted_box.through = through
    return scripted_box


def test_pictures_that_nobody_can_write_beside_are_trained(read_only_box: ScriptedBox) -> None:
    box = read_only_box
    before = sorted(path.name for path in box.dataset.iterdir())
    looked = box.run_cli("dataset", "check", str(box.dataset))
    assert looked.returncode == 0, looked.stdout
    assert "cannot be written, so caches go below the runs directory" in " ".join(looked.stdout.split())

    planned = box.train(*ONE, "--dry-run").stdout
    done = box.train(*ONE)
    assert done.returncode == 0, done.stdout + done.stderr
    (own,) = (box.runs / "caches").iterdir()
    said = f"caches go to {own} and no dataset.toml is written, because {box.dataset}/cache cannot be written"
    assert said.replace(" ", "") in "".join(planned.split())
    assert "Warning caches go to" in " ".join(done.stdout.split()), done.stdout
    assert sorted(path.name for path in box.dataset.iterdir()) == before
    assert caches(own)

    again = box.train(*ONE, title="again")
    assert again.returncode == 0, again.stderr
    assert "caches are up to date: 3 of 3" in again.stdout


def test_a_folder_for_all_caches_may_be_named(scripted_box: ScriptedBox) -> None:
    place = scripted_box.root / "all caches"
    done = scripted_box.train(*ONE, "--cache-dir", str(place))
    assert done.returncode == 0, done.stderr
    assert not (scripted_box.dataset / "cache").exists()
    (own,) = place.iterdir()
    assert own.name.startswith("pictures-")
    made = caches(place)
    again = scripted_box.train(*ONE, title="again", WAN_TRAIN_CACHE_DIR=str(place))
    assert again.returncode == 0, again.stderr
    assert caches(place) == made
    shown = scripted_box.run_cli(*scripted_box.train_words("--cache-dir", str(scripted_box.root / "[x]")))
    assert shown.returncode == 2
    assert "--cache-dir DIR" in shown.stderr


def test_a_jsonl_dataset_with_relative_paths_and_control_pictures_is_trained(scripted_box: ScriptedBox) -> None:
    names = sorted(path.name for path in scripted_box.dataset.glob("*.png"))
    control = {"control_path": "/nowhere.png"}
    records = [{"image_path_0": f"pictures/{name}", "caption": f"a {name}", **control} for name in names]
    listed = scripted_box.root / "items.jsonl"
    listed.write_text("\ufeff" + "".join(f"{json.dumps(record)}\n\n" for record in records), encoding="utf-8")
    config = scripted_box.root / "lists.toml"
    config.write_text(
        f"[general]\nresolution = [64, 64]\nenable_bucket = true\n\n[[datasets]]\n"
        f'image_jsonl_file = "items.jsonl"\ncontrol_directory = "/nowhere"\ncache_directory = "{config.parent}/c"\n'
    )
    words = ["--title", "cat", "--author", "me", "--dataset", str(config), "--yes", *ONE]
    shown = " ".join(scripted_box.run_cli(*words, "--dry-run").stdout.split())
    done = scripted_box.run_cli(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "datasets[0].control_directory: is not used by Wan 2.2 A14B; the run ignores it" in shown
    run = scripted_box.run()
    copied = [json.loads(line) for line in (run / "items-0.jsonl").read_text().splitlines()]
    assert copied == [{"image_path": str(scripted_box.dataset / name), "caption": f"a {name}"} for name in names]
    assert "control" not in (run / "dataset.toml").read_text()
    assert f'image_jsonl_file = "{run}/items-0.jsonl"' in (run / "dataset.toml").read_text()
