"""Everything a user can get wrong: one clear message, the right exit code, nothing created, nothing touched."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from support.nvml import StubGpu
from support.trainers import ScriptedBox, model_paths


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One mistake: how the box is broken or what is typed, and what must be said."""

    code: int
    says: tuple[str, ...]
    words: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    prepare: Callable[[ScriptedBox], object] = lambda _box: None
    dataset: str | None = None
    title: str = "cat"
    env: dict[str, str] = field(default_factory=dict)


def toml(text: str) -> Callable[[ScriptedBox], None]:
    def write(box: ScriptedBox) -> None:
        (box.dataset / "dataset.toml").write_text(text.format(dataset=box.dataset), encoding="utf-8")

    return write


def without_captions(box: ScriptedBox) -> None:
    for caption in box.dataset.glob("*.txt"):
        caption.unlink()


def in_another_case(box: ScriptedBox) -> None:
    caption = box.dataset / "picture0.txt"
    caption.rename(caption.with_suffix(".TXT"))


def emptied(box: ScriptedBox) -> None:
    for file in box.dataset.iterdir():
        file.unlink()


def truncated_model(box: ScriptedBox) -> None:
    path = model_paths(box)[2]
    path.write_bytes(path.read_bytes()[:-3])


GOOD = """[general]
resolution = [960, 960]
caption_extension = ".txt"

[[datasets]]
image_directory = "{dataset}"
"""

