"""The report that comes by itself: at every end, and never in the way of one."""

from __future__ import annotations

import json
from pathlib import Path

from support.trainers import ScriptedBox

AT_END = {"WAN_TRAIN_REPORT": "at-end"}


def report_of(run: Path) -> str:
    return (run / "report.html").read_text(encoding="utf-8")


def test_a_run_ends_by_naming_its_report(scripted_box: ScriptedBox) -> None:
    done = scripted_box.train(**AT_END)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"\nReport, for any browser: {scripted_box.run() / 'report.html'}\n")
    text = report_of(scripted_box.run())
    assert "Both LoRAs are ready" in text
    assert "Not final" not in text
    assert "report" not in (scripted_box.run() / "supervisor.log").read_text()


def test_json_names_it_too(scripted_box: ScriptedBox) -> None:
    done = scripted_box.train("--json", SCRIPTED_FAULT="die@high", **AT_END)
    assert done.returncode == 5, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["report"] == str(scripted_box.run() / "report.html")
    assert "Failures" in report_of(scripted_box.run())


def test_a_report_that_cannot_be_made_changes_no_exit_code(scripted_box: ScriptedBox) -> None:
    child = scripted_box.popen_cli(
        *scripted_box.train_words(), SCRIPTED_FAULT="die@high", SCRIPTED_STEP_SECONDS="0.1", **AT_END
    )
    scripted_box.wait_for_event("training_began")
    (scripted_box.run() / "report.html").mkdir()
    assert child.wait() == 5
    assert "report.html cannot be used" in (scripted_box.run() / "supervisor.log").read_text()


def test_a_run_that_goes_on_can_be_told(scripted_box: ScriptedBox) -> None:
    child = scripted_box.popen_cli(*scripted_box.train_words("--epochs", "40"), SCRIPTED_STEP_SECONDS="0.1")
    scripted_box.wait_for_event("epoch_ended")
    done = scripted_box.run_cli("report")
    assert done.returncode == 0, done.stderr
    assert "Not final" in report_of(scripted_box.run())
    assert scripted_box.run_cli("stop", "--now").returncode == 0
    assert child.wait() == 143
    # Nobody asked for another one.
    assert "Not final" in report_of(scripted_box.run())


def test_with_nobody_watching_and_a_finished_run_is_resumed_while_it_is_told(scripted_box: ScriptedBox) -> None:
    assert scripted_box.train("--detach", **AT_END).returncode == 0
    scripted_box.wait_for_event("run_finished")
    done = scripted_box.run_cli("resume", "--epochs", "5", **AT_END)
    assert done.returncode == 0, done.stderr
    assert "of 5 epochs" in report_of(scripted_box.run())
