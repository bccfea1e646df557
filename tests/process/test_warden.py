"""Wardens and their trees: real children that behave badly."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wan_train.base.host import ProcessIdentity, identify, myself
from wan_train.engine.commands import Command
from wan_train.engine.failures import Cause
from wan_train.engine.failures.diagnosis import diagnose
from wan_train.gpu.leases import LeaseHolder, LeaseRoom
from wan_train.run.directory import AttemptDirectory
from wan_train.run.events import Exit, Exited, Lost, Signaled
from wan_train.run.launcher import WardenLauncher, marked_processes

_PATIENCE_SECONDS = 30.0

STUBBORN = (
    "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('ready', flush=True)\ntime.sleep(60)\n"
)
GRANDCHILD = (
    "import subprocess, sys, time\n"
    f"code = {STUBBORN!r}\n"
    "child = subprocess.Popen([sys.executable, '-S', '-c', code], start_new_session=True, stdout=subprocess.PIPE)\n"
    "child.stdout.readline()\n"
    "print('ready', flush=True)\n"
)


@dataclasses.dataclass(slots=True)
class Scene:
    """Attempts below one folder, and one launcher."""

    root: Path
    launcher: WardenLauncher
    attempts: list[AttemptDirectory] = dataclasses.field(default_factory=list)

    def start(self, code: str, inherit: tuple[int, ...] = ()) -> tuple[ProcessIdentity, AttemptDirectory]:
        attempt = AttemptDirectory(self.root / f"train-{len(self.attempts)}" / "1")
        self.attempts.append(attempt)
        command = Command(argv=(sys.executable, "-S", "-c", code), cwd=str(self.root))
        return self.launcher.start(command, attempt, inherit), attempt

    def end(self, identity: ProcessIdentity, attempt: AttemptDirectory, by: WardenLauncher | None = None) -> Exit:
        launcher = by or self.launcher
        wait_for(lambda: launcher.ended(identity, attempt) is not None)
        ended = launcher.ended(identity, attempt)
        assert ended is not None
        return ended.exit


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def ready(attempt: AttemptDirectory) -> None:
    wait_for(lambda: attempt.log.exists() and b"ready" in attempt.log.read_bytes())


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(root=tmp_path, launcher=WardenLauncher(grace_seconds=0.5))
    yield made
    for attempt in made.attempts:
        for process in marked_processes(attempt):
            os.kill(process.pid, signal.SIGKILL)
    for child in made.launcher._children.values():
        child.wait()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("raise SystemExit(0)", Exited(code=0)),
        ("raise SystemExit(7)", Exited(code=7)),
        ("import os; os.kill(os.getpid(), 9)", Signaled(signal=9)),
        ("import os; os.kill(os.getpid(), 11)", Signaled(signal=11)),
        ("import os; os.kill(os.getpid(), 15)", Signaled(signal=15)),
    ],
)
def test_the_way_it_ended_is_recorded(scene: Scene, code: str, expected: Exit) -> None:
    assert scene.end(*scene.start(code)) == expected


@pytest.mark.parametrize("missing", ["program", "directory"])
def test_what_is_gone_is_told_in_the_log(scene: Scene, missing: str) -> None:
    """The checkout or its Python may be removed while a run waits for its next step."""
    attempt = AttemptDirectory(scene.root / "train" / "1")
    argv = ("/nowhere/python", "-c", "") if missing == "program" else (sys.executable, "-c", "")
    cwd = str(scene.root) if missing == "program" else "/nowhere"
    identity = scene.launcher.start(Command(argv=argv, cwd=cwd), attempt, ())
    assert scene.end(identity, attempt) == Exited(code=127)
    log = attempt.log.read_text()
    assert "/nowhere" in log
    assert diagnose(log).cause is Cause.MISSING_FILE


def test_output_goes_to_the_log_and_standard_input_is_closed(scene: Scene) -> None:
    identity, attempt = scene.start("import sys; print('out', repr(sys.stdin.read())); print('err', file=sys.stderr)")
    assert scene.end(identity, attempt) == Exited(code=0)
    assert set(attempt.log.read_text().splitlines()) == {"out ''", "err"}


def test_a_polite_child_ends_by_term(scene: Scene) -> None:
    identity, attempt = scene.start("import time; print('ready', flush=True); time.sleep(60)")
    ready(attempt)
    scene.launcher.terminate(identity)
    assert scene.end(identity, attempt) == Signaled(signal=signal.SIGTERM)


def test_a_child_that_ignores_term_is_killed_after_the_grace(scene: Scene) -> None:
    identity, attempt = scene.start(STUBBORN)
    ready(attempt)
    scene.launcher.terminate(identity)
    assert scene.end(identity, attempt) == Signaled(signal=signal.SIGKILL)
    assert not marked_processes(attempt)


def test_a_frozen_child_still_sees_the_term(scene: Scene) -> None:
    identity, attempt = scene.start("import time; print('ready', flush=True); time.sleep(60)")
    ready(attempt)
    for process in marked_processes(attempt):
        if process.pid != identity.pid:
            os.kill(process.pid, signal.SIGSTOP)
    scene.launcher.terminate(identity)
    assert scene.end(identity, attempt) == Signaled(signal=signal.SIGTERM)


def test_a_grandchild_in_a_session_of_its_own_does_not_escape(scene: Scene) -> None:
    identity, attempt = scene.start(GRANDCHILD + "time.sleep(60)")
    ready(attempt)
    assert len(marked_processes(attempt)) == 3
    scene.launcher.terminate(identity)
    scene.end(identity, attempt)
    assert not marked_processes(attempt)


def test_the_attempt_is_over_only_when_the_whole_tree_is(scene: Scene) -> None:
    identity, attempt = scene.start(GRANDCHILD + "raise SystemExit(3)")
    ready(attempt)
    assert scene.launcher.ended(identity, attempt) is None
    assert scene.end(identity, attempt) == Exited(code=3)
    assert not marked_processes(attempt)


def test_a_killed_warden_leaves_survivors_that_are_found_and_ended(scene: Scene) -> None:
    identity, attempt = scene.start(GRANDCHILD + "time.sleep(60)")
    ready(attempt)
    os.kill(identity.pid, signal.SIGKILL)
    assert isinstance(scene.end(identity, attempt), Lost)
    assert not marked_processes(attempt)


def test_another_launcher_sees_how_it_ended(scene: Scene) -> None:
    """What a supervisor that takes over has: the identity from the journal, nothing else."""
    identity, attempt = scene.start(STUBBORN)
    ready(attempt)
    other = WardenLauncher(grace_seconds=0.5)
    assert other.ended(identity, attempt) is None
    other.terminate(identity)
    wait_for(attempt.exit.exists)
    scene.launcher._children[identity.pid].wait()
    assert scene.end(identity, attempt, by=other) == Signaled(signal=signal.SIGKILL)


def test_the_lease_is_kept_until_the_tree_is_gone(scene: Scene, tmp_path: Path) -> None:
    room = LeaseRoom(tmp_path / "leases")
    lease = room.try_take("GPU-1", LeaseHolder(pid=os.getpid()))
    assert lease is not None
    identity, attempt = scene.start(STUBBORN, inherit=(lease.fileno(),))
    lease.release()
    ready(attempt)
    assert room.try_take("GPU-1", LeaseHolder()) is None
    scene.launcher.terminate(identity)
    scene.end(identity, attempt)
    again = room.try_take("GPU-1", LeaseHolder())
    assert again is not None
    again.release()


def test_the_lease_dies_with_a_tree_that_was_killed(scene: Scene, tmp_path: Path) -> None:
    room = LeaseRoom(tmp_path / "leases")
    lease = room.try_take("GPU-1", LeaseHolder(pid=os.getpid()))
    assert lease is not None
    identity, attempt = scene.start(STUBBORN, inherit=(lease.fileno(),))
    lease.release()
    ready(attempt)
    for process in marked_processes(attempt):
        os.kill(process.pid, signal.SIGKILL)
    assert isinstance(scene.end(identity, attempt), Lost)
    with room.try_take("GPU-1", LeaseHolder()) or pytest.fail("the lease is held by nobody"):
        pass


def test_a_flood_without_line_ends_reaches_the_log_whole(scene: Scene) -> None:
    identity, attempt = scene.start("import os\nfor _ in range(50): os.write(1, b'x' * 1_000_000)")
    assert scene.end(identity, attempt) == Exited(code=0)
    assert attempt.log.stat().st_size == 50_000_000


def test_hangup_does_not_end_a_warden(scene: Scene) -> None:
    identity, attempt = scene.start("import time; print('ready', flush=True); time.sleep(0.5); raise SystemExit(5)")
    ready(attempt)
    os.kill(identity.pid, signal.SIGHUP)
    assert scene.end(identity, attempt) == Exited(code=5)


def test_a_recycled_pid_is_a_stranger() -> None:
    me = myself()
    assert me.is_alive()
    assert not dataclasses.replace(me, start_time=me.start_time - 1).is_alive()
    assert not dataclasses.replace(me, boot_id="another boot").is_alive()
    assert identify(2**22 + 1) is None


def test_a_stranger_with_the_pid_is_never_signalled(scene: Scene) -> None:
    identity, attempt = scene.start("import time; print('ready', flush=True); time.sleep(0.5)")
    ready(attempt)
    stranger = dataclasses.replace(identity, start_time=identity.start_time + 1)
    WardenLauncher(grace_seconds=0.5).terminate(stranger)
    assert scene.end(identity, attempt) == Exited(code=0)


def test_a_warden_with_the_pid_of_one_that_was_ended_is_asked_too(scene: Scene) -> None:
    code = "import time; print('ready', flush=True); time.sleep(60)"
    first, attempt = scene.start(code)
    ready(attempt)
    scene.launcher.terminate(first)
    scene.end(first, attempt)
    for _ in range(50):  # another program may take the pid
        try:
            Path("/proc/sys/kernel/ns_last_pid").write_text(str(first.pid - 1))
        except OSError as error:
            pytest.skip(f"the next pid cannot be chosen here: {error.strerror}")
        second, attempt = scene.start(code)
        ready(attempt)
        scene.launcher.terminate(second)
        assert scene.end(second, attempt) == Signaled(signal=signal.SIGTERM)
        if second.pid == first.pid:
            return
    pytest.skip("the pid was not free")
