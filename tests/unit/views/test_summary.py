from __future__ import annotations

from dataclasses import replace
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
from rich.console import Console

from support.runs import T0, events_of, make_plan, make_view, with_settings
from views.scenes import AT_START, CACHED, DONE, FAILED, GPUS, PICTURES, ended
from views.support import shown
from wan_train.base.clock import Moment
from wan_train.box.rental import Price, PriceSource, Rental
from wan_train.dataset.layout import DatasetSummary
from wan_train.recipe.adaptation import Choice
from wan_train.recipe.effective import Layer, resolve
from wan_train.recipe.model import Origin, Source
from wan_train.recipe.terms import Expert
from wan_train.run.duties import Duties, Then
from wan_train.run.plan import Plan, Quote, QuoteBasis
from wan_train.run.step_commands import command_of
from wan_train.views.plan_details import plan_details, plan_text
from wan_train.views.result import result_lines, result_text
from wan_train.views.summary import AtStart, plan_lines

BEGAN = Moment(at=T0, boot_id="a", uptime=100.0)


def _steps_row(plan: Plan, dataset: DatasetSummary | None = None) -> str:
    text = " ".join(shown(plan_details(plan, AtStart(gpus=GPUS, dataset=dataset)), 200).split())
    return text.partition(" Steps ")[2].partition(" Disk ")[0]


def _brief(plan: Plan, now: AtStart = AT_START, width: int = 80) -> list[str]:
    return shown(plan_lines(plan, now), width).splitlines()


def _row(plan: Plan, label: str, now: AtStart = AT_START) -> str:
    return next(row for row in _brief(plan, now, 200) if row.strip().startswith(label)).strip()[len(label) :].strip()


def test_at_most_20_lines_of_80_columns_whatever_there_is_to_say() -> None:
    plan = make_plan(
        run_dir=Path("/workspace") / "a-long-name" / ("deep" * 30) / "20251122-120000-mylora", title="t" * 100
    )
    choices = tuple(Choice(setting=s, value="odd", reason="of a long reason " * 20) for s in ("attention", "fp8_base"))
    notes = tuple(f"picture {number} is {'very ' * 40}small" for number in range(20))
    plan = replace(plan, choices=choices, dataset=replace(plan.dataset, notes=notes))
    duties = Duties(began=BEGAN, uploads=("hf:me/cats", f"rclone:store:{'deep/' * 40}"), then=Then.STOP, max_hours=12)
    for told in (AT_START, replace(AT_START, duties=duties)):
        lines = _brief(plan, replace(told, gpus=(GPUS[1], replace(GPUS[1], label="GPU 0"))))
        assert len(lines) <= 20
    assert max(map(len, lines)) <= 80
    left_out = 22 - sum("Warning" in line for line in lines)
    assert lines[-1].split(maxsplit=1) == ["More", f"{left_out} notes (key d, or --dry-run)"]
    details = shown(plan_details(plan, AT_START), 80)
    assert details.count("picture ") == 20


def test_only_settings_that_differ_from_the_recipe_are_adjusted() -> None:
    reason = "the DiT file is F16 and the trainer requires the same precision"
    same, other = (Choice(setting="mixed_precision", value=value, reason=reason) for value in ("fp16", "bf16"))
    chosen = Choice(setting="blocks_to_swap", value="7", reason="chosen (--blocks-to-swap)")
    assert [x for x in _brief(make_plan(choices=(same,))) if "mixed_precision" in x] == []
    assert _row(make_plan(choices=(other,)), "Adjusted") == f"mixed_precision bf16: {reason}"
    assert _row(make_plan(choices=(chosen,)), "Chosen") == "blocks_to_swap 7"


def test_the_experts_are_placed_as_the_gpus_are_now() -> None:
    free, busy = GPUS
    other = replace(free, label="GPU 1")
    waits = replace(free, busy_because="in use by run 20251122-110000-dog")
    for gpus, said in (
        ((free, other), "high-noise on GPU 0, low-noise on GPU 1, in parallel"),
        ((free,), "high-noise, then low-noise on GPU 0"),
        ((free, busy), "high-noise, then low-noise on GPU 0; GPU 1 is busy (20.0 of 32.0 GiB are in use)"),
        ((waits,), "high-noise, then low-noise; waiting for a GPU: GPU 0 is in use by run 20251122-110000-dog"),
    ):
        assert _row(make_plan(), "Experts", replace(AT_START, gpus=gpus)) == said
    assert _row(make_plan(experts=(Expert.LOW,)), "Experts", replace(AT_START, gpus=(free,))) == "low-noise on GPU 0"


