"""When a GPU counts as free."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.nvml import GIB, NvmlStub, StubGpu, uuid_of
from wan_train.gpu.free import QUIET_BELOW_BYTES, is_free, observe, why_busy
from wan_train.gpu.model import Gpu, GpuReading
from wan_train.gpu.probe import CpuSlots, NvmlProbe


def gpu(used: int = 0, pids: tuple[int, ...] | None = (), *, uuid: str = "GPU-0") -> Gpu:
    return Gpu(index=0, uuid=uuid, name="RTX 5090", total_bytes=32 * GIB, used_bytes=used, pids=pids)


def history(*readings: tuple[Gpu, ...]) -> Mapping[str, int]:
    counts: Mapping[str, int] = {}
    for gpus in readings:
        counts = observe(counts, GpuReading(gpus=gpus))
    return counts


QUIET, BUSY = (gpu(),), (gpu(20 * GIB),)


@pytest.mark.parametrize(
    ("readings", "free"),
    [
        ([], False),
        ([QUIET], False),
        ([QUIET, QUIET], True),
        ([QUIET, BUSY], False),
        ([QUIET, BUSY, QUIET], False),
        ([BUSY, QUIET, QUIET], True),
        ([QUIET, QUIET, BUSY], False),
        ([QUIET, (), QUIET], False),  # it was away in between
        ([QUIET, QUIET, ()], False),
        ([QUIET, QUIET, QUIET, QUIET], True),
    ],
)
def test_two_quiet_readings_in_a_row_make_it_free(readings: list[tuple[Gpu, ...]], free: bool) -> None:
    assert is_free(history(*readings), "GPU-0") is free


@pytest.mark.parametrize(
    ("gpu", "reason"),
    [
        (gpu(0), None),
        (gpu(0, None), None),
        (gpu(QUIET_BELOW_BYTES - 1, None), None),
        (gpu(int(11.2 * GIB), (4242,)), "GPU 0: 11.2 of 32.0 GiB in use, 1 process (pid 4242)"),
        (gpu(int(11.2 * GIB), (7, 4242)), "GPU 0: 11.2 of 32.0 GiB in use, 2 processes (pids 7, 4242)"),
        (gpu(int(11.2 * GIB), ()), "GPU 0: 11.2 of 32.0 GiB in use"),
        (gpu(int(11.2 * GIB), None), "GPU 0: 11.2 of 32.0 GiB in use"),
        (gpu(0, (99999999,)), "GPU 0: 0.0 of 32.0 GiB in use, 1 process (pid 99999999)"),
    ],
)
def test_the_reason_reads_well(gpu: Gpu, reason: str | None) -> None:
    assert why_busy(gpu) == reason


def test_each_gpu_counts_for_itself() -> None:
    counts = history(*[(gpu(uuid="GPU-0"), gpu(20 * GIB, uuid="GPU-1"))] * 3)
    assert is_free(counts, "GPU-0")
    assert not is_free(counts, "GPU-1")
    assert not is_free(counts, "GPU-2")


def test_cpu_slots_are_always_quiet() -> None:
    slots = CpuSlots().read()
    assert is_free(observe(observe({}, slots), slots), "cpu-slot-1")


def test_what_an_old_driver_reserves_for_itself_does_not_make_it_busy(
    nvml_stub: NvmlStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in nvml_stub.env().items():
        monkeypatch.setenv(name, value)
    nvml_stub.write([StubGpu(used=700 * 1024**2), StubGpu(used=3 * GIB, pids_error=3)])
    probe = NvmlProbe()
    counts = observe(observe({}, probe.read()), probe.read())
    probe.close()
    assert is_free(counts, uuid_of(0))
    assert not is_free(counts, uuid_of(1))


gpus = st.builds(
    gpu,
    st.integers(0, 32 * GIB),
    st.none() | st.lists(st.integers(1, 2**22), max_size=3).map(tuple),
    uuid=st.sampled_from(["GPU-0", "GPU-1"]),
)
readings = st.lists(gpus, max_size=2, unique_by=lambda one: one.uuid).map(tuple)


@given(st.lists(readings, max_size=8))
def test_free_exactly_when_the_last_two_readings_both_show_it_quiet(past: list[tuple[Gpu, ...]]) -> None:
    def quiet(gpus: tuple[Gpu, ...], uuid: str) -> bool:
        return any(one.uuid == uuid and one.used_bytes < QUIET_BELOW_BYTES and not one.pids for one in gpus)

    counts = history(*past)
    for uuid in ("GPU-0", "GPU-1"):
        assert is_free(counts, uuid) == (len(past) >= 2 and all(quiet(gpus, uuid) for gpus in past[-2:]))
