"""Who trains when and where: against GPUs of the NVML stub, by the trainers' own records."""

from __future__ import annotations

import itertools
import json
import sys

import pytest

from support.nvml import GIB, StubGpu, mig_uuid_of, uuid_of
from support.trainers import ScriptedBox, Span, spans

SLOW = {"SCRIPTED_LOAD_SECONDS": "0.4", "SCRIPTED_CACHE_SECONDS": "0.1"}


def overlap(one: Span, other: Span) -> bool:
    return one.start < other.end and other.start < one.end


def test_two_free_gpus_cache_and_train_side_by_side(scripted_box: ScriptedBox) -> None:
    done = scripted_box.train(**SLOW)
    assert done.returncode == 0, done.stderr
    found = spans(scripted_box)
    assert set(found) == {"latents", "text", "high", "low"}
    assert overlap(found["latents"], found["text"])
    assert overlap(found["high"], found["low"])
    for one, other in (("latents", "text"), ("high", "low")):
        assert {found[one].gpu, found[other].gpu} == {uuid_of(0), uuid_of(1)}
    assert max(found["latents"].end, found["text"].end) < min(found["high"].start, found["low"].start)
    assert not scripted_box.recorded("overlap")


def test_one_gpu_is_used_in_turn_high_before_low(scripted_box: ScriptedBox, capsys: pytest.CaptureFixture[str]) -> None:
    too_small_for_both_cachings = 20 * GIB
    scripted_box.nvml.write([StubGpu(total=too_small_for_both_cachings)])
    done = scripted_box.train(**SLOW)
    assert done.returncode == 0, done.stderr
    found = spans(scripted_box)
    in_turn = sorted(found.values(), key=lambda span: span.start)
    assert [span.place for span in in_turn] == ["latents", "text", "high", "low"]
    assert not any(overlap(one, other) for one, other in itertools.combinations(in_turn, 2))
    assert {span.gpu for span in in_turn} == {uuid_of(0)}
    assert not scripted_box.recorded("overlap")
    with capsys.disabled():
        sys.stdout.write(f" [high finished to low running: {found['low'].start - found['high'].end:.2f} s]")


def test_one_expert_alone_on_the_gpu_that_was_chosen(scripted_box: ScriptedBox) -> None:
    done = scripted_box.train("--experts", "low", "--gpus", "1")
    assert done.returncode == 0, done.stderr
    found = spans(scripted_box)
    assert set(found) == {"latents", "text", "low"}
    assert {span.gpu for span in found.values()} == {uuid_of(1)}


def test_inherited_cuda_visible_devices_restricts_the_choice(scripted_box: ScriptedBox) -> None:
    done = scripted_box.train(CUDA_VISIBLE_DEVICES="1")
    assert done.returncode == 0, done.stderr
    assert {span.gpu for span in spans(scripted_box).values()} == {uuid_of(1)}


def test_a_busy_gpu_is_waited_for_with_the_reason_in_status(scripted_box: ScriptedBox) -> None:
    scripted_box.nvml.write([StubGpu(used=20 * GIB)])
    running = scripted_box.popen_cli(*scripted_box.train_words())

    def reasons() -> list[str]:
        if not scripted_box.run_directories():
            return []
        status = json.loads(scripted_box.run_cli("status", "--json").stdout)
        return [step["waiting_for"] or "" for step in status["steps"]]

    scripted_box.wait_for(lambda: any("20.0 of 32.0 GiB in use" in reason for reason in reasons()), what="the reason")
    assert not scripted_box.recorded("start")
    scripted_box.set_used(uuid_of(0), 0)
    assert running.wait() == 0
    assert not scripted_box.recorded("overlap")


def test_the_free_one_of_two_gpus_is_used_and_the_busy_one_left_alone(scripted_box: ScriptedBox) -> None:
    scripted_box.nvml.write([StubGpu(used=20 * GIB, pids=(1,)), StubGpu()])
    done = scripted_box.train()
    assert done.returncode == 0, done.stderr
    assert {span.gpu for span in spans(scripted_box).values()} == {uuid_of(1)}


@pytest.mark.parametrize(
    ("init_error", "words"), [(0, "no GPU"), (9, "not loaded"), (18, "differ in version"), (999, "unknown error")]
)
def test_without_a_usable_gpu_the_box_is_not_ready(scripted_box: ScriptedBox, init_error: int, words: str) -> None:
    scripted_box.nvml.write([], init_error=init_error)
    done = scripted_box.train()
    assert done.returncode == 3
    assert words in done.stderr
    assert "rehearse" in done.stderr
    assert "Traceback" not in done.stderr
    assert not scripted_box.runs.exists() or not scripted_box.run_directories()


def test_a_driver_that_is_not_installed(scripted_box: ScriptedBox) -> None:
    (scripted_box.root / "empty").mkdir()
    done = scripted_box.train(LD_LIBRARY_PATH=str(scripted_box.root / "empty"))
    assert done.returncode == 3
    assert "NVIDIA" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_gpu_lost_in_mid_run_is_told_and_survived(scripted_box: ScriptedBox) -> None:
    running = scripted_box.popen_cli(*scripted_box.train_words(), SCRIPTED_STEP_SECONDS="0.3")
    scripted_box.wait_for_record("epoch", place="low")
    scripted_box.nvml.write([StubGpu(), StubGpu(error=15)])

    def warnings() -> str:
        return " ".join(json.loads(scripted_box.run_cli("status", "--json").stdout)["warnings"])

    scripted_box.wait_for(lambda: "GPU 1" in warnings(), what="the lost GPU in status")
    assert running.wait() == 0


def test_the_driver_gone_for_a_while_is_survived(scripted_box: ScriptedBox) -> None:
    scripted_box.nvml.write([StubGpu()])
    running = scripted_box.popen_cli(*scripted_box.train_words(), SCRIPTED_STEP_SECONDS="0.05")
    scripted_box.wait_for_record("epoch", place="high")
    scripted_box.nvml.write([], init_error=999)
    scripted_box.wait_for_event("step_exited", step="train-high")
    scripted_box.nvml.write([StubGpu()])
    assert running.wait() == 0
    assert not scripted_box.recorded("overlap")


def test_the_experts_train_on_two_mig_instances_of_one_card(scripted_box: ScriptedBox) -> None:
    scripted_box.nvml.write([StubGpu(total=80 * GIB, mig=(StubGpu(total=40 * GIB), StubGpu(total=40 * GIB)))])
    done = scripted_box.train(SCRIPTED_STEP_SECONDS="0.05")
    assert done.returncode == 0, done.stderr
    ran = spans(scripted_box)
    assert {ran["high"].gpu, ran["low"].gpu} == {mig_uuid_of(0, 0), mig_uuid_of(0, 1)}
    assert "GPU 0:1" in done.stdout
    assert not scripted_box.recorded("overlap")
