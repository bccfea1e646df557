"""What is done on a box, over a stand-in for ssh that runs everything below a folder of this machine; rsync is real."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import shutil
import stat
import time
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import pytest

from wan_train.base.clock import SystemClock, moment
from wan_train.launch.box_check import wrong_with, wrong_with_line
from wan_train.launch.model import Address, Job, Offer, Wants
from wan_train.launch.remote import (
    GRACE_MINUTES,
    JobError,
    SshRemote,
    WrongBoxError,
    read_training,
)
from wan_train.launch.shipment import Shipment
from wan_train.launch.ssh import RemoteError, Ssh, UnreachableError
from wan_train.run.directory import RunDirectory
from wan_train.run.duties import Duties, Then, read_duties, write_duties

pytestmark = pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")

RUN = "20261129-cats"
FAKE_SSH = Path(__file__).parents[2] / "support/launch_box/ssh"
OFFER = Offer(id="1", machine="m", gpu="RTX 5090", gpus=1, gpu_bytes=32 * 10**9, per_hour=0.5)
JOB = Job(name="cats", title="my cats", dataset=Path("/d"), dataset_stamp="", options=("--epochs", "50"))


@dataclass
class Box:
    """One box: a folder, programs that answer as told, and the hands on it."""

    root: Path
    remote: SshRemote
    address: Address

    @property
    def workspace(self) -> Path:
        return self.root / "workspace"

    @property
    def run(self) -> Path:
        return self.workspace / "wan-train-runs" / RUN

    def program(self, name: str, text: str) -> None:
        path = self.root / "bin" / name if "/" not in name else self.workspace / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def wan_train(self, text: str) -> None:
        self.program("wan-train-env/bin/wan-train", f'echo "$*" >>{self.root}/asked; {text}')

    def says(self, data: object) -> None:
        (self.root / "status.json").write_text(json.dumps(data))
        self.wan_train(f"cat {self.root}/status.json")

    @property
    def asked(self) -> list[str]:
        path = self.root / "asked"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Box:
    root, scratch = tmp_path / "box", tmp_path / "scratch"
    for folder in (root / "bin", root / "workspace", scratch, tmp_path / "path"):
        folder.mkdir(parents=True)
    (tmp_path / "path/ssh").symlink_to(FAKE_SSH)
    monkeypatch.setenv("PATH", f"{tmp_path}/path:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_BOX", str(root))
    wheel, script = tmp_path / "wan_train-1.whl", tmp_path / "vast_provision.sh"
    wheel.write_text("a wheel")
    script.write_text("echo preparing $WAN_TRAIN_SOURCE $*; exit $(cat ../../answer)\n")
    address = Address(name="wt-1", host="ssh3.vast.ai", port=2222, user="root", key=tmp_path / "a key")
    return Box(root=root, remote=SshRemote(scratch=scratch, source=lambda: (wheel, script)), address=address)


def run_with_states(box: Box, *epochs: int) -> None:
    """A run on the box with complete states, one that is being written, and a log."""
    output = box.run / "high/1/output"
    for epoch in epochs:
        folder = output / f"WAN my cats-{epoch:06d}-state"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").write_text(f"state {epoch}")
    (output / "half-written.safetensors").write_text("half")
    (box.run / "plan.json").write_text("{}")
    (box.run / "events.jsonl").write_text("".join(f"saved {epoch}\n" for epoch in epochs))
    (box.run / "lock").write_text("")
    path = f"/workspace/wan-train-runs/{RUN}/high/1/output/WAN my cats-{epochs[-1]:06d}-state"
    box.says(
        {
            "run_id": RUN,
            "state": "running",
            "exit_code": None,
            "steps": [{"id": "high", "newest_state": {"epoch": epochs[-1], "path": path}, "result": None}],
        }
    )


WANTS = Wants(max_hours=6, disk_gb=120, least_driver=(525,))
TINY = replace(WANTS, disk_gb=0.001)
DISK = "overlay 1000 1 200000000 1% /w"
CARD = "NVIDIA GeForce RTX 5090, 32607, 570.124.06"


class TestCheck:
    def curl(self, box: Box, text: str) -> None:
        box.program("nvidia-smi", f"echo '{CARD}'")
        box.program("curl", text)

    def test_the_rented_box_is_accepted_and_its_line_was_measured_at_the_host_of_the_models(self, box: Box) -> None:
        self.curl(box, f"printf '%s\\n' \"$*\" >>{box.root}/asked; echo 'line 50000000 0.5 1.5'")
        assert box.remote.check(box.address, OFFER, TINY) == 200_000_000
        assert len(box.asked) == 4
        assert all("https://huggingface.co/" in words and "resolve/main" in words for words in box.asked)
        assert sum("-r 150000000-199999999" in words for words in box.asked) == 1

    @pytest.mark.parametrize("is_used", [False, True])
    def test_a_box_that_is_never_used_destroys_itself(
        self, box: Box, monkeypatch: pytest.MonkeyPatch, is_used: bool
    ) -> None:
        monkeypatch.setenv("CONTAINER_ID", "7")
        monkeypatch.setenv("CONTAINER_API_KEY", "key-of-the-box")
        self.curl(box, f"case $* in *DELETE*) cat >{box.root}/header; echo $* >{box.root}/delete;; esac")
        box.program("sleep", f"while [ ! -e {box.root}/over ]; do /bin/sleep 0.05; done; echo $* >>{box.root}/slept")
        box.remote.check(box.address, OFFER, replace(TINY, max_hours=6))
        box.remote.check(box.address, OFFER, TINY)
        if is_used:
            box.run.mkdir(parents=True)
            (box.run / "plan.json").touch()
        (box.root / "over").touch()
        lock = box.workspace / "wan-train-launch/timer"
        with lock.open() as held:
            fcntl.flock(held, fcntl.LOCK_EX)  # the timer is over then
        assert (box.root / "slept").read_text() == "14400\n"
        assert (box.root / "delete").exists() is not is_used
        if not is_used:
            assert (box.root / "delete").read_text().strip().endswith("https://console.vast.ai/api/v0/instances/7/")
            assert "key-of-the-box" not in (box.root / "delete").read_text()
            assert (box.root / "header").read_text() == 'header = "Authorization: Bearer key-of-the-box"\n'

    def test_a_line_far_below_the_offer_is_refused(self, box: Box) -> None:
        self.curl(box, "echo 'line 3000000 0.5 10.5'")
        with pytest.raises(WrongBoxError, match="its download speed is 10 Mbit/s, but 800 Mbit/s were offered"):
            box.remote.check(box.address, replace(OFFER, down_mbps=800.0), TINY)

    def test_a_box_that_cannot_reach_the_host_of_the_models_is_refused(self, box: Box) -> None:
        self.curl(box, "echo 'line 0 0.0 5.0'; echo 'curl: (6) Could not resolve host: huggingface.co' >&2; exit 6")
        with pytest.raises(WrongBoxError, match=r"cannot fetch the models: curl: \(6\) Could not resolve"):
            box.remote.check(box.address, OFFER, TINY)

    def test_a_host_that_refuses_is_not_the_boxs_fault(self, box: Box) -> None:
        self.curl(box, "echo 'line 0 0.2 0.2'; echo 'curl: (22) error: 503' >&2; exit 22")
        box.remote.check(box.address, OFFER, TINY)

    def test_a_box_without_a_gpu_is_refused(self, box: Box) -> None:
        box.program("nvidia-smi", "echo 'NVIDIA-SMI has failed' >&2; exit 9")
        with pytest.raises(WrongBoxError, match="no working GPU: NVIDIA-SMI has failed"):
            box.remote.check(box.address, OFFER, TINY)

    def test_a_user_without_rights_is_named(self, box: Box) -> None:
        (box.root / "workspace").rmdir()
        (box.root / "workspace").touch()
        box.program("sudo", "exit 1")
        with pytest.raises(WrongBoxError, match="/workspace cannot be made: its user is not root"):
            box.remote.check(box.address, OFFER, TINY)

    def test_nobody_answers(self, box: Box) -> None:
        (box.root / "down").touch()
        with pytest.raises(UnreachableError, match="Connection refused"):
            box.remote.check(box.address, OFFER, TINY)

    @pytest.mark.parametrize(
        ("answer", "why"),
        [
            (f"{DISK}\n{CARD}", None),
            (f"{DISK}\nMemTotal: 65536000 kB\n{CARD}", None),
            (f"{DISK}\nMemTotal: 65536000 kB\nlimit max\n{CARD}", None),
            (f"{DISK}\nMemTotal: 16777216 kB\n{CARD}", "its RAM is 17 GB, but 64 GB were offered"),
            (f"{DISK}\nMemTotal: 65536000 kB\nlimit 8000000000\n{CARD}", "its RAM is 8 GB"),
            (f"{DISK}\nNVIDIA GeForce RTX 4090, 24564, 570", "its GPU is NVIDIA GeForce RTX 4090"),
            (f"{DISK}\nNVIDIA GeForce RTX 5090, 32607, 565.57.01", "its driver is 565.57.01, but 570 or newer"),
            (f"{DISK}\n", "it has 0 GPUs"),
            (f"{DISK}\n{CARD}\n{CARD}", "it has 2 GPUs"),
            (f"overlay 1000 1 9000000 1% /w\n{CARD}", "its disk has 9 GB free"),
            ("", "it reported no hardware"),
        ],
    )
    def test_what_is_wrong_is_named(self, answer: str, why: str | None) -> None:
        found = wrong_with(answer, replace(OFFER, ram_bytes=64 * 10**9), WANTS)
        assert found is None if why is None else why in (found or "")

    @pytest.mark.parametrize(
        ("offered", "seconds", "is_wrong"),
        [(800.0, 6.0, False), (800.0, 9.0, True), (8000.0, 3.0, False), (100.0, 40.0, False), (None, 100.0, True)],
    )
    def test_a_line_may_be_a_quarter_of_the_offer(self, offered: float | None, seconds: float, is_wrong: bool) -> None:
        answer = "\n".join(["line 50000000 1.0 2.0"] * 3 + [f"line 50000000 1.5 {seconds + 1}"])
        assert (wrong_with_line(answer, replace(OFFER, down_mbps=offered)) is not None) is is_wrong


class TestProvision:
    def until_done(self, box: Box) -> None:
        deadline = time.monotonic() + 60
        while not box.remote.provision(box.address, ["t2v"]) and time.monotonic() < deadline:
            time.sleep(0.05)

    def test_it_runs_once_with_the_wheel_and_is_then_ready(self, box: Box) -> None:
        (box.workspace / "answer").write_text("0")
        self.until_done(box)
        assert box.remote.provision(box.address, ["t2v"])
        setup = box.workspace / "wan-train-launch/setup"
        assert (setup / "wan_train-1.whl").read_text() == "a wheel"
        assert (setup / "log").read_text().count("preparing") == 1
        assert "wan_train-1.whl --task t2v" in (setup / "log").read_text()

    def test_a_failure_is_told_with_its_last_line_and_can_be_repeated(self, box: Box) -> None:
        (box.workspace / "answer").write_text("3")
        with pytest.raises(WrongBoxError, match="could not be prepared: preparing"):
            self.until_done(box)
        (box.workspace / "answer").write_text("0")
        self.until_done(box)
        assert box.remote.provision(box.address, ["t2v"])


class TestSend:
    def test_files_arrive_whatever_their_names(self, box: Box, tmp_path: Path) -> None:
        folder = tmp_path / "the cats"
        folder.mkdir()
        names = ["a b.png", "$(touch pwned).png", "-rf.png", "ö\n.png", "'\".png"]
        for name in names:
            (folder / name).write_text(name)
        (folder / "secret.pdf").write_text("not trained")
        root = PurePosixPath("/workspace/wan-train-launch/cats")
        shipment = Shipment(
            root=root, folders={"0": (folder, tuple(names))}, texts={"dataset.toml": "x = 1"}, bytes=1, stamp=""
        )
        box.remote.send(box.address, shipment)
        there = box.workspace / "wan-train-launch/cats"
        assert sorted(path.name for path in (there / "0").iterdir()) == sorted(names)
        assert (there / "dataset.toml").read_text() == "x = 1"
        assert not list(tmp_path.rglob("pwned*"))

    def test_a_copy_that_broke_in_the_middle_is_continued(self, box: Box, tmp_path: Path) -> None:
        folder = tmp_path / "cats"
        folder.mkdir()
        picture = random.Random(1).randbytes(4_000_000)
        (folder / "a.png").write_bytes(picture)
        (folder / "b.txt").write_text("a cat")
        shipment = Shipment(
            root=PurePosixPath("/workspace/x"), folders={"0": (folder, ("a.png", "b.txt"))}, texts={}, bytes=1, stamp=""
        )
        (box.root / "breaks").write_text("2000000")
        with pytest.raises(UnreachableError):
            box.remote.send(box.address, shipment)
        there = box.workspace / "x/0"
        assert not (there / "a.png").exists()
        [part] = there.rglob("a.png")
        assert 1_000_000 < part.stat().st_size < len(picture)
        box.remote.send(box.address, shipment)
        assert (there / "a.png").read_bytes() == picture
        assert (there / "b.txt").read_text() == "a cat"


class TestStart:
    def shipment(self, box: Box) -> Shipment:
        (box.workspace / "wan-train-launch/cats").mkdir(parents=True)
        return Shipment(root=PurePosixPath("/workspace/wan-train-launch/cats"), folders={}, texts={}, bytes=0, stamp="")

    def test_twice_ordered_trains_once(self, box: Box) -> None:
        box.wan_train(f'echo \'{{"event": "detached", "run_id": "{RUN}"}}\'')
        shipment = self.shipment(box)
        assert box.remote.start(box.address, JOB, shipment, WANTS) == RUN
        assert box.remote.start(box.address, JOB, shipment, WANTS) == RUN
        [words] = box.asked
        assert words.startswith(
            f"train --title my cats --dataset {box.workspace}/wan-train-launch/cats/dataset.toml --yes"
        )
        assert f"--then stop --grace {GRACE_MINUTES} --max-hours 6 --epochs 50" in words

    def test_where_a_box_cannot_end_itself_its_guardian_says_so_to_skypilot(self, box: Box) -> None:
        box.wan_train(f'echo \'{{"run_id": "{RUN}"}}\'')
        box.remote.start(box.address, JOB, self.shipment(box), replace(WANTS, infra="aws"))
        [words] = box.asked
        assert f"--then run:touch {box.workspace}/wan-train-launch/over --grace 60 --max-hours 6" in words

    @pytest.mark.parametrize(("code", "error"), [(2, JobError), (3, WrongBoxError), (1, RemoteError)])
    def test_a_refusal_is_judged_by_its_exit_code(self, box: Box, code: int, error: type[Exception]) -> None:
        box.wan_train(f"echo 'no such thing' >&2; exit {code}")
        with pytest.raises(error, match="no such thing"):
            box.remote.start(box.address, JOB, self.shipment(box), WANTS)

    def test_the_key_of_the_box_is_found_and_not_in_the_command(self, box: Box) -> None:
        box.wan_train(f'echo "$CONTAINER_ID" >{box.root}/id; echo \'{{"run_id": "{RUN}"}}\'')
        os.environ["CONTAINER_ID"] = "7"
        try:
            box.remote.start(box.address, JOB, self.shipment(box), WANTS)
        finally:
            del os.environ["CONTAINER_ID"]
        assert (box.root / "id").read_text() == "7\n"


class TestLinks:
    def test_a_picture_that_is_a_link_arrives_as_a_file(self, box: Box, tmp_path: Path) -> None:
        folder = tmp_path / "cats"
        folder.mkdir()
        (tmp_path / "elsewhere.png").write_text("a picture")
        (folder / "a.png").symlink_to(tmp_path / "elsewhere.png")
        shipment = Shipment(
            root=PurePosixPath("/workspace/x"), folders={"0": (folder, ("a.png",))}, texts={}, bytes=1, stamp=""
        )
        box.remote.send(box.address, shipment)
        there = box.workspace / "x/0/a.png"
        assert not there.is_symlink()
        assert there.read_text() == "a picture"

    def test_a_box_cannot_send_a_link_out_of_its_folder(self, box: Box, tmp_path: Path) -> None:
        run_with_states(box, 10)
        for name, target in (("absolute", "/etc/passwd"), ("up", "../../../secret"), ("within", "events.jsonl")):
            (box.run / name).symlink_to(target)
        home = tmp_path / "runs" / RUN
        box.remote.fetch(box.address, RUN, home)
        assert sorted(path.name for path in home.iterdir() if path.is_symlink()) == ["within"]


class TestHome:
    def test_states_and_records_come_home_and_what_is_half_written_does_not(self, box: Box, tmp_path: Path) -> None:
        run_with_states(box, 10)
        home = tmp_path / "runs" / RUN
        box.remote.fetch(box.address, RUN, home)
        assert (home / "high/1/output/WAN my cats-000010-state/model.safetensors").read_text() == "state 10"
        assert (home / "events.jsonl").read_text() == "saved 10\n"
        assert not (home / "lock").exists()
        assert not (home / ".coming").exists()
        assert not list(home.rglob("half-written*"))

    def test_a_state_counts_when_its_loras_are_here(
        self, box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run_with_states(box, 10)
        home = tmp_path / "runs" / RUN
        state = home / "high/1/output/WAN my cats-000010-state"
        (tmp_path / "breaks").mkdir()
        program = tmp_path / "breaks/rsync"
        rsync = shutil.which("rsync")
        for number, copies in enumerate((1, 1, 2)):
            # The connection breaks after so many copies. The first is of the records.
            counter = tmp_path / f"count-{number}"
            count = f"echo >>{counter}; [ $(wc -l <{counter}) -le {copies} ] || exit 12"
            program.write_text(f'#!/bin/sh\n[ "$1" = --server ] || {{ {count}; }}\nexec {rsync} "$@"\n')
            program.chmod(0o755)
            monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
            with pytest.raises(UnreachableError):
                box.remote.fetch(box.address, RUN, home)
            assert (home / "plan.json").is_file()
            assert state.is_dir() == (home / "high-000010.safetensors").is_file() == (copies == 2)
            (box.run / "high-000010.safetensors").write_text("a LoRA")

    def test_two_states_are_kept(self, box: Box, tmp_path: Path) -> None:
        home = tmp_path / "runs" / RUN
        for epoch in (10, 20, 30):
            run_with_states(box, epoch)
            box.remote.fetch(box.address, RUN, home)
        kept = sorted(path.name for path in (home / "high/1/output").iterdir())
        assert kept == ["WAN my cats-000020-state", "WAN my cats-000030-state"]

    def test_a_full_disk_here_is_not_the_boxs_fault(
        self, box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run_with_states(box, 10)
        (tmp_path / "full").mkdir()
        program = tmp_path / "full/rsync"
        program.write_text("#!/bin/sh\necho 'rsync: write failed: No space left on device (28)' >&2; exit 11\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}/full:{os.environ['PATH']}")
        with pytest.raises(OSError, match="No space left on device"):
            box.remote.fetch(box.address, RUN, tmp_path / "runs" / RUN)

    def test_a_state_that_was_removed_after_the_look_is_passed_over(self, box: Box, tmp_path: Path) -> None:
        run_with_states(box, 10)
        shutil.rmtree(box.run / "high/1/output/WAN my cats-000010-state")
        home = tmp_path / "runs" / RUN
        box.remote.fetch(box.address, RUN, home)
        assert (home / "events.jsonl").read_text() == "saved 10\n"
        assert not (home / "high/1/output/WAN my cats-000010-state").exists()

    def test_a_state_that_is_removed_while_it_is_copied_does_not_count(self, box: Box, tmp_path: Path) -> None:
        run_with_states(box, 10)
        state = box.run / "high/1/output/WAN my cats-000010-state"
        (state / "optimizer.bin").write_text("moments")
        quoted = f"'{state}'"
        box.program("rsync", f'rm -f {quoted}/optimizer.bin; {shutil.which("rsync")} "$@"; rm -r {quoted}; exit 0')
        home = tmp_path / "runs" / RUN
        box.remote.fetch(box.address, RUN, home)
        assert (home / "events.jsonl").read_text() == "saved 10\n"
        assert not list(home.rglob("*-state"))

    def test_results_are_compared(self, box: Box, tmp_path: Path) -> None:
        run_with_states(box, 10)
        (box.run / "high.safetensors").write_text("a LoRA")
        data = json.loads((box.root / "status.json").read_text())
        digest = hashlib.sha256(b"a LoRA").hexdigest()
        data["steps"][0]["result"] = {"path": str(box.run / "high.safetensors"), "sha256": digest}
        box.says(data)
        home = tmp_path / "runs" / RUN
        box.remote.bring(box.address, RUN, home)
        assert (home / "high.safetensors").read_text() == "a LoRA"
        data["steps"][0]["result"]["sha256"] = "0" * 64
        box.says(data)
        with pytest.raises(RemoteError, match=r"high\.safetensors did not arrive whole"):
            box.remote.bring(box.address, RUN, home)

    def test_a_run_goes_on_on_another_box(self, box: Box, tmp_path: Path) -> None:
        run_with_states(box, 10)
        home = tmp_path / "runs" / RUN
        box.remote.fetch(box.address, RUN, home)
        shutil.rmtree(box.run)
        box.wan_train(f'echo \'{{"run_id": "{RUN}"}}\'')
        assert box.remote.resume(box.address, home, WANTS) == RUN
        assert (box.run / "high/1/output/WAN my cats-000010-state/model.safetensors").is_file()
        assert (box.run / "plan.json").is_file()
        assert box.asked[-1].startswith(f"resume {RUN} --detach --json --then stop")

    def test_a_run_that_goes_on_already_is_not_resumed_again(self, box: Box, tmp_path: Path) -> None:
        run_with_states(box, 10)
        home = tmp_path / "runs" / RUN
        box.remote.fetch(box.address, RUN, home)
        assert box.remote.resume(box.address, home, WANTS) == RUN
        assert not any(words.startswith("resume") for words in box.asked)

    def test_the_end_of_the_box_is_no_duty_at_home(self, box: Box, tmp_path: Path) -> None:
        run_with_states(box, 5)
        theirs = Duties(began=moment(SystemClock()), uploads=("hf:me/cats",), then=Then.COMMAND, command=("poweroff",))
        write_duties(RunDirectory(box.run), theirs)
        (box.run / "guard.json").write_text("{}")
        home = tmp_path / RUN
        box.remote.fetch(box.address, RUN, home)
        assert read_duties(RunDirectory(home)) == replace(theirs, then=Then.NOTHING, command=())
        assert not (home / "guard.json").exists()

    def test_duties_that_cannot_be_read_do_not_stay(self, box: Box, tmp_path: Path) -> None:
        run_with_states(box, 5)
        (box.run / "duties.json").write_text("no JSON")
        box.remote.fetch(box.address, RUN, tmp_path / RUN)
        assert not (tmp_path / RUN / "duties.json").exists()


class TestAnswers:
    def test_a_path_outside_its_run_is_not_fetched(self) -> None:
        there = PurePosixPath("/workspace/wan-train-runs/x")
        for path in ("/etc", "/workspace/wan-train-runs/x/../y", "/workspace/wan-train-runs/x", "relative"):
            data = {"run_id": "x", "state": "running", "steps": [{"newest_state": {"epoch": 1, "path": path}}]}
            assert read_training(data, there).states == ()
        data = {"run_id": "x", "steps": [{"result": {"path": "/workspace/../../etc/passwd", "sha256": "0"}}]}
        assert read_training(data, there).results == (("passwd", "0"),)

    @pytest.mark.parametrize("data", [{}, {"steps": None}, {"steps": [1, {"progress": 3, "newest_state": 5}]}])
    def test_nonsense_is_read(self, data: dict[str, object]) -> None:
        assert read_training(data, PurePosixPath("/workspace/wan-train-runs/x")).states == ()

    @pytest.mark.parametrize("host", ["-oProxyCommand=x", "a b", "", "x;y"])
    def test_a_host_that_is_none(self, tmp_path: Path, host: str) -> None:
        ssh = Ssh(
            address=Address(name="wt-1", host=host, port=22, user="root", key=tmp_path), known_hosts=tmp_path / "known"
        )
        with pytest.raises(RemoteError, match="invalid address of a box"):
            ssh.run("true", seconds=5)
