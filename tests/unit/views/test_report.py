"""The report of a run: it is complete, and hostile text in it does no harm."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace
from importlib.resources import files
from itertools import product
from xml.etree.ElementTree import Element

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.runs import OUT_OF_MEMORY, T0, events_of, make_plan
from views.markup import HOSTILE, harmless, words_of
from views.reports import (
    BOTH,
    CACHED,
    FAILED,
    NO_PLOTS,
    curve,
    dataset,
    gpu_samples,
    points,
    report_of,
    retried_curve,
    retried_events,
    samples,
)
from wan_train.base import codec
from wan_train.dataset.previews import MOST_BYTES, Preview
from wan_train.engine.capabilities import stored
from wan_train.engine.extra_arguments import TrainerOptions
from wan_train.engine.failures import Cause
from wan_train.recipe.load import load, override, shipped_path
from wan_train.recipe.terms import EngineKind, Expert
from wan_train.run.curves import Curve, LossSource, Point, Segment
from wan_train.run.events import MovementMeasured
from wan_train.run.state import JobState
from wan_train.views.report.metrics import experts
from wan_train.views.report.page import page
from wan_train.views.report.plots import evenly, extremes
from wan_train.views.report.report_data import MOST_SAMPLES, ReportData, sample_grid
from wan_train.views.report.report_json import report_json
from wan_train.views.report.reproduce import SettingSource, settings_of


def document_of(report: ReportData) -> Element:
    return harmless(page(report))


def text_of(report: ReportData) -> str:
    return re.sub(r"\s+", " ", words_of(document_of(report)))


@pytest.fixture(scope="module")
def usual() -> str:
    """The page of a run that went well."""
    return page(report_of())


def section(document: Element, anchor: str) -> str:
    """The words between a heading and the next of its level."""
    (main,) = document.iter("main")
    inside, said = False, []
    for child in main:
        if child.tag == "h2":
            inside = child.get("id") == anchor
        if inside:
            said.append(words_of(child))
    return " ".join(said)


def test_a_run_that_went_well(usual: str) -> None:
    text = re.sub(r"\s+", " ", words_of(harmless(usual)))
    assert "Both LoRAs are ready after 1 h." in text
    assert "WAN2.2-HighNoise_mylora.safetensors" in text
    assert "ab" * 32 in text
    assert "not interchangeable" in text
    assert "wan-train resume 20251122-120000-mylora --epochs 200" in text
    assert "Failures" not in text
    assert "Not final" not in text


def test_the_file_of_each_expert_goes_to_its_own_model(usual: str) -> None:
    items = [words_of(each) for each in harmless(usual).iter("li")]
    assert any("HighNoise_mylora" in each and "high-noise model" in each for each in items)
    assert any("LowNoise_mylora" in each and "low-noise model" in each for each in items)


def test_a_rehearsal_is_no_training() -> None:
    text = text_of(report_of(plan=make_plan(engine=EngineKind.REHEARSAL), **NO_PLOTS))
    assert "Its files are not usable LoRAs" in text
    assert "models/loras" not in text
    assert "there are no GPU readings" in text


def test_of_a_failed_expert_it_says_why_and_what_next() -> None:
    tail = ("Traceback", "torch.OutOfMemoryError: CUDA out of memory.")
    report = report_of(jobs={**BOTH, "train-high": FAILED}, exit_code=5, tails={"train-high": tail}, **NO_PLOTS)
    text = text_of(report)
    assert "1 of 2 LoRAs is ready" in text
    assert f"train-high: {OUT_OF_MEMORY.meaning}" in text
    assert OUT_OF_MEMORY.advice in text
    assert str(OUT_OF_MEMORY.evidence) in text
    assert "Traceback torch.OutOfMemoryError" in text
    assert "wan-train resume 20251122-120000-mylora" in text
    assert "HighNoise_mylora.safetensors" not in section(document_of(report), "files")


def test_a_stopped_run_shows_how_to_resume() -> None:
    jobs = {**CACHED, "train-high": JobState.STOPPED, "train-low": JobState.STOPPED}
    text = text_of(report_of(jobs=jobs, exit_code=143, **NO_PLOTS))
    assert "Next step" in text
    assert "wan-train resume" in text


def test_a_resume_that_cannot_help_is_not_offered() -> None:
    plan = make_plan()
    wrong = replace(OUT_OF_MEMORY, cause=Cause.SETTING)
    failed = events_of(plan, {**BOTH, "train-high": FAILED}, exit_code=5)
    events = [replace(e, diagnosis=wrong) if getattr(e, "diagnosis", None) is not None else e for e in failed]
    text = text_of(report_of(plan=plan, events=events, **NO_PLOTS))
    assert "Start a new run with other settings" in text
    assert "wan-train resume 2025" not in text


def test_the_report_of_a_run_that_trains_is_not_final() -> None:
    report = report_of(jobs={**CACHED, "train-high": JobState.RUNNING}, exit_code=None, **NO_PLOTS)
    text = text_of(report)
    assert "Not final." in text
    assert "wan-train report 20251122-120000-mylora" in text
    assert "No LoRA is finished yet." in text
    assert report_json(report)["is_final"] is False


def test_nothing_has_happened_yet() -> None:
    report = report_of(
        events=[], exit_code=None, curves={}, gpus=(), commands={}, dataset=None, dataset_missing="it is gone"
    )
    text = text_of(report)
    for said in (
        "Nothing has started yet.",
        "No step has been trained yet.",
        "cannot be shown: it is gone",
        "No command was run.",
    ):
        assert said in text
    assert codec.dumps(report_json(report))


def test_where_the_numbers_come_from_is_said_at_each_curve(usual: str) -> None:
    high, low = [words_of(each) for each in harmless(usual).iter("figure")][:2]
    assert "TensorBoard files, with the loss and learning rate of each step" in high
    assert "a moving average over an epoch" in low


def test_an_attempt_that_failed_is_seen_everywhere() -> None:
    plan = make_plan()
    report = report_of(
        plan=plan,
        events=retried_events(plan),
        exit_code=None,
        curves={"train-high": retried_curve(), "train-low": Curve()},
        gpus=(),
    )
    document = document_of(report)
    curves, course = section(document, "curves"), section(document, "timeline")
    assert "10 steps trained again" in curves
    assert "attempt 2" in curves
    assert "1 failed" in course
    assert "A failed attempt has a red edge" in course
    assert "blocks_to_swap=20" in course
    assert "train-high, attempt 2: blocks_to_swap=20" in section(document, "settings")
    assert [point[0] for point in report_json(report)["experts"][0]["points"]] == list(range(1, 101))
    assert [each["cause"] for each in report_json(report)["attempts"]] == [None, None, "out_of_memory", None]


def test_losses_that_are_no_numbers_are_counted_and_null_in_json() -> None:
    broken = tuple(replace(p, loss=(math.nan, math.inf)[p.step % 2]) if p.step > 90 else p for p in points(1, 100))
    bad = Curve(segments=(Segment(attempt=1, source=LossSource.TENSORBOARD, points=broken),))
    report = report_of(curves={"train-high": bad, "train-low": Curve()}, gpus=())
    assert "10 steps with an invalid loss" in text_of(report)
    data = codec.dumps(report_json(report))  # raises for NaN
    assert "[100, null, " in data
    nothing = Curve(
        segments=(Segment(attempt=1, source=LossSource.PROGRESS_LINE, points=(Point(step=1, loss=math.nan),)),)
    )
    assert "no valid loss" in text_of(report_of(curves={"train-high": nothing}, gpus=()))


def test_gpus_have_their_peaks(usual: str) -> None:
    text = section(harmless(usual), "gpus")
    for said in ("27.0 of 32.0 GiB", "RTX 5090", "71 °C", "431 W", "mean utilization 94 %", "one reading every 10 s"):
        assert said in text


def test_versions_and_commands(usual: str) -> None:
    document = harmless(usual)
    versions = section(document, "versions")
    for said in ("d0a193061a23a51c90664282205d753605a641c1", "2.7.1", "570.86.15", "254,000,000", "file not found"):
        assert said in versions
    commands = section(document, "commands")
    assert "python train.py --x 'y'" in commands
    assert "#!/bin/sh" not in commands


def test_the_source_of_each_setting() -> None:
    plan = make_plan()
    sources = {row.name: row.source for row in settings_of(plan)}
    assert sources["seed"] is SettingSource.DEFAULT
    assert sources["max_train_epochs"] is SettingSource.FLAG
    assert sources["attention"] is SettingSource.MACHINE
    recipe = override(load(shipped_path("t2v-a14b"), TrainerOptions(capabilities=stored("d0a1930"))), {"seed": 7})
    rows = {row.name: row for row in settings_of(replace(plan, recipe=recipe, choices=()))}
    assert (rows["seed"].source, rows["seed"].value) == (SettingSource.FLAG, "7")
    assert (rows["network_dim"].source, rows["network_dim"].reason) == (SettingSource.RECIPE, "recipe t2v-a14b.toml")
    assert rows["task"].source is SettingSource.RECIPE


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_words_stay_words(text: str) -> None:
    name = text.replace("/", "|").replace("{", "").replace("\0", "")
    plan = make_plan(title=text, author=text)
    trouble = replace(OUT_OF_MEMORY, meaning=text, advice=text, evidence=text)
    events = [replace(e, diagnosis=trouble) if hasattr(e, "diagnosis") else e for e in retried_events(plan)]
    made = samples(2, 2, prompt=text)
    report = report_of(
        plan=plan,
        events=events,
        exit_code=None,
        tails={"train-high": (text,)},
        dataset=dataset(1, name=f"{name}{{}}.png", caption=text),
        dataset_missing=text,
        commands={("train-high", 1): text},
        packages={text: text},
        curves={"train-high": curve(3)},
        gpus=gpu_samples(3, 1, label=text, name=text),
        samples=made,
        sample_pictures={each.path: Preview(jpeg=b"\xff\xd8", width=16, height=16) for each in made},
    )
    written = page(report)
    harmless(written)
    assert not any(character in written for character in "\x1b\0\x07\u202e\u202c\u2028\ufffe")
    assert codec.dumps(report_json(report)).encode()


def test_secrets_are_hidden() -> None:
    token = "hf_" + "a" * 30
    report = report_of(
        commands={("train-high", 1): f"python train.py --huggingface_token {token}"},
        dataset=dataset(1, caption=f"a cat with {token}"),
        tails={"train-high": (f"login {token}",)},
        jobs={**BOTH, "train-high": FAILED},
        exit_code=5,
        **NO_PLOTS,
    )
    assert token not in page(report)


def test_ten_thousand_steps_and_all_pictures_stay_under_two_megabytes() -> None:
    made = samples(30, 8)
    full = Preview(jpeg=b"x" * MOST_BYTES, width=240, height=240)
    report = report_of(
        curves={"train-high": curve(10_000), "train-low": curve(10_000)},
        gpus=gpu_samples(4000),
        dataset=dataset(100, jpeg=b"x" * MOST_BYTES),
        samples=made,
        sample_pictures={each.path: full for each in made},
    )
    written = page(report)
    assert len(written.encode()) < 2_000_000
    text = words_of(harmless(written))
    assert "The plot has 10,000 steps" in text
    assert "76 more files, not shown" in text


def test_it_can_be_read_by_everybody() -> None:
    document = document_of(report_of(samples=(made := samples(2, 2)), sample_pictures={
        each.path: Preview(jpeg=b"\xff\xd8", width=16, height=16) for each in made
    }))  # fmt: skip
    assert document.get("lang") == "en"
    for landmark in ("header", "nav", "main", "footer", "h1"):
        assert len(list(document.iter(landmark))) == 1, landmark
    assert all(each.get("alt") for each in document.iter("img"))
    ids = Counter(each.get("id") for each in document.iter() if each.get("id"))
    assert set(ids.values()) == {1}
    drawings = [each for each in document.iter() if each.tag.endswith("svg") and each.get("role") == "img"]
    assert len(drawings) == 5
    for drawing in drawings:
        assert {drawing.get("aria-labelledby"), drawing.get("aria-describedby")} <= set(ids)
        words = [words_of(each) for each in drawing if each.tag.endswith(("title", "desc"))]
        assert len(words) == 2
        assert all(words)
    for heads in document.iter("thead"):
        assert all(cell.get("scope") == "col" and words_of(cell) for cell in heads.iter("th"))
    links = [each.get("href") or "" for each in document.iter("a")]
    assert all(link.removeprefix("#") in ids for link in links)
    assert "font-family" not in "".join(each.get("style") or "" for each in document.iter())


def colours(text: str) -> dict[str, str]:
    return dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", text))


def luminance(colour: str) -> float:
    """WCAG 2.2's relative luminance."""
    values = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [False, True])
