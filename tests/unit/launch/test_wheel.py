"""The wheel that goes to a box is what runs here."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import wan_train
from wan_train.launch.wheel import pack, provision_script


def test_what_is_packed_starts_elsewhere_and_has_its_configuration(tmp_path: Path) -> None:
    wheel = pack(tmp_path)
    assert pack(tmp_path).read_bytes() == wheel.read_bytes()
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "there")
    assert {"wan_train/configs/models.toml", "wan_train/scripts/vast_provision.sh"} <= names
    assert not any("__pycache__" in name for name in names)
    source = Path(wan_train.__file__).parent
    assert {path.relative_to(source.parent).as_posix() for path in source.rglob("*.py")} <= names
    environ = {**os.environ, "PYTHONPATH": str(tmp_path / "there")}
    code = "import wan_train.base.settings as s; print(s.shipped_configs())"
    said = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == str(tmp_path / "there/wan_train/configs")


def test_the_script_of_a_box_is_known() -> None:
    assert provision_script().read_text().startswith("#!/usr/bin/env bash")
