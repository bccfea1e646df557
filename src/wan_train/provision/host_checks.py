"""Checks for likely problems: container limits, file systems, leftovers. They only report; provision fixes none."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote

import wan_train
from wan_train import __version__
from wan_train.base.errors import WanTrainError
from wan_train.base.files import can_be_written, existing_parent
from wan_train.base.host import cpus, process_limit
from wan_train.base.huggingface import variable_problem
from wan_train.base.settings import Settings, Source, is_readable_by_others, user_config_file
from wan_train.base.text import one_line
from wan_train.base.units import GB, MIB
from wan_train.box.vast import ID_VARIABLE, KEY_VARIABLE, Vast, VastError
from wan_train.engine.tokenizer import hub_cache
from wan_train.notify.targets import read_targets
from wan_train.provision.boot import is_vast
from wan_train.provision.driver_checks import Gpus
from wan_train.provision.steps import Finding, State, Step, blocked, ready, warning
from wan_train.run.directory import all_runs
from wan_train.run.duties import registered
from wan_train.run.follow import read_run
from wan_train.run.guardian_process import is_guarded
from wan_train.run.state import RunState

_LEAST_CPUS = 2
_LEAST_SHM = 512 * MIB
"""Each data loader worker keeps two batches there, tens of MB each for videos. Docker's default is 64 MiB."""
_LEAST_CACHE = GB
_THREADS_PER_CPU = 4
"""Thread pools of torch, OpenMP, OpenCV and the loaders, each sized by the host's CPUs."""
_START_SECONDS = 60.0
"""A supervisor takes its run over within this time, or never."""
_VAST_SECONDS = 5.0
_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "glusterfs", "lustre", "beegfs", "gpfs", "virtiofs"})


