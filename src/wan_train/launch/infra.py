"""Infrastructure other than Vast on which SkyPilot rents: its credentials here, and how a box there ends itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wan_train.launch.box_check import RUNS, UNUSED_HOURS, WORKSPACE

VAST = "vast"
OVER = WORKSPACE / "wan-train-launch/over"
"""A file that the guardian on a box makes at its end, because such a box has no API to end itself."""
IDLE_MINUTES = 5
"""From the keeper's end until SkyPilot's program on the box ends the box."""
HELP = "https://docs.skypilot.co/en/latest/getting-started/installation.html"
_LONGER_MINUTES = 120
"""A box that exceeds its limit by this much ends, whatever its guardian does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Infra:
    """Where SkyPilot 0.14.1 looks for credentials: folders in the home directory, and prefixes of variables."""

    folders: tuple[str, ...]
    variables: tuple[str, ...] = ()


KNOWN: Mapping[str, Infra] = {
    "aws": Infra(folders=(".aws",), variables=("AWS_",)),
    "azure": Infra(folders=(".azure",), variables=("AZURE_",)),
    "do": Infra(folders=(".config/doctl",)),
    "gcp": Infra(folders=(".config/gcloud",), variables=("GOOGLE_", "CLOUDSDK_")),
    "kubernetes": Infra(folders=(".kube",), variables=("KUBECONFIG",)),
    "lambda": Infra(folders=(".lambda_cloud",)),
    "nebius": Infra(folders=(".nebius",)),
    "runpod": Infra(folders=(".runpod",)),
    "slurm": Infra(folders=(".slurm", ".ssh")),
}
"""By SkyPilot's name, which is also the name of its package's extra."""


def variables_of(infra: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Variables for SkyPilot's programs, of this infrastructure only."""
    begins = KNOWN[infra].variables if infra in KNOWN else ()
    return {name: value for name, value in environ.items() if begins and name.startswith(begins)}


def link_credentials(infra: str, user: Path, sky: Path) -> None:
    """Link only this infrastructure's folders into SkyPilot's home, because it copies all it finds to boxes."""
    for folder in KNOWN[infra].folders:
        link = sky / folder
        if (user / folder).exists() and not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(user / folder)


def keeper(max_hours: float) -> str:
    """Return the script that SkyPilot runs on a box. The box stays as long as it runs.

    It ends when the guardian makes `OVER`, when no run began in time, or two hours after the limit at the latest.
    """
    unused = round(min(max_hours, UNUSED_HOURS) * 60)
    return f"""n=0
while [ ! -e {OVER} ] && [ $n -lt {round(max_hours * 60) + _LONGER_MINUTES} ]; do
  [ $n -lt {unused} ] || ls {RUNS}/*/plan.json >/dev/null 2>&1 || break
  sleep 60; n=$((n + 1))
done
"""
