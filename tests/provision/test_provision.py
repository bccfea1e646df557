"""`wan-train provision` on a bare box: real git, uv and huggingface_hub against servers on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from provision_world import World, git

from wan_train.base.errors import BadInputError
from wan_train.engine.capabilities import KNOWN_COMMITS
from wan_train.provision import engine_file
from wan_train.provision.models import wanted
from wan_train.provision.trainer_steps import recorded
from wan_train.recipe.model_files import lightning
from wan_train.recipe.terms import Task


def states(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    return {step["id"]: step["state"] for step in json.loads(done.stdout.splitlines()[-1])["steps"]}


def hints(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("hint: ")]


def file_names() -> list[str]:
    return [f"{model.repo}/{model.file}" for model in wanted((Task.T2V,))]


def wait_until(condition: Callable[[], object]) -> None:
    while not condition():
        time.sleep(0.02)


def end_on_the_way(world: World) -> None:
    world.hub.slow.add(file_names()[1])
    child = world.begin("--yes")
    assert world.hub.slow_began.wait(60)
    wait_until(lambda: [path.exists() for path in world.models()] == [True, False, True, True])
    child.send_signal(signal.SIGTERM)
    assert child.wait() == 143
    world.hub.slow.clear()
    world.hub.go_on.set()


def test_a_bare_box_becomes_ready_after_being_stopped_on_the_way_and_a_second_run_does_nothing(world: World) -> None:
    (world.checkout / "dataset").mkdir(parents=True)  # pictures that were uploaded first
    (world.checkout / "dataset/cat.txt").write_text("a cat")
    (world.checkout / "venv-mine").mkdir()
    looked = world.provision("--check")
    assert looked.returncode == 3
    assert hints(looked)[-1].startswith("hint: Install what is missing: `wan-train provision ")
    assert [path.name for path in world.workspace.iterdir()] == ["musubi-tuner"]

    end_on_the_way(world)
    first = world.provision("--yes")
    assert first.returncode == 0, first.stderr
    made = str((world.checkout / "venv").readlink())
    assert {path.name for path in world.checkout.glob("venv-*")} == {made, "venv-mine"}
    assert [path.read_bytes() for path in world.models()] == [world.hub.files[name] for name in file_names()]
    assert (world.checkout / "dataset/cat.txt").read_text() == "a cat"
    assert not (world.checkout / "later.txt").exists()
    assert git(world.checkout, "status", "--porcelain", "--untracked-files=no") == ""
    python = world.checkout / "venv/bin/python"
    said = subprocess.run(
        [python, "-c", "import torch, six, musubi_tuner; print(torch.__version__)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == "2.7.0\n"

    before, asked = world.tree(), len(world.hub.asked)
    second = world.provision("--yes", "--json")
    assert second.returncode == 0, second.stderr
    found = states(second)
    assert {name for name, state in found.items() if state != "ready"} <= {
        "ram",
        "driver",
        "gpus",
        "kernel",
        "flags",
        "packages",
    }
    assert set(found.values()) == {"ready", "warning", "not tested"}  # there is no GPU
    assert world.tree() == before
    assert len(world.hub.asked) == asked
    assert world.provision("--check").returncode == 0

    (world.checkout / "venv").resolve().joinpath("wan-train.json").unlink()  # as if made by hand
    assert world.provision("--check").returncode == 0
    shutil.rmtree(world.checkout / "venv/lib")
    assert states(world.provision("--check", "--json"))["environment"] == "missing"


def test_a_download_killed_in_the_middle_has_no_name_and_the_next_run_converges(world: World) -> None:
    slow = file_names()[2]
    world.hub.slow.add(slow)
    child = world.begin("--yes", "--models-only")
    assert world.hub.slow_began.wait(60)
    wait_until(lambda: [path.exists() for path in world.models()] == [True, True, False, True])
    os.kill(child.pid, signal.SIGINT)
    assert child.wait() == 130
    assert "stopped by Ctrl-C" in (world.workspace / "wan-train-provision/provision.log").read_text()
    assert not world.models()[2].exists()

    world.hub.slow.clear()
    world.hub.go_on.set()
    world.hub.asked.clear()
    again = world.provision("--yes", "--models-only")
    assert again.returncode == 0, again.stderr
    assert world.hub.fetched() == file_names()[2:3]
    assert [path.read_bytes() for path in world.models()] == [world.hub.files[name] for name in file_names()]
    assert not list(world.checkout.rglob("*.incomplete"))
    assert not list(world.checkout.rglob(".wan-train-fetch"))


def test_files_fetched_by_hand_are_recognised_and_hashed_once(world: World) -> None:
    for path, name in zip(world.models(), file_names(), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(world.hub.files[name])
    looked = world.provision("--check", "--json", "--models-only")
    assert looked.returncode == 0
    assert states(looked)["wan21-vae"] == "unverified"
    done = world.provision("--yes", "--models-only")
    assert done.returncode == 0, done.stderr
    assert world.hub.fetched() == []
    world.hub.asked.clear()
    looked = states(world.provision("--check", "--json", "--models-only"))
    assert {state for step, state in looked.items() if step != "packages"} == {"ready"}
    assert world.hub.asked == []


def test_damaged_files_wrong_bytes_and_passing_errors_end_in_the_right_bytes(world: World) -> None:
    vae, name = world.models()[0], file_names()[0]
    vae.parent.mkdir(parents=True)
    vae.write_bytes(bytes(len(world.hub.files[name])))  # the right size
    world.hub.status[file_names()[1]] = [500]
    world.hub.wrong[file_names()[2]] = 1
    done = world.provision("--yes", "--models-only")
    assert done.returncode == 0, done.stderr
    assert [path.read_bytes() for path in world.models()] == [world.hub.files[name] for name in file_names()]
    assert vae.with_name(f"{vae.name}.bad").read_bytes().strip(b"\0") == b""
    marked = json.loads(vae.with_name(f"{vae.name}.verified").read_text())
    assert marked["sha256"] == hashlib.sha256(world.hub.files[name]).hexdigest()
    assert "unexpected response from the server; retry in" in done.stdout


def test_bytes_that_stay_wrong_are_never_kept(world: World) -> None:
    world.hub.wrong[file_names()[0]] = 2
    done = world.provision("--yes", "--models-only")
    assert done.returncode == 3
    assert "wrong sha256" in done.stderr
    kept, log = hints(done)[-2:]
    assert kept.startswith("hint: Completed work is kept. Resume with `wan-train provision ")
    assert log == f"hint: Log: {world.workspace / 'wan-train-provision/provision.log'}"
    assert not world.models()[0].exists()


@pytest.mark.parametrize(("status", "word"), [(401, "HF_TOKEN"), (403, "terms"), (404, "renamed")])
def test_a_refusal_of_the_hub_says_what_to_do_and_never_the_token(world: World, status: int, word: str) -> None:
    world.hub.status[f"HEAD {file_names()[0]}"] = [status]
    token = "hf_" + "x" * 30
    done = world.provision("--yes", "--models-only", env={"HF_TOKEN": token})
    assert done.returncode == 3
    assert f"HTTP {status}" in done.stderr
    assert word in done.stderr
    assert token not in done.stdout + done.stderr
    assert world.hub.fetched() == []


def test_a_disk_that_is_too_small_is_refused_with_numbers_before_anything_is_fetched(world: World) -> None:
    world.hub.claims[file_names()[0]] = 10**16
    done = world.provision("--yes", "--models-only")
    assert done.returncode == 3
    assert "10000000.0 GB needed" in done.stderr
    assert world.hub.fetched() == []
    assert not world.checkout.exists()


def test_a_checkout_of_the_users_own_is_never_touched(world: World) -> None:
    world.workspace.mkdir()
    git(world.workspace, "clone", "-q", str(world.folder / "musubi.git"), str(world.checkout))
    (world.checkout / "backend.py").write_text("mine\n")
    before = world.tree()
    done = world.provision("--yes", "--skip-models")
    assert done.returncode == 3
    assert "yours" in done.stderr
    assert "--engine" in done.stderr
    assert world.tree() == before


def test_a_file_in_the_way_of_the_checkout_is_never_overwritten(world: World) -> None:
    world.checkout.mkdir(parents=True)
    (world.checkout / "pyproject.toml").write_text("mine\n")
    done = world.provision("--yes", "--skip-models")
    assert done.returncode == 3
    assert str(world.checkout / "pyproject.toml") in done.stderr
    assert [path.name for path in world.checkout.iterdir()] == ["pyproject.toml"]
    assert (world.checkout / "pyproject.toml").read_text() == "mine\n"


def test_changes_at_the_pinned_commit_are_told_and_left(world: World) -> None:
    commit = engine_file.load(str(world.engine)).commit
    world.workspace.mkdir()
    git(world.workspace, "clone", "-q", str(world.folder / "musubi.git"), str(world.checkout))
    git(world.checkout, "checkout", "-q", commit)
    (world.checkout / "backend.py").write_text("mine\n")
    done = world.provision("--check", "--json", "--skip-models")
    steps = {step["id"]: step for step in json.loads(done.stdout)["steps"]}
    assert steps["checkout"]["state"] == "ready"
    assert "1 changed file(s)" in steps["checkout"]["detail"]
    assert (world.checkout / "backend.py").read_text() == "mine\n"


def test_a_place_that_cannot_be_written_is_named(world: World) -> None:
    world.checkout.mkdir(parents=True)
    (world.checkout / "models").write_text("a file where a folder belongs")
    done = world.provision("--yes", "--models-only")
    assert done.returncode == 3
    assert str(world.checkout / "models") in done.stderr


def test_a_second_provision_says_who_is_at_work_and_since_when(world: World) -> None:
    world.hub.slow.add(file_names()[0])
    first = world.begin("--yes", "--models-only")
    assert world.hub.slow_began.wait(60)
    second = world.provision("--yes", "--models-only", "--json")
    first.send_signal(signal.SIGTERM)
    assert first.wait() == 143
    assert second.returncode == 3
    assert f"running in {world.workspace}: process {first.pid}, since " in second.stderr
    said = json.loads(second.stdout)
    assert (said["event"], said["exit_code"], said["ready"]) == ("provision", 3, False)
    assert f"process {first.pid}" in said["error"]["message"]


def test_what_a_killed_provision_left_running_is_ended_and_another_that_waits_for_it_is_not(world: World) -> None:
    world.workspace.mkdir()
    path = world.workspace / ".wan-train-provision.lock"
    code = (
        "import os, signal, subprocess, sys, time\n"
        "from pathlib import Path\n"
        "from wan_train.provision import workspace\n"
        "with workspace.locked(Path(sys.argv[1])) as held:\n"
        "    program = ['sh', '-c', 'echo here; exec sleep 600']\n"
        "    subprocess.Popen(program, pass_fds=(held,), start_new_session=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.Popen(
        [sys.executable, "-c", code, str(world.workspace)], env=world.environment(), stdout=subprocess.PIPE, text=True
    )
    assert killed.stdout is not None
    assert killed.stdout.readline() == "here\n"
    assert killed.wait() == -signal.SIGKILL
    with path.open() as waiting, subprocess.Popen(["sleep", "600"], pass_fds=(waiting.fileno(),)) as stranger:
        done = world.provision("--yes", "--models-only")
        assert stranger.poll() is None
        stranger.kill()
    assert done.returncode == 0, done.stderr
    with killed.stdout as pipe:
        assert pipe.read() == ""  # nobody is left that could write


def test_a_failed_step_is_told_at_once_and_the_others_go_on(world: World) -> None:
    """With `--json`: lines on stderr, and one document on stdout with what is done, what failed, and why."""
    (world.folder / "wheels/six-1.0-py3-none-any.whl").unlink()
    world.hub.slow.add(file_names()[3])
    with subprocess.Popen(
        world.argv("--yes", "--json"),
        env=world.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stderr is not None
        assert child.stdout is not None
        told = ""
        while "Trainer environment: failed: installing protobuf, six failed" not in told:
            told = child.stderr.readline()
            assert told, "it ended without a word"
        assert child.poll() is None
        world.hub.go_on.set()
        rest = child.stderr.read()
        said = json.loads(child.stdout.read())
    assert child.returncode == 3
    assert (said["exit_code"], said["ready"]) == (3, False)
    steps = {step["id"]: step for step in said["steps"]}
    facts = {"ram", "driver", "gpus", "packages", "leftovers", "kernel", "flags", "accelerate"}
    assert {name: step["phase"] for name, step in steps.items() if name not in facts} == {
        "disk": None,
        "checkout": "done",
        "environment": "failed",
        **{model.name: "done" for model in wanted((Task.T2V,))},
        "tokenizer": "skipped",
    }
    assert "six" in steps["environment"]["error"]["message"]
    assert steps["wan21-vae"]["fetched_bytes"] == len(world.hub.files[file_names()[0]])
    assert said["fetched_bytes"] == sum(len(world.hub.files[name]) for name in file_names())
    assert "Resume with `wan-train provision" in rest
    log = world.workspace / "wan-train-provision/provision.log"
    assert said["log"] == str(log)
    assert log.stat().st_mode & 0o777 == 0o600
    assert "installing protobuf, six failed" in log.read_text()
    assert "error: Trainer environment" in log.read_text()


def test_lightning_is_fetched_only_for_those_who_ask(world: World) -> None:
    assert world.provision("--yes", "--models-only").returncode == 0
    files = [model.path(world.checkout) for model in lightning(Task.T2V).values()]
    assert not any(path.exists() for path in files)
    done = world.provision("--yes", "--models-only", "--with", "lightning")
    assert done.returncode == 0, done.stderr
    assert all(path.is_file() for path in files)
    assert "lightning" not in recorded(world.workspace / "wan-train-provision")


def test_flags_that_leave_nothing_and_unknown_engines_are_refused(world: World) -> None:
    assert world.provision("--skip-models", "--models-only").returncode == 2
    assert world.provision("--skip-models", "--with", "lightning").returncode == 2
    done = world.provision("--engine", "nonsense")
    assert done.returncode == 2
    assert "guide, v0.3.4" in done.stderr


def test_shipped_engines_are_the_tested_commits() -> None:
    assert {engine_file.load(name).commit for name in engine_file.shipped()} == set(KNOWN_COMMITS)


@pytest.mark.parametrize("change", ["commit = 'HEAD'", "repository = '--upload-pack=x'", "surprise = 1"])
def test_a_broken_engine_file_is_named(tmp_path: Path, change: str) -> None:
    text = (engine_file.shipped()["guide"]).read_text(encoding="utf-8")
    key = change.partition(" = ")[0]
    lines = [line for line in text.splitlines() if not line.startswith(f"{key} =")]
    lines.insert(lines.index("[musubi]") + 1, change)
    path = tmp_path / "mine.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(BadInputError, match=key):
        engine_file.load(str(path))


def test_ctrl_c_ends_a_look_at_a_hub_that_does_not_answer(world: World) -> None:
    world.hub.is_silent = True
    with subprocess.Popen(
        world.argv("--check"),
        env=world.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as child:
        wait_until(lambda: len(world.hub.asked) == len(wanted((Task.T2V,))))
        child.send_signal(signal.SIGINT)
        said = child.communicate()[1]
    assert child.returncode == 130
    assert said == "error: interrupted\n"
    assert len(world.hub.asked) == len(wanted((Task.T2V,))), "nothing was asked again"
    world.hub.go_on.set()


def test_what_waits_for_a_busy_hub_is_ended(world: World) -> None:
    model, name = wanted((Task.T2V,))[0], file_names()[0]
    world.hub.status[f"HEAD {name}"] = [503]
    world.hub.retry_after = 30
    script = (
        "import sys, threading\n"
        "from wan_train.provision.hub import Hub\n"
        "ended = threading.Event()\n"
        "threading.Thread(target=lambda: (sys.stdin.readline(), ended.set()), daemon=True).start()\n"
        "try:\n    Hub(ended=ended).describe(*sys.argv[1:])\n"
        "except Exception as error:\n    print(type(error).__name__)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, model.repo, model.file],
        env=world.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        wait_until(lambda: world.hub.asked)
        said = child.communicate("end\n")[0]
    assert said == "EndedError\n"
    assert len(world.hub.asked) == 1