def test_contrast_is_enough_in_light_and_dark(dark: bool) -> None:
    views = files("wan_train.views")
    sheets = [views.joinpath(path).read_text(encoding="utf-8") for path in ("html/base.css", "report/report.css")]
    found: dict[str, str] = {}
    for text in sheets:
        light, _, rest = text.partition("@media (prefers-color-scheme: dark)")
        found |= colours(light)
        if dark:
            found |= colours(rest.partition("\n}\n")[0])
    inks = (
        "text",
        "soft",
        "link",
        "stops",
        "loses",
        "harms",
        "note",
        "high",
        "low",
        "cache",
        "second",
        "third",
        "fourth",
    )
    for ink, ground in product(inks, ("back", "card")):
        bright, dim = sorted((luminance(found[ink]), luminance(found[ground])), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 4.5, (ink, ground)


def test_no_colour_of_a_drawing_is_its_own(usual: str) -> None:
    assert "<svg" in usual
    assert not re.search(r'style="[^"]*#', usual)


def test_a_grid_of_samples_has_the_first_and_the_last_epoch() -> None:
    shown = sample_grid(samples(40, 3), Expert.LOW)
    assert len(shown.cells) <= MOST_SAMPLES
    assert (shown.epochs[0], shown.epochs[-1]) == (0, 390)
    assert len(shown.prompts) == 3
    assert shown.made == 120


def test_samples_that_cannot_be_read_are_marked() -> None:
    document = document_of(report_of(samples=samples(1, 1), **NO_PLOTS))
    assert "unreadable" in section(document, "samples")
    assert "before the first step" in section(document, "samples")


def test_pace_is_measured_between_first_step_and_last_epoch() -> None:
    plan = make_plan()
    report = report_of(plan=plan, events=retried_events(plan), exit_code=None)
    assert experts(report)[0].seconds_per_step is None  # no epoch ended


series = st.lists(st.tuples(st.integers(0, 10_000), st.floats(-10, 10)), min_size=1, max_size=300).map(sorted)


@given(series, st.integers(2, 40).map(lambda half: 2 * half))
def test_thinning_keeps_ends_and_extremes(given_series: list[tuple[float, float]], most: int) -> None:
    kept = extremes(given_series, most)
    assert len(kept) <= most
    assert (kept[0], kept[-1]) == (given_series[0], given_series[-1])
    for pick in (min, max):
        assert pick(y for _, y in kept) == pick(y for _, y in given_series)
    rest = iter(given_series)
    assert all(pair in rest for pair in kept), "in the same order"


@given(series, st.integers(2, 40))
def test_even_thinning_keeps_ends(given_series: list[tuple[float, float]], most: int) -> None:
    kept = evenly(given_series, most)
    assert len(kept) <= most
    assert (kept[0], kept[-1]) == (given_series[0], given_series[-1])


def test_data_of_a_finished_run() -> None:
    data = report_json(report_of())
    assert (data["event"], data["schema"], data["is_final"]) == ("report", 1, True)
    assert data["status"]["run_id"] == "20251122-120000-mylora"
    assert [each["name"] for each in data["files"]] == [
        "WAN2.2-HighNoise_mylora.safetensors", "WAN2.2-LowNoise_mylora.safetensors"
    ]  # fmt: skip
    assert data["versions"]["drivers"] == ["570.86.15"]
    assert data["gpus"][0]["peak_bytes"] == 27 * 1024**3
    assert data["again"].startswith("wan-train --recipe ")


def test_the_movement_of_both_loras_is_drawn_with_its_words_and_values(usual: str) -> None:
    report = report_of()
    assert "Movement of the LoRAs" not in usual, "nothing was measured"
    moved = [
        MovementMeasured(at=T0 + 100 + epoch, step=step, since_epoch=epoch - 10, epoch=epoch, relative=relative)
        for step, values in (("train-high", {20: 0.37, 30: 0.12, 60: 0.0025}), ("train-low", {20: 0.41, 40: 0.034}))
        for epoch, relative in values.items()
    ]
    events = list(report.events)
    shown = report_of(events=[*events[:-1], *moved, events[-1]], gpus=())
    html = page(shown)
    assert "high-noise expert settled: moved 0.25 % since epoch 50" in html
    assert "low-noise expert settling: moved 3.4 % since epoch 30" in html
    assert "<td>41 %</td>" in html
    assert report_json(shown)["experts"][0]["movements"] == [[10, 20, 0.37], [20, 30, 0.12], [50, 60, 0.0025]]
