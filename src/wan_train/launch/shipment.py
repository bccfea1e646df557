"""What a box needs of a dataset: only the files used for training, and a dataset.toml with paths on the box."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from wan_train.dataset import jsonl
from wan_train.dataset.model import Inventory, Item
from wan_train.dataset.snapshot import snapshot_text

CONFIG_NAME = "dataset.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipment:
    """`folders` maps a name on the box to the folder here and the names in it; `texts` are files to write there.

    All names on the box are below `root`. `stamp` changes with the configuration and any file's name, size or time.
    """

    root: PurePosixPath
    folders: Mapping[str, tuple[Path, tuple[str, ...]]]
    texts: Mapping[str, str]
    bytes: int
    stamp: str

    @property
    def config(self) -> PurePosixPath:
        """The dataset.toml on the box."""
        return self.root / CONFIG_NAME


def shipment_of(inventory: Inventory, root: PurePosixPath, *, more: Mapping[str, str] | None = None) -> Shipment:
    """Return the shipment for a checked dataset, with `more` texts. Raises OSError if a file is gone since the check.

    Files of one folder stay in one folder, because captions and clips are found by their names.
    """
    names: dict[Path, str] = {}
    wanted: dict[Path, dict[str, None]] = {}
    digest = hashlib.sha256()
    size = 0
    for found in inventory.subsets:
        for item in found.items:
            for path in _files(item):
                if path.name in wanted.setdefault(path.parent, {}):
                    continue
                names.setdefault(path.parent, str(len(names)))
                wanted[path.parent][path.name] = None
                for each in sorted(path.iterdir()) if path.is_dir() else (path,):
                    status = each.stat()
                    size += status.st_size
                    line = f"{each}\0{status.st_size}\0{status.st_mtime_ns}\n"
                    digest.update(line.encode(errors="surrogateescape"))
    texts = {**_texts(inventory, root, names), **(more or {})}
    for name, text in sorted(texts.items()):
        digest.update(f"{name}\0{text}".encode(errors="surrogateescape"))
    return Shipment(
        root=root,
        folders={names[folder]: (folder, tuple(files)) for folder, files in wanted.items()},
        texts=texts,
        bytes=size,
        stamp=digest.hexdigest(),
    )


def _files(item: Item) -> tuple[Path, ...]:
    return (item.path,) if item.caption_path is None else (item.path, item.caption_path)


def _texts(inventory: Inventory, root: PurePosixPath, names: Mapping[Path, str]) -> dict[str, str]:
    """The dataset.toml of the box, and its lists of records."""

    def there(path: Path) -> Path:
        return Path(os.fspath(root / names[path.parent] / path.name))

    texts: dict[str, str] = {}
    subsets = []
    for found in inventory.subsets:
        subset = found.subset
        cache = Path(os.fspath(root / "cache" / str(subset.index)))
        if subset.jsonl is not None:
            name = f"items-{subset.index}.jsonl"
            texts[name] = jsonl.text(subset.kind, [replace(item, path=there(item.path)) for item in found.items])
            subset = replace(subset, jsonl=Path(os.fspath(root / name)), cache_directory=cache)
        elif subset.directory is not None:
            folder = Path(os.fspath(root / names[subset.directory]))
            subset = replace(subset, directory=folder, cache_directory=cache)
        subsets.append(subset)
    texts[CONFIG_NAME] = snapshot_text(replace(inventory.config, datasets=tuple(subsets)))
    return texts
