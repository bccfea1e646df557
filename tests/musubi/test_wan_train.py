"""`wan-train` itself with the real trainer: a folder of captioned pictures in, two verified LoRAs out."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from musubi.trainer import CACHE_LATENTS, SITECUSTOMIZE, SIZES, VAE, Trainer, draw_picture, text_of
from support.nvml import GIB, NvmlStub, StubGpu
from wan_train.engine.checkpoints import ALWAYS_IN_A_STATE, complete_states
from wan_train.engine.log_parser import OutputParser, StepRecord
from wan_train.engine.tensors import first_non_finite, read_header
from wan_train.recipe.load import shipped_path
from wan_train.run.directory import RunDirectory
from wan_train.run.events import JournalReader
from wan_train.run.samples import samples_of
from wan_train.run.state import fold_all

# A GPU for which nothing has to be swapped: block swap needs CUDA.
GPU = StubGpu(name="NVIDIA H100 80GB HBM3", total=80 * GIB, compute_capability=(9, 0))
TASKS = ("t2v", "i2v")
EPOCHS = 4
ENDLESS = 10_000
"""Epochs of a training that a test ends itself."""
LEARNING_RATE = 3e-4
FLOOR = 1e-7
"""Where the trainer's polynomial schedule ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A rented box: the guide's workspace, captioned pictures, and an empty place for runs."""

    workspace: Path
    pictures: Path
    runs: Path
    env: dict[str, str]

    def command(self, *words: str) -> list[str]:
        verb, *rest = words
        return [str(Path(sys.executable).parent / "wan-train"), verb, "--runs-dir", str(self.runs), *rest]

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words),
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def train(self, *words: str, epochs: int = EPOCHS) -> list[str]:
        """The words of a training on these pictures that a CPU can bear."""
        return [
            "train", "--workspace", str(self.workspace), "--title", "t", "--author", "a",
            "--dataset", str(self.pictures), "--epochs", str(epochs), "--resolution", "64x64",
            "--attention", "sdpa", "--no-fp8", "--blocks-to-swap", "0", "--yes", "--json", *words,
        ]  # fmt: skip

    def run(self) -> Path:
        """The directory of the only run."""
        [run] = [folder for folder in self.runs.iterdir() if (folder / "plan.json").is_file()]
        return run

    def processes(self) -> list[psutil.Process]:
        """Every live process that has to do with the run: supervisor, wardens, launchers, trainers."""
        found = []
        for process in psutil.process_iter():
            try:
                words = " ".join(process.cmdline())
                if str(self.runs) in words and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def events(self, kind: str) -> list[dict[str, object]]:
        lines = (self.run() / "events.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        events = [json.loads(line) for line in lines if line.endswith("\n")]
        return [event for event in events if event["kind"] == kind]

    def steps(self, kind: str) -> set[object]:
        return {event["step"] for event in self.events(kind)}


@pytest.fixture
def box(trainer: Trainer, nvml_stub: NvmlStub, tmp_path: Path) -> Iterator[Box]:
    nvml_stub.write([GPU, GPU])
    checkout = tmp_path / "workspace" / "musubi-tuner"
    checkout.mkdir(parents=True)
    for entry in trainer.repo.iterdir():
        (checkout / entry.name).symlink_to(entry)
    (checkout / "venv").symlink_to(trainer.home / "venv")
    (checkout / "models").symlink_to(trainer.models)

    pictures = tmp_path / "my pictures"
    pictures.mkdir()
    for number, size in enumerate(SIZES):
        draw_picture(pictures / f"p{number}.png", size, seed=number)
        (pictures / f"p{number}.txt").write_text(f"a drawing, number {number}", encoding="utf-8")

    home = tmp_path / "home"
    home.mkdir()
    # This process's own environment, less what would lead wan-train or the trainer elsewhere.
    elsewhere = ("WAN_TRAIN_", "CUDA_", "HF_", "XDG_", "PYTEST_", "ACCELERATE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(elsewhere)}
    box = Box(
        workspace=checkout.parent,
        pictures=pictures,
        runs=tmp_path / "runs",
        env={
            **kept,
            **nvml_stub.env(),
            "HOME": str(home),
            "HF_HOME": str(trainer.hf_home),
            "PYTHONPATH": str(SITECUSTOMIZE),
            "WAN_TRAIN_LEASE_DIR": str(home / "leases"),
        },
    )
    yield box
    for process in box.processes():  # a failed test leaves nothing running
        with suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.mark.parametrize("task", TASKS)
def test_pictures_become_two_verified_loras(box: Box, task: str) -> None:
    done = box.call(*box.train("--task", task, "--save-every", "2", "--engine", "musubi"))

    assert done.returncode == 0, text_of(done)
    for line in done.stdout.splitlines():
        json.loads(line)
    run = box.run()
    prefix = {"t2v": "WAN2.2-", "i2v": "WAN2.2-I2V_"}[task]
    boundary = {"t2v": 875, "i2v": 900}[task]
    timesteps = {f"{prefix}HighNoise_t": f"{boundary},1000", f"{prefix}LowNoise_t": f"0,{boundary}"}
    for name, timestep_range in timesteps.items():
        lora = run / f"{name}.safetensors"
        header = read_header(lora)
        assert first_non_finite(lora, header) is None
        # 4 blocks of 10 modules with lora_down, lora_up and alpha each.
        assert len(header.tensors) == 4 * 10 * 3
        assert header.metadata["modelspec.title"] == name
        assert header.metadata["modelspec.author"] == "a"
        assert header.metadata["modelspec.timestep_range"] == timestep_range
        assert header.metadata["ss_epoch"] == str(EPOCHS)
        assert header.metadata["ss_num_train_items"] == str(len(SIZES))
        # What the user asked to keep on the way.
        read_header(run / f"{name}-000002.safetensors")
    assert [losses_finite(log) for log in training_logs(run)] == [True, True]
    eventually(lambda: not box.processes())


def test_a_script_of_the_plan_trains_without_wan_train(box: Box, tmp_path: Path) -> None:
    script = tmp_path / "it's a script" / "train.sh"
    script.parent.mkdir()
    done = box.call(*box.train("--dry-run", "--script", str(script), epochs=1))
    assert done.returncode == 0, text_of(done)
    ran = subprocess.run(["sh", str(script)], env=box.env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, text_of(ran)
    for expert in ("high", "low"):
        lora = script.with_name("train-files") / f"train-{expert}/1/output/WAN2.2-{expert.title()}Noise_t.safetensors"
        header = read_header(lora)
        assert first_non_finite(lora, header) is None
        assert header.metadata["ss_num_train_items"] == str(len(SIZES))
    assert not box.runs.exists()


def test_control_pictures_and_lists_are_trained_without_what_ends_the_trainer(
    trainer: Trainer, box: Box, tmp_path: Path
) -> None:
    """The user's own files end the caching programs, the run's copies do not."""
    pictures, control = tmp_path / "img", tmp_path / "ctl"
    listed = tmp_path / "listed"
    for folder, names in ((pictures, ("cat", "cat_blue", "dog")), (control, ("cat", "cat_blue")), (listed, ("a", "b"))):
        folder.mkdir()
        for number, name in enumerate(names):
            draw_picture(folder / f"{name}.png", SIZES[number], seed=number)
            (folder / f"{name}.txt").write_text(f"a drawing of {name}", encoding="utf-8")
    targets, prefix = tmp_path / "targets", tmp_path / "prefix"
    targets.mkdir()
    shutil.copytree(pictures, prefix, ignore=shutil.ignore_patterns("dog.*"))
    for name in ("cat", "dog"):
        draw_picture(targets / f"{name}.png", SIZES[0], seed=9)
    (targets / "cat.txt").write_text("a cat", encoding="utf-8")
    general = '[general]\nresolution = [64, 64]\ncaption_extension = ".txt"\nenable_bucket = true\n'
    folders = f'[[datasets]]\nimage_directory = "{pictures}"\ncache_directory = "{tmp_path}/c0"\n'
    with_control = f'control_directory = "{control}"\n'
    lists = '[[datasets]]\nimage_jsonl_file = "{0}"\ncache_directory = "{1}/{2}"\n'

    def list_of(name: str, *records: dict[str, str], between: str = "", before: str = "") -> str:
        lines = before + between.join(f"{json.dumps(record)}\n" for record in records)
        (tmp_path / name).write_text(lines, encoding="utf-8")
        return lists.format(tmp_path / name, tmp_path, f"cache of {name}")

    good = [{"image_path": str(listed / f"{name}.png"), "caption": f"a drawing of {name}"} for name in "ab"]
    first_of_several = [{"image_path_0": each["image_path"], "caption": each["caption"]} for each in good]
    cases = {
        "folder": (folders, True),
        "missing control picture": (folders + with_control, False),
        "name that begins with another": (
            folders.replace("/img", "/prefix").replace("/c0", "/c2") + with_control,
            trainer.version != "d0a1930",
        ),
        "targets without a caption": (
            folders.replace("/img", "/targets").replace("/c0", "/c1") + "multiple_target = true\n",
            False,
        ),
        "list": (list_of("good.jsonl", *good), True),
        "control picture of one": (
            list_of("ctl.jsonl", {**good[0], "control_path": good[0]["image_path"]}, good[1]),
            False,
        ),
        "image_path_0": (list_of("first.jsonl", *first_of_several), trainer.version != "d0a1930"),
        "blank line": (list_of("blank.jsonl", *good, between="\n"), False),
        "byte order mark": (list_of("bom.jsonl", *good, before="\ufeff"), False),
        "relative path": (list_of("rel.jsonl", {"image_path": "listed/a.png", "caption": "a"}), False),
    }
    options = []
    for number, (text, _) in enumerate(cases.values()):
        config = tmp_path / f"case{number}.toml"
        config.write_text(general + text, encoding="utf-8")
        options.append(["--dataset_config", str(config), "--vae", str(trainer.models / VAE)])
    ends = trainer.each(CACHE_LATENTS, options)
    found = {name: code == 0 for name, (code, _) in zip(cases, ends, strict=True)}
    assert found == {name: goes_on for name, (_, goes_on) in cases.items()}, ends

    records = [
        {"image_path_0": "listed/a.png", "image_path_1": "/nowhere.png", "caption": "a drawing of a"},
        {**good[1], "control_path": "/nowhere.png"},
    ]
    whole = tmp_path / "whole.toml"
    whole.write_text(
        general + folders + with_control + "multiple_target = true\nfp_1f_clean_indices = [0, 1]\n"
        + list_of("all.jsonl", *records, between="\n", before="\ufeff"),
        encoding="utf-8",
    )  # fmt: skip
    done = box.call(*replace(box, pictures=whole).train("--experts", "high", epochs=1))
    assert done.returncode == 0, text_of(done)
    metadata = read_header(box.run() / "WAN2.2-HighNoise_t.safetensors").metadata
    assert metadata["ss_num_train_items"] == "5"
    for cache in (tmp_path / "c0", tmp_path / "cache of all.jsonl"):
        for path in cache.glob("*_wan.safetensors"):
            assert not any("control" in name for name in read_header(path).tensors)
    eventually(lambda: not box.processes())


def test_stop_now_ends_launcher_trainer_and_loaders_and_leaves_complete_states(box: Box) -> None:
    with watching(box, box.train(epochs=ENDLESS)) as watcher:
        eventually(lambda: box.steps("state_saved") == {"train-high", "train-low"}, watcher)

        stopped = box.call("stop", "--now")

        assert stopped.returncode == 0, text_of(stopped)
        eventually(lambda: not box.processes())
        assert watcher.wait() != 0
    for expert in ("high", "low"):
        output = box.run() / f"train-{expert}" / "1" / "output"
        assert complete_states(output, f"WAN2.2-{expert.title()}Noise_t", ALWAYS_IN_A_STATE)
    assert list(box.run().glob("WAN2.2-*Noise_t.safetensors")) == []


def test_killed_twice_it_ends_at_the_exact_epoch_on_the_one_curve(trainer: Trainer, box: Box) -> None:
    """First the trainer of one expert, then every process as when a machine goes down; 41 epochs, a state every 3."""
    epochs, cadence = 41, 3
    with watching(box, box.train("--save-every", str(cadence), epochs=epochs)) as watcher:
        eventually(lambda: saved(box, "train-high", attempt=1), watcher)
        for process in box.processes():
            with suppress(psutil.NoSuchProcess):  # data loaders come and go
                words = process.cmdline()
                # The trainer and its data loaders, not the launcher nor wan-train's own processes around it.
                if any("train-high" in word for word in words) and words[1].endswith("wan_train_network.py"):
                    process.kill()
        eventually(lambda: saved(box, "train-high", attempt=2), watcher)
        while left := box.processes():
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        assert watcher.wait() < 0
    assert box.events("run_finished") == []

    resumed = box.call("resume", "--all")
    assert resumed.returncode == 0, text_of(resumed)
    done = box.call("attach")
    assert done.returncode == 0, text_of(done)

    starts = [event for event in box.events("step_started") if event["step"] == "train-high"]
    before = [int(str(event["epochs_before"])) for event in starts]
    assert len(before) == 3
    assert all(epoch % cadence == 0 for epoch in before)
    assert before[0] == 0 < before[1] < before[2] < epochs
    rates: dict[int, float] = {}
    for attempt, epochs_before in enumerate(before, start=1):
        logs = box.run() / "train-high" / str(attempt) / "logs"
        for step, rate in trainer.ask("dump_scalars.py", str(logs))["lr/unet"]:
            position = epochs_before * len(SIZES) + int(step)
            # A step that was trained twice had the same rate both times.
            assert rates.setdefault(position, rate) == pytest.approx(rate)
    wanted = {step: rate_after(step, epochs * len(SIZES)) for step in range(1, epochs * len(SIZES) + 1)}
    assert {step: rate for step, rate in rates.items() if step in wanted} == pytest.approx(wanted)
    # The trainer counts each attempt's epochs from one; its schedule ends where the whole training ends.
    [state] = (box.run() / "train-high" / "3" / "output").glob("*-state")
    schedule = trainer.ask("dump_schedule.py", str(state))
    assert schedule["steps"] == epochs * len(SIZES)
    assert schedule["rate"] == pytest.approx(FLOOR)
    for expert in ("High", "Low"):
        name = f"WAN2.2-{expert}Noise_t"
        kept = {f"{name}-{epoch:06d}": epoch for epoch in range(cadence, epochs, cadence)}
        assert {path.stem for path in box.run().glob(f"{name}*.safetensors")} == {name, *kept}
        for stem, epoch in {name: epochs, **kept}.items():
            metadata = read_header(box.run() / f"{stem}.safetensors").metadata
            assert metadata["ss_epoch"] == str(epoch)
            assert metadata["ss_steps"] == str(epoch * len(SIZES))
            assert metadata["ss_output_name"] == metadata["modelspec.title"] == name
    eventually(lambda: not box.processes())


def test_samples_over_a_killed_training_have_their_true_epochs(box: Box, tmp_path: Path) -> None:
    epochs, every = 12, 3
    (tmp_path / "prompts.txt").write_text("I stand here --w 32 --h 32 --s 2\na clip --w 32 --h 32 --f 5 --s 2\n")
    # The shrunken DiT is in float32, for which no mixed precision is chosen; samples need one.
    shipped = shipped_path("t2v-a14b").read_text(encoding="utf-8")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'passthrough = ["--mixed_precision", "bf16"]\n{shipped}', encoding="utf-8")
    words = ("--recipe", str(recipe), "--experts", "high", "--save-every", "2")
    words += ("--sample-prompts", str(tmp_path / "prompts.txt"), "--sample-every", str(every))
    with watching(box, box.train(*words, epochs=epochs)) as watcher:
        eventually(lambda: saved(box, "train-high", attempt=1), watcher)
        for process in box.processes():
            with suppress(psutil.NoSuchProcess):
                if process.cmdline()[1].endswith("wan_train_network.py"):
                    process.kill()
        assert watcher.wait() == 0
    run = RunDirectory(box.run())
    plan = run.read_plan()
    samples = samples_of(run, plan, fold_all(plan, JournalReader(run.events).new_events()))
    first, second = (event for event in box.events("step_started") if event["step"] == "train-high")
    before = int(str(second["epochs_before"]))
    assert 0 == first["epochs_before"] < before
    wanted = [*range(every, before + 1, every), *range(before + every, epochs + 1, every)]
    assert [(sample.epoch, sample.prompt_index, sample.kind.value) for sample in samples] == [
        (epoch, *facts) for epoch in wanted for facts in ((0, "picture"), (1, "clip"))
    ]
    assert {sample.seed for sample in samples} == {5}
    eventually(lambda: not box.processes())


SCHEDULE_FREE = (
    "schedulefree.AdamWScheduleFree",
    "schedulefree.RAdamScheduleFree",
    "prodigyplus.ProdigyPlusScheduleFree",
)


@pytest.mark.parametrize("optimizer", SCHEDULE_FREE)
def test_a_killed_training_without_a_schedule_is_resumed_from_its_newest_state(
    trainer: Trainer, box: Box, optimizer: str
) -> None:
    """Accelerate writes no scheduler.bin for them; d0a1930 cannot train with any of them."""
    epochs = 30
    words = box.train("--experts", "high", "--save-every", "1", "--", "--optimizer_type", optimizer, epochs=epochs)
    if trainer.version == "d0a1930":
        refused = box.call(*words)
        assert refused.returncode == 2, text_of(refused)
        assert optimizer in text_of(refused)
        assert not box.runs.exists() or not list(box.runs.iterdir())
        return
    with watching(box, words) as watcher:
        eventually(lambda: saved(box, "train-high", attempt=1), watcher)
        for process in box.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
    newest = max(int(str(event["epoch"])) for event in box.events("state_saved"))
    done = box.call("resume")
    assert done.returncode == 0, text_of(done)
    second = box.events("step_started")[-1]
    assert int(str(second["epochs_before"])) >= newest
    assert second["total_epochs"] == epochs
    lora = box.run() / "WAN2.2-HighNoise_t.safetensors"
    header = read_header(lora)
    assert first_non_finite(lora, header) is None
    assert header.metadata["ss_epoch"] == str(epochs)
    eventually(lambda: not box.processes())


def saved(box: Box, step: str, *, attempt: int) -> bool:
    """This attempt has saved a state."""
    return any((event["step"], event["attempt"]) == (step, attempt) for event in box.events("state_saved"))


def rate_after(step: int, steps: int) -> float:
    """The shipped recipe's learning rate after a step: transformers' polynomial schedule, power 8, from 3e-4."""
    return (LEARNING_RATE - FLOOR) * (1 - step / steps) ** 8 + FLOOR


def watching(box: Box, words: list[str]) -> subprocess.Popen[bytes]:
    """wan-train in the foreground, started and not waited for."""
    return subprocess.Popen(box.command(*words), env=box.env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def eventually(holds: Callable[[], bool], watcher: subprocess.Popen[bytes] | None = None) -> None:
    """Wait until it holds, however long that takes; `watcher` must not end before."""
    while True:
        try:
            if holds():
                return
        except (FileNotFoundError, ValueError):  # no run directory, or no events in it yet
            pass
        assert watcher is None or watcher.poll() is None, f"wan-train ended early with {watcher.returncode}"
        time.sleep(0.2)


def training_logs(run: Path) -> list[Path]:
    return [log for log in sorted(run.rglob("output.log")) if b"running training" in log.read_bytes()]


def losses_finite(log: Path) -> bool:
    parser = OutputParser()
    records = [*parser.feed(log.read_bytes()), *parser.finish()]
    losses = [record.loss for record in records if isinstance(record, StepRecord) and record.loss is not None]
    return len(losses) > EPOCHS * len(SIZES) and all(math.isfinite(loss) for loss in losses)
