"""State folders and checkpoints: which of them are whole."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from tensor_files import file_bytes

from wan_train.engine.outputs import (
    checkpoint_epochs,
    complete_states,
    is_complete_state,
    lora_file,
    state_dir,
)

NAME = "WAN2.2-HighNoise_my[lora].v1"
FILES = ("model.safetensors", "optimizer.bin", "scheduler.bin", "random_states_0.pkl")


def save(folder: Path, *, scaler: bool = False) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(file_bytes({"a": ("F32", b"\0" * 64)}))
    for name in (*FILES[1:], *(["scaler.pt"] if scaler else [])):
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("archive/data.pkl", b"x" * 500)
    return folder


def test_a_whole_state(tmp_path: Path) -> None:
    assert is_complete_state(save(tmp_path / "state"))


@pytest.mark.parametrize("name", FILES)
def test_a_state_without_one_file(tmp_path: Path, name: str) -> None:
    state = save(tmp_path / "state")
    (state / name).unlink()
    assert not is_complete_state(state)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.99])
def test_a_state_with_one_file_cut(tmp_path: Path, name: str, part: float) -> None:
    state = save(tmp_path / "state")
    content = (state / name).read_bytes()
    (state / name).write_bytes(content[: int(len(content) * part)])
    assert not is_complete_state(state)


def test_the_scaler_counts_where_there_has_to_be_one(tmp_path: Path) -> None:
    state = save(tmp_path / "state")
    assert not is_complete_state(state, scaler=True)
    state = save(tmp_path / "other", scaler=True)
    assert is_complete_state(state, scaler=True)
    (state / "scaler.pt").write_bytes(b"PK")
    assert not is_complete_state(state, scaler=True)


def test_states_in_the_order_of_their_epochs_the_final_one_last(tmp_path: Path) -> None:
    for epoch in (None, 12, 4, 8):
        save(state_dir(tmp_path, NAME, epoch))
    (state_dir(tmp_path, NAME, 8) / "optimizer.bin").unlink()
    save(tmp_path / "other-000001-state")
    save(tmp_path / f"{NAME}-1-state")
    found = complete_states(tmp_path, NAME)
    assert [state.epoch for state in found] == [4, 12, None]
    assert found[0].path == tmp_path / f"{NAME}-000004-state"


def test_no_directory_has_no_states_and_no_checkpoints(tmp_path: Path) -> None:
    assert complete_states(tmp_path / "nothing", NAME) == ()
    assert checkpoint_epochs(tmp_path / "nothing", NAME) == ()


def test_checkpoints_of_this_name_only(tmp_path: Path) -> None:
    for path in (lora_file(tmp_path, NAME, 10), lora_file(tmp_path, NAME, 2), lora_file(tmp_path, NAME)):
        path.touch()
    (tmp_path / "WAN2.2-HighNoise_myl.v1-000003.safetensors").touch()
    assert checkpoint_epochs(tmp_path, NAME) == (2, 10)


def test_names_are_the_trainers_own(tmp_path: Path) -> None:
    samples = Path(__file__).parents[2] / "contract" / "samples"
    for version in ("d0a1930", "v0.3.4"):
        tree = {line.removeprefix("./") for line in (samples / version / "output-tree.txt").read_text().splitlines()}
        expected = {lora_file(tmp_path, "T"), lora_file(tmp_path, "T", 2)}
        expected |= {state_dir(tmp_path, "T", epoch) / name for epoch in (None, 2) for name in FILES}
        assert {str(path.relative_to(tmp_path)) for path in expected} <= tree
