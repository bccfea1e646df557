from __future__ import annotations

from dataclasses import replace
from io import BytesIO, TextIOWrapper

import pytest
from rich.console import Console

from support.runs import GIB, T0, events_of, make_plan, make_view
from views.scenes import CACHED, DONE, FAILED, SCENES
from views.support import check_golden, shown
from wan_train.dataset.model import MediaKind
from wan_train.dataset.summary import Bucket, DatasetSummary, SubsetSummary
from wan_train.engine.failures import Cause
from wan_train.recipe.hardware import Choice
from wan_train.recipe.terms import EngineKind, Expert
from wan_train.run.events import CheckpointKept, DiskLow, StateSaved, StepFailed
from wan_train.run.plan import Plan
from wan_train.run.state import JobState
from wan_train.views.model import GpuNow, RunView
from wan_train.views.summary import plan_lines, plan_text, result_lines, result_text

GPUS = (
    GpuNow(label="GPU 0", name="NVIDIA GeForce RTX 5090", used_bytes=GIB // 2, total_bytes=32 * GIB),
    GpuNow(
        label="GPU 1",
        name="NVIDIA GeForce RTX 5090",
        used_bytes=20 * GIB,
        total_bytes=32 * GIB,
        busy_because="20.0 of 32.0 GiB are in use",
    ),
)
PICTURES = DatasetSummary(
    subsets=(
        SubsetSummary(
            index=0,
            kind=MediaKind.IMAGE,
            files=24,
            captions=24,
            items=24,
            num_repeats=1,
            batch_size=4,
            resolution=(960, 960),
            buckets=(Bucket(width=960, height=960, frames=1, items=24),),
            batches_per_epoch=6,
        ),
    ),
    files=24,
    captions=24,
    items_with_repeats=24,
    batches_per_epoch=6,
    latent_bytes=11_000_000,
    text_bytes=9_000_000,
)


def _steps_row(plan: Plan, dataset: DatasetSummary | None = None) -> str:
    text = " ".join(shown(plan_lines(plan, GPUS, width=200, dataset=dataset), 200).split())
    return text.partition(" steps ")[2].partition(" saved ")[0]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_summary_before_a_run(width: int) -> None:
    usual = ("fp8_base", "on"), ("max_data_loader_n_workers", "2")
    plan = make_plan(
        choices=(
            Choice(setting="attention", value="sdpa", reason="xformers has no working kernels on this GPU"),
            *(Choice(setting=setting, value=value, reason="as the recipe says") for setting, value in usual),
        )
    )
    screen = plan_lines(plan, GPUS, width=width, dataset=PICTURES, disk_free_bytes=212_000_000_000)
    check_golden(f"view_plan_{width}", shown(screen, width))


def test_verbose_lists_additions_with_reasons() -> None:
    plan = make_plan()
    brief, verbose = (shown(plan_lines(plan, GPUS, width=200, verbose=v), 200) for v in (False, True))
    addition = next(a for a in plan.step("train-high").command.additions if a.what == "--save_state")
    assert addition.what not in brief
    assert addition.what in verbose
    assert addition.reason in verbose


def test_dry_run_shows_each_command_whole_on_one_line() -> None:
    plan = make_plan()
    text = plan_text(plan)
    for step in plan.steps:
        assert step.command.shell() in text.splitlines()
        for addition in step.command.additions:
            assert addition.what in text
            assert addition.reason in text


@pytest.mark.parametrize(
    ("repeats", "batches", "said"),
    [
        (24, 24, "24 items x 1 repeat / batch 1 x 100 epochs = 2,400 steps for each expert"),
        (48, 48, "24 items x 2 repeats / batch 1 x 100 epochs = 4,800 steps for each expert"),
        (24, 6, "24 items x 1 repeat / batch 4 x 100 epochs = 600 steps for each expert"),
        (24, 7, "24 items x 1 repeat in 7 batches of at most 4 x 100 epochs = 700 steps for each expert"),
        (31, 31, "24 items (31 with repeats) / batch 1 x 100 epochs = 3,100 steps for each expert"),
    ],
)
def test_steps_are_spelled_out(repeats: int, batches: int, said: str) -> None:
    plan = make_plan()
    plan = replace(plan, dataset=replace(plan.dataset, repeats=repeats, batches_per_epoch=batches))
    assert _steps_row(plan, PICTURES) == said


def test_unknown_video_lengths_are_admitted() -> None:
    plan = make_plan(experts=(Expert.LOW,))
    plan = replace(plan, dataset=replace(plan.dataset, repeats=None, batches_per_epoch=None, has_videos=True))
    assert _steps_row(plan) == "100 epochs; how many steps is known once the videos are cached"


def test_of_many_warnings_eight_are_shown_and_the_rest_counted() -> None:
    plan = make_plan()
    notes = tuple(f"picture {number} is small" for number in range(20))
    text = shown(plan_lines(replace(plan, dataset=replace(plan.dataset, notes=notes)), GPUS, width=80), 80)
    assert text.count("is small") == 8
    assert "and 12 more warnings" in text


def test_the_learning_rate_is_honest_about_the_ratio() -> None:
    text = " ".join(shown(plan_lines(make_plan(), GPUS, width=100), 100).split())
    assert "3e-4, falling to 1e-7" in text
    assert "lr_scheduler_min_lr_ratio 5e-5 has no effect" in text


def test_a_rehearsal_says_so_before_and_after() -> None:
    plan = make_plan(engine=EngineKind.REHEARSAL)
    assert "no real ones" in shown(plan_lines(plan, (), width=80), 80)
    done = make_view(plan, events_of(plan, {**CACHED, "train-high": DONE, "train-low": DONE}, exit_code=0))
    text = " ".join(result_text(done).split())
    assert "no real LoRAs" in text
    assert "ComfyUI" not in text


def _ended(high: JobState, low: JobState, code: int) -> RunView:
    plan = make_plan()
    jobs = {**CACHED, "train-high": high, "train-low": low}
    events = events_of(plan, jobs, gpus={"train-low": 1}, epochs={"train-high": 8}, exit_code=code)
    return make_view(plan, events)


@pytest.mark.parametrize(
    ("name", "view"),
    [
        ("both", SCENES["finished"]()[0]),
        ("one_failed", _ended(FAILED, DONE, 5)),
        ("all_failed", _ended(FAILED, FAILED, 4)),
        ("stopped", _ended(JobState.STOPPED, JobState.STOPPED, 130)),
    ],
)
def test_result(name: str, view: RunView) -> None:
    check_golden(f"view_result_{name}", result_text(view))
    assert shown(result_lines(view), 100, soft_wrap=True) == result_text(view)


def test_a_wrong_setting_is_not_answered_with_resume() -> None:
    """A run keeps the settings it was started with."""
    plan = make_plan()
    wrong = [
        replace(event, diagnosis=replace(event.diagnosis, cause=Cause.SETTING))
        if isinstance(event, StepFailed)
        else event
        for event in events_of(plan, {**CACHED, "train-high": FAILED, "train-low": FAILED}, exit_code=4)
    ]
    text = result_text(make_view(plan, wrong))
    assert "Start a new run" in text
    assert f"wan-train resume {plan.run_id}" not in text


def test_a_stopped_training_names_its_newest_state_and_kept_loras() -> None:
    plan = make_plan()
    events = events_of(plan, {**CACHED, "train-high": JobState.STOPPED}, exit_code=130)
    saved = str(plan.run_dir / "train-high/1/output/WAN2.2-HighNoise_mylora-000040-state")
    kept = str(plan.run_dir / "WAN2.2-HighNoise_mylora-000020.safetensors")
    events[-1:-1] = [
        StateSaved(at=T0 + 900, step="train-high", attempt=1, path=saved, epoch=40),
        CheckpointKept(at=T0 + 901, step="train-high", path=kept, epoch=20),
    ]
    lines = result_text(make_view(plan, events)).splitlines()
    assert lines[lines.index("    its newest complete state (epoch 40):") + 1] == f"    {saved}"
    assert lines[lines.index("    1 checkpoint kept:") + 1] == f"    {kept}"


def test_of_many_kept_loras_the_first_and_the_last_are_shown() -> None:
    plan = make_plan()
    events = events_of(plan, {**CACHED, "train-high": JobState.STOPPED}, exit_code=130)
    kept = [str(plan.run_dir / f"WAN2.2-HighNoise_mylora-{epoch:06d}.safetensors") for epoch in range(10, 100, 10)]
    events[-1:-1] = [
        CheckpointKept(at=T0 + 901, step="train-high", path=path, epoch=10 * number)
        for number, path in enumerate(kept, start=1)
    ]
    text = result_text(make_view(plan, events))
    assert "9 checkpoints kept, the first and the last:" in text
    assert [path for path in kept if path in text] == [kept[0], kept[-1]]


def test_a_run_that_was_stopped_before_its_disk_was_full_says_so_and_how_much_is_needed() -> None:
    plan = make_plan()
    jobs = {**CACHED, "train-high": JobState.STOPPED, "train-low": JobState.STOPPED}
    events = events_of(plan, jobs, exit_code=3)
    events.insert(-1, DiskLow(at=T0 + 900, free=1_100_000_000, needed=5_500_000_000))
    text = " ".join(result_text(make_view(plan, events)).split())
    assert "before the disk was full" in text
    assert "1.1 GB free, 5.5 GB needed" in text
    assert "failed" not in text
    assert f"Then go on from the newest states: wan-train resume {plan.run_id}" in text


def test_paths_and_commands_of_the_result_stay_in_one_piece_on_a_narrow_terminal() -> None:
    view = SCENES["finished"]()[0]
    lines = shown(result_lines(view), 40, soft_wrap=True).splitlines()
    path = view.state.jobs["train-high"].result
    assert path is not None
    assert f"    {path.path}" in lines
    assert any(line.startswith("    scp ") and line.endswith(" .") for line in lines)


def test_a_path_with_a_quote_can_be_copied() -> None:
    plan = make_plan(run_dir=make_plan().run_dir.with_name("20251122-120000-it's"))
    view = make_view(plan, events_of(plan, {**CACHED, "train-high": DONE, "train-low": DONE}, exit_code=0))
    assert "'root@HOST:/workspace/runs/20251122-120000-it'\"'\"'s/*.safetensors'" in result_text(view)


def test_a_run_that_nobody_started_yet_has_a_result_too() -> None:
    assert "not over" in result_text(make_view(make_plan(created=T0), []))


def test_screens_for_a_terminal_without_unicode() -> None:
    view = _ended(FAILED, DONE, 5)
    view = replace(view, plan=replace(view.plan, answers=replace(view.plan.answers, title="Blüte", author="é")))
    assert result_text(view).isascii()
    raw = BytesIO()
    console = Console(width=80, file=TextIOWrapper(raw, encoding="ascii"), color_system=None)
    console.print(plan_lines(view.plan, GPUS, width=80))
    console.print(result_lines(view))
    console.file.flush()
    assert b"Bl?te by ?" in raw.getvalue()


@pytest.mark.parametrize(("high", "code"), [(FAILED, 5), (JobState.STOPPED, 143)])
def test_what_did_not_finish_can_be_gone_on_with(high: JobState, code: int) -> None:
    view = _ended(high, DONE, code)
    assert f"    wan-train resume {view.run.run_id}" in result_text(view).splitlines()
