"""`wan-train pick`: the chosen LoRAs beside the results, over no file, and remembered."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.json_output import json_lines
from support.runs import events_of, make_plan
from wan_train.cli.main import run as wan_train
from wan_train.recipe.terms import Expert
from wan_train.run.directory import RunDirectory
from wan_train.run.events import Journal
from wan_train.run.plan import Plan
from wan_train.run.state import JobState

DONE, RUNNING = JobState.SUCCEEDED, JobState.RUNNING
BOTH = {"cache-latents": DONE, "cache-text": DONE, "train-high": DONE, "train-low": DONE}
HIGH, LOW = "WAN2.2-HighNoise_mylora", "WAN2.2-LowNoise_mylora"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A run that keeps a LoRA every 20 of 100 epochs, and what the program says about it."""

    plan: Plan
    runs: Path
    capsys: pytest.CaptureFixture[str]

    @property
    def path(self) -> Path:
        return self.plan.run_dir

    def call(self, *words: str) -> tuple[int, str, str]:
        code = wan_train([*words, "--runs-dir", str(self.runs)])
        said = self.capsys.readouterr()
        return code, said.out, said.err

    def json(self, *words: str) -> dict[str, Any]:
        code, out, err = self.call(*words, "--json")
        assert code == 0, err
        (line,) = json_lines(out)
        return line

    def names(self) -> set[str]:
        return {path.name for path in self.path.glob("*_picked*")}


