"""wan-train on the user's computer, installed from its wheel, with its own home.

Files of the installation are changed: the boxes' set-up script is `box_setup.sh`, and waits can be shortened.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from wan_train.launch.sky_home import stamp
from wan_train.launch.wheel import pack

HERE = Path(__file__).parent


@dataclass(slots=True, kw_only=True)
class Client:
    """One user. `folder` has the installation, the home and the runs."""

    folder: Path
    vast: str
    key: str = field(repr=False)

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def data(self) -> Path:
        return self.folder / "data/wan-train"

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
        return {
            **kept,
            "HOME": str(self.folder / "home"),
            "PYTHONPATH": str(self.folder / "site"),
            "XDG_DATA_HOME": str(self.folder / "data"),
            "XDG_CONFIG_HOME": str(self.folder / "config"),
            "VAST_API_KEY": self.key,
            "WAN_TRAIN_VAST_URL": self.vast,
            "WAN_TRAIN_RUNS_DIR": str(self.runs),
            "COLUMNS": "100",
        }

    def install(self, sky: Path | None, constants: Mapping[str, float]) -> None:
        """Unpack the wheel and link SkyPilot's environment `sky` into place; None installs the stand-in.

        `constants` are values to set, by module and name: `transitions.LOST_SECONDS`, `model.fetch_seconds`.
        """
        site = self.folder / "site"
        for path in (site, self.folder / "home", self.runs, self.data / "sky"):
            path.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(pack(self.folder)) as wheel:
            wheel.extractall(site)
        (site / "wan_train/scripts/vast_provision.sh").write_bytes((HERE / "launch_box/box_setup.sh").read_bytes())
        for name, value in constants.items():
            module, _, constant = name.partition(".")
            _set(site / f"wan_train/launch/{module}.py", constant, value)
        environment = self.data / "sky/env"
        if sky is not None:
            environment.symlink_to(sky)
            return
        python = environment / "bin/python"
        python.parent.mkdir(parents=True)
        driver = HERE / "launch_box/stand_in_driver.py"
        python.write_text(f"#!/bin/sh\nexec {sys.executable} {driver}\n")
        python.chmod(0o755)
        (environment / "ready").write_text(stamp())

    def run(self, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "wan_train", *words],
            env=self.environment,
            cwd=cwd or self.folder,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    def popen(self, *argv: str, log: Path, extra: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        with log.open("ab") as file:
            return subprocess.Popen(
                [sys.executable, *argv],
                env={**self.environment, **(extra or {})},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )


def _set(path: Path, name: str, value: float) -> None:
    text, count = re.subn(rf"^(\s*{name}(?:: \w+)?) = .+$", rf"\g<1> = {value!r}", path.read_text(), flags=re.MULTILINE)
    assert count == 1, f"{name} is set at {count} places of {path.name}"
    path.write_text(text)


def draw_dataset(folder: Path, pictures: int = 4) -> Path:
    folder.mkdir(parents=True)
    for number in range(pictures):
        Image.new("RGB", (320, 320), (40 * number, 90, 200)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a cat, number {number}")
    return folder
