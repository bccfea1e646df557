"""`scripts/vast_provision.sh` run for real: its own environment by real venv and pip, then a real provision.

wan-train's own dependencies come from this test's environment by a wheel that only points there: nothing is fetched.
"""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
import zipfile
from pathlib import Path

import pytest
from provision_world import PROJECT, World, write_wheel

SCRIPT = PROJECT / "scripts/vast_provision.sh"
SEEDS_OWN = "#!/bin/bash\necho the runner of the guide's template\n"

PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "wan-train"
version = "0.1.0"
dependencies = []
"""
# Stands in for hatchling; what the wheel depends on is in `needs.txt`.
BACKEND = """
import pathlib, zipfile
def build_editable(folder, config_settings=None, metadata_directory=None):
    name, info = "wan_train-0.1.0-py3-none-any.whl", "wan_train-0.1.0.dist-info"
    needs = "".join(f"Requires-Dist: {line}\\n" for line in pathlib.Path("needs.txt").read_text().split())
    for extra, need in (("video", "filmed"), ("captions", "counted"), ("notify", "sent")):
        needs += f"Provides-Extra: {extra}\\nRequires-Dist: {need}; extra == '{extra}'\\n"
    with zipfile.ZipFile(pathlib.Path(folder) / name, "w") as wheel:
        wheel.writestr("wan_train.pth", str(pathlib.Path("src").absolute()) + "\\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\\nName: wan-train\\nVersion: 0.1.0\\n{needs}")
        wheel.writestr(f"{info}/entry_points.txt", "[console_scripts]\\nwan-train = wan_train.cli.main:main\\n")
        tags = "Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
        wheel.writestr(f"{info}/WHEEL", tags)
        wheel.writestr(f"{info}/RECORD", "")
    return name
