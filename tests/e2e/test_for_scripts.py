"""What scripts need of a run: its ID at once, an end to the waiting, and silence."""

from __future__ import annotations

import json

from support.trainers import ScriptedBox

SLOW = {"SCRIPTED_STEP_SECONDS": "0.1"}


def test_the_first_line_has_the_run_id_and_quiet_leaves_the_events_out(scripted_box: ScriptedBox) -> None:
    done = scripted_box.train("--json")
    first, *events, last = [json.loads(line) for line in done.stdout.splitlines()]
    run_id = scripted_box.run().name
    assert (first["event"], first["run_id"], first["run_dir"]) == ("watching", run_id, str(scripted_box.run()))
    assert {line["event"] for line in events} == {"journal"}
    assert (last["event"], last["run_id"]) == ("result", run_id)
    quiet = scripted_box.run_cli("attach", "--json", "--quiet")
    assert [json.loads(line)["event"] for line in quiet.stdout.splitlines()] == ["watching", "result"]


def test_quiet_prints_the_result_and_nothing_else(scripted_box: ScriptedBox) -> None:
    done = scripted_box.train("--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Both LoRAs are ready")
    for lora in scripted_box.run().glob("*.safetensors"):
        assert str(lora) in done.stdout
    assert "started on" not in done.stdout


def test_quiet_still_says_what_failed(scripted_box: ScriptedBox) -> None:
    done = scripted_box.train("--quiet", SCRIPTED_FAULT="die@high")
    assert done.returncode == 5
    assert "train-high" in done.stdout
    refused = scripted_box.run_cli("--quiet")
    assert refused.returncode == 2
    assert "--yes" in refused.stderr


def test_attach_ends_after_its_time_and_the_run_goes_on(scripted_box: ScriptedBox) -> None:
    scripted_box.train("--detach", "--epochs", "5000", **SLOW)
    run_id = scripted_box.run().name
    looked = scripted_box.run_cli("attach", "--timeout", "0", "--json")
    assert looked.returncode == 124
    last = json.loads(looked.stdout.splitlines()[-1])
    assert (last["event"], last["run_id"]) == ("still_running", run_id)
    said = scripted_box.run_cli("attach", "--timeout", "0.1")
    assert said.returncode == 124
    assert f"wan-train attach {run_id}" in said.stderr
    assert not scripted_box.events("stop_requested", "run_finished")
    scripted_box.run_cli("stop", "--now")
    assert scripted_box.run_cli("attach", "--timeout", "1000").returncode == 143
    for wrong in ("-1", "nan"):
        assert scripted_box.run_cli("attach", "--timeout", wrong).returncode == 2
