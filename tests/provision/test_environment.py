"""The trainer's environment by real uv from a package index on loopback that has bad days."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from file_server import FileServer, serve, write_index
from provision_world import World, write_program, write_wheel

from wan_train.base import codec
from wan_train.provision.engine_file import load

TORCH = "torch-2.7.0-py3-none-any.whl"
PROTOBUF = "protobuf-5.0-py3-none-any.whl"


@pytest.fixture
def index(world: World) -> Iterator[FileServer]:
    """Everything comes from this index: torch by the engine's own address, the rest by the user's."""
    root = world.folder / "index"
    write_index(root, world.folder / "wheels")
    with serve(root) as files:
        text = world.engine.read_text()
        lines = [line for line in text.splitlines() if not line.startswith("arguments")]
        lines.insert(lines.index("[packages]") + 1, f"first_index = '{files.address}/simple'")
        world.engine.write_text("\n".join(lines) + "\n")
        yield files


def variables(world: World, index: FileServer) -> dict[str, str]:
    return {**world.environment(), "UV_DEFAULT_INDEX": f"{index.address}/simple", "UV_HTTP_RETRIES": "0"}


def provision(world: World, env: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return world.provision("--yes", "--skip-models", *words, env=env)


def torch_of(world: World) -> str:
    program = "import torch, six, musubi_tuner; print(torch.__version__)"
    done = subprocess.run(
        [world.checkout / "venv/bin/python", "-c", program], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def half_made(world: World) -> list[Path]:
    return [path for path in world.checkout.glob("venv-*") if not (path / "wan-train.json").exists()]


def test_an_index_that_fails_once_is_asked_once_more(world: World, index: FileServer) -> None:
    index.status[TORCH] = [500]
    index.cut["six-1.0-py3-none-any.whl"] = 1
    done = provision(world, variables(world, index))
    assert done.returncode == 0, done.stderr
    assert "installing torch failed; retry in" in done.stdout
    assert index.status[TORCH] == []
    assert set(index.cut.values()) == {0}
    assert torch_of(world) == "2.7.0"
    assert not (world.checkout / ".wan-train-uv").exists()


def test_an_index_that_stays_broken_is_told_and_leaves_nothing_that_looks_whole(
    world: World, index: FileServer
) -> None:
    wheel = index.root / PROTOBUF
    whole = wheel.read_bytes()
    wheel.write_bytes(whole[: len(whole) // 2])  # short, and of the length that it claims
    done = provision(world, variables(world, index))
    assert done.returncode == 3
    assert "installing protobuf, six failed" in done.stderr
    assert "environment.log" in done.stderr
    assert not (world.checkout / "venv").exists()

    wheel.write_bytes(whole)
    again = provision(world, variables(world, index))
    assert again.returncode == 0, again.stderr
    assert torch_of(world) == "2.7.0"
    assert half_made(world) == []
    assert index.sent.count(TORCH) == 1  # what had come is kept


def test_a_box_that_goes_down_in_an_installation_fetches_nothing_twice(world: World, index: FileServer) -> None:
    # As Vast's images set them.
    image = {"UV_NO_CACHE": "1", "UV_LINK_MODE": "copy", "UV_CACHE_DIR": "/.uv/cache"}
    index.slow.add(PROTOBUF)
    child = world.begin("--yes", "--skip-models", env=variables(world, index) | image)
    assert index.slow_began.wait(60)
    for process in [psutil.Process(child.pid), *psutil.Process(child.pid).children(recursive=True)]:
        process.send_signal(signal.SIGKILL)
    child.wait()
    assert not (world.checkout / "venv").exists()
    assert len(half_made(world)) == 1

    index.slow.clear()
    index.go_on.set()
    again = provision(world, variables(world, index) | image)
    assert again.returncode == 0, again.stderr
    assert torch_of(world) == "2.7.0"
    assert half_made(world) == []
    assert index.sent.count(TORCH) == 1


def test_a_cache_left_by_a_provision_killed_at_the_very_end_is_removed_and_nothing_made_anew(
    world: World, index: FileServer
) -> None:
    assert provision(world, variables(world, index)).returncode == 0
    made, sent = (world.checkout / "venv").readlink(), len(index.sent)
    left = world.checkout / ".wan-train-uv/archive"
    left.mkdir(parents=True)
    told = world.provision("--check", "--skip-models")
    assert told.returncode == 0
    assert ".wan-train-uv" in told.stdout
    assert provision(world, variables(world, index)).returncode == 0
    assert not left.parent.exists()
    assert ((world.checkout / "venv").readlink(), len(index.sent)) == (made, sent)


def test_an_installation_left_by_a_killed_provision_is_ended_and_done_anew(world: World, index: FileServer) -> None:
    index.slow.add(PROTOBUF)
    child = world.begin("--yes", "--skip-models", env=variables(world, index))
    assert index.slow_began.wait(60)
    orphans = psutil.Process(child.pid).children(recursive=True)
    child.kill()
    child.wait()
    index.slow.clear()
    again = provision(world, variables(world, index))
    assert again.returncode == 0, again.stderr
    assert [each for each in orphans if each.is_running() and each.status() != psutil.STATUS_ZOMBIE] == []


def test_pips_index_serves_where_uv_has_none_and_torch_comes_from_the_engines_all_the_same(
    world: World, index: FileServer
) -> None:
    """The user's mirror also has a torch of that version, for another CUDA."""
    mirror = world.folder / "mirror"
    shutil.copytree(index.root, mirror)
    with serve(mirror) as other:
        env = {**world.environment(), "PIP_INDEX_URL": f"{other.address}/simple"}
        env |= {"PIP_EXTRA_INDEX_URL": f"{other.address}/simple", "UV_INDEX": f"{other.address}/simple"}
        done = provision(world, env)
        assert done.returncode == 0, done.stderr
        assert TORCH in index.sent
        assert TORCH not in other.sent
        assert {"six-1.0-py3-none-any.whl", "transformers-4.0-py3-none-any.whl"} <= set(other.sent)


