"""The duties of a run, where the guardian finds them, and the time that passed since their start."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from wan_train.base.clock import Moment, seconds_between
from wan_train.run.box_ending import Ending, read_ending, write_ending
from wan_train.run.directory import RunDirectory
from wan_train.run.duties import Duties, Then, read_duties, register, registered, unregister, write_duties

BEGAN = Moment(at=1_800_000_000.0, boot_id="a", uptime=100.0)


def a_run(folder: Path, name: str = "20261122-141500-cat") -> RunDirectory:
    (folder / name).mkdir(parents=True)
    return RunDirectory(folder / name)


def test_duties_are_read_back(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    duties = Duties(
        began=BEGAN,
        uploads=("hf:me/cat", "rclone:b2:loras"),
        then=Then.COMMAND,
        command=("poweroff", "-f"),
        max_hours=6,
    )
    write_duties(run, duties)
    assert read_duties(run) == duties


def test_a_run_of_an_older_version_has_no_duties(tmp_path: Path) -> None:
    assert read_duties(a_run(tmp_path)) is None


def test_the_guardian_finds_runs_of_any_directory_until_their_duties_are_done(tmp_path: Path) -> None:
    leases = tmp_path / "leases"
    here, there = a_run(tmp_path / "here"), a_run(tmp_path / "there with a\nbreak")
    for run in (here, there, here):
        register(leases, run)
    assert {run.path for run in registered(leases)} == {here.path, there.path}
    unregister(leases, here)
    assert [run.path for run in registered(leases)] == [there.path]


def test_what_others_put_into_the_shared_folder_names_no_runs(tmp_path: Path) -> None:
    leases = tmp_path / "leases"
    register(leases, a_run(tmp_path))
    folder = leases / "duties"
    (folder / "relative.run").write_text("somewhere/else\n")
    (folder / "link.run").symlink_to(next(folder.glob("*cat*.run")))
    os.mkfifo(folder / "pipe.run")
    (folder / "notes.txt").write_text("/etc\n")
    assert len(registered(leases)) == 1
    assert (folder.stat().st_mode & 0o7777) == 0o1777


def test_no_list_is_no_runs(tmp_path: Path) -> None:
    assert registered(tmp_path / "never made") == []


def test_an_ending_is_read_back_and_a_torn_one_counts_as_none(tmp_path: Path) -> None:
    ending = Ending(
        then=Then.STOP,
        runs=("cat",),
        because="the last run is over",
        decided=BEGAN,
        grace_seconds=300,
        due=BEGAN.at + 300,
    )
    assert read_ending(tmp_path) is None
    write_ending(tmp_path, ending)
    assert read_ending(tmp_path) == ending
    (tmp_path / "ENDING.json").write_text('{"then": "st')
    assert read_ending(tmp_path) is None


moments = st.builds(
    Moment,
    at=st.floats(min_value=0, max_value=1e10),
    boot_id=st.sampled_from("ab"),
    uptime=st.floats(min_value=0, max_value=1e8),
)


@given(earlier=moments, later=moments)
def test_time_never_runs_backwards(earlier: Moment, later: Moment) -> None:
    assert seconds_between(earlier, later) >= 0


@given(moments, st.floats(min_value=0, max_value=1e7), st.floats(min_value=-1e9, max_value=1e9))
def test_a_clock_that_is_set_changes_nothing_within_a_boot(earlier: Moment, passed: float, jump: float) -> None:
    later = Moment(at=earlier.at + passed + jump, boot_id=earlier.boot_id, uptime=earlier.uptime + passed)
    assert abs(seconds_between(earlier, later) - passed) < 1e-6 * max(1.0, earlier.uptime)


def test_after_a_reboot_with_a_clock_set_back_at_least_the_uptime_has_passed() -> None:
    assert seconds_between(BEGAN, Moment(at=0.0, boot_id="b", uptime=7200.0)) == 7200.0
