"""Packs the wan-train that runs here as a wheel, so that a box gets exactly this version, released or not."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import zipfile
from collections.abc import Iterator
from pathlib import Path

import wan_train
from wan_train.base.errors import NotReadyError
from wan_train.base.files import write_whole
from wan_train.base.settings import shipped_configs

_SCRIPT = "vast_provision.sh"
_TIME = (1980, 1, 1, 0, 0, 0)
"""The time of every zip entry. It is fixed, so that the same files make the same wheel, which a box has already."""
_METADATA = ("METADATA", "WHEEL", "entry_points.txt")


def provision_script() -> Path:
    """The script that sets a box up, from an installed package or a checkout. Raises NotReadyError."""
    package = Path(wan_train.__file__).parent
    for folder in (package / "scripts", package.parent.parent / "scripts"):
        if (folder / _SCRIPT).is_file():
            return folder / _SCRIPT
    raise NotReadyError(f"{_SCRIPT} is missing from this installation", hint="Install wan-train again.")


def pack(folder: Path) -> Path:
    """Pack the wheel into `folder`. Raises NotReadyError if wan-train was not installed by a tool such as pip."""
    try:
        distribution = importlib.metadata.distribution("wan-train")
    except importlib.metadata.PackageNotFoundError as error:
        raise NotReadyError(
            "wan-train is not installed, so it cannot be sent to a box", hint="Install it: `pip install wan-train`"
        ) from error
    version = distribution.version
    info = f"wan_train-{version}.dist-info"
    entries = dict(_package_files())
    for name in _METADATA:
        text = distribution.read_text(name)
        if text is not None:
            entries[f"{info}/{name}"] = text.encode()
    record = "".join(f"{name},{_digest(data)},{len(data)}\n" for name, data in sorted(entries.items()))
    entries[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    target = folder / f"wan_train-{version}-py3-none-any.whl"
    draft = folder / f".{target.name}.new"
    with zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(entries.items()):
            archive.writestr(zipfile.ZipInfo(name, date_time=_TIME), data, zipfile.ZIP_DEFLATED)
    write_whole(target, draft.read_bytes())
    draft.unlink()
    return target


def _package_files() -> Iterator[tuple[str, bytes]]:
    package = Path(wan_train.__file__).parent
    yield from _below(package, "wan_train")
    if not (package / "configs").is_dir():
        yield from _below(shipped_configs(), "wan_train/configs")
    if not (package / "scripts").is_dir():
        yield f"wan_train/scripts/{_SCRIPT}", provision_script().read_bytes()


def _below(folder: Path, name: str) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield f"{name}/{path.relative_to(folder).as_posix()}", path.read_bytes()


def _digest(data: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
