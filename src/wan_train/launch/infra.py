"""Infrastructure other than Vast that SkyPilot rents on: its credentials here, and what ends a box there by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wan_train.launch.box_check import RUNS, UNUSED_HOURS, WORKSPACE

VAST = "vast"
OVER = WORKSPACE / "wan-train-launch/over"
"""A file that the guardian on a box makes at its end: here a box has no API to end itself."""
IDLE_MINUTES = 5
"""From the end of the keeper to the end of the box, by SkyPilot's program on it."""
HELP = "https://docs.skypilot.co/en/latest/getting-started/installation.html"
_LONGER_MINUTES = 120
"""A box that outlives its limit by so much ends whatever its guardian does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Infra:
    """Where SkyPilot 0.14.1 looks for credentials: folders in the home directory, and how variables begin."""

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
"""By SkyPilot's name, which is also that of the extra of its package."""


def variables_of(infra: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that SkyPilot's programs get for this infrastructure alone."""
    begins = KNOWN[infra].variables if infra in KNOWN else ()
    return {name: value for name, value in environ.items() if begins and name.startswith(begins)}


def link_credentials(infra: str, user: Path, sky: Path) -> None:
    """Let SkyPilot's home have the folders of this infrastructure and of no other: it copies all it finds to boxes."""
    for folder in KNOWN[infra].folders:
        link = sky / folder
        if (user / folder).exists() and not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(user / folder)


def keeper(max_hours: float) -> str:
    """What SkyPilot runs on a box: as long as it runs, the box stays.

    It ends when the guardian says that the box is over, when no run began in time, and at the limit in any case.
    """
    unused = round(min(max_hours, UNUSED_HOURS) * 60)
    return f"""n=0
while [ ! -e {OVER} ] && [ $n -lt {round(max_hours * 60) + _LONGER_MINUTES} ]; do
  [ $n -lt {unused} ] || ls {RUNS}/*/plan.json >/dev/null 2>&1 || break
  sleep 60; n=$((n + 1))
done
"""
