"""The installed trainer: where it is, its version, what it can do."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from wan_train.base import codec, process
from wan_train.base.errors import NotReadyError
from wan_train.base.files import write_whole
from wan_train.base.settings import Settings
from wan_train.engine import capabilities, traits
from wan_train.engine.capabilities import Capabilities, Script
from wan_train.recipe.terms import EngineKind

_NOT_READY_HINT = (
    "Run `wan-train provision` to set the box up, or `wan-train rehearse` to try the whole pipeline without a GPU."
)
_HELP_TIMEOUT_SECONDS = 120.0
"""Importing the trainer takes 10-15 s on a cold disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainer:
    """One trainer, ready to run. `root` is the working directory; script paths are relative to it."""

    kind: EngineKind
    version: str
    commit: str | None
    python: Path
    root: Path
    scripts: Mapping[Script, str]
    env: Mapping[str, str] = field(default_factory=dict)
    probed: Capabilities | None = None
    """Capabilities from an unknown version's `--help`; None for a version with a stored table."""

    @property
    def capabilities(self) -> Capabilities:
        return self.probed or capabilities.stored(self.version)

    @property
    def traits(self) -> traits.TrainerTraits:
        return traits.traits_of(self.kind)

    @property
    def is_real(self) -> bool:
        """Whether it trains Wan 2.2 on a GPU, with model files. The rehearsal trainer does not."""
        return self.traits.is_real

    @property
    def title(self) -> str:
        """Name and version, for display."""
        return f"musubi-tuner {self.version}" if self.is_real else "embedded rehearsal trainer"

    def has_package(self, package: str) -> bool:
        """Whether the trainer's environment has this top-level package. Does not start its Python."""
        return has_package(self.python, package)


def has_package(python: Path, package: str) -> bool:
    """Whether this Python's environment has this top-level package or module. Does not start it."""
    folders = list(_libraries(python).glob("python3*/site-packages"))
    return any((folder / name).is_file() for folder in folders for name in (f"{package}/__init__.py", f"{package}.py"))


def package_version(python: Path, package: str) -> str | None:
    """The installed version of a package, from its metadata folder's name; None if there is none."""
    found = sorted(_libraries(python).glob(f"python3*/site-packages/{package}-*.dist-info"))
    return found[0].name.removeprefix(f"{package}-").removesuffix(".dist-info") if found else None


def _libraries(python: Path) -> Path:
    return python.parent.parent / "lib"


def find(kind: EngineKind, settings: Settings) -> Trainer:
    """The installed trainer of that kind; raises NotReadyError naming what is missing and how to get it."""
    match kind:
        case EngineKind.MUSUBI:
            return find_musubi(settings)
        case EngineKind.REHEARSAL:
            return _find_rehearsal()


def find_musubi(settings: Settings) -> Trainer:
    """The installed musubi-tuner with its options; raises NotReadyError."""
    trainer = locate_musubi(settings)
    if trainer.version in capabilities.KNOWN_COMMITS.values():
        return trainer
    known = recall_help(settings.box_dir, trainer.root, trainer.commit)
    if known is not None:
        return replace(trainer, probed=capabilities.from_help(trainer.version, known))
    return replace(trainer, probed=probe(trainer))


def locate_musubi(settings: Settings) -> Trainer:
    """The installed musubi-tuner, without probing its options; raises NotReadyError."""
    root = settings.trainer_dir
    if not root.is_dir():
        raise NotReadyError(f"this box is not ready: there is no musubi-tuner checkout at {root}", hint=_NOT_READY_HINT)
    scripts = {script: f"src/musubi_tuner/{script}" for script in Script}
    missing = [path for path in scripts.values() if not (root / path).is_file()]
    if missing:
        raise NotReadyError(f"{root} is not a musubi-tuner checkout: {missing[0]} is missing", hint=_NOT_READY_HINT)
    commit = read_commit(root)
    version = capabilities.KNOWN_COMMITS.get(commit or "", commit[:7] if commit else "unknown")
    return Trainer(
        kind=EngineKind.MUSUBI,
        version=version,
        commit=commit,
        python=_musubi_python(settings),
        root=root,
        scripts=scripts,
    )


def _musubi_python(settings: Settings) -> Path:
    if settings.musubi_python is not None:
        if not os.access(settings.musubi_python, os.X_OK):
            raise NotReadyError(
                f"the trainer's Python {settings.musubi_python} does not exist or cannot be run", hint=_NOT_READY_HINT
            )
        return settings.musubi_python
    tried = [settings.trainer_dir / name / "bin" / "python" for name in ("venv", ".venv")]
    for python in tried:
        if os.access(python, os.X_OK):
            return python
    raise NotReadyError(
        f"the trainer's Python environment is missing: neither {tried[0]} nor {tried[1]} can be run",
        hint=f"{_NOT_READY_HINT} Another environment: `--musubi-python PATH`.",
    )


