"""Provisions that are killed at random moments and started again, until the box is ready.

CHAOS_KILLS=50 python benchmarks/provision_chaos.py

Kills alternate between the program alone and everything that it started, as when a container is stopped. Prints what
came of it; exits with 1 when a box did not become ready, its files differ from those of an undisturbed provision, or a
kill of the program cost more than one byte in a hundred. Bytes that are lost with everything at once are told as
seconds of the line: a thousand times larger files lose no more of those.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

from provision_box import MODEL_BYTES, Place, provision_box

LINK = 5_000_000.0
"""Bytes a second; a box then takes a quarter of a minute."""

_VENV = re.compile(rb"venv-[0-9a-f]{8}")
_PASSING = re.compile(
    r"/\.git/(index|logs/|FETCH_HEAD|ORIG_HEAD)|/RECORD$|uv_cache\.json$|\.pyc$|\.log$|\.lock$|\.verified$|wan-train-provision/"
)
"""Files that hold times, or hashes of paths with the chance part of a name."""

_LONGEST_RUN = 900.0


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What came of all boxes."""

    kills: Counter[str] = field(default_factory=Counter)
    boxes: int = 0
    ready: int = 0
    different: list[str] = field(default_factory=list)
    twice: Counter[str] = field(default_factory=Counter)
    wanted: Counter[str] = field(default_factory=Counter)
    left: list[str] = field(default_factory=list)

    def look(self, place: Place, kind: str, undisturbed: dict[str, str]) -> None:
        """Add what a box that is ready tells."""
        self.ready += 1
        self.different += _differences(undisturbed, _files(place))
        self.left += [str(path) for path in place.world.workspace.rglob(".*cloning-*")]
        for name, content in place.hub.files.items():
            self.wanted[kind] += len(content)
            self.twice[kind] += max(0, place.hub.sent[name] - len(content))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=int(os.environ.get("CHAOS_KILLS", "50")))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance, outcome = random.Random(arguments.seed), Outcome()
    with provision_box(LINK) as place:
        began = time.monotonic()
        _finish(place)
        lasts, undisturbed = time.monotonic() - began, _files(place)
    while (left := arguments.kills - outcome.kills.total()) > 0:
        with provision_box(LINK) as place:
            outcome.boxes += 1
            kind = "program" if outcome.boxes % 2 else "everything"
            outcome.kills[kind] += _killed(place, kind, [chance.uniform(0.0, lasts / 2) for _ in range(left)])
            _finish(place)
            outcome.look(place, kind, undisturbed)
    return _report(outcome)


def _killed(place: Place, kind: str, moments: list[float]) -> int:
    """How many provisions of this box were killed, each some seconds after its start, until one was sooner."""
    for number, moment in enumerate(moments):
        child = _start(place)
        try:
            child.wait(moment)
        except subprocess.TimeoutExpired:
            _kill(child, kind)
        else:
            return number
    return len(moments)


def _start(place: Place) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        place.world.argv("--yes"),
        env=place.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def _kill(child: subprocess.Popen[bytes], kind: str) -> None:
    below = _descendants(child.pid) if kind == "everything" else []
    child.kill()
    for pid in below:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    child.wait()


def _descendants(pid: int) -> list[int]:
    import psutil  # noqa: PLC0415  only kills need it

    return [each.pid for each in psutil.Process(pid).children(recursive=True)]


def _finish(place: Place) -> None:
    """Run until the box is ready: a provision whose killed predecessor's programs still end says so and is repeated."""
    end = time.monotonic() + _LONGEST_RUN
    while True:
        child = _start(place)
        said = child.communicate()[1].decode(errors="replace")
        if child.returncode == 0:
            return
        if "is running in" not in said or time.monotonic() > end:
            raise SystemExit(f"the box did not become ready:\n{said}")
        time.sleep(0.5)


def _files(place: Place) -> dict[str, str]:
    """Every file that stays, by its name and content without the parts that are chance."""
    root = place.world.workspace
    found = {}
    for path in sorted(root.rglob("*")):
        name = _VENV.sub(b"venv-X", os.fsencode(path.relative_to(root))).decode()
        if path.is_symlink():
            found[name] = f"-> {_VENV.sub(b'venv-X', os.fsencode(path.readlink())).decode()}"
        elif path.is_file() and not _PASSING.search(f"/{name}"):
            content = path.read_bytes().replace(os.fsencode(place.world.folder), b"")
            content = content.replace(place.index.address.encode(), b"")
            found[name] = hashlib.sha256(_VENV.sub(b"venv-X", content)).hexdigest()
    return found


def _differences(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


def _report(outcome: Outcome) -> int:
    box = sum(MODEL_BYTES.values())
    share = outcome.twice["program"] / max(1, outcome.kills["program"]) / box
    stops = max(1, outcome.kills["everything"])
    lost = outcome.twice["everything"] / stops / LINK
    print(f"kills                    {outcome.kills.total()}: {dict(outcome.kills)}")
    print(f"boxes ready              {outcome.ready} of {outcome.boxes}, {box / 1e6:.1f} MB each")
    print(f"program killed           {share:.3%} of a box's bytes fetched twice for each kill")
    print(f"everything killed        {lost:.2f} s of the line fetched twice for each kill")
    print(f"files that differ        {len(outcome.different)} {outcome.different[:5]}")
    print(f"half-made things left    {len(outcome.left)}")
    good = outcome.ready == outcome.boxes and not outcome.different and not outcome.left and share < 0.01
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
