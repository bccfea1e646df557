"""Raise or lower a stub GPU's memory while everything runs; standard library only, for any fake trainer.

    python tests/support/nvml_memory.py --state FILE --gpu UUID --used BYTES
    python tests/support/nvml_memory.py --state FILE --gpu UUID --hold PID --bytes BYTES [--listed]

`--hold` is how a process takes memory: the stub counts it for as long as that process lives, so a killed
trainer gives it back as a real one does. `--listed` also shows its pid among the GPU's processes, which a
container often does not.
"""

from __future__ import annotations

import argparse
import fcntl
from collections.abc import Callable
from pathlib import Path


def set_used(state: Path, uuid: str, used: int) -> None:
    """Set the memory in use, apart from what processes hold."""

    def edit(section: list[str]) -> list[str]:
        return [*(line for line in section if not line.startswith("used ")), f"used {used}"]

    _edit_gpu(state, uuid, edit)


def hold(state: Path, uuid: str, pid: int, count: int, *, listed: bool = False) -> None:
    """Let process `pid` hold `count` bytes instead of what it held on this GPU before."""

    def edit(section: list[str]) -> list[str]:
        others = [line for line in section if not line.startswith(f"hold {pid} ")]
        return [*others, f"hold {pid} {count} {int(listed)}"] if count else others

    _edit_gpu(state, uuid, edit)


def lose(state: Path, uuid: str) -> None:
    """Let the GPU fall off the bus: NVML_ERROR_GPU_IS_LOST from now on."""

    def edit(section: list[str]) -> list[str]:
        return [*(line for line in section if not line.startswith("error ")), "error 15"]

    _edit_gpu(state, uuid, edit)


def replace(state: Path, edit: Callable[[str], str]) -> None:
    """Replace the state file atomically, one writer at a time. Readers see the old one or the new one."""
    with Path(f"{state}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        text = edit(state.read_text() if state.exists() else "")
        made = Path(f"{state}.new")  # without tempfile, since importing it would slow down every program of every run
        made.write_text(text)
        made.replace(state)


def _edit_gpu(state: Path, uuid: str, edit: Callable[[list[str]], list[str]]) -> None:
    def edit_text(text: str) -> str:
        head, *sections = text.split("\ngpu\n")
        found = False
        for index, section in enumerate(sections):
            lines = section.splitlines()
            if f"uuid {uuid}" in lines:
                sections[index] = "\n".join(edit(lines))
                found = True
        if not found:
            raise KeyError(uuid)
        return "\ngpu\n".join([head.rstrip("\n"), *(section.rstrip("\n") for section in sections)]) + "\n"

    replace(state, edit_text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--gpu", required=True, metavar="UUID")
    parser.add_argument("--used", type=int, metavar="BYTES")
    parser.add_argument("--hold", type=int, metavar="PID")
    parser.add_argument("--bytes", type=int, default=0)
    parser.add_argument("--listed", action="store_true")
    options = parser.parse_args()
    if options.used is not None:
        set_used(options.state, options.gpu, options.used)
    if options.hold is not None:
        hold(options.state, options.gpu, options.hold, options.bytes, listed=options.listed)


if __name__ == "__main__":
    main()
