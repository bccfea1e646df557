"""This user's measurements: one file, one line each. They are kept, however the command ends."""

from __future__ import annotations

from pathlib import Path

from wan_train.base import codec
from wan_train.base.errors import NotReadyError
from wan_train.base.files import append_lines
from wan_train.base.settings import user_data_dir
from wan_train.recipe.measured import Basis, Measurement


def file() -> Path:
    return user_data_dir() / "tune" / "measurements.jsonl"


def read() -> tuple[Measurement, ...]:
    """Return every measurement, oldest first, or none if the file cannot be read."""
    try:
        return tuple(codec.read_lines(file(), Measurement))
    except OSError:
        return ()


def of(basis: Basis | None) -> tuple[Measurement, ...]:
    """Return the measurements made on this kind of card with this software."""
    return tuple(measured for measured in read() if measured.basis == basis) if basis is not None else ()


def keep(measured: Measurement) -> None:
    """Append one line and flush it to disk. Raise NotReadyError if that fails."""
    path = file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        append_lines(path, codec.to_json(measured))
    except OSError as error:
        raise NotReadyError(
            f"the measurement cannot be kept in {path}: {error.strerror}",
            hint="Free some disk space, then run the command again: it continues after the rows that were kept.",
        ) from error
