"""A kill by the kernel for lack of RAM is told from any other kill -9 by what the container counted."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from support.runs import make_plan
from support.trainers import ScriptedBox
from wan_train.base.host import oom_kills
from wan_train.engine.failures import Cause
from wan_train.engine.tensors import read_header
from wan_train.run import outcome
from wan_train.run.directory import RunDirectory
from wan_train.run.events import Exit, Exited, Signaled

KILLED = Signaled(signal=signal.SIGKILL)
BY_LAUNCHER = "subprocess.CalledProcessError: Command '[...]' died with <Signals.SIGKILL: 9>.\n"
BY_LOADER = (
    "RuntimeError: DataLoader worker (pid 14264) is killed by signal: Killed. \n"
    "subprocess.CalledProcessError: Command '[...]' returned non-zero exit status 1.\n"
)


@pytest.mark.parametrize(
    ("ended", "log", "counted", "cause"),
    [
        (KILLED, "", True, Cause.HOST_OUT_OF_MEMORY),
        (KILLED, "", False, Cause.INTERRUPTED),
        (Exited(code=1), BY_LAUNCHER, True, Cause.HOST_OUT_OF_MEMORY),
        (Exited(code=1), BY_LAUNCHER, False, Cause.INTERRUPTED),
        (Exited(code=1), BY_LOADER, True, Cause.HOST_OUT_OF_MEMORY),
        (Exited(code=1), BY_LOADER, False, Cause.INTERRUPTED),
        (Signaled(signal=signal.SIGTERM), "", True, Cause.INTERRUPTED),
    ],
)
def test_by_the_counter(tmp_path: Path, ended: Exit, log: str, *, counted: bool, cause: Cause) -> None:
    plan = make_plan(run_dir=tmp_path / "run")
    attempt = RunDirectory(plan.run_dir).attempt("train-high", 1)
    attempt.output.mkdir(parents=True)
    attempt.log.write_text(log)
    final = attempt.output / "x.safetensors"
    found = outcome.judge(plan.step("train-high"), attempt, ended, final_lora=final, out_of_ram=counted)
    assert found is not None
    assert found.cause is cause


def test_the_counter_of_both_versions(tmp_path: Path) -> None:
    assert oom_kills(tmp_path) is None
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    assert oom_kills(tmp_path) == 2
    (tmp_path / "memory.events").write_text("low 0\nhigh 3\nmax 9\noom 1\noom_kill 1\noom_group_kill 0\n")
    assert oom_kills(tmp_path) == 1


MIB = 1024**2
ONE_TRAINER = 500 * MIB
LIMIT = 850 * MIB
"""Room for one trainer and wan-train's own processes, not for two trainers."""
_V1 = {"memory.limit_in_bytes": LIMIT, "memory.memsw.limit_in_bytes": LIMIT}
_V2 = {"memory.max": LIMIT, "memory.swap.max": 0}


def make_group() -> Path:
    """A memory cgroup with a limit, below our own so that nothing else has to be known of this machine."""
    paths = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    reasons = []
    for mounted, controller, limits in (("/sys/fs/cgroup/memory", "memory", _V1), ("/sys/fs/cgroup", "", _V2)):
        group = Path(mounted, paths.get(controller, "/").lstrip("/"), f"wan-train-test-{os.getpid()}")
        try:
            group.mkdir()
        except OSError as error:
            reasons.append(str(error))
            continue
        try:
            for name, limit in limits.items():
                if (group / name).exists() or name in {"memory.limit_in_bytes", "memory.max"}:
                    (group / name).write_text(str(limit))
        except OSError as error:
            group.rmdir()
            reasons.append(str(error))
            continue
        return group
    pytest.skip(f"a cgroup with a memory limit cannot be made here: {'; '.join(reasons)}")


@pytest.fixture
def limited_box(scripted_box: ScriptedBox) -> Iterator[ScriptedBox]:
    """A box whose every `wan-train` lives in a container with little RAM."""
    group = make_group()
    enter = 'echo $$ > "$0" && exec "$@"'
    scripted_box.through = ("sh", "-c", enter, str(group / "cgroup.procs"))
    yield scripted_box
    scripted_box.close()
    while group.exists():  # the kernel lets go of the last process a moment after it is gone
        with suppress(OSError):
            group.rmdir()
        time.sleep(0.02)


def test_a_container_that_holds_one_trainer_trains_two_experts_in_turn(limited_box: ScriptedBox) -> None:
    """The kernel itself kills one of two trainers; later a person kills the other. Each is called by its name."""
    box = limited_box
    running = box.popen_cli(
        *box.train_words("--epochs", "6", "--save-every", "1"),
        SCRIPTED_RAM_BYTES=str(ONE_TRAINER),
        SCRIPTED_STEP_SECONDS="0.1",
        WAN_TRAIN_PAUSE_SECONDS="0.1",
    )
    box.wait_for_event("retry_scheduled")
    (killed,) = box.events("retry_scheduled")
    assert killed["diagnosis"]["cause"] == "host_out_of_memory"
    other = "train-low" if killed["step"] == "train-high" else "train-high"
    box.wait_for_event("state_saved", step=other)
    for pid, words in box.trainers().items():
        if "wan_train_network.py" in words and "accelerate" not in words and "warden.py" not in words:
            os.kill(pid, signal.SIGKILL)

    assert running.wait() == 0
    causes = [(event["step"], event["diagnosis"]["cause"]) for event in box.events("retry_scheduled")]
    assert causes == [(killed["step"], "host_out_of_memory"), (other, "interrupted")]
    after = [event for event in box.events("step_started", "step_exited") if event["at"] > killed["at"]]
    trainings = [(event["kind"], event["step"]) for event in after]
    # From the first kill on nothing starts before what ran before it is gone.
    gone = trainings.index(("step_exited", other))
    kinds = [kind for kind, _ in trainings[gone:]]
    assert kinds == ["step_exited"] + ["step_started", "step_exited"] * 2
    for label in ("HighNoise", "LowNoise"):
        assert read_header(box.run() / f"WAN2.2-{label}_cat.safetensors").metadata["ss_epoch"] == "6"
    told = box.run_cli("explain").stdout
    assert "RAM" in told
