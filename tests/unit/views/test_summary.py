from __future__ import annotations

from dataclasses import replace
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
from rich.console import Console

from support.runs import GIB, T0, events_of, make_plan, make_view, with_settings
from views.scenes import CACHED, DONE, FAILED, SCENES
from views.support import check_golden, shown
from wan_train.dataset.counts import Bucket, DatasetSummary, SubsetSummary
from wan_train.dataset.model import MediaKind
from wan_train.engine.failures import Cause
from wan_train.recipe.adaptation import Choice
from wan_train.recipe.effective import Layer, resolve
from wan_train.recipe.model import Origin, Source
from wan_train.recipe.terms import EngineKind, Expert
from wan_train.run.events import CheckpointKept, DiskLow, StateSaved, StepFailed
from wan_train.run.plan import Plan
from wan_train.run.state import JobState
from wan_train.views.model import GpuNow, RunView
from wan_train.views.result import result_lines, result_text
from wan_train.views.summary import AtStart, plan_details, plan_lines, plan_text

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
    text = " ".join(shown(plan_details(plan, AtStart(gpus=GPUS, dataset=dataset), width=200), 200).split())
    return text.partition(" steps ")[2].partition(" saves ")[0]


AT_START = AtStart(
    gpus=GPUS,
    dataset=PICTURES,
    problems=0,
    disk_free_bytes=212_000_000_000,
    new_toml=Path("/workspace/pictures/dataset.toml"),
)


def _brief(plan: Plan, now: AtStart = AT_START, width: int = 80) -> list[str]:
    return shown(plan_lines(plan, now, width=width), width).splitlines()


def _row(plan: Plan, label: str, now: AtStart = AT_START) -> str:
    return next(row for row in _brief(plan, now, 200) if row.strip().startswith(label)).strip()[len(label) :].strip()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_summary_before_a_run(width: int) -> None:
    usual = ("fp8_base", "on"), ("max_data_loader_n_workers", "2")
    plan = make_plan(
        choices=(
            Choice(setting="attention", value="sdpa", reason="xformers has no working kernels on this GPU"),
            *(Choice(setting=setting, value=value, reason="as the recipe says") for setting, value in usual),
        )
    )
    check_golden(f"view_plan_{width}", "\n".join(_brief(plan, width=width)) + "\n")
    check_golden(f"view_plan_details_{width}", shown(plan_details(plan, AT_START, width=width), width))


def test_at_most_20_lines_of_80_columns_whatever_there_is_to_say() -> None:
    plan = make_plan(
        run_dir=Path("/workspace") / "a-long-name" / ("deep" * 30) / "20251122-120000-mylora", title="t" * 100
    )
    choices = tuple(Choice(setting=s, value="odd", reason="of a long reason " * 20) for s in ("attention", "fp8_base"))
    notes = tuple(f"picture {number} is {'very ' * 40}small" for number in range(20))
    plan = replace(plan, choices=choices, dataset=replace(plan.dataset, notes=notes))
    lines = _brief(plan, replace(AT_START, gpus=(GPUS[1], replace(GPUS[1], label="GPU 0"))))
    assert len(lines) <= 20
    assert max(map(len, lines)) <= 80
    left_out = 22 - sum("Warning" in line for line in lines)
    assert lines[-1].split(maxsplit=1) == ["More", f"{left_out} notes (key d, or --dry-run)"]
    details = shown(plan_details(plan, AT_START, width=80), 80)
    assert details.count("picture ") == 20


def test_only_what_differs_from_the_recipe_is_said_to_be_adjusted() -> None:
    reason = "the DiT file is F16 and the trainer demands the same precision"
    same, other = (Choice(setting="mixed_precision", value=value, reason=reason) for value in ("fp16", "bf16"))
    chosen = Choice(setting="blocks_to_swap", value="7", reason="chosen (--blocks-to-swap)")
    assert [x for x in _brief(make_plan(choices=(same,))) if "mixed_precision" in x] == []
    assert _row(make_plan(choices=(other,)), "Adjusted") == f"mixed_precision bf16: {reason}"
    assert _row(make_plan(choices=(chosen,)), "Chosen") == "blocks_to_swap 7"


def test_the_experts_are_placed_as_the_gpus_are_now() -> None:
    free, busy = GPUS
    other = replace(free, label="GPU 1")
    waits = replace(free, busy_because="taken by run 20251122-110000-dog")
    for gpus, said in (
        ((free, other), "high-noise on GPU 0, low-noise on GPU 1, in parallel"),
        ((free,), "high-noise, then low-noise on GPU 0"),
        ((free, busy), "high-noise, then low-noise on GPU 0; GPU 1 is busy (20.0 of 32.0 GiB are in use)"),
        ((waits,), "high-noise, then low-noise; waiting for a GPU: GPU 0 is taken by run 20251122-110000-dog"),
    ):
        assert _row(make_plan(), "Experts", replace(AT_START, gpus=gpus)) == said
    assert _row(make_plan(experts=(Expert.LOW,)), "Experts", replace(AT_START, gpus=(free,))) == "low-noise on GPU 0"


