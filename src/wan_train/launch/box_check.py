"""Whether a box is what was rented: the scripts run on it, how their output is judged, and how an unused box ends."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from wan_train.base.text import one_line
from wan_train.base.units import GB, count
from wan_train.launch.gpu_names import same_card
from wan_train.launch.model import Offer, Wants
from wan_train.launch.offers import LEAST_MBPS, driver_for
from wan_train.provision.capacity import LOAD_BYTES
from wan_train.provision.driver_checks import driver_version
from wan_train.provision.models import wanted
from wan_train.recipe.terms import Task

WORKSPACE = PurePosixPath("/workspace")
RUNS = WORKSPACE / "wan-train-runs"
UNUSED_HOURS = 4.0
"""A box on which no run began within this time destroys itself. Its set-up takes three hours at most."""

# An ssh session lacks the container's variables; the container's first process has them.
ENVIRONMENT = """for name in CONTAINER_ID CONTAINER_API_KEY HF_ENDPOINT WAN_TRAIN_VAST_URL; do
  [ -z "$(printenv "$name")" ] || continue
  value=$(tr '\\0' '\\n' 2>/dev/null </proc/1/environ | sed -n "s/^$name=//p")
  [ -z "$value" ] || export "$name=$value"
done
"""

NO_WORKSPACE = 45
"""Exit code of LOOK."""
# A user who is not root can make the folder only with sudo.
LOOK = f"""w={WORKSPACE}
mkdir -p $w 2>/dev/null || sudo -n mkdir -p $w && [ -w $w ] || sudo -n chown "$(id -u)" $w || exit {NO_WORKSPACE}
df -Pk $w | tail -n 1
grep MemTotal /proc/meminfo
cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null | sed 's/^/limit /'
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader,nounits
"""

# Use several connections, as the model download does: one alone is often slower than the line.
_PARTS, _PART_BYTES = 4, 50_000_000
MEASURED_BYTES = _PARTS * _PART_BYTES


def measure() -> str:
    """Return the script that times the line with parts of a model file from its real host."""
    model = max(wanted([Task.T2V]), key=lambda each: each.gb)
    return f"""{ENVIRONMENT}command -v curl >/dev/null || exit 0
for n in 0 1 2 3; do
  curl -fsSL --max-time 30 -r $((n * {_PART_BYTES}))-$(((n + 1) * {_PART_BYTES} - 1)) -o /dev/null \\
    -w 'line %{{size_download}} %{{time_starttransfer}} %{{time_total}}\\n' \\
    "${{HF_ENDPOINT:-https://huggingface.co}}"/{model.repo}/resolve/main/{model.file} &
done 2>&1
wait
"""


_NO_WAY = re.compile(r"curl: \((?:5|6|7|28|35)\)")
"""curl's exit codes for an unknown host or proxy, a failed connection, a timeout and a failed TLS handshake."""


def timer(max_hours: float) -> str:
    """Return the script that makes a Vast box destroy itself if no run begins on it. Otherwise the guardian ends it.

    The timer inherits the lock, so only one runs however often the box is checked. The key is in no command line.
    """
    seconds = round(min(max_hours, UNUSED_HOURS) * 3600)
    return f"""{ENVIRONMENT}[ -n "$CONTAINER_ID" ] && [ -n "$CONTAINER_API_KEY" ] || exit 0
command -v curl >/dev/null || exit 0
mkdir -p {WORKSPACE}/wan-train-launch && cd {WORKSPACE}/wan-train-launch || exit
exec 9>timer; flock -n 9 || exit 0
setsid nohup sh -c 'sleep {seconds}
ls {RUNS}/*/plan.json >/dev/null 2>&1 && exit
until printf "header = \\"Authorization: Bearer %s\\"\\n" "$CONTAINER_API_KEY" |
  curl -fsS -m 60 -X DELETE -d "{{}}" -H "Content-Type: application/json" -K - \\
    "${{WAN_TRAIN_VAST_URL:-https://console.vast.ai}}/api/v0/instances/$CONTAINER_ID/"
do sleep 60; done' >timer.log 2>&1 </dev/null &
"""


def wrong_with(answer: str, offer: Offer, wants: Wants) -> str | None:
    """Return what is wrong with a box by `df -Pk`, its memory and `nvidia-smi`; None if it is what was rented."""
    lines = [line for line in answer.splitlines() if line.strip()]
    if not lines:
        return "it reported no hardware"
    disk, rows = lines[0].split(), [[part.strip() for part in line.split(",")] for line in lines[1:]]
    # Count from the right: a device name may have spaces.
    free = int(disk[-3]) * 1024 / GB if len(disk) >= 6 and disk[-3].isdecimal() else None
    cards = [row for row in rows if len(row) == 3]
    if len(cards) != offer.gpus:
        return f"it has {count(len(cards), 'GPU')}, but {offer.gpus} {'was' if offer.gpus == 1 else 'were'} rented"
    least = driver_for(offer, wants)
    for card, _, driver in cards:
        if not same_card(offer.gpu, card):
            return f"its GPU is {one_line(card, 60)}, but {offer.gpu} was rented"
        if (driver_version(driver) or least) < least:
            return f"its driver is {one_line(driver, 20)}, but {'.'.join(map(str, least))} or newer is needed"
    if free is not None and free < wants.disk_gb * 0.8:
        return f"its disk has {free:.0f} GB free, but {wants.disk_gb:.0f} GB were rented"
    ram = _ram(lines)
    # `wan-train provision` on the box decides whether little RAM is enough for its card.
    if ram is not None and offer.ram_bytes is not None and ram < min(LOAD_BYTES, offer.ram_bytes / 2):
        return f"its RAM is {ram / GB:.0f} GB, but {offer.ram_bytes / GB:.0f} GB were offered"
    return None


def _ram(lines: Sequence[str]) -> int | None:
    """RAM in bytes: the machine's, or the box's limit if that is lower."""
    found = [int(words[1]) * 1024 for line in lines if (words := line.split())[0] == "MemTotal:" and len(words) > 1]
    found += [int(line.split()[1]) for line in lines if re.fullmatch(r"limit \d+", line)]
    return min(found, default=None)


def wrong_with_line(answer: str, offer: Offer) -> str | None:
    """Return what is wrong with the line by curl's output for each connection; None if it is fine or not measured."""
    rows = [row.split()[1:] for row in answer.splitlines() if re.fullmatch(r"line [\d.]+ [\d.]+ [\d.]+", row)]
    parts = [(float(size), float(start), float(end)) for size, start, end in rows]
    came = sum(size for size, _, _ in parts)
    if not came:
        why = next((line for line in answer.splitlines() if _NO_WAY.search(line)), None)
        return None if why is None else f"it cannot fetch the models: {one_line(why)}"
    seconds = max(end for _, _, end in parts) - min(start for size, start, _ in parts if size)
    mbps = came * 8 / 1e6 / max(seconds, 0.001)
    offered = offer.down_mbps if offer.down_mbps is not None else LEAST_MBPS
    if mbps < min(offered, _FAST_MBPS) / _FAR_BELOW:
        return f"its download speed is {mbps:.0f} Mbit/s, but {offered:.0f} Mbit/s were offered"
    return None


_FAR_BELOW = 4
_FAST_MBPS = 1600.0
"""No more than this is expected of a faster line, because the models' host is often the slower end."""