def test_an_environment_that_does_not_import_is_not_believed(world: World, index: FileServer) -> None:
    shutil.rmtree(index.root)
    write_wheel(world.folder / "wheels", "torch", "2.7.0", "raise ImportError('libGL.so.1: cannot open shared object')")
    write_index(index.root, world.folder / "wheels")
    done = provision(world, variables(world, index))
    assert done.returncode == 3
    assert "libGL.so.1" in done.stderr
    assert "apt-get install -y libgl1" in done.stderr
    assert not (world.checkout / "venv").exists()


def test_a_box_without_a_python_of_the_range_is_told_before_anything_is_done(world: World) -> None:
    text = world.engine.read_text()
    world.engine.write_text(text.replace('"3.10"', '"3.70"').replace('"3.13"', '"3.71"'))
    done = world.provision("--yes", "--skip-models")
    assert done.returncode == 3
    assert "no Python 3.70 to 3.71" in done.stderr
    assert not world.checkout.exists()


def test_another_engine_gets_an_environment_of_its_own_and_the_way_back_costs_nothing(
    world: World, index: FileServer
) -> None:
    env = variables(world, index)
    assert provision(world, env).returncode == 0
    first, text = (world.checkout / "venv").readlink(), world.engine.read_text()
    world.engine.write_text(text.replace('extra = ["protobuf", "six"]', 'extra = ["six"]'))
    looked = provision(world, env, "--check", "--json")
    steps = {step["id"]: step for step in json.loads(looked.stdout)["steps"]}
    assert steps["environment"]["state"] == "missing"
    assert "another engine" in steps["environment"]["detail"]
    assert provision(world, env).returncode == 0
    assert (world.checkout / "venv").readlink() != first
    assert (world.checkout / first / "bin/python").exists()

    world.engine.write_text(text)
    sent = len(index.sent)
    assert provision(world, env).returncode == 0
    assert (world.checkout / "venv").readlink() == first
    assert len(index.sent) == sent


def test_an_environment_made_by_hand_is_recognised_and_never_changed(world: World, index: FileServer) -> None:
    assert provision(world, variables(world, index)).returncode == 0
    made = (world.checkout / "venv").resolve()
    (world.checkout / "venv").unlink()
    (made / "wan-train.json").unlink()
    made.rename(world.checkout / "venv")  # a real folder, as `python3 -m venv venv` makes it
    before = world.tree()
    done = provision(world, variables(world, index), "--json")
    assert done.returncode == 0, done.stderr
    steps = {step["id"]: step for step in json.loads(done.stdout.splitlines()[-1])["steps"]}
    assert "has torch 2.7.0" in steps["environment"]["detail"]
    assert world.tree() == before