def _find_rehearsal() -> Trainer:
    package = Path(__file__).parent.parent / "rehearsal"
    python = Path(sys.executable)
    for module in ("torch", "accelerate", "safetensors"):
        if not _importable_here(module):
            raise NotReadyError(
                f"the rehearsal trainer needs {module}, which is not installed beside wan-train",
                hint="Install the extra: `pip install 'wan-train[rehearsal]'`, or run `make rehearse` in a checkout.",
            )
    return Trainer(
        kind=EngineKind.REHEARSAL,
        version=capabilities.REHEARSAL_VERSION,
        commit=None,
        python=python,
        root=package,
        scripts={script: script.value for script in Script},
        env={"PYTHONPATH": str(package.parent.parent)},
    )


def draw_pictures(trainer: Trainer, folder: Path) -> None:
    """Let the rehearsal's trainer draw its eight captioned pictures into `folder`; raises NotReadyError."""
    argv: list[str | Path] = [trainer.python, "-m", "wan_train.rehearsal.example_pictures", folder]
    done = process.run(argv, seconds=_HELP_TIMEOUT_SECONDS, env=trainer.env)
    if not done.succeeded:
        raise NotReadyError(
            f"the pictures of the rehearsal cannot be drawn into {folder}: {done.tail(1) or 'no output'}",
            hint="Is the disk full? Choose another --runs-dir, or use your own pictures: `wan-train rehearse DIR`.",
        )


def _importable_here(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None


def read_commit(root: Path) -> str | None:
    """The checked-out commit, read from git's own files. Needs no git program and runs no hooks."""
    git = root / ".git"
    try:
        if git.is_file():  # a worktree or submodule points elsewhere
            git = (root / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()).resolve()
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref: "):
            return head or None
        name = head.removeprefix("ref: ")
        common = git / "commondir"
        base = (git / common.read_text(encoding="utf-8").strip()).resolve() if common.is_file() else git
        if (base / name).is_file():
            return (base / name).read_text(encoding="utf-8").strip()
        for line in (base / "packed-refs").read_text(encoding="utf-8").splitlines():
            commit, _, ref = line.partition(" ")
            if ref == name:
                return commit
    except (OSError, UnicodeDecodeError):
        return None
    return None


def probe(trainer: Trainer) -> Capabilities:
    """Ask an unknown version's scripts for their options; raises NotReadyError when they do not start."""
    return capabilities.from_help(trainer.version, {script: help_text(trainer, script) for script in Script})


def help_text(trainer: Trainer, script: Script) -> str:
    """A script's `--help` output; raises NotReadyError when it does not start."""
    done = process.run(
        [trainer.python, trainer.scripts[script], "--help"],
        seconds=_HELP_TIMEOUT_SECONDS,
        cwd=trainer.root,
        env={**trainer.env, "COLUMNS": "200"},
    )
    if done.code is None:
        raise NotReadyError(f"the trainer does not start: {done.trouble}", hint=_NOT_READY_HINT)
    if not done.succeeded:
        raise NotReadyError(
            f"musubi-tuner at commit {trainer.commit or 'unknown'} is not one of the tested versions "
            f"({', '.join(capabilities.KNOWN_COMMITS.values())}), and its {script} --help fails: "
            f"{done.tail(1) or 'no output'}",
            hint=_NOT_READY_HINT,
        )
    return done.output


@dataclass(frozen=True, slots=True, kw_only=True)
class _KeptHelp:
    """Stored `--help` texts. `changed` is the change time of the newest source below `root`, in nanoseconds."""

    root: str
    changed: int
    help: Mapping[Script, str]


def recall_help(folder: Path, root: Path, commit: str | None) -> Mapping[Script, str] | None:
    """The stored `--help` of every script; None if there is none or the sources have changed since."""
    kept: _KeptHelp | None = codec.read(_help_file(folder, commit), _KeptHelp)
    if kept is None:
        return None
    is_same = kept.root == str(root) and kept.changed == _newest_source(root)
    return kept.help if is_same and set(kept.help) == set(Script) else None


def keep_help(folder: Path, root: Path, commit: str | None, texts: Mapping[Script, str]) -> None:
    """Store an unknown version's `--help` texts, because probing again takes half a minute."""
    kept = _KeptHelp(root=str(root), changed=_newest_source(root), help=texts)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(_help_file(folder, commit), codec.to_json(kept), mode=0o644)


def _help_file(folder: Path, commit: str | None) -> Path:
    return folder / f"options-{(commit or 'unknown')[:40]}.json"


def _newest_source(root: Path) -> int:
    """Change time of the newest source, in nanoseconds, since the checkout may be edited."""
    return max((path.stat().st_mtime_ns for path in (root / "src").rglob("*.py")), default=0)
