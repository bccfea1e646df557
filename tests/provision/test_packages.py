"""System packages by a stand-in for apt that installs into a folder on PATH."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from provision_world import World, write_program

from wan_train.base.errors import NotReadyError
from wan_train.provision import packages
from wan_train.provision.packages import ARIA2, FOR_TRAINER, Apt, ExactPackages, Need, Packages, Rclone, find_apt
from wan_train.provision.steps import State
from wan_train.provision.work import Work

EXACT = ("libcudnn8=8.9.7.29-1+cuda12.2", "libcudnn8-dev=8.9.7.29-1+cuda12.2")
GIT = FOR_TRAINER[0]
NOWHERE = Path("/proc/nowhere")  # where not even root can install

# Knows the packages in `offered`, takes the names after `install`, fails as apt does when one of them is unknown.
APT_GET = """#!/bin/sh
cd {folder}
echo "$DEBIAN_FRONTEND apt-get $*" >>calls
case " $* " in *" update "*) touch lists; exit 0;; esac
[ -e lists ] || {{ echo "E: no lists"; exit 100; }}
for name in $(echo "$*" | sed 's/.* install//' | tr ' ' '\\n' | grep -v '^-'); do
    grep -qx "$name" offered || {{ echo "E: Unable to locate package $name"; exit 100; }}
done
for name in $(echo "$*" | sed 's/.* install//' | tr ' ' '\\n' | grep -v '^-'); do
    echo "$name" >>installed
    case $name in git) cp stub bin/git;; aria2) cp stub bin/aria2c;; rclone) cp stub bin/rclone;; esac
done
"""
APT_CACHE = """#!/bin/sh
cd {folder}
[ -e lists ] || exit 0
[ "$2" = apt ] && echo "   apt |   2.6.1 | http://deb.example.org bookworm/main amd64 Packages"
grep "^$2=" offered | sed 's/\\(.*\\)=\\(.*\\)/ \\1 | \\2 | http:\\/\\/deb.example.org Packages/'
exit 0
"""
DPKG_QUERY = """#!/bin/sh
cd {folder}
for name; do :; done
grep "^$name=" installed 2>/dev/null | sed 's/.*=/installed /' | tr -d '\\n' | grep . || exit 1
"""


@pytest.fixture
def offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A box whose apt offers these packages; no other program is on PATH. Gives the stand-in's folder."""

    def make(*names: str) -> Path:
        folder = tmp_path / "apt"
        write_program(folder / "stub", "#!/bin/sh\n")
        for name, text in (("apt-get", APT_GET), ("apt-cache", APT_CACHE), ("dpkg-query", DPKG_QUERY)):
            write_program(folder / "bin" / name, text.format(folder=folder))
        write_program(folder / "bin/dpkg", f'#!/bin/sh\necho "dpkg $*" >>{folder}/calls\n')
        for tool in ("sh", "touch", "sed", "tr", "grep", "cp", "cat"):
            (folder / "bin" / tool).symlink_to(f"/bin/{tool}" if Path(f"/bin/{tool}").exists() else f"/usr/bin/{tool}")
        (folder / "offered").write_text("".join(f"{name}\n" for name in names))
        monkeypatch.setenv("PATH", str(folder / "bin"))
        monkeypatch.setenv("UV_OFFLINE", "1")
        return folder

    return make


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


def test_what_is_missing_is_installed_without_questions(offer: Callable[..., Path], work: Work) -> None:
    folder = offer("git", "ca-certificates", "aria2")
    step = Packages(apt=Apt(), needs=(GIT, ARIA2), tools=NOWHERE)
    assert step.check().state is State.MISSING
    step.apply(work)
    assert step.check().state is State.READY
    update, repair, install = calls(folder)
    assert update.endswith(" update")
    assert repair.startswith("dpkg --configure -a")
    assert install.startswith("noninteractive apt-get -y -o DPkg::Lock::Timeout=600")
    assert install.endswith("git ca-certificates aria2")
    assert "aria2" in work.table.rows()[0].detail


def test_what_apt_lacks_is_a_warning_unless_nothing_goes_without_it(offer: Callable[..., Path], work: Work) -> None:
    folder = offer("git", "ca-certificates")
    step = Packages(apt=Apt(), needs=(GIT, ARIA2), tools=NOWHERE)
    step.apply(work)
    found = step.check()
    assert found.state is State.WARNING
    assert "aria2" in found.detail
    assert "huggingface_hub fetches the models" in found.detail
    assert (folder / "installed").read_text().split() == ["git", "ca-certificates"]

    (folder / "bin/git").unlink()
    (folder / "offered").write_text("aria2\n")
    with pytest.raises(NotReadyError, match=r"git failed:\n.*Unable to locate package git"):
        step.apply(work)