def lora(path: Path, value: float) -> None:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    header = json.dumps({"__metadata__": {}, "weight": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<f", value))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)


def make(folder: Path, capsys: pytest.CaptureFixture[str], jobs: Mapping[str, JobState] = BOTH, **plan: Any) -> Place:
    made = make_plan(run_dir=folder / "runs" / "20261122-141500-mylora", keep_every_epochs=20, **plan)
    made.run_dir.mkdir(parents=True)
    RunDirectory(made.run_dir).write_plan(made)
    over = all(state is DONE for state in jobs.values())
    journal = Journal(RunDirectory(made.run_dir).events)
    for event in events_of(made, jobs, exit_code=0 if over else None):
        journal.append(event)
    journal.close()
    for step in made.steps:
        if step.produces is not None:
            for epoch in (20, 40, 60, 80):
                lora(made.run_dir / f"{step.produces}-{epoch:06d}.safetensors", epoch + (step.expert is Expert.LOW))
            if jobs.get(step.id) is DONE:
                lora(made.run_dir / f"{step.produces}.safetensors", 100 + (step.expert is Expert.LOW))
    return Place(plan=made, runs=folder / "runs", capsys=capsys)


@pytest.fixture
def place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Place:
    return make(tmp_path, capsys)


def test_a_pair_gets_names_of_its_own_and_is_shown_everywhere(place: Place) -> None:
    code, out, err = place.call("pick", "mylora", "60:40")
    assert code == 0, err
    assert out.splitlines()[0] == "Picked: epoch 60:40 (high-noise:low-noise)"
    high, low = (place.path / f"{name}_picked-60-40.safetensors" for name in (HIGH, LOW))
    assert out.splitlines()[1:] == [f"  {high}", f"  {low}"]
    assert high.samefile(place.path / f"{HIGH}-000060.safetensors"), "no second copy"
    assert low.read_bytes() == (place.path / f"{LOW}-000040.safetensors").read_bytes()
    assert f"Picked: 60:40\n    {high}\n    {low}" in place.call("status")[1]
    (told,) = place.json("status")["picked"]
    assert [(each["expert"], each["epoch"]) for each in told["files"]] == [("high", 60), ("low", 40)]
    assert place.call("report")[0] == 0
    page = (place.path / "report.html").read_text(encoding="utf-8")
    assert "Picked: epoch 60:40" in page
    assert high.name in page
    assert told["files"][0]["sha256"] in page


def test_another_choice_is_added_and_the_same_one_is_not(place: Place) -> None:
    assert place.json("pick", "60")["new"]
    before = {name: (place.path / name).stat() for name in place.names()}
    assert place.json("pick", "100", "--json")["epochs"] == "100"
    assert not place.json("pick", "mylora", "60")["new"]
    assert [each["epochs"] for each in place.json("status")["picked"]] == ["60", "100"]
    assert {name: (place.path / name).stat().st_mtime_ns for name in before} == {
        name: found.st_mtime_ns for name, found in before.items()
    }
    assert len(place.names()) == 4
    finished = place.path / f"{HIGH}_picked-100.safetensors"
    assert finished.samefile(place.path / f"{HIGH}.safetensors")


def test_a_run_that_still_trains_gives_what_it_has_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = make(tmp_path, capsys, {**BOTH, "train-high": RUNNING, "train-low": RUNNING})
    assert place.call("pick", "80")[0] == 0
    code, _, err = place.call("pick", "100")
    assert code == 2
    assert "high-noise expert: no LoRA of epoch 100" in err
    assert "hint: Kept epochs: 20, 40, 60, 80" in err


def test_without_an_epoch_it_lists_what_there_is(place: Place) -> None:
    code, _, err = place.call("pick")
    assert code == 2
    assert "hint: Kept epochs: 20, 40, 60, 80, 100" in err
    assert f"hint: Pick one: wan-train pick {place.path.name} 100" in err


def test_one_expert_without_the_epoch_is_named_with_what_each_has(place: Place) -> None:
    (place.path / f"{LOW}-000060.safetensors").unlink()
    code, _, err = place.call("pick", "60")
    assert code == 2
    assert "low-noise expert: no LoRA of epoch 60" in err
    assert "high-noise expert: no" not in err
    assert "hint: Kept epochs, low-noise expert: 20, 40, 80, 100" in err
    assert place.names() == set()


def test_a_run_of_one_expert_has_no_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = {step: DONE for step in BOTH if step != "train-low"}
    place = make(tmp_path, capsys, jobs, experts=(Expert.HIGH,))
    code, _, err = place.call("pick", "60:40")
    assert (code, f"hint: Name one epoch: wan-train pick {place.path.name} 60" in err) == (2, True)
    assert place.call("pick", "60")[0] == 0
    assert place.names() == {f"{HIGH}_picked-60.safetensors"}


@pytest.mark.parametrize("damage", ["cut", "nan"])
def test_a_damaged_lora_is_refused(place: Place, damage: str) -> None:
    path = place.path / f"{LOW}-000040.safetensors"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        lora(path, float("nan"))
    code, _, err = place.call("pick", "60:40")
    assert code == 2
    assert ("incomplete" if damage == "cut" else "NaN") in err
    assert path.name in err
    assert place.names() == set()


def test_a_foreign_file_is_not_replaced(place: Place) -> None:
    own = place.path / f"{LOW}_picked-60.safetensors"
    own.write_text("mine", encoding="utf-8")
    code, _, err = place.call("pick", "60")
    assert code == 2
    assert "Move it away" in err
    assert own.read_text(encoding="utf-8") == "mine"
    assert place.json("status")["picked"] == []


@pytest.mark.parametrize("words", ["sixty", "60:", "60:40:20", "-1", "6.5", "٦"])
def test_what_is_no_epoch_is_explained(place: Place, words: str) -> None:
    code, _, err = place.call("pick", "mylora", "--", words) if words == "-1" else place.call("pick", "mylora", words)
    assert code == 2
    assert "Traceback" not in err


def test_a_damaged_record_stops_a_pick_and_hides_nothing_else(place: Place) -> None:
    (place.path / "picked.json").write_text("{", encoding="utf-8")
    assert place.call("status")[0] == 0
    assert "picked.json" in place.call("pick", "60")[2]
    assert (place.path / "picked.json").read_text(encoding="utf-8") == "{"
