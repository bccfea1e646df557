"""State folders and checkpoints: which of them are whole."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensor_files import file_bytes

from wan_train.engine.checkpoints import (
    ALWAYS_IN_A_STATE,
    checkpoint_epochs,
    complete_states,
    lora_file,
    state_dir,
    state_fault,
    state_files,
    written_state_files,
)

NAME = "WAN2.2-HighNoise_my[lora].v1"
FILES = ("model.safetensors", "optimizer.bin", "scheduler.bin", "random_states_0.pkl")


def save(folder: Path, names: Iterable[str] = FILES) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        if name == "model.safetensors":
            (folder / name).write_bytes(file_bytes({"a": ("F32", b"\0" * 64)}))
        else:
            with zipfile.ZipFile(folder / name, "w") as archive:
                archive.writestr("archive/data.pkl", b"x" * 500)
    return folder


@pytest.mark.parametrize(
    ("optimizer", "scheduler", "scaler", "besides"),
    [
        ("adamw", None, False, {"scheduler.bin"}),
        ("adamw", None, True, {"scheduler.bin", "scaler.pt"}),
        ("schedulefree.AdamWScheduleFree", None, False, set()),
        ("schedulefree.RAdamScheduleFree", None, True, {"scaler.pt"}),
        ("prodigyplus.ProdigyPlusScheduleFree", None, False, set()),
        ("adamw", "somewhere.Scheduler", False, set()),
    ],
)
def test_what_a_state_of_a_training_holds(
    optimizer: str, scheduler: str | None, scaler: bool, besides: set[str]
) -> None:
    files = state_files(optimizer_type=optimizer, lr_scheduler_type=scheduler, scaler=scaler)
    assert files == ALWAYS_IN_A_STATE | besides


# In the order in which accelerate 1.6 writes them.
ORDER = ("model.safetensors", "optimizer.bin", "scheduler.bin", "dl_state_dict.bin", "scaler.pt", "random_states_0.pkl")
written = st.sets(st.sampled_from(ORDER)).map(lambda some: [n for n in ORDER if n in some | ALWAYS_IN_A_STATE])


@given(names=written, killed=st.data())
def test_a_state_counts_once_all_that_its_trainer_writes_is_whole(names: list[str], killed: st.DataObject) -> None:
    """Whatever set a trainer writes, and whenever it is killed: with the set known and without."""
    with tempfile.TemporaryDirectory() as place:
        state = save(Path(place) / "state", names)
        assert state_fault(state, ALWAYS_IN_A_STATE) is None
        seen = written_state_files(state)
        assert seen == set(names)
        assert state_fault(state, seen) is None

        at = killed.draw(st.integers(0, len(names) - 1), label="killed while writing")
        for name in names[at + 1 :]:
            (state / name).unlink()
        content = (state / names[at]).read_bytes()
        (state / names[at]).write_bytes(content[: killed.draw(st.integers(0, len(content) - 1), label="bytes left")])
        for known in (ALWAYS_IN_A_STATE, seen):
            assert state_fault(state, known) is not None


@given(names=written, lost=st.data())
def test_a_state_that_lost_a_file_does_not_count_where_its_files_are_known(
    names: list[str], lost: st.DataObject
) -> None:
    """A folder copied in part: files may be gone in any order."""
    with tempfile.TemporaryDirectory() as place:
        state = save(Path(place) / "state", names)
        seen = written_state_files(state)
        gone = lost.draw(st.sampled_from(names), label="lost")
        (state / gone).unlink()
        assert state_fault(state, seen) == f"{gone} is missing"


def test_a_file_beside_them_is_not_asked_for_later(tmp_path: Path) -> None:
    state = save(tmp_path / "state")
    (state / "notes.txt").touch()
    assert written_state_files(state) == set(FILES)


def test_states_in_the_order_of_their_epochs_the_final_one_last(tmp_path: Path) -> None:
    for epoch in (None, 12, 4, 8):
        save(state_dir(tmp_path, NAME, epoch))
    (state_dir(tmp_path, NAME, 8) / "optimizer.bin").unlink()
    save(tmp_path / "other-000001-state")
    save(tmp_path / f"{NAME}-1-state")
    found = complete_states(tmp_path, NAME, ALWAYS_IN_A_STATE)
    assert [state.epoch for state in found] == [4, 12, None]
    assert found[0].path == tmp_path / f"{NAME}-000004-state"


def test_no_directory_has_no_states_and_no_checkpoints(tmp_path: Path) -> None:
    assert complete_states(tmp_path / "nothing", NAME, ALWAYS_IN_A_STATE) == ()
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
