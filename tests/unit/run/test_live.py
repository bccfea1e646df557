"""What the GPUs did over time: kept small, and readable whatever happened to the file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from support.runs import GIB, T0
from wan_train.run import live
from wan_train.run.live import GpuHistory, GpuSample, read_gpu_history, thinned


def sample(at: float, used: int = 20, uuid: str = "GPU-0") -> GpuSample:
    return GpuSample(
        at=T0 + at,
        uuid=uuid,
        label="GPU 0",
        name="NVIDIA GeForce RTX 5090",
        used_bytes=used * GIB,
        total_bytes=32 * GIB,
        utilization=98,
        temperature=71,
        power_watts=431.25,
        steps=("train-high",),
        driver="570.1",
    )


def test_what_was_written_is_read_in_order_of_time(tmp_path: Path) -> None:
    path = tmp_path / "gpus.jsonl"
    GpuHistory(path).append([sample(10)])
    GpuHistory(path).append([sample(0, uuid="GPU-1"), sample(20)])
    assert [found.at - T0 for found in read_gpu_history(path)] == [0, 10, 20]
    assert read_gpu_history(path)[1] == sample(10)


def test_no_file_holds_nothing(tmp_path: Path) -> None:
    assert read_gpu_history(tmp_path / "gpus.jsonl") == ()


def test_damaged_lines_cost_only_themselves(tmp_path: Path) -> None:
    path = tmp_path / "gpus.jsonl"
    history = GpuHistory(path)
    history.append([sample(0)])
    whole = path.read_bytes()
    with path.open("ab") as file:
        for line in (
            b"\xff\x00 garbage",
            b"{}",
            b"[1]",
            whole.replace(b"1763812800.0", b"NaN"),
            whole.replace(b"98", b"Infinity"),
            whole[:40],  # a line that a full disk cut off, without its end
        ):
            file.write(line.rstrip(b"\n") + (b"" if line == whole[:40] else b"\n"))
    history.append([sample(10)])
    assert [found.at - T0 for found in read_gpu_history(path)] == [0, 10]


def test_a_file_that_grows_long_is_thinned_and_keeps_its_peak(tmp_path: Path) -> None:
    path = tmp_path / "gpus.jsonl"
    history = GpuHistory(path)
    history.append([sample(i * 10, used=31 if i == 777 else i % 20) for i in range(live.MOST_LINES)])
    history.append([sample(10 * live.MOST_LINES)])
    kept = read_gpu_history(path)
    assert len(kept) <= live.MOST_LINES // 2 + 1
    assert max(found.used_bytes for found in kept) == 31 * GIB
    assert kept[-1].at - kept[0].at > 9.9 * live.MOST_LINES
    history.append([sample(10 * live.MOST_LINES + 10)])
    assert len(read_gpu_history(path)) == len(kept) + 1


@given(
    st.lists(
        st.builds(
            sample,
            st.floats(0, 1e6, allow_nan=False),
            used=st.integers(0, 32),
            uuid=st.sampled_from(["GPU-0", "GPU-1", "GPU-2"]),
        ),
        max_size=60,
    ),
    st.integers(1, 30),
)
def test_thinning_keeps_every_gpu_and_its_peak(samples: list[GpuSample], most: int) -> None:
    kept = thinned(samples, most)
    gpus = {found.uuid for found in samples}
    assert len(kept) <= max(most, len(gpus))
    assert set(kept) <= set(samples)
    for uuid in gpus:
        assert max(found.used_bytes for found in kept if found.uuid == uuid) == max(
            found.used_bytes for found in samples if found.uuid == uuid
        )


def test_a_sample_without_what_the_driver_would_not_say(tmp_path: Path) -> None:
    path = tmp_path / "gpus.jsonl"
    bare = replace(sample(0), utilization=None, temperature=None, power_watts=None, driver=None)
    GpuHistory(path).append([bare])
    assert read_gpu_history(path) == (bare,)
