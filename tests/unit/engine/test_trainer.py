"""Finding the trainer on this box, and reading which version it is."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from wan_train.base.errors import NotReadyError
from wan_train.base.settings import Settings
from wan_train.engine import capabilities
from wan_train.engine.capabilities import Script
from wan_train.engine.trainer import Trainer, find, read_commit
from wan_train.recipe.terms import EngineKind

GUIDE = "d0a193061a23a51c90664282205d753605a641c1"


def git(directory: Path, *words: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", *identity, *words], cwd=directory, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    root.mkdir()
    git(root, "init", "-q")
    git(root, "commit", "-q", "--allow-empty", "-m", "first")
    return root


class TestCommit:
    def test_on_a_branch(self, repository: Path) -> None:
        assert read_commit(repository) == git(repository, "rev-parse", "HEAD")

    def test_on_a_branch_with_a_slash(self, repository: Path) -> None:
        git(repository, "checkout", "-q", "-b", "feature/one")
        assert read_commit(repository) == git(repository, "rev-parse", "HEAD")

    def test_detached(self, repository: Path) -> None:
        git(repository, "checkout", "-q", "--detach")
        assert read_commit(repository) == git(repository, "rev-parse", "HEAD")

    def test_packed(self, repository: Path) -> None:
        git(repository, "branch", "other")
        git(repository, "pack-refs", "--all")
        assert not (repository / ".git" / "refs" / "heads" / "main").exists()
        assert read_commit(repository) == git(repository, "rev-parse", "HEAD")

    def test_in_a_worktree(self, repository: Path, tmp_path: Path) -> None:
        git(repository, "worktree", "add", "-q", "-b", "side", str(tmp_path / "side"))
        git(tmp_path / "side", "commit", "-q", "--allow-empty", "-m", "second")
        assert (tmp_path / "side" / ".git").is_file()
        assert read_commit(tmp_path / "side") == git(tmp_path / "side", "rev-parse", "HEAD")
        assert read_commit(tmp_path / "side") != read_commit(repository)

    def test_where_there_is_none(self, tmp_path: Path) -> None:
        assert read_commit(tmp_path) is None
        git(tmp_path, "init", "-q")
        assert read_commit(tmp_path) is None
        (tmp_path / ".git" / "HEAD").write_bytes(b"\xff\xfe")
        assert read_commit(tmp_path) is None


def make_checkout(root: Path, commit: str | None = GUIDE) -> Path:
    for script in Script:
        path = root / "src" / "musubi_tuner" / script
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    if commit is not None:
        (root / ".git").mkdir()
        (root / ".git" / "HEAD").write_text(commit + "\n")
    return root


def make_python(environment: Path) -> Path:
    python = environment / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    return python


class TestFinding:
    @pytest.mark.parametrize("folder", ["venv", ".venv"])
    def test_a_checkout_and_its_environment(self, tmp_path: Path, folder: str) -> None:
        root = make_checkout(tmp_path / "musubi-tuner")
        python = make_python(root / folder)
        trainer = find(EngineKind.MUSUBI, Settings(workspace=tmp_path))
        assert (trainer.version, trainer.commit) == ("d0a1930", GUIDE)
        assert (trainer.python, trainer.root) == (python, root)
        assert trainer.scripts[Script.TRAIN] == "src/musubi_tuner/wan_train_network.py"
        assert trainer.capabilities == capabilities.stored("d0a1930")

    def test_no_checkout(self, tmp_path: Path) -> None:
        with pytest.raises(NotReadyError, match="no musubi-tuner checkout") as caught:
            find(EngineKind.MUSUBI, Settings(workspace=tmp_path))
        assert caught.value.hint is not None
        assert "wan-train provision" in caught.value.hint
        assert "wan-train rehearse" in caught.value.hint

    def test_another_directory_in_its_place(self, tmp_path: Path) -> None:
        (tmp_path / "musubi-tuner").mkdir()
        with pytest.raises(NotReadyError, match="is not a musubi-tuner checkout"):
            find(EngineKind.MUSUBI, Settings(workspace=tmp_path))

    def test_no_environment(self, tmp_path: Path) -> None:
        make_checkout(tmp_path / "musubi-tuner")
        with pytest.raises(NotReadyError, match="Python environment is missing"):
            find(EngineKind.MUSUBI, Settings(workspace=tmp_path))

    def test_a_named_python_that_is_not_there(self, tmp_path: Path) -> None:
        make_checkout(tmp_path / "musubi-tuner")
        with pytest.raises(NotReadyError, match=r"nowhere/python"):
            find(EngineKind.MUSUBI, Settings(workspace=tmp_path, musubi_python=tmp_path / "nowhere" / "python"))

    def test_an_unknown_version_whose_scripts_do_not_start(self, tmp_path: Path) -> None:
        root = make_checkout(tmp_path / "musubi-tuner", commit="f" * 40)
        make_python(root / "venv")
        with pytest.raises(NotReadyError, match="not one of the tested versions"):
            find(EngineKind.MUSUBI, Settings(workspace=tmp_path))

    def test_an_unknown_version_is_asked_what_it_can_do(self, tmp_path: Path) -> None:
        root = make_checkout(tmp_path / "musubi-tuner", commit="f" * 40)
        python = make_python(root / "venv")
        python.write_text(
            "#!/bin/sh\necho 'usage: x'\necho '  --save_precision {fp16,bf16}'\necho '  --sdpa    use it'\n"
        )
        found = find(EngineKind.MUSUBI, Settings(workspace=tmp_path)).capabilities
        assert found.saves_float32
        assert found.options[Script.TRAIN]["--save_precision"].takes_value
        assert not found.options[Script.TRAIN]["--sdpa"].takes_value

    def test_packages_of_its_environment(self, tmp_path: Path) -> None:
        root = make_checkout(tmp_path / "musubi-tuner")
        make_python(root / "venv")
        package = root / "venv" / "lib" / "python3.11" / "site-packages" / "xformers"
        package.mkdir(parents=True)
        trainer: Trainer = find(EngineKind.MUSUBI, Settings(workspace=tmp_path))
        assert not trainer.has_package("xformers")  # an empty folder is what an uninstall leaves
        (package / "__init__.py").touch()
        assert trainer.has_package("xformers")
        assert not trainer.has_package("flash_attn")
