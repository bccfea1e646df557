"""What hurts later, each seen on a machine made of folders."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from support.doctor_places import facts_of, gpu, later_of
from support.runs import make_plan
from support.vast_api import Mood, vast_api
from wan_train.base import host
from wan_train.base.locks import held
from wan_train.base.settings import remember, resolve
from wan_train.provision.capacity import judge_spare, rooms
from wan_train.provision.host_checks import file_system_of
from wan_train.provision.steps import State
from wan_train.provision.trainer_steps import accelerate_step
from wan_train.run.directory import RunDirectory
from wan_train.run.duties import register
from wan_train.run.guardian_process import lock_file

GB = 10**9


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


class TestCgroup:
    """The limits of a container, in both layouts."""

    def test_memory_v2(self, tmp_path: Path) -> None:
        write(
            tmp_path, memory__max=8 * GB, memory__current=5 * GB, memory__stat=f"anon {3 * GB}\ninactive_file {2 * GB}"
        )
        assert host.total_ram(tmp_path) == 8 * GB
        assert host.available_ram(tmp_path) == 5 * GB

    def test_memory_v1(self, tmp_path: Path) -> None:
        files = {"memory__limit_in_bytes": 8 * GB, "memory__usage_in_bytes": 5 * GB, "memory__stat": "total_cache 0"}
        write(tmp_path / "memory", **files)
        assert host.total_ram(tmp_path) == 8 * GB
        assert host.available_ram(tmp_path) == 3 * GB

    @pytest.mark.parametrize("limit", ["max", 9223372036854771712])
    def test_no_limit_is_the_machines_own(self, tmp_path: Path, limit: object) -> None:
        write(tmp_path, memory__max=limit, memory__current=GB, memory__stat="file 0")
        assert host.total_ram(tmp_path) == host.total_ram(tmp_path / "nothing")

    @pytest.mark.parametrize("below", [".", "pids"])
    def test_processes(self, tmp_path: Path, below: str) -> None:
        write(tmp_path / below, pids__max=512, pids__current=40)
        assert host.process_limit(tmp_path) == (512, 40)
        write(tmp_path / below, pids__max="max")
        assert host.process_limit(tmp_path) is None


def test_few_processes_on_a_host_of_many_cpus(tmp_path: Path) -> None:
    later = later_of(tmp_path, host_cpus=384)
    assert later.processes().state is State.READY
    write(tmp_path / "cgroup", pids__max=1024, pids__current=30)
    found = later.processes()
    assert found.state is State.WARNING
    assert "384" in found.detail
    assert "export OMP_NUM_THREADS=" in (found.hint or "")


def test_a_share_of_less_than_two_cpus(tmp_path: Path) -> None:
    later = later_of(tmp_path, host_cpus=64)
    write(tmp_path / "cgroup", cpu__max="50000 100000")
    assert later.share().state is State.WARNING
    assert later.share().detail.startswith("0.5 of the host's 64")


def test_shared_memory_that_is_missing_or_too_small(tmp_path: Path) -> None:
    later = later_of(tmp_path)
    assert later.shared_memory().state is State.READY  # as large as the disk it is on
    (tmp_path / "shm").rmdir()
    found = later.shared_memory()
    assert found.state is State.WARNING
    assert "Bus error" in found.detail
    assert "--max_data_loader_n_workers 0" in (found.hint or "")


@pytest.mark.parametrize(
    ("kind", "state", "word"),
    [
        ("ext4", State.READY, "ext4"),
        ("overlay", State.READY, "destroy"),
        ("nfs4", State.WARNING, "network"),
        ("fuse.sshfs", State.WARNING, "network"),
        ("tmpfs", State.WARNING, "lost at a restart"),
    ],
)
def test_the_file_system_of_the_workspace(tmp_path: Path, kind: str, state: State, word: str) -> None:
    later = later_of(tmp_path)
    mounts = f"/dev/root / xfs rw 0 0\nx {tmp_path / 'workspace'} {kind} rw 0 0\n"
    (tmp_path / "proc/self/mounts").write_text(mounts)
    found = later.file_system()
    assert found.state is state
    assert word in found.detail


def test_the_innermost_mount_counts_and_spaces_are_read(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self/mounts").write_text("a / ext4 rw 0 0\nb /my\\040disk nfs rw 0 0\nc /my\\040disk/x xfs rw 0 0\n")
    assert file_system_of(Path("/my disk/models"), tmp_path) == "nfs"
    assert file_system_of(Path("/my disk/x"), tmp_path) == "xfs"
    assert file_system_of(Path("/my diskette"), tmp_path) == "ext4"
    assert file_system_of(Path("/"), tmp_path / "nothing") is None


def test_processes_of_the_host_are_said_to_be_hidden(tmp_path: Path) -> None:
    (tmp_path / "proc/77").mkdir(parents=True)
    assert later_of(tmp_path, gpu(pids=(77,))).pids().state is State.READY
    found = later_of(tmp_path, gpu(pids=(77, 4242))).pids()
    assert found.state is State.WARNING
    assert "4242" in found.detail
    assert "77" not in found.detail


def test_a_clock_of_long_ago(tmp_path: Path) -> None:
    later = later_of(tmp_path)
    assert later.clock().state is State.READY
    assert replace(later, now=lambda: 0.0).clock().state is State.WARNING


def test_an_offline_hub_is_told_before_it_is_needed(tmp_path: Path) -> None:
    assert later_of(tmp_path).hub().state is State.READY
    found = later_of(tmp_path, environ={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}).hub()
    assert found.state is State.WARNING
    assert "unset HF_HUB_OFFLINE" in (found.hint or "")


def test_a_run_that_nobody_looks_after_is_named_once_it_had_time_to_start(tmp_path: Path) -> None:
    later = later_of(tmp_path)
    assert later.unfinished_runs().state is State.READY
    run = RunDirectory(tmp_path / "runs/20261122-141500-cat")
    run.path.mkdir(parents=True)
    run.write_plan(make_plan())
    found = later.unfinished_runs()
    assert found.state is State.WARNING
    assert run.run_id in found.detail
    assert "wan-train resume --all" in (found.hint or "")
    created = make_plan().created
    assert replace(later, now=lambda: created + 59).unfinished_runs().state is State.READY
    assert replace(later, now=lambda: created + 61).unfinished_runs().state is State.WARNING


def test_a_run_that_cannot_be_read_is_named_and_hides_nothing(tmp_path: Path) -> None:
    later = later_of(tmp_path)
    (tmp_path / "runs/torn").mkdir(parents=True)
    (tmp_path / "runs/torn/plan.json").write_text("{")
    assert "torn" in later.unfinished_runs().detail
    locked = RunDirectory(tmp_path / "runs/locked")
    locked.path.mkdir()
    locked.write_plan(make_plan())
    locked.events.symlink_to(locked.events.name)  # cannot be opened, also by root
    found = later.unfinished_runs()
    assert found.state is State.WARNING
    assert {"torn", "locked"} <= set(found.detail.replace(",", "").split())


def test_notifications_are_not_tested_and_addresses_that_others_can_read_are_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert later_of(tmp_path).notifications().state is State.READY
    path = remember("notify", ["ntfy://geheim-t0ken"])
    later = replace(later_of(tmp_path), settings=resolve(flags={}))
    assert later.notifications().state is State.UNTESTED
    path.chmod(0o644)
    found = later.notifications()
    assert found.state is State.WARNING
    assert found.hint is not None
    assert "chmod 600" in found.hint
    assert "geheim" not in found.detail


def test_a_lease_directory_that_cannot_be_used(tmp_path: Path) -> None:
    later = later_of(tmp_path)
    assert later.leases().state is State.READY
    (tmp_path / "leases").write_text("a file")
    assert later.leases().state is State.BLOCKED


class TestAccelerate:
    """The configuration that commands typed by hand would read."""

    @pytest.mark.parametrize(
        ("name", "text", "state"),
        [
            ("default_config.yaml", "distributed_type: 'NO'\nnum_processes: 1\n", State.READY),
            ("default_config.yaml", "distributed_type: MULTI_GPU\nnum_processes: 2\n", State.WARNING),
            ("default_config.yaml", "gpu_ids:\nnum_processes: 8\n", State.WARNING),
            ("default_config.yaml", "distributed_type:\nnum_processes: 1\n", State.READY),
            ("default_config.yaml", "# num_processes: 8\nnum_processes: 1\n", State.READY),
            ("default_config.yaml", "num_processes: 1\n# num_processes: 8\n", State.READY),
            ("default_config.yaml", "compute_environment: LOCAL_MACHINE\nnum_processes: 4\n", State.WARNING),
            ("default_config.json", '{\n  "distributed_type": "DEEPSPEED",\n  "num_processes": 1\n}\n', State.WARNING),
        ],
    )
    def test_a_users_own_is_judged_and_kept(self, tmp_path: Path, name: str, text: str, state: State) -> None:
        path = tmp_path / "accelerate" / name
        path.parent.mkdir()
        path.write_text(text)
        found = accelerate_step({"HF_HOME": str(tmp_path)}).check()
        assert found.state is state
        assert str(path) in found.detail
        if state is State.WARNING:
            assert "wan-train's own runs never read it" in found.detail
            assert f"mv {path}" in (found.hint or "")

    def test_one_is_written_where_there_is_none(self, tmp_path: Path) -> None:
        step = accelerate_step({"HF_HOME": str(tmp_path)})
        assert step.check().state is State.UNVERIFIED
        assert step.apply is not None
        step.apply(None)  # type: ignore[arg-type]  it says nothing while it works
        assert step.check().state is State.READY
        assert "wan-train provision" in (tmp_path / "accelerate/default_config.yaml").read_text()


def test_disks_are_counted_one_by_one(tmp_path: Path) -> None:
    memory = Path("/dev/shm") / f"wan-train-{os.getpid()}"
    if Path("/dev/shm").stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is only one file system here")
    assert rooms({tmp_path / "a": 1, memory: 1}).detail.count("GB needed") == 2
    found = rooms({tmp_path / "a": 10**15, memory: 1})
    assert found.state is State.BLOCKED
    assert found.detail.count("too small") == 1


def test_a_disk_that_is_nearly_full_after_the_fetching(tmp_path: Path) -> None:
    assert judge_spare(tmp_path / "runs", {}, 1).state is State.READY
    assert judge_spare(tmp_path / "runs", {tmp_path: 10**15}, 1).state is State.WARNING


def test_facts_of_a_box_are_read_once() -> None:
    facts = facts_of(gpu(0))
    assert facts.gpus.read() is facts.gpus.read()
    assert facts.gpus.driver() == "575.57.08"


def test_a_box_that_can_end_itself_and_ones_that_cannot(tmp_path: Path) -> None:
    elsewhere = later_of(tmp_path / "a").ending()
    assert elsewhere.state is State.READY
    assert "not on Vast" in elsewhere.detail
    without_key = later_of(tmp_path / "b", environ={"VAST_CONTAINERLABEL": "C.7"}).ending()
    assert without_key.state is State.WARNING
    assert "CONTAINER_API_KEY" in without_key.detail
    with vast_api() as api:
        on_vast = later_of(tmp_path / "c", environ=api.environ())
        on_vast = replace(on_vast, settings=replace(on_vast.settings, vast_url=api.address))
        assert on_vast.ending().state is State.READY
        assert api.is_running, "nothing is stopped"
        unknown = replace(on_vast, environ=api.environ(CONTAINER_ID="7000002")).ending()
        assert unknown.state is State.WARNING
        assert "Vast does not know this box" in unknown.detail
        api.mood = Mood.BREAKS
        assert "Vast answered with status 500" in on_vast.ending().detail


def test_a_guardian_that_is_gone_is_named(tmp_path: Path) -> None:
    later = later_of(tmp_path)
    register(later.settings.lease_dir, RunDirectory(tmp_path / "runs" / "20261122-141500-cat"))
    found = later.ending()
    assert found.state is State.WARNING
    assert "20261122-141500-cat" in found.detail
    with held(lock_file(later.settings.lease_dir)):
        assert later.ending().state is State.READY