build_wheel = build_editable
"""


@pytest.fixture
def checkout(world: World) -> Path:
    """A checkout of wan-train whose dependencies are those of this test."""
    folder = world.folder / "wan train"
    (folder / "scripts").mkdir(parents=True)
    (folder / "src").mkdir()
    (folder / "src/wan_train").symlink_to(PROJECT / "src/wan_train")
    (folder / "configs").symlink_to(PROJECT / "configs")
    shutil.copy(SCRIPT, folder / "scripts")
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "backend.py").write_text(BACKEND)
    (folder / "needs.txt").write_text("borrowed")
    for name in ("later", "filmed", "counted", "sent"):
        write_wheel(world.folder / "wheels", name, "1.0")
    write_wheel(world.folder / "wheels", "borrowed", "1.0")
    with zipfile.ZipFile(world.folder / "wheels/borrowed-1.0-py3-none-any.whl", "a") as wheel:
        wheel.writestr("borrowed.pth", sysconfig.get_path("purelib") + "\n")
    return folder


def run(world: World, script: Path | None, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """The script as a file, or piped into bash; in a fresh home, with no index."""
    # pip compiles itself once in the new environment, where each call would if it might keep nothing.
    strange = {"PYTHONPATH", "PYTHONDONTWRITEBYTECODE"}
    env = {name: value for name, value in world.environment().items() if name not in strange}
    env |= {"WORKSPACE": str(world.workspace), "WAN_TRAIN_BIN": str(world.folder / "bin"), "PIP_NO_INDEX": "1"}
    env |= {"PIP_FIND_LINKS": str(world.folder / "wheels"), "PIP_CONFIG_FILE": "/dev/null"}
    env |= {"PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_COMPILE": "1", **more}  # only to be quicker
    return subprocess.run(
        ["bash", str(script), *words] if script else ["bash", "-s", "--", *words],
        env=env,
        input=None if script else SCRIPT.read_text(),
        stdin=subprocess.DEVNULL if script else None,
        cwd=world.folder,
        capture_output=True,
        text=True,
        check=False,
    )


def extras_of(world: World) -> set[str]:
    """What stands in for PyAV, tokenizers and apprise, as far as it was installed."""
    homes = (world.workspace / "wan-train-env").glob("lib/python3*/site-packages")
    return {name for home in homes for name in ("filmed", "counted", "sent") if (home / name).exists()}


def test_a_box_is_made_ready_and_a_second_start_changes_nothing_until_there_is_something_new(
    world: World, checkout: Path
) -> None:
    script = checkout / "scripts/vast_provision.sh"
    environment = world.workspace / "wan-train-env"
    (environment / "bin").mkdir(parents=True)  # a box that went down
    (environment / "bin/python").symlink_to("/nowhere/python3")
    runner = world.workspace / "run_wan_training.sh"
    runner.write_text(SEEDS_OWN)
    words = ("--engine", str(world.engine), "--skip-models")
    first = run(world, script, *words)
    assert first.returncode == 0, first.stderr
    assert "Everything requested is installed." in first.stdout
    assert (world.checkout / "venv/bin/python").exists()
    by_name = subprocess.run([world.folder / "bin/wan-train", "--version"], capture_output=True, text=True, check=True)
    as_before = subprocess.run([runner, "--version"], capture_output=True, text=True, check=True)
    assert by_name.stdout == as_before.stdout != ""
    assert extras_of(world) == {"filmed", "counted", "sent"}
    assert len(runner.read_text().splitlines()) == 2
    assert runner.with_name("run_wan_training.sh.before").read_text() == SEEDS_OWN

    before = world.tree()
    second = run(world, script, *words)
    assert second.returncode == 0, second.stderr
    assert "installing" not in second.stdout
    assert world.tree() == before

    program = environment / "bin/wan-train"
    program.unlink()
    (checkout / "pyproject.toml").write_text(f"{PYPROJECT}# after a git pull\n")
    (checkout / "needs.txt").write_text("borrowed later")
    (world.folder / "wheels/filmed-1.0-py3-none-any.whl").unlink()  # there is no PyAV for this box
    for folder in environment.glob("lib/python3*/site-packages/filmed*"):
        shutil.rmtree(folder)
    third = run(world, script, *words, "--check")
    assert third.returncode == 0, third.stderr
    assert "trying again without PyAV" in third.stdout
    assert subprocess.run([program, "--version"], capture_output=True, check=False).returncode == 0
    assert list(environment.glob("lib/python3*/site-packages/later"))

    from_a_pipe(world, checkout)


def from_a_pipe(world: World, checkout: Path) -> None:
    """Another source into the same environment: making one costs more than all that is asked here."""
    refused = run(world, None, "--check")
    assert refused.returncode == 3
    assert "WAN_TRAIN_SOURCE" in refused.stderr

    cut = subprocess.run(
        ["bash"], input=SCRIPT.read_text()[:-20], env=world.environment(), capture_output=True, text=True, check=False
    )
    assert cut.stdout == ""

    write_wheel(world.folder / "wheels", "filmed", "1.0")
    source = checkout.as_uri()
    done = run(world, None, "--engine", str(world.engine), "--skip-models", "--check", WAN_TRAIN_SOURCE=source)
    assert done.returncode == 0, done.stderr
    assert f"installing wan-train from {source}" in done.stdout
    assert extras_of(world) == {"filmed", "counted", "sent"}
    failed = run(world, None, "--check", WAN_TRAIN_SOURCE="/nowhere/wan_train-0.1.0-py3-none-any.whl")
    assert failed.returncode == 3
    assert "look at the network" in failed.stderr
    program = world.workspace / "wan-train-env/bin/wan-train"
    assert subprocess.run([program, "--version"], capture_output=True, check=False).returncode == 0
    checkout.rename(world.workspace / "wan-train")  # where the README clones it
    found = run(world, None, "--skip-models", "--check")
    assert f"installing wan-train from {world.workspace / 'wan-train'}" in found.stdout
