"""The two caching programs: names, keys, orphans, and what bad input gets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image
from rehearsal_programs import SIZES, Tiny, run_program
from safetensors import safe_open

from wan_train.dataset.model import DatasetError, ProblemKind
from wan_train.rehearsal.data import bucket_of, load_datasets

LATENTS = {
    "a_0096x0096_wan.safetensors",
    "b_0128x0080_wan.safetensors",
    "c_d_0080x0128_wan.safetensors",
    "e_0100x0100_wan.safetensors",
}
TEXTS = {f"{stem}_wan_te.safetensors" for stem in SIZES}


def latents(dataset: Tiny, *extra: object) -> tuple[int, str]:
    result = run_program("wan_cache_latents", "--dataset_config", dataset.config, "--vae", "v", *extra)
    return result.returncode, result.stderr


def texts(dataset: Tiny, *extra: object) -> tuple[int, str]:
    result = run_program("wan_cache_text_encoder_outputs", "--dataset_config", dataset.config, "--t5", "t", *extra)
    return result.returncode, result.stderr


def test_cache_names_carry_the_original_size(cached: Tiny) -> None:
    assert {path.name for path in cached.cache.iterdir()} == LATENTS | TEXTS


def test_latents_have_an_eighth_of_the_bucket_and_text_its_caption(cached: Tiny) -> None:
    with safe_open(cached.cache / "b_0128x0080_wan.safetensors", "numpy") as file:
        (key,) = file.keys()
        assert key == "latents_1x10x14_float32"
        assert file.get_tensor(key).shape == (16, 1, 10, 14)
        assert file.metadata() == {
            "architecture": "wan",
            "width": "128",
            "height": "80",
            "format_version": "1.0.1",
        }
    with safe_open(cached.cache / "a_wan_te.safetensors", "numpy") as file:
        assert list(file.keys()) == ["varlen_t5_float32"]
        assert file.get_tensor("varlen_t5_float32").shape == (6, 64)
        assert file.metadata() == {
            "architecture": "wan",
            "caption1": "a drawing, number 0",
            "format_version": "1.0.1",
        }


def test_latents_follow_the_picture(cached: Tiny) -> None:
    means = []
    for name in ("a_0096x0096", "e_0100x0100"):
        with safe_open(cached.cache / f"{name}_wan.safetensors", "numpy") as file:
            means.append(file.get_tensor("latents_1x12x12_float32")[:3].mean(axis=(1, 2, 3)))
    red, _, blue = means[1] - means[0]
    assert red > 0.3  # picture e is redder than picture a,
    assert blue < -0.3  # and less blue


def test_skip_existing_looks_at_existence_and_orphans_go(tiny: Tiny) -> None:
    tiny.cache.mkdir()
    kept, orphan = tiny.cache / "a_0096x0096_wan.safetensors", tiny.cache / "gone_0096x0096_wan.safetensors"
    kept.write_bytes(b"whatever")
    orphan.write_bytes(b"")
    code, log = latents(tiny, "--skip_existing", "--i2v")
    assert code == 0, log
    assert kept.read_bytes() == b"whatever"
    assert not orphan.exists()
    assert {path.name for path in tiny.cache.iterdir()} == LATENTS
    with safe_open(tiny.cache / "e_0100x0100_wan.safetensors", "numpy") as file:
        assert set(file.keys()) == {"latents_1x12x12_float32", "latents_image_1x12x12_float32"}
        assert file.get_tensor("latents_image_1x12x12_float32").shape == (20, 1, 12, 12)
    orphan = tiny.cache / "gone_wan_te.safetensors"
    orphan.write_bytes(b"")
    code, log = texts(tiny, "--keep_cache")
    assert code == 0, log
    assert {path.name for path in tiny.cache.iterdir()} == LATENTS | TEXTS | {orphan.name}


def test_missing_caption_stops_with_its_path(tiny: Tiny) -> None:
    (tiny.folder / "b.txt").unlink()
    code, log = texts(tiny)
    assert code == 1
    assert log.endswith(f"FileNotFoundError: [Errno 2] No such file or directory: '{tiny.folder}/b.txt'\n")


def test_a_dataset_that_cannot_be_trained_stops_with_every_reason(tiny: Tiny) -> None:
    text = tiny.config.read_text(encoding="utf-8")
    tiny.config.write_text(text + text[text.index("[[datasets]]") :] + "colour = 3\n", encoding="utf-8")
    with pytest.raises(DatasetError) as refused:
        load_datasets(tiny.config)
    assert {problem.kind for problem in refused.value.problems} == {ProblemKind.UNKNOWN_KEY}


def test_two_datasets_may_not_share_a_cache(tiny: Tiny) -> None:
    text = tiny.config.read_text(encoding="utf-8")
    tiny.config.write_text(text + text[text.index("[[datasets]]") :], encoding="utf-8")
    with pytest.raises(DatasetError, match="is also the cache"):
        load_datasets(tiny.config)


@pytest.mark.parametrize(
    ("size", "bucket"),
    [((640, 427), (640, 416)), ((1920, 1080), (1280, 720)), ((3000, 1000), (1632, 560))],
)
def test_small_pictures_keep_their_size_without_upscaling(
    size: tuple[int, int], bucket: tuple[int, int], tiny: Tiny
) -> None:
    text = tiny.config.read_text(encoding="utf-8").replace("[96, 96]", "[960, 960]\nbucket_no_upscale = true")
    tiny.config.write_text(text, encoding="utf-8")
    (subset,) = load_datasets(tiny.config)
    assert bucket_of(subset, size) == bucket
    with pytest.raises(ValueError, match="too small"):
        bucket_of(subset, (400, 12))


def test_truncated_picture_stops_as_the_real_trainer_does(tiny: Tiny) -> None:
    picture = tiny.folder / "b.png"
    os.truncate(picture, picture.stat().st_size - 40)
    code, log = latents(tiny)
    assert code == 1
    assert "OSError: image file is truncated" in log


def test_clips_are_cached_by_window_and_bucket(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    frames = [Image.new("RGB", (64, 48), (20 * n, 80, 120)) for n in range(11)]
    frames[0].save(folder / "walk.gif", save_all=True, append_images=frames[1:], duration=60)
    (folder / "walk.txt").write_text("a walk", encoding="utf-8")
    config = tmp_path / "d.toml"
    config.write_text(
        '[general]\nresolution = 64\ncaption_extension = ".txt"\n'
        f'[[datasets]]\nvideo_directory = "{folder}"\n'
        'target_frames = [1, 5]\nframe_extraction = "chunk"\n',
        encoding="utf-8",
    )
    done = run_program("wan_cache_latents", "--dataset_config", config, "--vae", "v")
    assert done.returncode == 0, done.stderr
    five = sorted(path.name for path in folder.glob("walk_*-005_*"))
    assert five == [f"walk_0000{start}-005_0064x0064_wan.safetensors" for start in (0, 5)]
    assert len(list(folder.glob("walk_*-001_*"))) == 11
    with safe_open(folder / five[0], "numpy") as file:
        assert list(file.keys()) == ["latents_2x8x8_float32"]
        assert file.metadata()["frame_count"] == "5"


@pytest.mark.parametrize("name", ["wan_cache_latents", "wan_cache_text_encoder_outputs", "wan_train_network"])
def test_unknown_flag_exits_with_two(name: str, tiny: Tiny) -> None:
    needed = {"wan_cache_text_encoder_outputs": ("--t5", "t")}.get(name, ())
    result = run_program(name, "--dataset_config", tiny.config, *needed, "--no_such_flag")
    assert result.returncode == 2
    assert "error: unrecognized arguments: --no_such_flag" in result.stderr
