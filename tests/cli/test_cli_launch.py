"""`wan-train launch`: the jobs, the offers, the plan, and everything that is refused before anything is rented."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from support.json_output import json_lines
from support.vast_account import Account, offer_row
from support.vast_api import Mood
from wan_train.cli.main import run
from wan_train.launch.sky_home import stamp

pytestmark = pytest.mark.usefixtures("account")


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert run(["launch", *words, "--dry-run", "--json"]) == 0
    [line] = json_lines(capsys.readouterr().out)
    return line


def refused(capsys: pytest.CaptureFixture[str], *words: str, code: int = 2) -> str:
    assert run(["launch", *words]) == code
    return capsys.readouterr().err


def test_the_plan_names_every_cost_and_every_bound(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["launch", "cats", "--dry-run"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "cats (2 files, 100 epochs)" in shown
    assert "68.8 GB of models for each box, about 11 min on the first offer" in shown
    assert "1 box, on demand, at most $0.53/h (--max-price)" in shown
    assert "120 GB, in the price; a stopped box costs $0.48 a day" in shown
    assert "12 hours for a box (--max-hours)" in shown
    assert "$6.36 in all, traffic included (--budget); your credit of $12.50 is enough" in shown
    assert "on which nothing trains destroys itself after 4 hours." in shown
    assert "SkyPilot is fetched: 600 MB" in shown
    assert not Path("runs").exists()


def test_bounds_that_are_given_are_the_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(capsys, "cats", "dogs", "--boxes", "2", "--max-price", "0.40", "--max-hours", "3", "--budget", "$2")
    assert [found[key] for key in ("max_price", "max_hours", "budget", "boxes")] == [0.4, 3, 2, 2]
    assert [offer["id"] for offer in found["offers"]] == ["102"]
    assert found["unfit"] == {"over the price": 2}


def test_each_dataset_is_a_lora_with_the_options_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("cats", "dogs", "--author", "me", "--epochs", "50", "--no-fp8", "--high", "learning_rate=1e-4")
    assert run(["launch", *words, "--dry-run", "--json", "--", "--optimizer_type=adamw8bit"]) == 0
    [found] = json_lines(capsys.readouterr().out)
    assert [(job["title"], job["epochs"]) for job in found["jobs"]] == [("cats", 50), ("dogs", 50)]
    given = ["--author", "me", "--epochs", "50", "--no-fp8", "--high", "learning_rate=1e-4"]
    assert found["jobs"][0]["options"] == [*given, "--", "--optimizer_type=adamw8bit"]


def test_options_that_are_a_choice_change_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    [one] = plan(capsys, "cats", "--experts", "high")["jobs"]
    [both] = plan(capsys, "cats")["jobs"]
    assert 2 * one["result_bytes"] == both["result_bytes"]
    [job] = plan(capsys, "cats", "--task", "i2v", "--attention", "sdpa")["jobs"]
    assert job["options"] == ["--task", "i2v", "--attention", "sdpa"]


def test_an_earlier_end_is_what_is_trained_and_one_that_cannot_be_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for words, epochs in ((["--until", "50"], 50), (["--until", "all"], 100), (["--until", "99.65%"], 50)):
        [job] = plan(capsys, "cats", *words)["jobs"]
        assert job["epochs"] == epochs
    assert "there are only 100 epochs" in refused(capsys, "cats", "--until", "500")


def test_a_variable_of_the_program_is_an_option_of_every_job(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAN_TRAIN_EPOCHS", "30")
    [job] = plan(capsys, "cats")["jobs"]
    assert job["options"] == ["--epochs", "30"]
    Path("jobs.toml").write_text("[[jobs]]\ntitle = 'a'\ndataset = 'cats'\n")
    assert "--epochs cannot be combined with jobs.toml" in refused(capsys, "jobs.toml")


def test_a_jobs_file_is_known_by_what_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    Path("many.toml").write_text(
        "[defaults]\noptions = ['--epochs', '20']\n[[jobs]]\ntitle = 'a'\ndataset = 'cats'\n"
        "[[jobs]]\ntitle = 'b'\ndataset = 'dogs'\noptions = ['--rank', '32']\n"
    )
    found = plan(capsys, "many.toml", "--author", "me")
    assert [job["options"] for job in found["jobs"]] == [
        ["--author", "me", "--epochs", "20"],
        ["--author", "me", "--rank", "32"],
    ]
    assert "is a list of jobs" in refused(capsys, "many.toml", "cats")


def test_without_an_offer_the_nearest_is_shown_with_its_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["launch", "cats", "--max-price", "0.1", "--yes"]) == 3
    out, err = capsys.readouterr()
    assert "The nearest: RTX 4090 at $0.35 an hour" in out
    assert "hint: Pay more: `--max-price 0.35`" in err


def test_the_price_that_is_suggested_takes_the_nearest_offer(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    account.offers = [offer_row(101, "RTX 4090", 1, 0.4512, gpu_ram=24_564)]
    told = refused(capsys, "cats", "--max-price", "0.45", "--dry-run", code=3)
    assert "hint: Pay more: `--max-price 0.46`" in told
    assert [offer["id"] for offer in plan(capsys, "cats", "--max-price", "0.46")["offers"]] == ["101"]


def test_every_box_of_a_launch_with_both_tasks_downloads_the_models_of_both(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    account.offers = [offer_row(101, "RTX 4090", 1, 0.40, gpu_ram=24_564, inet_down=800.0, inet_down_cost=0.01)]
    Path("jobs.toml").write_text(
        "[[jobs]]\ndataset = 'cats'\n[[jobs]]\ndataset = 'dogs'\noptions = ['--task', 'i2v']\n"
    )
    [found] = plan(capsys, "jobs.toml")["offers"]
    # The VAE and the text encoder of 11.65 GB are the same for both tasks; each has two experts of 28.6 GB.
    assert found["prepare_seconds"] == pytest.approx(126.05e9 / 100e6, abs=1)
    assert found["traffic"] == pytest.approx(1.26, abs=0.03)
    assert run(["launch", "jobs.toml", "--dry-run"]) == 0
    assert "126 GB of models for each box, about 21 min on the first offer" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--budget", "0.001"], "Raise the budget"),
        (["--spot", "--bid", "0.001"], "Bid more, or leave --bid out"),
    ],
)
def test_without_an_offer_the_bound_that_is_too_low_is_named(
    capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert told in refused(capsys, "cats", "--dry-run", *words, code=3)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere"], "nowhere"),
        (["cats", "--gpu", "RTX4090:99"], "from 1 to 16"),
        (["cats", "--gpu", "$(rm)"], "must be kinds of GPUs"),
        (["cats", "--bid", "0.2"], "--bid is for interruptible boxes"),
        (["cats", "--max-price", "cheap"], "must be a number of dollars"),
        (["cats", "--budget", "-1"], "must be more than 0"),
        (["cats", "--boxes", "0"], "--boxes 0 cannot be rented"),
        (["cats", "--max-hours", "nan"], "--max-hours nan is out of range"),
        (["cats", "--on", "mars"], "--on mars is unsupported"),
        (["cats", "dogs", "--title", "x"], "--title names one LoRA"),
        (["cats", "--title", "a/b"], "title"),
        (["cats", "--rank", "0"], "--rank must be from 1 to 1024"),
        (["cats", "--recipe", "none.toml"], "none.toml"),
        (["cats", "--epochs", "ten"], "--epochs 'ten' is not a whole number"),
        (["cats", "--upload", "hf:me/cats"], "no such option: --upload"),
        (["stauts"], "Did you mean `wan-train launch status`?"),
        ([], "no dataset was given"),
    ],
)
def test_what_cannot_be_meant_is_refused(capsys: pytest.CaptureFixture[str], words: list[str], told: str) -> None:
    assert told in refused(capsys, *words)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[[jobs]\n", "is not TOML"),
        ("[[jobs]]\ntitle = 'a'\n", "dataset is missing"),
        (
            "[[jobs]]\ntitle='a'\ndataset='cats'\n[[jobs]]\ntitle='A'\ndataset='dogs'\n",
            "the title A is also used by jobs 1",
        ),
        ("[[jobs]]\ndataset='cats'\noptions=['--epoch', '3']\n", "no such option: --epoch"),
        ("[[jobs]]\ndataset='cats'\noptions=['--upload', 'hf:me/x']\n", "no secret goes to a box"),
        ("[[jobs]]\ndataset='cats'\noptions=['--help']\n", "--help is given by the launch itself"),
        ("[[jobs]]\ndataset='cats'\noptions=['--', '--network_dim=x']\n", "network_dim"),
    ],
)
def test_a_damaged_jobs_file_is_explained(capsys: pytest.CaptureFixture[str], text: str, told: str) -> None:
    Path("jobs.toml").write_text(text)
    assert told in refused(capsys, "jobs.toml")


def test_without_a_key_or_with_a_wrong_one_it_says_where_to_get_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("VAST_API_KEY", "wrong-0123456789abcdef")
    said = refused(capsys, "cats", code=3)
    assert "https://cloud.vast.ai/manage-keys/" in said
    assert "wrong-0123456789abcdef" not in said
    monkeypatch.delenv("VAST_API_KEY")
    assert "no Vast.ai key was found" in refused(capsys, "cats", code=3)


def test_a_provider_that_is_down_is_named(account: Account, capsys: pytest.CaptureFixture[str]) -> None:
    account.moods = [Mood.WELL, Mood.HTML]
    assert "nothing was rented: Vast" in refused(capsys, "cats", code=3)


def test_missing_programs_are_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert "missing on this computer: ssh, rsync" in refused(capsys, "cats", code=3)


def test_without_a_terminal_nothing_is_rented_unless_yes_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "cats")
    assert "without a terminal, --yes is required" in said
    assert not Path("runs").exists()


def test_the_schema_has_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["launch", "cats", "--gpu", "B200", "--dry-run", "--json"]) == 3
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert first["offers"] == []


DRIVER = """
import json, sys
CATALOGUE = [{"type": "1x_4090", "gpu": "RTX4090", "gpus": 1, "gpu_gib": 24, "ram_gib": 64, "price": 0.44, "spot": 0.3}]
for line in sys.stdin:
    request = json.loads(line)
    if request["do"] == "offers" and request["infra"] == "aws":
        answer = {"error": "aws is not enabled in SkyPilot: Run: aws configure"}
    else:
        answer = {"ok": {"offers": CATALOGUE} if request["do"] == "offers" else {"boxes": {}, "ended": 0}}
    print(json.dumps({"id": request["id"], **answer}), flush=True)
