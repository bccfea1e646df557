"""The probe, its child, the real nvidia-ml-py and a stub of the driver's library, together."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from support import nvml
from support.gpu import ScriptedProbe
from support.nvml import GIB, NvmlStub, StubGpu, mig_uuid_of, uuid_of
from wan_train.gpu.model import Gpu, GpuProbe, GpuReading, GpuUnavailableError
from wan_train.gpu.probe import CpuSlots, NvmlProbe


@pytest.fixture
def stub(nvml_stub: NvmlStub, monkeypatch: pytest.MonkeyPatch) -> NvmlStub:
    for name, value in nvml_stub.env().items():
        monkeypatch.setenv(name, value)
    return nvml_stub


@pytest.fixture
def probe() -> Iterator[NvmlProbe]:
    with closing(NvmlProbe()) as probe:
        yield probe


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if any("nvml.py" in word for word in child.cmdline())]


class TestEveryProbe:
    """What a probe promises, whichever it is."""

    @pytest.fixture(params=["nvml", "cpu", "scripted"])
    def any_probe(self, request: pytest.FixtureRequest, stub: NvmlStub) -> Iterator[GpuProbe]:
        stub.write([StubGpu(used=3 * GIB, pids=(4242,)), StubGpu()])
        match request.param:
            case "nvml":
                made: GpuProbe = NvmlProbe()
            case "cpu":
                made = CpuSlots()
            case _:
                gpu = Gpu(index=0, uuid="GPU-0", name="x", total_bytes=GIB, used_bytes=0)
                made = ScriptedProbe([GpuReading(gpus=(gpu,), driver="575")])
        with closing(made) as probe:
            yield probe

    def test_reads_the_same_whole_gpus_twice_and_closes_twice(self, any_probe: GpuProbe) -> None:
        reading = any_probe.read()
        assert reading.gpus
        assert len({gpu.uuid for gpu in reading.gpus}) == len(reading.gpus)
        assert [gpu.index for gpu in reading.gpus] == list(range(len(reading.gpus)))
        assert all(0 <= gpu.used_bytes <= gpu.total_bytes for gpu in reading.gpus)
        assert all(gpu.name for gpu in reading.gpus)
        assert any_probe.read() == reading
        any_probe.close()
        any_probe.close()

    def test_closes_unread(self, any_probe: GpuProbe) -> None:
        any_probe.close()


def test_everything_the_driver_says_arrives(stub: NvmlStub, probe: NvmlProbe) -> None:
    stub.write(
        [
            StubGpu(
                uuid="GPU-3f2a", name="NVIDIA H100 80GB HBM3", total=80 * GIB, used=11 * GIB, utilization=97,
                temperature=66, power=431_250, compute_capability=(9, 0), pids=(4242, 77, 4242),
            )
        ],
        driver="570.1",
    )  # fmt: skip
    assert probe.read() == GpuReading(
        driver="570.1",
        gpus=(
            Gpu(
                index=0, uuid="GPU-3f2a", name="NVIDIA H100 80GB HBM3", total_bytes=80 * GIB, used_bytes=11
                * GIB, utilization=97, temperature=66, power_watts=431.25, compute_capability=(9, 0), pids=(77, 4242),
            ),
        ),
    )  # fmt: skip


def test_no_gpu_at_all_is_a_reading_not_an_error(stub: NvmlStub, probe: NvmlProbe) -> None:
    stub.write([])
    assert probe.read() == GpuReading(gpus=(), driver="575.57.08")


def test_what_changes_is_seen_by_the_same_child(stub: NvmlStub, probe: NvmlProbe) -> None:
    probe.read()
    (before,) = children()
    stub.set_used(uuid_of(1), 9 * GIB)
    assert [gpu.used_bytes for gpu in probe.read().gpus] == [2 * 1024**2, 9 * GIB]
    stub.write([StubGpu()])
    assert [gpu.uuid for gpu in probe.read().gpus] == [uuid_of(0)]
    assert children() == [before]


def test_memory_held_by_a_process_comes_back_when_it_is_killed(stub: NvmlStub, probe: NvmlProbe) -> None:
    with subprocess.Popen(["sleep", "100"]) as trainer:
        script = [sys.executable, nvml.nvml_memory.__file__, "--state", str(stub.state), "--gpu", uuid_of(0)]
        subprocess.run([*script, "--hold", str(trainer.pid), "--bytes", str(5 * GIB), "--listed"], check=True)
        subprocess.run([*script, "--used", "1"], check=True)
        busy = probe.read().gpus[0]
        trainer.kill()
    idle = probe.read().gpus[0]
    assert (busy.used_bytes, busy.pids) == (5 * GIB + 1, (trainer.pid,))
    assert (idle.used_bytes, idle.pids) == (1, ())


@pytest.mark.parametrize("code", [3, 4, 999])
def test_what_the_driver_will_not_say_is_none(stub: NvmlStub, probe: NvmlProbe, code: int) -> None:
    stub.write([StubGpu(pids=(1,), pids_error=code, utilization_error=code, temperature_error=code)])
    (gpu,) = probe.read().gpus
    assert (gpu.pids, gpu.utilization, gpu.temperature) == (None, None, None)
    assert gpu.total_bytes == 32 * GIB


def test_an_old_driver_tells_memory_and_processes_too(
    stub: NvmlStub, probe: NvmlProbe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(nvml.build(tmp_path / "old", old_driver=True)))
    stub.write([StubGpu(used=GIB, reserved=GIB, pids=(5,))])
    (gpu,) = probe.read().gpus
    # It counts what the driver reserves as used: all that its only memory call knows.
    assert (gpu.used_bytes, gpu.pids) == (2 * GIB, (5,))


def test_a_gpu_that_fails_is_lost_and_the_other_is_not(stub: NvmlStub, probe: NvmlProbe) -> None:
    expected: dict[int, list[str]] = {
        15: ["GPU is lost", "reboot", "Xid"],
        999: ["Unknown", "reset", "grep -i xid"],
        16: ["--gpu-reset -i 1"],
        4: ["/dev/nvidia1"],
        3: ["does not report its memory"],
        14: ["infoROM", "reset its driver"],
    }
    for code, words in expected.items():
        stub.write([StubGpu(), StubGpu()])
        probe.read()
        stub.write([StubGpu(), StubGpu(error=code)])
        reading = probe.read()
        assert [gpu.uuid for gpu in reading.gpus] == [uuid_of(0)], code
        (lost,) = reading.lost
        assert (lost.index, lost.uuid) == (1, uuid_of(1)), code
        assert all(word in lost.reason for word in words), (code, lost.reason)


def test_a_gpu_lost_from_the_start_has_no_uuid_and_may_come_back(stub: NvmlStub, probe: NvmlProbe) -> None:
    stub.write([StubGpu(error=15), StubGpu()])
    assert [gpu.uuid for gpu in probe.read().lost] == [None]
    stub.write([StubGpu(), StubGpu()])
    assert [gpu.uuid for gpu in probe.read().gpus] == [uuid_of(0), uuid_of(1)]


def test_a_driver_that_does_not_work_is_explained_and_tried_again(stub: NvmlStub, probe: NvmlProbe) -> None:
    expected = {
        9: "not loaded",
        18: "differ in version",
        999: "unknown error",
        4: "may not open",
        17: "code 17",
    }
    for code, words in expected.items():
        probe.close()  # a new child opens the library anew
        stub.write([StubGpu()], init_error=code)
        for _ in range(2):
            with pytest.raises(GpuUnavailableError, match=words) as caught:
                probe.read()
            assert "wan-train rehearse" in (caught.value.hint or "")
            assert caught.value.exit_code == 3
        stub.write([StubGpu()])
        assert len(probe.read().gpus) == 1, code


def test_no_driver_library_names_the_rehearsal(
    probe: NvmlProbe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text("not a library")  # hides the machine's own, if it has one
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    with pytest.raises(GpuUnavailableError, match="no NVIDIA driver found") as caught:
        probe.read()
    assert "`wan-train rehearse`" in (caught.value.hint or "")


def test_a_reloaded_driver_is_opened_again_without_a_failed_reading(stub: NvmlStub, probe: NvmlProbe) -> None:
    probe.read()
    (before,) = children()
    stub.write([StubGpu()], session=2, driver="580.1")
    assert probe.read().driver == "580.1"
    assert children() == [before]


def test_a_hang_raises_and_the_next_read_starts_afresh(stub: NvmlStub) -> None:
    with closing(NvmlProbe(timeout=1.0)) as probe:
        probe.read()
        (before,) = children()
        stub.write([StubGpu()], hang=True)
        with pytest.raises(GpuUnavailableError, match="did not answer") as caught:
            probe.read()
        assert "reboot" in (caught.value.hint or "")
        assert not before.is_running()
        stub.write([StubGpu()])
        assert len(probe.read().gpus) == 1


def test_a_crash_raises_and_the_next_read_starts_afresh(stub: NvmlStub, probe: NvmlProbe) -> None:
    probe.read()
    stub.write([StubGpu()], crash=True)
    for _ in range(2):
        with pytest.raises(GpuUnavailableError, match="crashed \\(SIGSEGV\\)"):
            probe.read()
    stub.write([StubGpu()])
    assert len(probe.read().gpus) == 1


@pytest.mark.usefixtures("stub")
def test_a_child_killed_between_two_reads_is_no_matter(probe: NvmlProbe) -> None:
    first = probe.read()
    (child,) = children()
    child.kill()
    psutil.wait_procs([child])
    assert probe.read() == first


@pytest.mark.usefixtures("stub")
def test_close_ends_the_child_and_a_later_read_starts_another(probe: NvmlProbe) -> None:
    probe.read()
    probe.close()
    assert children() == []
    assert probe.read().gpus


@pytest.mark.parametrize(
    ("program", "words"),
    [("import sys; sys.exit(7)", "exit status 7"), ("input(); print('nonsense')", "without an answer|ended")],
)
def test_a_broken_child_is_one_clear_error(program: str, words: str) -> None:
    with (
        closing(NvmlProbe(command=[sys.executable, "-c", program])) as probe,
        pytest.raises(GpuUnavailableError, match=words),
    ):
        probe.read()


def test_a_child_that_cannot_start_is_one_clear_error(tmp_path: Path) -> None:
    probe = NvmlProbe(command=[str(tmp_path / "missing")])
    with pytest.raises(GpuUnavailableError, match="cannot be started"):
        probe.read()


@pytest.mark.parametrize("hang", [False, True])
def test_the_child_dies_with_a_killed_parent_even_in_a_hang(stub: NvmlStub, hang: bool) -> None:
    program = (
        "import sys\nfrom wan_train.gpu.probe import NvmlProbe\n"
        "probe = NvmlProbe()\nprobe.read()\nprint(flush=True)\nsys.stdin.readline()\nprobe.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdout.readline()
        (child,) = psutil.Process(parent.pid).children()
        if hang:
            stub.write([StubGpu()], hang=True)
            parent.stdin.write("\n")
            parent.stdin.flush()
            while not stub.hung.exists():
                time.sleep(0.01)
        parent.kill()
    psutil.wait_procs([child])
    assert not child.is_running()


@pytest.mark.usefixtures("stub")
def test_ctrl_c_at_the_terminal_goes_to_another_group_than_the_child(probe: NvmlProbe) -> None:
    probe.read()
    (child,) = children()
    assert os.getpgid(child.pid) != os.getpgid(0)


@pytest.mark.usefixtures("stub")
def test_the_child_runs_as_a_module_too() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "wan_train.gpu.nvml"],
        input="read\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert uuid_of(1) in done.stdout
    assert done.stdout.count("\n") == 1


@pytest.mark.usefixtures("stub")
def test_a_file_of_the_users_named_like_a_module_is_not_run(
    probe: NvmlProbe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    assert probe.read().gpus


def test_the_reading_process_never_loads_the_binding() -> None:
    program = "import sys, wan_train.gpu.probe, wan_train.gpu.leases; sys.exit('pynvml' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_cpu_slots_stand_for_two_gpus() -> None:
    reading = CpuSlots().read()
    assert [gpu.uuid for gpu in reading.gpus] == ["cpu-slot-0", "cpu-slot-1"]
    assert reading.driver is None


def test_the_instances_of_a_card_with_mig_stand_in_its_place(stub: NvmlStub, probe: NvmlProbe) -> None:
    slices = (
        StubGpu(name="A100 MIG 3g.40gb", total=39 * GIB, used=GIB, pids=(77,)),
        StubGpu(name="A100 MIG 1g.10gb", total=9 * GIB),
        StubGpu(error=4),  # another container's
    )
    stub.write([StubGpu(total=80 * GIB, compute_capability=(8, 0), temperature=50, mig=slices), StubGpu()])
    first, second, whole = probe.read().gpus
    assert [gpu.number for gpu in (first, second, whole)] == ["0:0", "0:1", "1"]
    assert [gpu.uuid for gpu in (first, second, whole)] == [mig_uuid_of(0, 0), mig_uuid_of(0, 1), uuid_of(1)]
    assert (first.total_bytes, first.used_bytes, first.pids) == (39 * GIB, GIB, (77,))
    assert (second.total_bytes, second.name) == (9 * GIB, "A100 MIG 1g.10gb")
    assert (first.utilization, first.temperature, first.compute_capability) == (None, 50, (8, 0))


def test_a_card_with_mig_and_no_instance_is_named_as_such(stub: NvmlStub, probe: NvmlProbe) -> None:
    stub.write([StubGpu(mig=()), StubGpu()])
    reading = probe.read()
    assert [gpu.uuid for gpu in reading.gpus] == [uuid_of(1)]
    (lost,) = reading.lost
    assert "MIG is enabled" in lost.reason
    assert "-i 0 -mig 0" in lost.reason


def test_a_container_started_without_gpus_is_recognized_by_its_variable(
    stub: NvmlStub, probe: NvmlProbe, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.write([], init_error=9)
    for devices in ("void", "none", ""):
        monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", devices)
        with pytest.raises(GpuUnavailableError, match=f"NVIDIA_VISIBLE_DEVICES='{devices}'"):
            probe.read()