CASES = {
    "no such dataset": Case(code=2, says=("does not exist", "nowhere"), dataset="nowhere/at/all"),
    "an empty folder": Case(code=2, says=("pictures", "contains no pictures"), prepare=emptied),
    "no captions at all": Case(code=2, says=("caption",), prepare=without_captions),
    "a caption in another case": Case(
        code=2,
        says=("the trainer expects picture0.txt, and picture0.TXT exists", "pictures --fix"),
        prepare=in_another_case,
    ),
    "malformed toml": Case(code=2, says=("dataset.toml",), prepare=toml("[general\nx = ")),
    "an unknown key": Case(
        code=2, says=("dataset.toml", "resolutoin", "resolution"), prepare=toml(GOOD + "resolutoin = 5\n")
    ),
    "two datasets in one cache": Case(
        code=2,
        says=("cache",),
        prepare=toml(
            GOOD
            + 'cache_directory = "{dataset}/c"\n[[datasets]]\nimage_directory = "{dataset}"\n'
            + 'cache_directory = "{dataset}/c"\n'
        ),
    ),
    "a bracket in the cache path": Case(
        code=2, says=("[", "cache"), prepare=toml(GOOD + 'cache_directory = "{dataset}/c[1]"\n')
    ),
    "a title with steps up": Case(code=2, says=("title", "/"), title="../../x"),
    "a title with a slash": Case(code=2, says=("title", "/"), title="a/b"),
    "a title like an option": Case(code=2, says=("title", "'-'"), words=("--title=-x",)),
    "an empty title": Case(code=2, says=("title is empty",), title=""),
    "a title of 300 characters": Case(code=2, says=("title is longer",), title="x" * 300),
    "control characters in the title": Case(code=2, says=("title", "\\x1b"), title="a\x1b[31mb"),
    "no checkout": Case(
        code=3,
        says=("musubi-tuner", "wan-train provision", "wan-train rehearse"),
        prepare=lambda box: shutil.rmtree(box.checkout),
    ),
    "no python of the trainer": Case(
        code=3, says=("Python", "wan-train provision"), prepare=lambda box: shutil.rmtree(box.checkout / "venv")
    ),
    "a musubi python that is not there": Case(code=3, says=("/no/python",), words=("--musubi-python", "/no/python")),
    "an unknown gpu": Case(code=2, says=("'7'", "names a GPU that is not there"), words=("--gpus", "7")),
    "every gpu hidden": Case(code=3, says=("CUDA_VISIBLE_DEVICES",), env={"CUDA_VISIBLE_DEVICES": ""}),
    "a gpu that fell off the bus": Case(
        code=3, says=("GPU", "bus"), prepare=lambda box: box.nvml.write([StubGpu(error=15)])
    ),
    "a driver that crashes its reader": Case(
        code=3, says=("GPU",), prepare=lambda box: box.nvml.write([StubGpu()], crash=True)
    ),
    "a missing model file": Case(
        code=3,
        says=("wan2.2_t2v_low_noise", "missing", "wan-train provision"),
        prepare=lambda box: model_paths(box)[3].unlink(),
    ),
    "a truncated model file": Case(code=3, says=("wan2.2_t2v_high_noise", "incomplete"), prepare=truncated_model),
    "an unknown trainer flag": Case(code=2, says=("--netwrk_dim", "--network_dim"), after=("--netwrk_dim", "4")),
    "a trainer flag of another type": Case(
        code=2, says=("--network_dim must be a whole number, not 'abc'",), after=("--network_dim", "abc")
    ),
    "a setting of one expert that is none": Case(
        code=2, says=("--high netwrk_dim", "--high network_dim"), words=("--high", "netwrk_dim=4")
    ),
    "a setting of an expert that is not trained": Case(
        code=2, says=("the high-noise expert is not trained",), words=("--experts", "low", "--high", "network_dim=4")
    ),
    "a config file that is not there": Case(code=2, says=("none.toml",), after=("--config_file", "none")),
    "weights that are not there": Case(code=2, says=("./old",), words=("--network-weights", "./old")),
    "a trainer flag that wan-train needs itself": Case(
        code=2, says=("--output_dir",), after=("--output_dir", "elsewhere")
    ),
    "an unknown flag of ours": Case(code=2, says=("--epoch_count",), words=("--epoch_count", "3")),
    "no number of epochs": Case(code=2, says=("--epochs", "whole number"), words=("--epochs", "many")),
    "a resolution that is none": Case(code=2, says=("resolution", "big"), words=("--resolution", "big")),
    "a runs directory that is a file": Case(
        code=3, says=("run directory",), prepare=lambda box: box.runs.write_text("")
    ),
    "an unreadable setting": Case(
        code=2, says=("WAN_TRAIN_POLL_SECONDS", "soon"), env={"WAN_TRAIN_POLL_SECONDS": "soon"}
    ),
}


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_gets_one_clear_message_and_changes_nothing(scripted_box: ScriptedBox, name: str) -> None:
    case = CASES[name]
    case.prepare(scripted_box)
    pictures = tree(scripted_box.dataset)
    words = ["--title", case.title, "--author", "me", "--dataset", case.dataset or str(scripted_box.dataset)]
    after = ["--", *case.after] if case.after else []
    done = scripted_box.run_cli(*words, *case.words, "--yes", *after, **case.env)
    assert done.returncode == case.code, done.stderr
    for part in case.says:
        assert part in " ".join(done.stderr.split()), done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert done.stderr.count("error:") == 1
    assert not scripted_box.runs.is_dir() or not list(scripted_box.runs.iterdir())
    assert tree(scripted_box.dataset) == pictures
    assert not scripted_box.recorded()
    assert not list(scripted_box.home.rglob("crash-*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_output_directory(scripted_box: ScriptedBox) -> None:
    scripted_box.runs.mkdir(mode=0o500)
    done = scripted_box.train()
    assert done.returncode == 3
    assert str(scripted_box.runs) in done.stderr
    assert not list(scripted_box.runs.iterdir())


def test_without_a_terminal_and_without_yes_nothing_starts(scripted_box: ScriptedBox) -> None:
    done = scripted_box.run_cli("--title", "cat", "--dataset", str(scripted_box.dataset))
    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert not scripted_box.recorded()


@pytest.mark.parametrize("verb", ["attach", "status", "logs", "stop"])
def test_verbs_about_runs_without_any_run(scripted_box: ScriptedBox, verb: str) -> None:
    done = scripted_box.run_cli(verb)
    assert done.returncode == 2
    assert "there are no runs" in done.stderr
    assert "Traceback" not in done.stderr
