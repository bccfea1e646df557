"""Files: atomic writes (a crash leaves the old or the new file, never half), growing files, digests."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path


def write_whole(path: Path, data: str | bytes, *, mode: int = 0o600, durable: bool = True) -> None:
    """Replace `path` with `data`: temporary file in the same directory, flush to disk, rename, flush the directory.

    Raises OSError with the name of `path`, never of the temporary file.
    `durable=False` skips the flushes: readers still see a whole file, but a power cut may lose it.
    """
    write_parts(path, [data.encode() if isinstance(data, str) else data], mode=mode, durable=durable)


def write_parts(path: Path, parts: Iterable[bytes], *, mode: int = 0o600, durable: bool = True) -> None:
    """Do the same as `write_whole` for data that need not be in RAM at once. The parts may come from `path` itself."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.writelines(parts)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if durable:
            sync_directory(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def append_lines(path: Path, *lines: str, durable: bool = True) -> None:
    """Append lines, all or none, and flush them to disk if `durable`; raises OSError."""
    is_new = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        # A full disk may have cut the last line; the new one must not continue it.
        is_cut = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        data = (("\n" if is_cut else "") + "".join(f"{line}\n" for line in lines)).encode()
        if os.write(descriptor, data) < len(data):
            os.ftruncate(descriptor, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if is_new and durable:
        sync_directory(path.parent)


class NewLines:
    """Reads the lines of a growing file, each once and only when complete."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> list[bytes]:
        """Return the lines added since the last call; empty while the file is missing. Raises OSError."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.splitlines()


def stamp(path: Path) -> tuple[int, int] | None:
    """Return size and modification time; None if the file is missing. The same stamp means the same content."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def size_of(path: Path) -> int:
    """Return the size in bytes; 0 for a missing file."""
    return (stamp(path) or (0, 0))[0]


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hex; raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def existing_parent(path: Path) -> Path:
    """Return the path or its nearest existing ancestor. Never raises."""
    while not os.path.exists(path) and path != path.parent:  # noqa: PTH110  Path.exists raises without permission
        path = path.parent
    return path


def can_be_written(folder: Path) -> bool:
    """Whether files can be created in a folder, which need not exist yet. Never raises."""
    place = existing_parent(folder)
    return os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK)  # noqa: PTH112  as above


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file; `target` appears whole, flushed to disk with its name.

    Raises OSError with the name of `source` or `target`, never of the partial copy.
    """
    partial = target.with_name(f".{target.name}.partial")
    try:
        shutil.copyfile(source, partial)
        sync_file(partial)
        partial.replace(target)
    except OSError as error:
        if str(partial) in {str(error.filename), str(error.filename2)}:
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise
    sync_directory(target.parent)


def move_without_overwriting(source: Path, target: Path) -> None:
    """Move a file within one file system; raises FileExistsError rather than replacing `target`."""
    os.link(source, target)
    source.unlink()
    sync_directory(target.parent)


def sync_directory(directory: Path) -> None:
    """Make renames and new names inside `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make the bytes of a file survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