"""


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """SkyPilot's environments for two clouds, with a stand-in for its driver."""
    (tmp_path / "driver.py").write_text(DRIVER)
    for infra in ("runpod", "aws"):
        python = tmp_path / f"data/wan-train/sky-{infra}/env/bin/python"
        python.parent.mkdir(parents=True)
        python.write_text(f"#!/bin/sh\nexec {sys.executable} {tmp_path}/driver.py\n")
        python.chmod(0o755)
        (python.parents[1] / "ready").write_text(stamp(infra))
    return tmp_path


@pytest.mark.usefixtures("elsewhere")
class TestElsewhere:
    def test_the_plan_says_what_is_not_counted_and_what_protects(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["launch", "cats", "--on", "runpod", "--dry-run"]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert "RTX 4090 0.44" in shown
        assert "Traffic not counted: see the prices of runpod" in shown
        assert "rent only (--budget)" in shown
        assert "SkyPilot's program on a box destroys it 1 h after its training" in shown
        assert "your key of runpod is on the box" in shown

    def test_one_that_is_not_enabled_is_refused_with_what_enables_it(self, capsys: pytest.CaptureFixture[str]) -> None:
        told = refused(capsys, "cats", "--on", "aws", "--dry-run", code=3)
        assert "nothing was rented: aws is not enabled in SkyPilot: Run: aws configure" in " ".join(told.split())
        assert "https://docs.skypilot.co" in told

    def test_skypilot_is_not_fetched_without_leave(self, capsys: pytest.CaptureFixture[str]) -> None:
        told = refused(capsys, "cats", "--on", "lambda", "--dry-run")
        assert "Add --yes to fetch SkyPilot (600 MB)." in told

    def test_a_bid_works_on_vast_only(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "--bid works on Vast only" in refused(capsys, "cats", "--on", "runpod", "--spot", "--bid", "0.2")
