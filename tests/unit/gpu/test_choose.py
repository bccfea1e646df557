"""Which GPUs a run may use, by --gpus and by an inherited CUDA_VISIBLE_DEVICES."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_train.base.errors import BadInputError
from wan_train.gpu.choose import choose, choose_again, how_to_show, why_none
from wan_train.gpu.model import Gpu, GpuReading, LostGpu

UUIDS = ["GPU-3f2a0001-aaaa", "GPU-3f2b0002-bbbb", "GPU-77770003-cccc"]


def gpu(index: int, uuid: str) -> Gpu:
    return Gpu(index=index, uuid=uuid, name="RTX 5090", total_bytes=1, used_bytes=0)


BOX = GpuReading(gpus=tuple(gpu(index, uuid) for index, uuid in enumerate(UUIDS)))
HURT = GpuReading(gpus=BOX.gpus[:2], lost=(LostGpu(index=2, uuid=UUIDS[2], reason="it is gone"),))


@pytest.mark.parametrize(
    ("gpus", "visible", "chosen"),
    [
        (None, None, [0, 1, 2]),
        ("all", None, [0, 1, 2]),
        (" ALL ", "2,0", [2, 0]),
        ("1", None, [1]),
        ("2, 0,", None, [2, 0]),
        ("0,0,GPU-3f2a", None, [0]),
        ("GPU-3f2a", None, [0]),
        ("gpu-3F2B", None, [1]),
        (UUIDS[2], None, [2]),
        (None, "", []),
        (None, "-1", []),
        (None, "NoDevFiles", []),
        (None, "0,-1,1", [0]),
        (None, "0,9,1", [0]),
        (None, "GPU-3f,0", []),  # not unique: CUDA stops there
        (None, "GPU-7777,1", [2, 1]),
        (None, " 1 , 0 ", [1, 0]),
        (None, "0,,1", [0]),
        (None, "MIG-1234", []),
        ("1,2", "0,1", [1]),
        ("2", "0,1", []),
        ("0", "", []),
    ],
)
def test_the_intersection_counts(gpus: str | None, visible: str | None, chosen: list[int]) -> None:
    assert [gpu.index for gpu in choose(BOX, gpus, visible)] == chosen


@pytest.mark.parametrize("gpus", ["3", "-1", "GPU-9999", "GPU-3f2", "GPU-", "G", "0,x", "²", "1.0", "0 1", "RTX 5090"])
def test_a_gpu_that_is_not_there_lists_what_is(gpus: str) -> None:
    with pytest.raises(BadInputError) as caught:
        choose(BOX, gpus, None)
    assert all(uuid in caught.value.message for uuid in UUIDS)
    assert caught.value.hint


@pytest.mark.parametrize("gpus", ["", " ", ",", " , "])
def test_an_empty_choice_is_refused_with_what_there_is(gpus: str) -> None:
    with pytest.raises(BadInputError, match="names no GPU") as caught:
        choose(BOX, gpus, None)
    assert UUIDS[0] in (caught.value.hint or "")


def test_a_lost_gpu_may_be_named_but_is_not_chosen() -> None:
    assert [gpu.index for gpu in choose(HURT, "1,2", None)] == [1]
    assert choose(HURT, UUIDS[2], None) == ()
    with pytest.raises(BadInputError, match="2 = unusable \\(it is gone\\)"):
        choose(HURT, "7", None)


def test_a_box_without_gpus_says_so() -> None:
    with pytest.raises(BadInputError, match="no GPU"):
        choose(GpuReading(gpus=()), "0", None)
    assert choose(GpuReading(gpus=()), None, "0") == ()


@pytest.mark.parametrize(
    ("reading", "visible", "words"),
    [
        (BOX, "-1", "CUDA_VISIBLE_DEVICES='-1' hides every GPU"),
        (BOX, "0", "none of the GPUs asked for"),
        (GpuReading(gpus=(), lost=HURT.lost), None, "it is gone"),
        (GpuReading(gpus=()), None, "reports no GPU"),
    ],
)
def test_an_empty_result_can_be_explained(reading: GpuReading, visible: str | None, words: str) -> None:
    assert words in why_none(reading, visible)


boxes = st.lists(st.uuids().map(lambda uuid: f"GPU-{uuid}"), unique=True, max_size=6).map(
    lambda uuids: GpuReading(gpus=tuple(gpu(index, uuid) for index, uuid in enumerate(uuids)))
)
words = st.text(alphabet="0123456789,-GPUMIabcdef ", max_size=30)


@given(boxes, st.none() | words, st.none() | words)
def test_whatever_is_asked_only_gpus_of_the_box_come_out_and_each_once(
    box: GpuReading, gpus: str | None, visible: str | None
) -> None:
    try:
        chosen = choose(box, gpus, visible)
    except BadInputError:
        assert gpus is not None
        return
    assert set(chosen) <= set(box.gpus)
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= set(choose(box, None, visible))
    assert set(chosen) <= set(choose(box, gpus, None))


@given(boxes, st.data())
def test_naming_gpus_in_any_way_gives_them_in_that_order(box: GpuReading, data: st.DataObject) -> None:
    wanted = data.draw(st.permutations(box.gpus))
    entries = [
        data.draw(st.sampled_from([str(one.index), one.uuid, one.uuid.lower(), one.uuid[:-1]])) for one in wanted
    ]
    listed = ",".join(entries)
    if wanted:
        assert choose(box, listed, None) == tuple(wanted)
        assert choose(box, "all", listed) == tuple(wanted)


@given(boxes, st.data())
def test_cuda_stops_at_the_first_entry_that_it_does_not_know(box: GpuReading, data: st.DataObject) -> None:
    head = data.draw(st.permutations(box.gpus))
    cut = data.draw(st.integers(0, len(head)))
    entries = [one.uuid for one in head]
    broken = ",".join([*entries[:cut], data.draw(st.sampled_from(["-1", "99", "x", "", "MIG-1"])), *entries[cut:]])
    assert choose(box, None, broken) == tuple(head[:cut])


OTHER = GpuReading(gpus=(gpu(0, "GPU-new0"), gpu(1, "GPU-new1"), gpu(2, "GPU-new2")))
MIXED = GpuReading(gpus=(gpu(0, UUIDS[1]), gpu(1, "GPU-new1"), gpu(2, "GPU-new2")))


@pytest.mark.parametrize(
    ("reading", "before", "visible", "keep_number", "chosen"),
    [
        (BOX, UUIDS, None, False, None),
        (BOX, UUIDS[1:2], None, False, None),
        (BOX, UUIDS[1:2], "0", True, None),  # the choice was made when it was planned
        (HURT, [UUIDS[2]], None, True, None),  # broken, and the driver still counts it
        (GpuReading(gpus=()), UUIDS, None, False, None),
        (OTHER, UUIDS[:2], None, False, [0, 1, 2]),
        (OTHER, UUIDS[:2], None, True, [0, 1]),
        (OTHER, UUIDS[:2], "2,1,0", True, [2, 1]),
        (OTHER, UUIDS[:2], "1", False, [1]),
        (OTHER, UUIDS[:2], "", False, None),
        (MIXED, UUIDS[:2], None, False, [0, 1, 2]),
        (MIXED, UUIDS[:2], None, True, [0, 1]),
        (MIXED, UUIDS[:2], "0", False, None),
    ],
)
def test_what_a_run_uses_on_a_box_without_its_gpus(
    reading: GpuReading, before: list[str], visible: str | None, keep_number: bool, chosen: list[int] | None
) -> None:
    again = choose_again(reading, before, visible, keep_number=keep_number)
    assert (None if again is None else [gpu.index for gpu in again]) == chosen


def instance(number: int) -> Gpu:
    return Gpu(index=0, mig=number, uuid=f"MIG-000{number}-aa", name="A100 MIG 3g.40gb", total_bytes=1, used_bytes=0)


SLICED = GpuReading(gpus=(instance(0), instance(1), gpu(1, UUIDS[1])))


@pytest.mark.parametrize(
    ("gpus", "visible", "chosen"),
    [
        (None, None, ["0:0", "0:1", "1"]),
        (None, "MIG-0001-aa", ["0:1"]),
        (None, "mig-0001", ["0:1"]),
        (None, "MIG-000", []),  # not unique: CUDA stops there
        (None, "MIG-0009,1", []),
        (None, "0", ["0:0", "0:1"]),
        ("0:1", None, ["0:1"]),
        ("0", None, ["0:0", "0:1"]),
        ("1,0:0", None, ["1", "0:0"]),
        ("MIG-0000", "MIG-0000-aa,1", ["0:0"]),
    ],
)
def test_mig_instances_are_chosen_by_any_name(gpus: str | None, visible: str | None, chosen: list[str]) -> None:
    assert [gpu.number for gpu in choose(SLICED, gpus, visible)] == chosen


@pytest.mark.parametrize("gpus", ["0:2", ":", "0:", "MIG-000", "1:0", "MIG-"])
def test_an_instance_that_is_not_there_lists_what_is(gpus: str) -> None:
    with pytest.raises(BadInputError, match="0:1 = A100 MIG"):
        choose(SLICED, gpus, None)


@pytest.mark.parametrize("visible", ["", "-1", "9"])
def test_a_variable_that_hides_all_is_named_with_the_way_back(visible: str) -> None:
    assert f"CUDA_VISIBLE_DEVICES={visible!r} hides every GPU" in why_none(BOX, visible)
    assert "`unset CUDA_VISIBLE_DEVICES`" in how_to_show(BOX, visible)


def test_an_instance_of_another_box_is_called_one() -> None:
    assert "MIG instance that the driver does not list" in why_none(BOX, "MIG-1234")
