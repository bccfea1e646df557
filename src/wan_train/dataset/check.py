"""A dataset looked at for its own sake: what a run's preflight sees, also where it would refuse to go on."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from wan_train.dataset.inventory import take
from wan_train.dataset.locate import Located, ToExisting, ToWrite
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
from wan_train.dataset.snapshot import with_overrides
from wan_train.dataset.toml_file import load
from wan_train.dataset.writing import text_for_directory

_ORDER = tuple(Severity)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """All problems of one kind and severity, in the order in which they were found."""

    kind: ProblemKind
    severity: Severity
    problems: tuple[Problem, ...]


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


def check(located: Located, *, reading: TrainerReading, overrides: DatasetOverrides) -> Check:
    """Look at everything; never raises for what is in the dataset or its dataset.toml."""
    path, is_written = located.toml_path, isinstance(located, ToExisting)
    try:
        config = with_overrides(read(located, reading), overrides)
    except DatasetError as error:
        return Check(config=path, is_written=is_written, reading=reading, inventory=None, problems=error.problems)
    inventory = take(config, reading=reading)
    return Check(config=path, is_written=is_written, reading=reading, inventory=inventory, problems=inventory.problems)