def test_the_time_is_told_where_this_box_remembers_a_speed() -> None:
    free = GPUS[0]
    both = (free, replace(free, label="GPU 1"))
    assert _row(make_plan(), "Time") == "unknown on this card; shown after the first steps"
    for gpus, took in ((both, "2 h"), ((free,), "4 h")):
        now = replace(AT_START, gpus=gpus, seconds_per_batch=3.0)
        assert _row(make_plan(), "Time", now) == f"about {took} of training, at 3.0 s a batch measured here"
    plan = make_plan()
    plan = replace(plan, dataset=replace(plan.dataset, repeats=None, batches_per_epoch=None, has_videos=True))
    assert _row(plan, "Time", replace(AT_START, seconds_per_batch=3.0)) == "unknown until the videos are cached"


def test_settings_of_the_experts_are_told_once_where_they_agree_and_for_each_where_not() -> None:
    plan = make_plan()
    assert _row(plan, "LoRA") == "rank 16, alpha 16"
    recipe = with_settings(plan.recipe, Expert.LOW, network_dim=32, learning_rate=1e-4, max_train_epochs=50)
    plan = replace(plan, recipe=recipe)
    assert _row(plan, "LoRA") == "high-noise rank 16, alpha 16; low-noise rank 32, alpha 16"
    assert _row(plan, "LR").startswith("high-noise 3e-4, falling to 1e-7 (polynomial); low-noise 1e-4")
    steps = "high-noise 100 epochs, 2,400 steps; low-noise 50 epochs, 1,200 steps"
    assert _row(plan, "Training") == f"{steps}; recipe t2v-a14b"


def test_what_the_trainer_is_told_beyond_the_recipe_is_shown() -> None:
    plan = make_plan()
    assert _row(plan, "Extra") == "none (arguments after --)"
    layer = Layer(source=Source(origin=Origin.WORDS, text="after --"), values={"network_dropout": 0.1})
    assert _row(replace(plan, recipe=resolve(plan.recipe, [layer])), "Extra") == "network_dropout 0.1"


def test_what_is_written_is_told() -> None:
    assert _row(make_plan(), "Writes") == "/workspace/pictures/dataset.toml (new) and cache/"
    assert _row(make_plan(), "Writes", replace(AT_START, new_toml=None)) == "/workspace/pictures/cache/"


def test_the_details_list_additions_with_reasons() -> None:
    plan = make_plan()
    details = shown(plan_details(plan, AT_START, width=200), 200)
    addition = next(a for a in plan.step("train-high").command.additions if a.what == "--save_state")
    assert addition.what not in "\n".join(_brief(plan))
    assert addition.what in details
    assert addition.reason in details


def test_dry_run_shows_each_command_with_one_option_a_line() -> None:
    plan = make_plan()
    text = plan_text(plan)
    assert "--script" in text
    for step in plan.steps:
        assert step.command.shell() in " ".join(text.replace("\\\n", " ").split())
        for addition in step.command.additions:
            assert addition.what in text
            assert addition.reason in text
    lines = text.splitlines()
    assert "  --task t2v-A14B \\" in lines
    assert lines.count("cd /workspace/musubi-tuner") == len(plan.steps)


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


def test_the_learning_rate_is_honest_about_the_ratio() -> None:
    text = " ".join(shown(plan_details(make_plan(), AT_START, width=100), 100).split())
    assert "3e-4, falling to 1e-7" in text
    assert "lr_scheduler_min_lr_ratio 5e-5 has no effect" in text


def test_a_rehearsal_says_so_before_and_after() -> None:
    plan = make_plan(engine=EngineKind.REHEARSAL)
    assert _row(plan, "Rehearsal") == "tiny built-in trainer: the LoRAs are not usable"
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
    assert f"Then resume from the latest checkpoint: wan-train resume {plan.run_id}" in text


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
    console.print(plan_lines(view.plan, AT_START, width=80))
    console.print(plan_details(view.plan, AT_START, width=80))
    console.print(result_lines(view))
    console.file.flush()
    assert b"Bl?te by ?" in raw.getvalue()


@pytest.mark.parametrize(("high", "code"), [(FAILED, 5), (JobState.STOPPED, 143)])
def test_what_did_not_finish_can_be_gone_on_with(high: JobState, code: int) -> None:
    view = _ended(high, DONE, code)
    assert f"    wan-train resume {view.run.run_id}" in result_text(view).splitlines()