def test_without_apt_or_root_the_command_is_shown(offer: Callable[..., Path]) -> None:
    folder = offer()
    blocked = Packages(apt=None, needs=(GIT, ARIA2), tools=NOWHERE).check()
    assert blocked.state is State.BLOCKED
    assert "apt-get install -y git ca-certificates aria2" in str(blocked.hint)
    (folder / "bin/git").symlink_to(folder / "stub")
    assert Packages(apt=None, needs=(GIT, ARIA2), tools=NOWHERE).check().state is State.WARNING
    (folder / "bin/apt-cache").unlink()
    assert find_apt() is None


def test_without_root_and_index_aria2c_stays_a_warning(offer: Callable[..., Path], work: Work, tmp_path: Path) -> None:
    offer()
    step = Packages(apt=None, needs=(ARIA2,), tools=tmp_path / "tools")
    assert step.check().fixable
    step.apply(work)
    assert "network" in work.log.read_text()  # uv was asked and is offline
    assert step.check().state is State.WARNING


def test_a_library_that_the_loader_does_not_find_is_told() -> None:
    absent = Need(what="libNone", names=("libnone1",), without="nothing is drawn", library="libwan_train_none.so.1")
    present = Need(what="libc", names=("libc6",), without="nothing runs", library="libc.so.6")
    found = Packages(apt=None, needs=(absent, present), tools=NOWHERE).check()
    assert (found.state, found.detail) == (State.WARNING, "missing: libNone (nothing is drawn)")
    assert packages.FOR_TRAINER[1].library == "libGL.so.1"


def test_the_engines_exact_packages_come_only_where_they_are_offered(offer: Callable[..., Path], work: Work) -> None:
    folder = offer("libcudnn8=8.9.7.29-1+cuda12.2", "libcudnn8=8.9.6.50-1+cuda12.2", EXACT[1])
    step = ExactPackages(apt=Apt(), exact=EXACT)
    assert step.check().state is State.WARNING  # images come without lists
    step.apply(work)
    assert step.check().state is State.READY
    assert (folder / "installed").read_text().split() == list(EXACT)
    assert "--allow-change-held-packages" in calls(folder)[-1]

    before = calls(folder)
    step.apply(work)
    assert calls(folder) == before


@pytest.mark.parametrize("offered", [(), ("libcudnn8=8.9.6.50-1+cuda12.2", EXACT[1])])
def test_another_version_is_left_out_and_torch_uses_its_own(
    offer: Callable[..., Path], work: Work, offered: tuple[str, ...]
) -> None:
    folder = offer(*offered)
    step = ExactPackages(apt=Apt(), exact=EXACT)
    step.apply(work)
    found = step.check()
    assert found.state is State.READY
    assert "torch bundles cuDNN" in found.detail
    assert not (folder / "installed").exists()
    assert ExactPackages(apt=None, exact=EXACT).check().state is State.READY


def test_a_provision_goes_on_when_apt_fails(world: World) -> None:
    """The world's apt always fails."""
    done = world.provision("--yes", "--skip-models")
    assert done.returncode == 0, done.stderr
    log = world.workspace / "wan-train-provision/packages.log"
    assert os.geteuid() != 0 or not log.exists() or log.stat().st_mode & 0o077 == 0


def test_rclone_comes_from_apt_where_the_index_cannot_be_reached(
    offer: Callable[..., Path], work: Work, tmp_path: Path
) -> None:
    folder = offer("rclone")
    step = Rclone(folder=tmp_path / "own", apt=Apt(), environ={})
    assert step.check().state is State.MISSING
    step.apply(work)
    assert step.check().state is State.READY
    assert "install --no-install-recommends rclone" in calls(folder)[-1]


def test_an_rclone_that_cannot_be_had_is_an_error(offer: Callable[..., Path], work: Work, tmp_path: Path) -> None:
    offer()
    with pytest.raises(NotReadyError, match="rclone could not be installed") as caught:
        Rclone(folder=tmp_path / "own", apt=None, environ={}).apply(work)
    assert "https://rclone.org/install/" in str(caught.value.hint)
