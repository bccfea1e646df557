"""Datasets of which wan-train says that the trainer would not get through them."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import av

from musubi.odd_clips import keep_part, write_clip
from musubi.odd_pictures import art
from wan_train.dataset.model import ProblemKind

Spoil = Callable[[Path, str], str]


class Stage(StrEnum):
    """Which of the three scripts ends with an error; the ones before it go through."""

    LATENTS = "latents"
    TEXT = "text"
    TRAINING = "training"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping:
    """A dataset: `spoil` puts something beside the one good picture, or changes the text of the dataset.toml.

    `spoil` gets the folder and the dataset.toml's text and returns the text.
    """

    name: str
    kind: ProblemKind | None
    stage: Stage | None
    spoil: Spoil
    is_deep: bool = False
    """Whether only decoding tells."""


def _file(name: str, data: bytes) -> Spoil:
    def spoil(folder: Path, text: str) -> str:
        (folder / name).write_bytes(data)
        (folder / f"{os.path.splitext(name)[0]}.txt").write_text("a cat")  # noqa: PTH122 - the trainer's own rule
        return text

    return spoil


def _caption(data: bytes) -> Spoil:
    def spoil(folder: Path, text: str) -> str:
        art(2).save(folder / "x.png")
        (folder / "x.txt").write_bytes(data)
        return text

    return spoil


def _encoded(format_name: str, *, keep: float = 1.0) -> bytes:
    file = io.BytesIO()
    art(3, (200, 150)).save(file, format_name)
    return file.getvalue()[: int(len(file.getvalue()) * keep)]


def _damaged() -> bytes:
    data = bytearray(_encoded("PNG"))
    middle = len(data) // 2
    data[middle : middle + 50] = bytes(50)
    return bytes(data)


def _bomb() -> bytes:
    def chunk(tag: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))

    header = struct.pack(">IIBBBBB", 20000, 10000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


def _folder_as_picture(folder: Path, text: str) -> str:
    (folder / "x.png").mkdir()
    (folder / "x.txt").write_text("a cat")
    return text


def _folder_as_caption(folder: Path, text: str) -> str:
    art(2).save(folder / "x.png")
    (folder / "x.txt").mkdir()
    return text


def _link(target: str) -> Spoil:
    def spoil(folder: Path, text: str) -> str:
        (folder / "x.png").symlink_to(target)
        (folder / "x.txt").write_text("a cat")
        return text

    return spoil


def _no_captions(folder: Path, text: str) -> str:
    (folder / "good.txt").unlink()
    return text


def _nothing(folder: Path, text: str) -> str:
    (folder / "good.png").unlink()
    return text


def _small(folder: Path, text: str) -> str:
    art(2, (10, 300)).save(folder / "x.png")
    (folder / "x.txt").write_text("a cat")
    return text.replace("enable_bucket = true", "enable_bucket = true\nbucket_no_upscale = true")


def _toml(old: str, new: str) -> Spoil:
    def spoil(_folder: Path, text: str) -> str:
        assert old in text
        return text.replace(old, new)

    return spoil


def _records(*lines: str | bytes, kind: str = "image") -> Spoil:
    def spoil(folder: Path, text: str) -> str:
        good = json.dumps({"image_path": str(folder / "good.png"), "caption": "a cat"})
        written = [good if line == "GOOD" else line for line in lines]
        data = b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in written)
        (folder / "records.jsonl").write_bytes(data)
        return text.replace(f'image_directory = "{folder}"', f'{kind}_jsonl_file = "{folder}/records.jsonl"')

    return spoil


def _two_dots(folder: Path, text: str) -> str:
    (folder / "good.tags.txt").write_text("a cat")
    return text.replace('".txt"', '".tags.txt"')


def _clips(make: Callable[[Path], None], more: str = "") -> Spoil:
    def spoil(folder: Path, text: str) -> str:
        write_clip(folder / "fine.mp4")
        (folder / "fine.txt").write_text("a lamp")
        make(folder)
        (folder / "x.txt").write_text("a cat")
        return text.replace("image_directory", "video_directory") + f"target_frames = [1, 5]\n{more}"

    return spoil


def _sound(folder: Path) -> None:
    with av.open(str(folder / "x.mp4"), "w") as file:
        stream = file.add_stream("aac", rate=16000)
        frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
        frame.sample_rate = 16000
        frame.planes[0].update(bytes(frame.planes[0].buffer_size))
        for packet in (*stream.encode(frame), *stream.encode()):
            file.mux(packet)


def _cut_off_clip(folder: Path) -> None:
    write_clip(folder / "x.mp4")
    keep_part(folder / "x.mp4", 0.5)


def _damaged_clip(folder: Path) -> None:
    write_clip(folder / "x.mp4")
    data = bytearray((folder / "x.mp4").read_bytes())
    start = data.index(b"mdat") + 4
    data[start : start + 2000] = bytes(2000)
    (folder / "x.mp4").write_bytes(data)


def _without_caption(folder: Path, text: str) -> str:
    text = _clips(lambda _folder: write_clip(folder / "y.mp4"))(folder, text)
    (folder / "x.txt").unlink()
    return text


def _two_shapes(folder: Path) -> None:
    write_clip(folder / "x.mp4", size=(64, 96))


def _bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _uneven(_folder: Path, text: str) -> str:
    return text.replace("enable_bucket = true", "enable_bucket = false").replace("[64, 64]", "[72, 72]")


def _shared(folder: Path, text: str) -> str:
    other = folder.parent / "other"
    other.mkdir()
    art(7).save(other / "y.png")
    (other / "y.txt").write_text("a dog")
    return text + f'[[datasets]]\nimage_directory = "{other}"\ncache_directory = "{folder}/cache"\n'


def _mixed(folder: Path, text: str) -> str:
    text = _clips(_two_shapes)(folder, text)
    return text.replace("enable_bucket = true", "enable_bucket = false").replace("batch_size = 1", "batch_size = 2")


def _uncaptioned(folder: Path, text: str) -> str:
    art(5).save(folder / "x.png")
    return text


def stopping(*, newest: bool) -> tuple[Stopping, ...]:
    """All of them for one version (`newest` is v0.3.4), and two that do not stop."""
    differing = (
        Stopping(name="an ending of two dots", kind=ProblemKind.NO_CAPTIONS, stage=Stage.TRAINING, spoil=_two_dots)
        if newest
        else Stopping(name="no caption", kind=ProblemKind.MISSING_CAPTION, stage=Stage.LATENTS, spoil=_uncaptioned)
    )
    return (
        Stopping(name="fine", kind=None, stage=None, spoil=lambda _folder, text: text),
        Stopping(name="fine clips", kind=None, stage=None, spoil=_clips(lambda folder: write_clip(folder / "x.mp4"))),
        differing,
        Stopping(
            name="no captions",
            kind=ProblemKind.NO_CAPTIONS,
            # Nothing is cached then, without a word.
            stage=Stage.TRAINING if newest else Stage.LATENTS,
            spoil=_no_captions,
        ),
        *(
            Stopping(
                name=f"{kind} {number}", kind=kind, stage=stage, spoil=spoil, is_deep=kind in _DEEP and number == 0
            )
            for (kind, stage), several in _CASES.items()
            for number, spoil in enumerate(several)
        ),
    )


_DEEP = frozenset({ProblemKind.UNREADABLE_MEDIA})
_LATENTS, _TRAINING = Stage.LATENTS, Stage.TRAINING
_CASES: dict[tuple[ProblemKind, Stage], tuple[Spoil, ...]] = {
    (ProblemKind.UNREADABLE_MEDIA, _LATENTS): (
        # The first is seen only when whole clips are decoded.
        _clips(_damaged_clip, 'frame_extraction = "full"\n'),
        _file("x.png", b"no picture at all"),
        _file("x.jpg", b""),
        _file("x.jpg", b"<!DOCTYPE html><html></html>"),
        _file("x.jpg", b"\0\0\0\x18ftypheic" + bytes(100)),
        _file("x.png", _damaged()),
        _link("x.png"),
        _clips(lambda folder: _bytes(folder / "x.mp4", b"")),
        _clips(lambda folder: _bytes(folder / "x.mp4", b"no clip" * 99)),
        _clips(_sound),
        _clips(_cut_off_clip),
    ),
    (ProblemKind.TRUNCATED_MEDIA, _LATENTS): tuple(
        _file(f"x.{ending}", _encoded(name, keep=0.6))
        for name, ending in (("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"), ("BMP", "bmp"))
    ),
    (ProblemKind.TOO_LARGE, _LATENTS): (_file("x.png", _bomb()),),
    (ProblemKind.TOO_SMALL, _LATENTS): (_small,),
    (ProblemKind.NOT_A_FILE, _LATENTS): (
        _folder_as_picture,
        _link("nothing.png"),
        _records('{"image_path": "/nowhere.png", "caption": "a cat"}'),
        _records("GOOD", '{"image_path": "nowhere.png", "caption": "a cat"}'),
    ),
    (ProblemKind.LONG_NAME, _LATENTS): (_file("x" * 235 + ".png", _encoded("PNG")),),
    (ProblemKind.CAPTION_ENCODING, _LATENTS): (
        _caption("a cat".encode("utf-16")),
        _caption("un chât".encode("latin-1")),
        _folder_as_caption,
        _records("GOOD", '{"caption": "chât"}'.encode("latin-1")),
    ),
    (ProblemKind.MISSING_CAPTION, _LATENTS): (_without_caption,),
    (ProblemKind.EMPTY_DATASET, _TRAINING): (_nothing, _records()),
    (ProblemKind.NO_SUCH_DIRECTORY, _TRAINING): (_toml('image_directory = "', 'image_directory = "/nowhere'),),
    (ProblemKind.BAD_RECORD, _LATENTS): (
        _records("GOOD", "a cat"),
        _records("GOOD", '{"image_path": "/x.png"}'),
        _records("GOOD", '["/x.png", "a cat"]'),
        _records("GOOD", '{"caption": "a cat"}'),
        _records("GOOD", '{"image_path": "", "caption": "a cat"}'),
        _records("GOOD", '{"image_path": 3, "caption": "a cat"}'),
    ),
    (ProblemKind.CONFIG_SYNTAX, _LATENTS): (_toml("[general]", "[general"),),
    (ProblemKind.UNKNOWN_KEY, _LATENTS): (_toml("[general]", "[general]\nresolutions = 3"),),
    (ProblemKind.WRONG_TYPE, _LATENTS): (_toml("batch_size = 1", 'batch_size = "1"'),),
    (ProblemKind.WRONG_VALUE, _LATENTS): (_toml("resolution = [64, 64]", "resolution = [20, 20]"),),
    (ProblemKind.WRONG_VALUE, _TRAINING): (_uneven,),
    (ProblemKind.MISSING_KEY, _LATENTS): (_toml("image_directory", "#"),),
    (ProblemKind.CONFLICTING_KEYS, _LATENTS): (_toml("[[datasets]]", '[[datasets]]\nvideo_directory = "/x"'),),
    (ProblemKind.SHARED_CACHE, _LATENTS): (_shared,),
    (ProblemKind.MIXED_SHAPES, _TRAINING): (_mixed,),
}
