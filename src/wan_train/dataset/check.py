"""A dataset looked at for its own sake: what a run's preflight sees, also where it would refuse to go on."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from wan_train.dataset.config import load
from wan_train.dataset.deep_scan import Depth, look_closer
from wan_train.dataset.model import (
    DatasetConfig,
    DatasetError,
    DatasetOverrides,
    Inventory,
    Problem,
    ProblemKind,
    Severity,
    TrainerReading,
)
from wan_train.dataset.resolve import Located, ToExisting, ToWrite
from wan_train.dataset.scan import take
from wan_train.dataset.snapshot import with_overrides
from wan_train.dataset.writing import text_for_directory

_ORDER = tuple(Severity)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """All problems of one kind and severity, in the order in which they were found."""

    kind: ProblemKind
    severity: Severity
    problems: tuple[Problem, ...]

    @property
    def line(self) -> str:
        """The first of them as one printable line, and how many are like it."""
        more = len(self.problems) - 1
        return self.problems[0].line + (f" (and {more} more of this kind)" if more else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What a look at a dataset brought.

    `config` is the path of its dataset.toml, which need not exist yet (`is_written`); `inventory` is None where the
    dataset.toml itself stops, since then no file was looked at.
    """

    config: Path
    is_written: bool
    reading: TrainerReading
    inventory: Inventory | None
    problems: tuple[Problem, ...]
    left_out: tuple[str, ...] = ()
    """What was not looked for, in sentences, and how to have it looked for."""

    @property
    def stops(self) -> bool:
        """Whether training cannot start."""
        return any(problem.severity is Severity.STOPS for problem in self.problems)

    @property
    def groups(self) -> tuple[Group, ...]:
        """The worst first; of one severity in the order of `ProblemKind`."""
        return group(self.problems)


def group(problems: Sequence[Problem]) -> tuple[Group, ...]:
    """Problems by severity, then by kind."""
    kinds = tuple(ProblemKind)

    def rank(problem: Problem) -> tuple[int, int]:
        return _ORDER.index(problem.severity), kinds.index(problem.kind)

    return tuple(
        Group(kind=kinds[kind], severity=_ORDER[severity], problems=tuple(found))
        for (severity, kind), found in groupby(sorted(problems, key=rank), key=rank)
    )


def read(located: Located, reading: TrainerReading) -> DatasetConfig:
    """The configuration of what was named, for a folder without dataset.toml the one that would be written.

    Raises DatasetError. The folder itself is not touched.
    """
    match located:
        case ToExisting(toml_path=path):
            return load(path, reading=reading)
        case ToWrite(directory=directory, toml_path=path):
            with tempfile.TemporaryDirectory(prefix="wan-train-") as scratch:
                draft = Path(scratch) / "dataset.toml"
                draft.write_text(text_for_directory(directory), encoding="utf-8")
                return replace(load(draft, reading=reading), path=path)


def check(
    located: Located,
    *,
    reading: TrainerReading,
    overrides: DatasetOverrides,
    tokenizer: Path | None = None,
    depth: Depth = Depth.QUICK,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> Check:
    """Look at everything; never raises for what is in the dataset or its dataset.toml.

    `progress` gets the files decoded so far and all that will be.
    """
    path, is_written = located.toml_path, isinstance(located, ToExisting)
    try:
        config = with_overrides(read(located, reading), overrides)
    except DatasetError as error:
        return Check(config=path, is_written=is_written, reading=reading, inventory=None, problems=error.problems)
    inventory = take(config, reading=reading, tokenizer=tokenizer)
    closer = look_closer(inventory, depth, progress=progress)
    resolved = set(closer.resolved)
    problems = (*(problem for problem in inventory.problems if problem not in resolved), *closer.problems)
    return Check(
        config=path,
        is_written=is_written,
        reading=reading,
        inventory=replace(inventory, problems=problems),
        problems=problems,
        left_out=closer.left_out,
    )
