"""How the trainer takes what our own checks are there to prevent."""

from __future__ import annotations

from pathlib import Path

from musubi.trainer import Dataset, Trainer, TrainingRun, draw_dataset, text_of
from wan_train.engine.capabilities import stored

NO_ITEMS = "No training items found in the dataset"


def test_missing_caption_stops_one_version_and_is_dropped_by_the_other(trainer: Trainer, tmp_path: Path) -> None:
    dataset = draw_dataset(tmp_path, sizes=((64, 64), (64, 64)))
    (dataset.folder / "p1.txt").unlink()

    done = trainer.cache_latents(dataset)

    if stored(trainer.version).drops_uncaptioned:
        assert done.returncode == 0, text_of(done)
        assert dataset.caches() == {"p0_0064x0064_wan.safetensors"}
        assert "p1" not in done.stdout + done.stderr
    else:
        assert done.returncode == 1, text_of(done)
        assert "FileNotFoundError" in done.stderr
        assert "p1.txt" in done.stderr
        assert "p1_0064x0064_wan.safetensors" not in dataset.caches()


def test_brackets_in_the_cache_path_leave_nothing_to_train(trainer: Trainer, tmp_path: Path) -> None:
    dataset = draw_dataset(tmp_path, cache="cache [x]", sizes=((64, 64),))
    for done in (trainer.cache_latents(dataset), trainer.cache_text(dataset)):
        assert done.returncode == 0, text_of(done)
    assert dataset.caches() == {"p0_0064x0064_wan.safetensors", "p0_wan_te.safetensors"}
    run = TrainingRun(output=tmp_path / "output", epochs=1)

    done = trainer.train(dataset, run)

    assert done.returncode == 1, text_of(done)
    assert NO_ITEMS in done.stderr
    assert not run.output.exists()


def test_one_truncated_picture_stops_the_caching(trainer: Trainer, tmp_path: Path) -> None:
    dataset = draw_dataset(tmp_path, sizes=((64, 64), (150, 110)))
    broken = dataset.folder / "p1.png"
    broken.write_bytes(broken.read_bytes()[:400])

    done = trainer.cache_latents(dataset)

    assert done.returncode == 1, text_of(done)
    assert "truncated" in done.stderr


def test_changed_caption_is_kept_stale_by_skip_existing(trainer: Trainer, tmp_path: Path) -> None:
    dataset = draw_dataset(tmp_path, sizes=((64, 64),))
    assert trainer.cache_text(dataset).returncode == 0
    cache = dataset.cache / "p0_wan_te.safetensors"
    before = cache.read_bytes()
    (dataset.folder / "p0.txt").write_text("something else altogether", encoding="utf-8")

    done = trainer.cache_text(dataset, "--skip_existing")

    assert done.returncode == 0, text_of(done)
    assert cache.read_bytes() == before


def test_training_without_caches_writes_nothing(trainer: Trainer, tmp_path: Path) -> None:
    dataset: Dataset = draw_dataset(tmp_path, sizes=((64, 64),))
    run = TrainingRun(output=tmp_path / "output", epochs=1)

    done = trainer.train(dataset, run)

    assert done.returncode == 1, text_of(done)
    assert NO_ITEMS in done.stderr
