"""The trainer's checkout by real git, over HTTP on loopback and with submodules, cut and killed on the way."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from file_server import serve
from provision_world import World, git

from wan_train.base.errors import NotReadyError
from wan_train.provision import engine_file
from wan_train.provision.checkout import Checkout
from wan_train.provision.steps import State
from wan_train.provision.work import Work


def engine(world: World, repository: str | None = None, commit: str | None = None) -> engine_file.EngineFile:
    """The world's engine with another repository or commit."""
    text = world.engine.read_text()
    for key, value in (("repository", repository), ("commit", commit)):
        if value is not None:
            text = re.sub(rf"^{key} = .*$", f"{key} = {json.dumps(value)}", text, flags=re.MULTILINE)
    world.engine.write_text(text)
    return engine_file.load(str(world.engine))


def apply(world: World, work: Work, wanted: engine_file.EngineFile) -> Checkout:
    checkout = Checkout(root=world.checkout, engine=wanted, pause_seconds=0.1)
    checkout.apply(work)
    return checkout


def said(work: Work) -> list[str]:
    return [row.detail for row in work.table.rows()]


def test_a_clone_that_was_cut_is_made_once_more(world: World, work: Work) -> None:
    bare = world.folder / "musubi.git"
    git(bare, "repack", "-adq")
    git(bare, "update-server-info")
    with serve(world.folder) as files:
        files.cut[".pack"] = 1
        wanted = engine(world, f"{files.address}/musubi.git")
        checkout = apply(world, work, wanted)
        assert files.cut == {".pack": 0}
    assert checkout.check().state is State.READY
    assert git(world.checkout, "rev-parse", "HEAD") == wanted.commit
    assert [path.name for path in world.workspace.iterdir() if "cloning" in path.name] == []


def test_an_address_that_nobody_answers_is_told_with_gits_words(world: World, work: Work) -> None:
    with serve(world.folder) as files:
        address = files.address
    wanted = engine(world, f"{address}/musubi.git")
    with pytest.raises(NotReadyError, match=r"(?s)cloning musubi-tuner failed:.*fatal") as caught:
        apply(world, work, wanted)
    assert "proxies" in str(caught.value.hint)
    assert not world.checkout.exists()


def test_a_commit_that_the_repository_lacks_is_named_and_nothing_stays(world: World, work: Work) -> None:
    wanted = engine(world, commit="1" * 40)
    with pytest.raises(NotReadyError, match="finding commit 1111111 failed") as caught:
        apply(world, work, wanted)
    assert str(world.folder / "musubi.git") in str(caught.value.hint)
    assert list(world.workspace.iterdir()) == []


def with_submodule(world: World) -> tuple[engine_file.EngineFile, Path]:
    """The trainer with a submodule, and where the submodule is to be."""
    part = world.folder / "part"
    part.mkdir()
    git(part, "init", "-q")
    (part / "part.txt").write_text("part\n")
    git(part, "add", ".")
    git(part, "commit", "-q", "-m", "part")
    source = world.folder / "source"
    git(source, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(part), "part")
    git(source, "commit", "-q", "-m", "with a part")
    git(source, "push", "-q", str(world.folder / "musubi.git"), "HEAD:main")
    return engine(world, commit=git(source, "rev-parse", "HEAD")), part


def test_a_submodule_that_fails_leaves_an_unfinished_checkout_that_the_next_run_finishes(
    world: World, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_ALLOW_PROTOCOL", "file")
    wanted, part = with_submodule(world)
    part.rename(part.with_name("away"))
    with pytest.raises(NotReadyError, match="submodules failed"):
        apply(world, work, wanted)
    checkout = Checkout(root=world.checkout, engine=wanted)
    assert checkout.check().state is State.MISSING
    assert "not finished" in checkout.check().detail

    # What a box that went down leaves: git's lock, a torn file, half of a submodule.
    part.with_name("away").rename(part)
    (world.checkout / ".git/index.lock").touch()
    (world.checkout / "backend.py").write_text("to")
    (world.checkout / ".git/modules/part").mkdir(parents=True, exist_ok=True)
    (world.checkout / ".git/modules/part/HEAD").write_text("ref: refs/heads/none\n")
    (world.checkout / "part").mkdir(exist_ok=True)
    (world.checkout / "part/part.txt").write_text("ha")
    apply(world, work, wanted)
    assert checkout.check().state is State.READY
    assert (world.checkout / "part/part.txt").read_text() == "part\n"
    assert git(world.checkout, "status", "--porcelain") == ""


def test_a_checkout_that_git_refuses_to_look_at_is_not_called_unchanged(world: World, work: Work) -> None:
    wanted = engine(world)
    checkout = apply(world, work, wanted)
    config = world.checkout / ".git/config"
    config.write_text("no config of git's\n" + config.read_text())
    found = checkout.check()
    assert found.state is State.READY
    assert "could not check" in found.detail


def test_another_branch_or_commit_of_the_users_is_only_reported(world: World, work: Work) -> None:
    wanted = engine(world)
    checkout = apply(world, work, wanted)
    git(world.checkout, "checkout", "-q", "origin/main")
    before = world.tree()
    assert checkout.check().state is State.BLOCKED
    assert "yours" in str(checkout.check().hint)
    assert world.tree() == before


def test_a_worktree_of_the_users_is_a_checkout_too(world: World) -> None:
    wanted = engine(world)
    world.workspace.mkdir()
    subprocess.run(
        ["git", "-C", str(world.folder / "source"), "worktree", "add", "-q", str(world.checkout), wanted.commit],
        check=True,
        capture_output=True,
    )
    assert Checkout(root=world.checkout, engine=wanted).check().state is State.READY


def test_a_second_try_is_told(world: World, work: Work) -> None:
    with serve(world.folder) as files:
        files.status["info/refs"] = [500, 500]
        wanted = engine(world, f"{files.address}/musubi.git")
        with pytest.raises(NotReadyError, match="500"):
            apply(world, work, wanted)
    assert said(work) == ["cloning musubi-tuner failed; retry in 0 s"]
