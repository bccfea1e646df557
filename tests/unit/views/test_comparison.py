"""Runs side by side."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from support.runs import make_plan, with_settings
from views.markup import HOSTILE, harmless, words_of
from views.reports import curve, report_of
from wan_train.base import codec
from wan_train.recipe.terms import Expert
from wan_train.run.curves import Curve
from wan_train.views.report.comparison import compare_json, compared, compared_lines, comparison_page, same_settings
from wan_train.views.report.report_data import ReportData


def pair() -> list[ReportData]:
    """The same dataset with another rank and a lower loss at the end."""
    first = make_plan()
    second = make_plan(title="other", run_dir=first.run_dir.with_name("20251123-other"))
    second = replace(second, recipe=with_settings(second.recipe, network_dim=32))
    return [report_of(plan=first), report_of(plan=second, curves={"train-high": curve(300), "train-low": curve(300)})]


def rows(reports: list[ReportData]) -> dict[tuple[str, str], tuple[str | None, ...]]:
    return {(row.group, row.name): row.values for row in compared(reports)}


def test_only_settings_that_differ_are_listed() -> None:
    reports = pair()
    found = rows(reports)
    assert found["Settings that differ", "network_dim"] == ("16", "32")
    assert len([key for key in found if key[0] == "Settings that differ"]) == 1
    assert same_settings(reports) > 20


def test_every_difference_is_named_of_options_and_of_one_expert_too() -> None:
    first = make_plan()
    changed = with_settings(with_settings(first.recipe, Expert.LOW, learning_rate=1e-5), network_args=("a=1",))
    second = replace(first, recipe=changed, run_dir=first.run_dir.with_name("20251123-other"))
    found = rows([report_of(plan=first), report_of(plan=second)])
    assert {name: values for (group, name), values in found.items() if group == "Settings that differ"} == {
        "learning_rate (low)": ("3e-4", "1e-5"),
        "network_args": (None, "a=1"),
    }


def test_the_results_of_each_run() -> None:
    found = rows(pair())
    assert found["High-noise expert", "steps"] == ("100", "300")
    assert found["Run", "title"] == ("mylora", "other")
    assert found["GPU", "peak memory"] == ("27.0 GiB", "27.0 GiB")


def test_an_expert_that_one_run_lacks_is_left_empty() -> None:
    reports = [report_of(), report_of(plan=make_plan(experts=(Expert.LOW,)), curves={"train-low": Curve()})]
    found = rows(reports)
    assert found["High-noise expert", "steps"] == ("100", None)
    assert found["Low-noise expert", "final loss"][1] is None
    assert harmless(comparison_page(reports)) is not None


@pytest.mark.parametrize("width", [60, 80, 160])
def test_the_table_fits_its_terminal(width: int) -> None:
    screen = io.StringIO()
    Console(file=screen, width=width).print(compared_lines(pair()))
    lines = screen.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    assert any("network_dim" in line and "16" in line and "32" in line for line in lines)


def test_the_page_draws_all_runs_and_is_harmless() -> None:
    document = harmless(comparison_page(pair()))
    text = words_of(document)
    assert "20251123-other" in text
    assert len(list(document.iter("figure"))) == 2
    assert "different datasets" not in text


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_words_stay_words(text: str) -> None:
    reports = [report_of(), report_of(plan=make_plan(title=text, author=text))]
    harmless(comparison_page(reports))
    assert codec.dumps(compare_json(reports)).encode()


def test_json_has_no_points_and_every_row() -> None:
    reports = pair()
    data = compare_json(reports)
    assert data["event"] == "compare"
    assert [each["status"]["title"] for each in data["runs"]] == ["mylora", "other"]
    assert all("points" not in expert for each in data["runs"] for expert in each["experts"])
    assert {"group": "Settings that differ", "name": "network_dim", "values": ["16", "32"], "differs": True} in data[
        "rows"
    ]
