"""Both caching programs: they write one file for each picture, in pieces."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path

from scripted_faults import Faults, strike
from scripted_program import (
    bar,
    latents_of,
    load_model,
    log,
    occupy_gpu,
    parse_options,
    pictures,
    record,
    seconds,
    text_of,
    version,
    write_in_pieces,
)

_HELD_BYTES = 6 * 1024**3


def cache(script: str, place: str, fault: str, *, model: str, said: str) -> None:
    """Encode everything; `fault` strikes at the first picture."""
    options = parse_options(script)
    faults = Faults(place, 1)
    record("start", place=place, argv=vars(options))
    occupy_gpu(place, shared=True)
    faults.at_start()
    items = list(pictures(options.dataset_config))
    weights = getattr(options, model)
    if not Path(weights).is_file():
        raise FileNotFoundError(2, "No such file or directory", weights)
    log("__main__", said.format(weights))
    load_model(_HELD_BYTES)
    log(f"musubi_tuner.{script.removeprefix('wan_').removesuffix('.py')}", "Encoding dataset [0]")
    started = time.monotonic()
    bar("", 0, None, started)
    targets = set()
    made = []
    for number, item in enumerate(items, start=1):
        faults.before_step(epoch=1, step=number, first_of_epoch=number == 1)
        if number == 1 and fault in faults:
            strike(fault)
        if item.words is None and not item.caption.is_file():
            if version() == "v0.3.4":
                continue
            if place == "text":
                raise FileNotFoundError(2, "No such file or directory", str(item.caption))
        target = item.latents if place == "latents" else item.text
        targets.add(target)
        if not (options.skip_existing and target.exists()):
            target.parent.mkdir(parents=True, exist_ok=True)
            if place == "text" and target.exists():
                _open_existing(target)
            time.sleep(seconds("CACHE", 0.002))
            write_in_pieces(target, latents_of(item, i2v=options.i2v) if place == "latents" else text_of(item))
            made.append(target.name)
        bar("", number, None, started)
    if not options.keep_cache:
        _remove_others(targets, "_wan.safetensors" if place == "latents" else "_wan_te.safetensors")
    record("made", place=place, names=made)
    record("end", place=place)


def _open_existing(path: Path) -> None:
    """Open an existing file. The text cacher adds to it, so a truncated one makes it fail (both versions)."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    entries = json.loads(data[8 : 8 + length])
    ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
    if 8 + length + max(ends) != len(data):
        raise ValueError("MetadataIncompleteBuffer")


def _remove_others(written: set[Path], ending: str) -> None:
    for folder in {path.parent for path in written}:
        for path in folder.glob(f"*{ending}"):
            if path not in written:
                path.unlink()