def test_the_time_is_shown_where_this_box_remembers_a_speed() -> None:
    assert _row(make_plan(), "Time") == "known after the first minute; never measured on this card"
    quoted = Quote(seconds=7200, seconds_per_batch=3.0, measured=0.0)
    plan = make_plan(quote=quoted)
    assert _row(plan, "Time") == "about 2 h in all; 3.0 s per batch, measured here"
    scaled = make_plan(quote=replace(quoted, scaled_from="512x512", without=("samples",)))
    assert _row(scaled, "Time") == ("about 2 h in all; 3.0 s per batch, scaled from 512x512; samples not included")
    often = make_plan(quote=replace(quoted, trainings=3, least=6600, most=9000))
    assert _row(often, "Time") == (
        "about 2 h in all (1 h 50 min to 2 h 30 min by 3 trainings); 3.0 s per batch, measured here"
    )
    tuned = make_plan(quote=replace(quoted, basis=QuoteBasis.TUNE, measured=T0, without=("saving", "caching")))
    said = "about 2 h in all; 3.0 s per batch, by wan-train tune on 22 Nov; saving and caching not included"
    assert _row(tuned, "Time") == said
    busy = (replace(GPUS[0], busy_because="in use by run 20251122-110000-dog"),)
    assert _row(plan, "Time", replace(AT_START, gpus=busy)).endswith("measured here; plus the wait for a GPU")
    plan = make_plan()
    plan = replace(plan, dataset=replace(plan.dataset, repeats=None, batches_per_epoch=None, has_videos=True))
    assert _row(plan, "Time") == "unknown until the videos are cached"


def test_what_becomes_of_the_box_is_shown_before_the_start() -> None:
    duties = Duties(began=BEGAN, uploads=("hf:me/cats",), then=Then.DESTROY, max_hours=12)
    told = replace(AT_START, duties=duties)
    assert _row(make_plan(), "Upload", told) == "hf:me/cats"
    assert _row(make_plan(), "Box", told) == "destroyed 5 min after its last run, at the latest 12 h after the start"
    command = replace(told, duties=replace(duties, then=Then.COMMAND, command=("off",), max_hours=None))
    assert _row(make_plan(), "Box", command) == "ended by your command 5 min after its last run"
    quiet = "\n".join(_brief(make_plan(), replace(told, duties=Duties(began=BEGAN))))
    assert " Box " not in quiet
    assert " Upload " not in quiet


def test_the_cost_is_shown_where_an_hour_has_a_price() -> None:
    plan = make_plan(quote=Quote(seconds=7200, seconds_per_batch=3.0, measured=0.0))
    given = replace(AT_START, price=Price(per_hour=0.93, source=PriceSource.GIVEN))
    assert _row(plan, "Cost", given) == "about $1.86 at $0.93/h given"
    assert _row(plan, "Cost", replace(given, budget=1.5)) == "about $1.86 at $0.93/h given; budget $1.50"
    shared = "about $0.93 at $0.93/h given, shared by 2 runs; $1.86 alone"
    assert _row(plan, "Cost", replace(given, runs=2)) == shared
    waiting = (replace(GPUS[0], busy_because="in use by run 20251122-110000-dog"),)
    assert _row(plan, "Cost", replace(given, gpus=waiting)) == "about $1.86 at $0.93/h given; plus the wait"
    assert _row(make_plan(), "Cost", given) == "$0.93/h given"
    hung = replace(AT_START, price_problem="Vast did not answer within 5 s")
    assert _row(plan, "Cost", hung) == "unknown: Vast did not answer within 5 s; --price sets it"


def test_what_takes_the_box_away_is_a_warning() -> None:
    plan = make_plan(quote=Quote(seconds=7200, seconds_per_batch=3.0, measured=0.0))
    rental = Rental(per_hour=0.2, ends=plan.created + 3600, bid=0.2, lowest_bid=0.19)
    now = replace(AT_START, price=Price(per_hour=0.2, source=PriceSource.VAST, rental=rental))
    text = " ".join(" ".join(_brief(plan, now, 200)).split())
    assert "the rental of this box ends" in text
    assert "your bid of $0.20/h is near the lowest possible ($0.19/h)" in text


def test_settings_are_shown_for_each_expert_only_where_they_differ() -> None:
    plan = make_plan()
    assert _row(plan, "LoRA") == "rank 16, alpha 16"
    recipe = with_settings(plan.recipe, Expert.LOW, network_dim=32, learning_rate=1e-4, max_train_epochs=50)
    plan = replace(plan, recipe=recipe)
    assert _row(plan, "LoRA") == "high-noise rank 16, alpha 16; low-noise rank 32, alpha 16"
    assert _row(plan, "LR").startswith("high-noise 3e-4, falling to 1e-7 (polynomial); low-noise 1e-4")
    steps = "high-noise 100 epochs, 2,400 steps; low-noise 50 epochs, 1,200 steps"
    assert _row(plan, "Training") == f"{steps}; guide (more: wan-train presets)"


def test_options_beyond_the_recipe_are_shown() -> None:
    plan = make_plan()
    assert _row(plan, "Extra") == "none (arguments after --)"
    layer = Layer(source=Source(origin=Origin.WORDS, text="after --"), values={"network_dropout": 0.1})
    assert _row(replace(plan, recipe=resolve(plan.recipe, [layer])), "Extra") == "network_dropout 0.1"