@dataclass(frozen=True, slots=True, kw_only=True)
class HostChecks:
    """The checks. The folders are Linux's standard ones; tests pass their own."""

    settings: Settings
    gpus: Gpus
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    cgroup: Path = Path("/sys/fs/cgroup")
    proc: Path = Path("/proc")
    shm: Path = Path("/dev/shm")  # noqa: S108  the place itself is checked
    host_cpus: int = os.cpu_count() or 1
    now: Callable[[], float] = time.time

    def of_machine(self) -> list[Step]:
        return [
            Step("cpus", "CPUs", self.share),
            Step("processes", "Processes", self.processes),
            Step("shm", "Shared memory", self.shared_memory),
            Step("filesystem", "File system", self.file_system),
            Step("clock", "Clock", self.clock),
        ]

    def of_gpus(self) -> list[Step]:
        if not self.gpus.present():
            return []
        return [Step("pids", "GPU processes", self.pids)]

    def of_hub(self) -> list[Step]:
        return [Step("hub-cache", "Hugging Face", self.hub)]

    def of_program(self) -> list[Step]:
        return [
            Step("wan-train", "Version", self.version),
            Step("runs", "Runs", self.unfinished_runs),
            Step("leases", "GPU leases", self.leases),
            Step("notify", "Notifications", self.notifications),
            Step("ending", "End of the box", self.ending),
        ]

    def share(self) -> Finding:
        mine = cpus(self.cgroup)
        detail = f"{mine:g} of the host's {self.host_cpus}; this sets the workers and threads"
        if mine >= _LEAST_CPUS:
            return ready(detail)
        return warning(
            f"{mine:g} of the host's {self.host_cpus}: pictures are read more slowly than a GPU trains",
            "Rent a box with 4 CPUs or more for each GPU.",
        )

    def processes(self) -> Finding:
        found = process_limit(self.cgroup)
        if found is None:
            return ready("no limit on processes and threads")
        limit, now = found
        detail = f"{now:,} processes and threads of at most {limit:,}"
        if limit - now >= _THREADS_PER_CPU * self.host_cpus:
            return ready(detail)
        threads = max(1, int(cpus(self.cgroup)))
        return warning(
            f"{detail}; libraries start threads by the host's {self.host_cpus} CPUs and may reach it",
            f"`export OMP_NUM_THREADS={threads} OPENBLAS_NUM_THREADS={threads}` before you train.",
        )

    def shared_memory(self) -> Finding:
        size = shutil.disk_usage(self.shm).total if self.shm.is_dir() else 0
        detail = f"{size / MIB:,.0f} MiB for the data loaders (/dev/shm)"
        if size >= _LEAST_SHM:
            return ready(detail)
        return warning(
            f"{detail}: large batches end with `Bus error`",
            "Start the container with `--shm-size 8g`; or train with "
            "`wan-train -- --max_data_loader_n_workers 0`, which is slower.",
        )

    def file_system(self) -> Finding:
        place = existing_parent(self.settings.workspace)
        kind = file_system_of(place.resolve(), self.proc)
        if kind is None:
            return Finding(State.UNTESTED, f"{place}: unknown file system type")
        if kind in _NETWORK or kind.startswith("fuse"):
            return warning(
                f"{place} is on {kind}, a network file system: models load slowly, and a lost connection fails a run",
                "Keep models and runs on the box's own disk: `export WAN_TRAIN_WORKSPACE=DIR`.",
            )
        if kind in {"tmpfs", "ramfs"}:
            return warning(
                f"{place} is on {kind}: it takes RAM and is lost at a restart",
                "Use a directory on a disk: `export WAN_TRAIN_WORKSPACE=DIR`.",
            )
        if kind == "overlay":
            return ready(f"{place} is on the container's own disk: it survives a stop, but not a destroy")
        return ready(f"{place} is on {kind}")

    def clock(self) -> Finding:
        """Warn if the clock is over a day behind wan-train's installation: certificates would be invalid."""
        now = self.now()
        installed = Path(wan_train.__file__).stat().st_mtime
        today = time.strftime("%Y-%m-%d %H:%M", time.localtime(now))
        if now >= installed - 86_400:
            return ready(today)
        return warning(
            f"the clock says {today}, but wan-train was installed later: secure connections will fail",
            "Set it: `date -s 'YYYY-MM-DD HH:MM'` as root, or restart the machine.",
        )

    def pids(self) -> Finding:
        listed = {pid for gpu in self.gpus.present() for pid in gpu.pids or ()}
        hidden = sorted(pid for pid in listed if not (self.proc / str(pid)).exists())
        if not hidden:
            detail = f"{len(listed)}, all visible here" if listed else "none"
            return ready(detail)
        numbers = ", ".join(map(str, hidden[:5]))
        return warning(
            f"the driver lists {numbers}: these are PIDs of the host, so their programs cannot be named in "
            "this container",
            "No action needed: wan-train uses the GPU's memory and its leases. `nvidia-smi` is misleading here.",
        )

    def hub(self) -> Finding:
        cache = hub_cache(self.environ)
        place = existing_parent(cache)
        free = shutil.disk_usage(place).free
        if self.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
            return warning(
                "HF_HUB_OFFLINE is set: training is fine, nothing can be downloaded",
                "Before `wan-train provision`: `unset HF_HUB_OFFLINE`.",
            )
        unusable = variable_problem(self.environ)
        if unusable is not None:
            return warning(f"nothing can be downloaded: {unusable.reason}", unusable.hint)
        if free < _LEAST_CACHE:
            return warning(
                f"{cache} has {free / GB:.2f} GB free; the tokenizer and temporary files go there",
                f"`export HF_HOME={quote(str(self.settings.workspace / 'huggingface'))}`, also in ~/.bashrc.",
            )
        return ready(f"{cache}, {free / GB:.1f} GB free")

    def version(self) -> Finding:
        python = ".".join(map(str, sys.version_info[:3]))
        return ready(f"wan-train {__version__}, Python {python}")

    def unfinished_runs(self) -> Finding:
        """Unfinished runs without a supervisor, and their trainers that still run."""
        lost, orphans, damaged = [], [], []
        for run in all_runs(self.settings.runs):
            try:
                plan, state = read_run(run)
            except (WanTrainError, OSError):
                damaged.append(run.run_id)
                continue
            if state.is_over or _is_looked_after(state, plan.created, self.now()):
                continue
            lost.append(run.run_id)
            attempts = [job.attempt for job in state.jobs.values() if job.attempt is not None and job.state.has_process]
            orphans += [attempt.identity.pid for attempt in attempts if attempt.identity.is_alive()]
        if lost:
            names = ", ".join(map(one_line, lost[:3])) + (f" and {len(lost) - 3} more" if lost[3:] else "")
            alone = f"; {len(orphans)} trainer(s) still running" if orphans else ""
            return warning(
                f"unfinished, without a supervisor: {names}{alone}",
                "`wan-train resume --all` resumes them; `wan-train stop RUN` ends one.",
            )
        if damaged:
            return warning(
                f"cannot be read: {', '.join(map(one_line, damaged[:3]))}", "`wan-train status RUN` says why."
            )
        return ready(f"none unfinished in {self.settings.runs}")

    def leases(self) -> Finding:
        folder = self.settings.lease_dir
        if can_be_written(folder):
            return ready(str(folder))
        return blocked(
            f"{folder} cannot be written",
            "Fix its permissions, or `export WAN_TRAIN_LEASE_DIR=DIR`; everyone on the box must use the same.",
        )

    def notifications(self) -> Finding:
        targets = read_targets(self.settings.notify)
        if not targets:
            return ready("none: `wan-train --notify URL` sends them")
        names = ", ".join(target.name for target in targets)
        if self.settings.source_of("notify") is Source.FILE and is_readable_by_others():
            return warning(
                f"{names}; other users can read the addresses, which hold secrets",
                f"`chmod 600 {quote(str(user_config_file()))}`",
            )
        return Finding(State.UNTESTED, names, hint="Send a message: `wan-train notify test`.")

    def ending(self) -> Finding:
        """Whether `--then` can work here. Asks Vast, but stops nothing."""
        listed = registered(self.settings.lease_dir)
        if listed and not is_guarded(self.settings.lease_dir):
            return warning(
                f"the guardian is not running, but it still has work for "
                f"{', '.join(one_line(run.run_id) for run in listed[:3])}",
                "Any command starts it again: `wan-train status`.",
            )
        vast = Vast.of_this_box(self.environ, self.settings.vast_url)
        if vast is None and is_vast(self.environ):
            return warning(
                f"`--then stop` cannot work: this shell has no {ID_VARIABLE} and {KEY_VARIABLE}",
                "`source /etc/environment`",
            )
        if vast is None:
            return ready("not on Vast: `--then 'run:COMMAND'` ends the box by your command")
        try:
            vast.check(seconds=_VAST_SECONDS)
        except VastError as error:
            return warning(f"`--then stop` would fail now: {error}", "Try again, or give the box a new key.")
        return ready(f"`--then stop`: Vast knows this box as {vast.instance}; nothing was stopped")


def _is_looked_after(state: RunState, created: float, now: float) -> bool:
    if state.supervisor is None:
        return now - created < _START_SECONDS
    return state.supervisor.is_alive()


def file_system_of(place: Path, proc: Path) -> str | None:
    """The type of the file system that holds `place`, by the kernel's list; None if that cannot be read."""
    best: tuple[int, str] | None = None
    try:
        lines = (proc / "self/mounts").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    for line in lines:
        words = line.split(" ")
        if len(words) < 3:  # device, mount point and type come first (proc_mounts(5))
            continue
        mounted = Path(words[1].replace("\\040", " "))
        depth = len(mounted.parts)
        if place.is_relative_to(mounted) and (best is None or depth >= best[0]):
            best = (depth, words[2])
    return best[1] if best is not None else None