def test_a_python_of_the_users_own_that_lacks_something_is_named(world: World) -> None:
    python = world.folder / "python"
    write_program(python, f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # a Python without packages
    done = world.provision("--yes", "--skip-models", env={"WAN_TRAIN_MUSUBI_PYTHON": str(python)})
    assert done.returncode == 3
    assert "lacks musubi-tuner" in done.stderr
    assert not world.checkout.exists()


@pytest.mark.parametrize("case", ["absent", "not executable", "of another engine"])
def test_a_python_of_the_users_own_that_cannot_be_used_is_no_reason_to_install_another(world: World, case: str) -> None:
    python = world.folder / "own/bin/python"
    if case != "absent":
        write_program(python, "#!/bin/sh\n")
    if case == "not executable":
        python.chmod(0o644)
    if case == "of another engine":
        (world.folder / "own/wan-train.json").write_text(codec.to_json(load("guide").record()))
    done = world.provision("--yes", "--skip-models", env={"WAN_TRAIN_MUSUBI_PYTHON": str(python)})
    assert done.returncode == 3
    assert str(world.folder / "own") in done.stderr
    assert "unset WAN_TRAIN_MUSUBI_PYTHON" in done.stderr
    assert not world.checkout.exists()


def test_the_environments_own_python_may_be_named_before_it_exists(world: World) -> None:
    python = world.checkout / "venv/bin/python"
    done = world.provision("--check", "--skip-models", "--json", env={"WAN_TRAIN_MUSUBI_PYTHON": str(python)})
    steps = {step["id"]: step for step in json.loads(done.stdout)["steps"]}
    assert steps["environment"]["state"] == "missing"


def test_packages_of_the_users_own_are_installed_kept_and_installed_again(world: World, index: FileServer) -> None:
    for name in ("prodigyopt", "schedule_free"):
        write_wheel(world.folder / "wheels", name, "1.0")
    write_index(index.root, world.folder / "wheels")
    env = variables(world, index)
    done = provision(world, env, "--with", "prodigyopt", "--with", "Schedule.Free==1.0")
    assert done.returncode == 0, done.stderr
    first = (world.checkout / "venv").readlink()
    assert added(world) == ["prodigyopt", "schedule_free", "six", "torch"]
    assert torch_of(world) == "2.7.0"

    # Another engine means another environment; nobody names the packages again.
    world.engine.write_text(world.engine.read_text().replace('extra = ["protobuf", "six"]', 'extra = ["six"]'))
    looked = provision(world, env, "--check", "--json")
    steps = {step["id"]: step for step in json.loads(looked.stdout)["steps"]}
    assert steps["added"]["state"] == "missing"
    assert provision(world, env).returncode == 0
    assert (world.checkout / "venv").readlink() != first
    assert added(world) == ["prodigyopt", "schedule_free", "six", "torch"]

    shutil.rmtree(next((world.checkout / "venv/lib").glob("python3*/site-packages/prodigyopt-1.0.dist-info")))
    looked = provision(world, env, "--check", "--json")
    steps = {step["id"]: step for step in json.loads(looked.stdout)["steps"]}
    assert (looked.returncode, steps["added"]["state"]) == (3, "missing")
    assert "prodigyopt" in steps["added"]["detail"]


def test_a_package_that_wants_another_torch_changes_nothing(world: World, index: FileServer) -> None:
    write_wheel(world.folder / "wheels", "greedy", "1.0", requires="torch==9.9.9")
    write_index(index.root, world.folder / "wheels")
    done = provision(world, variables(world, index), "--with", "greedy")
    assert done.returncode == 3
    assert "installing greedy failed" in done.stderr
    assert torch_of(world) == "2.7.0"
    again = provision(world, variables(world, index))  # what never came is not asked for again
    assert again.returncode == 0, again.stderr


def test_packages_of_an_environment_that_cannot_be_made_are_no_reason_of_their_own(world: World) -> None:
    text = world.engine.read_text()
    world.engine.write_text(text.replace('"3.10"', '"3.70"').replace('"3.13"', '"3.71"'))
    done = world.provision("--check", "--skip-models", "--with", "prodigyopt", "--json")
    steps = {step["id"]: step for step in json.loads(done.stdout)["steps"]}
    assert (done.returncode, steps["environment"]["state"], steps["added"]["state"]) == (3, "blocked", "missing")
    assert "venv/bin/python -m pip" not in done.stdout + done.stderr  # there is no such Python


@pytest.mark.parametrize(
    "word", ["--index-url=http://evil", "-r", "http://evil/x.whl", "../x", "a b", "git+ssh://x", ""]
)
def test_what_is_no_name_of_a_package_is_refused(world: World, word: str) -> None:
    done = world.provision("--yes", "--skip-models", f"--with={word}")
    assert done.returncode == 2
    assert "package names" in done.stderr
    assert not world.checkout.exists()


def added(world: World) -> list[str]:
    """Which of the packages that these tests name are installed."""
    names = ["prodigyopt", "schedule_free", "six", "torch"]
    program = f"import importlib.util as u; print(*(name for name in {names} if u.find_spec(name)))"
    python = world.checkout / "venv/bin/python"
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.split()
