from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from wan_train.dataset.config import load
from wan_train.dataset.model import Item, MediaKind
from wan_train.dataset.previews import MOST_BYTES, Preview, captions, previews_of
from wan_train.dataset.scan import scan

from .support import config_for, draw


def item(path: Path) -> Item:
    return Item(path=path, caption_path=None, caption_characters=0, width=1, height=1)


def preview(path: Path, kind: MediaKind = MediaKind.IMAGE) -> Preview | None:
    return previews_of({path: kind}).get(path)


@pytest.mark.parametrize("size", [(1000, 500), (240, 240), (40, 30), (3000, 3), (1, 1)])
def test_a_preview_is_a_small_jpeg_of_the_whole_picture(tmp_path: Path, size: tuple[int, int]) -> None:
    found = preview(draw(tmp_path / "a.png", size))
    assert found is not None
    with Image.open(io.BytesIO(found.jpeg)) as image:
        assert image.format == "JPEG"
        assert image.size == (found.width, found.height)
    assert max(found.width, found.height) == min(240, max(size))


def test_even_noise_stays_within_the_bytes(tmp_path: Path) -> None:
    noise = Image.frombytes("RGB", (600, 600), os.urandom(600 * 600 * 3))
    noise.save(tmp_path / "noise.png")
    found = preview(tmp_path / "noise.png")
    assert found is not None
    assert len(found.jpeg) <= MOST_BYTES


def test_a_picture_is_shown_as_the_trainer_reads_it_and_not_turned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (400, 200), "red").save(tmp_path / "a.jpg", exif=exif)
    found = preview(tmp_path / "a.jpg")
    assert found is not None
    assert found.width > found.height
    assert b"Exif" not in found.jpeg


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(40)])
@pytest.mark.parametrize("kind", MediaKind)
def test_what_cannot_be_read_has_no_preview_and_harms_nothing(tmp_path: Path, content: bytes, kind: MediaKind) -> None:
    good, bad = draw(tmp_path / "a.png", (50, 50)), tmp_path / "b.png"
    bad.write_bytes(content)
    found = previews_of({bad: kind, good: MediaKind.IMAGE, tmp_path / "gone.png": kind})
    assert set(found) == {good}


def test_a_picture_too_large_to_decode_is_left_out(tmp_path: Path) -> None:
    Image.new("1", (20_000, 3_000)).save(tmp_path / "huge.png")
    assert preview(tmp_path / "huge.png") is None


def test_of_a_video_the_first_frame_is_shown(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=16)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for colour in ("red", "blue", "blue"):
            frame = av.VideoFrame.from_image(Image.new("RGB", (64, 32), colour))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    found = preview(tmp_path / "a.mp4", MediaKind.VIDEO)
    assert found is not None
    with Image.open(io.BytesIO(found.jpeg)) as image:
        red, _, blue = image.convert("RGB").getpixel((32, 16))  # type: ignore[misc]  three bands
    assert red > 200 > blue


def test_of_a_folder_of_frames_the_first_is_shown(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    draw(folder / "1.png", (64, 32))
    found = preview(folder, MediaKind.VIDEO)
    assert found is not None
    assert (found.width, found.height) == (64, 32)


@pytest.mark.parametrize("length", [3999, 4000, 4001, 9000])
def test_a_caption_is_cut_between_characters(tmp_path: Path, length: int) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    draw(folder / "a.png", (64, 64), caption="x" + "猫" * length)
    (found,) = scan(config_for(folder)).subsets
    shown = captions(found.items)[folder / "a.png"]
    assert shown == "x" + "猫" * 1333 + "…"


def test_a_caption_that_is_no_text_is_left_out(pictures: Path) -> None:
    (pictures / "a.txt").write_bytes("größe".encode("utf-16"))
    (pictures / "b.txt").write_bytes(b"\xef\xbb\xbf two\r\nlines ")
    (found,) = scan(config_for(pictures)).subsets
    assert captions(found.items) == {pictures / "b.jpg": "two\nlines"}


def test_captions_of_a_jsonl_file(tmp_path: Path) -> None:
    paths = [draw(tmp_path / name, (64, 64), caption=None) for name in ("a.png", "b.png")]
    records = [json.dumps({"image_path": str(path), "caption": f"words of {path.name}"}) for path in paths]
    (tmp_path / "all.jsonl").write_text("\n".join(records), encoding="utf-8")
    config = tmp_path / "dataset.toml"
    config.write_text(
        f"[[datasets]]\nimage_jsonl_file = '{tmp_path}/all.jsonl'\ncache_directory = '{tmp_path}/cache'\n"
    )
    (found,) = scan(load(config)).subsets
    assert captions(found.items[:1]) == {paths[0]: "words of a.png"}