def test_new_files_and_folders_are_shown() -> None:
    assert _row(make_plan(), "Writes") == "/workspace/pictures/dataset.toml (new) and cache/"
    assert _row(make_plan(), "Writes", replace(AT_START, new_toml=None)) == "/workspace/pictures/cache/"


def test_the_details_list_additions_with_reasons() -> None:
    plan = make_plan()
    details = shown(plan_details(plan, AT_START), 200)
    addition = next(a for a in command_of(plan, plan.step("train-high")).additions if a.what == "--save_state")
    assert addition.what not in "\n".join(_brief(plan))
    assert addition.what in details
    assert addition.reason in details


def test_dry_run_shows_each_command_with_one_option_a_line() -> None:
    plan = make_plan()
    text = plan_text(plan, AT_START)
    assert "--script" in text
    for step in plan.steps:
        assert command_of(plan, step).shell() in " ".join(text.replace("\\\n", " ").split())
        for addition in command_of(plan, step).additions:
            assert addition.what in text
            assert addition.reason in text
    lines = text.splitlines()
    assert "  --task t2v-A14B \\" in lines
    assert lines.count("cd /workspace/musubi-tuner") == len(plan.steps)
    assert "up to date" not in text, "an older plan does not know its caches"


@pytest.mark.parametrize(
    ("repeats", "batches", "said"),
    [
        (24, 24, "24 items x 1 repeat / batch 1 x 100 epochs = 2,400 steps per expert"),
        (24, 6, "24 items x 1 repeat / batch 4 x 100 epochs = 600 steps per expert"),
        (24, 7, "24 items x 1 repeat in 7 batches of at most 4 x 100 epochs = 700 steps per expert"),
    ],
)
def test_steps_are_spelled_out(repeats: int, batches: int, said: str) -> None:
    plan = make_plan()
    plan = replace(plan, dataset=replace(plan.dataset, repeats=repeats, batches_per_epoch=batches))
    assert _steps_row(plan, PICTURES) == said


@pytest.mark.parametrize(
    ("files", "subsets", "dataset", "steps"),
    [
        (10, [(10, 4)], "10 pictures, 10 captions, 40 with repeats", "10 items x 4 repeats"),
        (20, [(10, 1), (10, 3)], "20 pictures, 20 captions, 40 with repeats", "20 items (40 with repeats)"),
        (10, [(10, 1), (10, 1)], "10 pictures, 10 captions, 20 items", "20 items x 1 repeat"),
        (10, [(30, 1)], "10 pictures, 10 captions, 30 items", "30 items x 1 repeat"),
        (10, [(30, 2)], "10 pictures, 10 captions, 30 items, 60 with repeats", "30 items x 2 repeats"),
    ],
    ids=["repeats", "repeats of two datasets", "files of two datasets", "clips", "clips and repeats"],
)
def test_items_are_not_taken_for_repeats(files: int, subsets: list[tuple[int, int]], dataset: str, steps: str) -> None:
    summaries = tuple(
        replace(PICTURES.subsets[0], index=index, items=items, num_repeats=repeats, batch_size=1)
        for index, (items, repeats) in enumerate(subsets)
    )
    seen = sum(items * repeats for items, repeats in subsets)
    plan = make_plan(items=files)
    plan = replace(plan, dataset=replace(plan.dataset, repeats=seen, batches_per_epoch=seen))
    counted = replace(PICTURES, subsets=summaries, files=files, items_with_repeats=seen, batches_per_epoch=seen)
    told = replace(AT_START, dataset=counted)
    assert _row(plan, "Dataset", told).endswith(f": {dataset}, no problems")
    assert _steps_row(plan, counted).startswith(f"{steps} / batch 1 x 100 epochs")


def test_unknown_video_lengths_are_admitted() -> None:
    plan = make_plan(experts=(Expert.LOW,))
    plan = replace(plan, dataset=replace(plan.dataset, repeats=None, batches_per_epoch=None, has_videos=True))
    assert _steps_row(plan) == "100 epochs; steps unknown until the videos are cached"


def test_a_path_with_a_quote_can_be_copied() -> None:
    plan = make_plan(run_dir=make_plan().run_dir.with_name("20251122-120000-it's"))
    view = make_view(plan, events_of(plan, {**CACHED, "train-high": DONE, "train-low": DONE}, exit_code=0))
    assert "'root@HOST:/workspace/runs/20251122-120000-it'\"'\"'s/*.safetensors'" in result_text(view)


def test_screens_for_a_terminal_without_unicode() -> None:
    view = ended(FAILED, DONE, 5)
    view = replace(view, plan=replace(view.plan, answers=replace(view.plan.answers, title="Blüte", author="é")))
    assert result_text(view).isascii()
    raw = BytesIO()
    console = Console(width=80, file=TextIOWrapper(raw, encoding="ascii"), color_system=None)
    console.print(plan_lines(view.plan, AT_START))
    console.print(plan_details(view.plan, AT_START))
    console.print(result_lines(view))
    console.file.flush()
    assert b"Bl?te by ?" in raw.getvalue()
