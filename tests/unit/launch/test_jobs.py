"""Jobs from words and from a jobs.toml: what is sent for them, and everything that is wrong at once."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from PIL import Image

from wan_train.base.errors import BadInputError
from wan_train.cli.launch_options import read_options
from wan_train.launch.jobs import JobRequest, Ready, disk_gb, prepare, read_jobs, requests_of_datasets, shipment_of_job


def dataset(folder: Path, count: int = 3) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (960, 960), (40 * number, 90, 200)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a cat number {number}")
    (folder / "notes.pdf").write_text("not trained")
    return folder


def ready_of(*requests: JobRequest) -> tuple[Ready, ...]:
    return prepare(requests, read_options=read_options)


def request(folder: Path, name: str, **more: object) -> JobRequest:
    return JobRequest(where=name, folder=folder, dataset=name, **more)  # type: ignore[arg-type]  # fields of a request


class TestShipment:
    def test_only_what_is_trained_is_sent_and_the_configuration_has_the_paths_of_the_box(self, tmp_path: Path) -> None:
        cats = dataset(tmp_path / "cats")
        [ready] = ready_of(request(tmp_path, "cats"))
        shipment = ready.shipment
        assert dict(shipment.folders) == {
            "0": (cats, ("0.png", "0.txt", "1.png", "1.txt", "2.png", "2.txt")),
        }
        [entry] = tomllib.loads(shipment.texts["dataset.toml"])["datasets"]
        assert entry["image_directory"] == "/workspace/wan-train-launch/cats/0"
        assert entry["cache_directory"] == "/workspace/wan-train-launch/cats/cache/0"
        assert shipment.bytes == sum((cats / name).stat().st_size for name in shipment.folders["0"][1])
        assert not (cats / "dataset.toml").exists()

    def test_a_folder_trained_twice_is_sent_once(self, tmp_path: Path) -> None:
        cats = dataset(tmp_path / "cats")
        (cats / "dataset.toml").write_text(
            "[general]\ncaption_extension = '.txt'\n"
            + "".join(
                f"[[datasets]]\nimage_directory = {str(cats)!r}\ncache_directory = {str(tmp_path / size)!r}\n"
                f"resolution = [{size}, {size}]\n"
                for size in ("512", "768")
            )
        )
        [ready] = ready_of(request(tmp_path, "cats"))
        assert list(ready.shipment.folders) == ["0"]
        entries = tomllib.loads(ready.shipment.texts["dataset.toml"])["datasets"]
        assert {entry["image_directory"] for entry in entries} == {"/workspace/wan-train-launch/cats/0"}
        assert len({entry["cache_directory"] for entry in entries}) == 2

    def test_a_list_of_records_keeps_its_captions(self, tmp_path: Path) -> None:
        cats = dataset(tmp_path / "cats")
        lines = "".join(f'{{"image_path": "{cats}/{n}.png", "caption": "cat {n}"}}\n' for n in range(3))
        (tmp_path / "list.jsonl").write_text(lines)
        (tmp_path / "d.toml").write_text(
            f"[[datasets]]\nimage_jsonl_file = '{tmp_path}/list.jsonl'\ncache_directory = '{tmp_path}/c'\n"
            "resolution = [960, 960]\n"
        )
        [ready] = ready_of(request(tmp_path, "d.toml", title="cats"))
        assert ready.shipment.folders["0"][1] == ("0.png", "1.png", "2.png")
        assert "/workspace/wan-train-launch/cats/0/1.png" in ready.shipment.texts["items-0.jsonl"]
        assert "cat 1" in ready.shipment.texts["items-0.jsonl"]

    def test_a_dataset_that_was_changed_meanwhile_is_not_sent(self, tmp_path: Path) -> None:
        cats = dataset(tmp_path / "cats")
        [ready] = ready_of(request(tmp_path, "cats"))
        assert shipment_of_job(ready.job).stamp == ready.job.dataset_stamp
        (cats / "1.txt").write_text("another cat")
        with pytest.raises(BadInputError, match="was changed after it was checked"):
            shipment_of_job(ready.job)

    def test_options_of_the_dataset_count_in_the_quote_and_change_nothing_that_is_sent(self, tmp_path: Path) -> None:
        dataset(tmp_path / "cats")
        [plain] = ready_of(request(tmp_path, "cats"))
        [ready] = ready_of(request(tmp_path, "cats", options=("--resolution", "256", "--repeats", "3")))
        assert ready.work.items == 3 * plain.work.items
        assert ready.counted.latent_bytes < plain.counted.latent_bytes
        assert ready.job.dataset_stamp == plain.job.dataset_stamp == shipment_of_job(ready.job).stamp

    def test_a_recipe_is_sent_along(self, tmp_path: Path) -> None:
        dataset(tmp_path / "cats")
        (tmp_path / "mine.toml").write_text("base = 't2v-a14b'\n[training]\nmax_train_epochs = 7\n")
        [ready] = ready_of(request(tmp_path, "cats", recipe="mine.toml"))
        assert "max_train_epochs = 7" in ready.shipment.texts["recipe.toml"]
        assert ready.work.parts[0].epochs == 7


class TestJobs:
    def test_options_reach_the_job_and_its_quote(self, tmp_path: Path) -> None:
        dataset(tmp_path / "cats")
        [ready] = ready_of(request(tmp_path, "cats", author="me", options=("--epochs", "12")))
        assert ready.job.options == ("--author", "me", "--epochs", "12")
        assert [part.epochs for part in ready.work.parts] == [12, 12]
        assert ready.work.download_bytes == pytest.approx(68.85e9, rel=0.01)

    def test_several_datasets_are_titled_by_their_folders(self, tmp_path: Path) -> None:
        for name in ("cats", "dogs"):
            dataset(tmp_path / name)
        requests = requests_of_datasets(
            ["cats", "dogs"], title=None, author=None, recipe=None, options=(), folder=tmp_path
        )
        assert [each.job.title for each in prepare(requests, read_options=read_options)] == ["cats", "dogs"]
        with pytest.raises(BadInputError, match="--title names one LoRA"):
            requests_of_datasets(["cats", "dogs"], title="x", author=None, recipe=None, options=(), folder=tmp_path)

    def test_the_disk_grows_with_the_jobs_and_the_tasks(self, tmp_path: Path) -> None:
        dataset(tmp_path / "cats")
        [one] = ready_of(request(tmp_path, "cats"))
        assert 110 < disk_gb([one]) < disk_gb([one] * 10)
        assert disk_gb([one] * 30, boxes=10) == disk_gb([one] * 4)

    def test_every_problem_of_every_job_is_said_at_once(self, tmp_path: Path) -> None:
        dataset(tmp_path / "cats")
        bad = dataset(tmp_path / "bad")
        (bad / "1.txt").unlink()
        with pytest.raises(BadInputError) as caught:
            ready_of(
                request(tmp_path, "cats"),
                request(tmp_path, "bad"),
                request(tmp_path, "missing", title="a/b"),
                request(tmp_path, "cats", title="Cats"),
                request(tmp_path, "cats", title="x", options=("--detach",)),
                request(tmp_path, "cats", title="y", options=("--nonsense",)),
                request(tmp_path, "cats", title="z", recipe="nowhere.toml"),
            )
        told = caught.value.message
        for part in (
            "bad: ",
            "missing",
            "the title contains /",
            "is also used by cats",
            "--detach is given by",
            "--nonsense",
            "nowhere.toml",
        ):
            assert part in told, told

    @pytest.mark.parametrize("flag", ["--yes", "--then=destroy", "--max-hours", "--title=x", "--workspace"])
    def test_what_the_launch_gives_itself_is_refused(self, tmp_path: Path, flag: str) -> None:
        dataset(tmp_path / "cats")
        with pytest.raises(BadInputError, match="is given by the launch itself"):
            ready_of(request(tmp_path, "cats", options=(flag,)))


class TestFile:
    def test_defaults_lie_below_each_job(self, tmp_path: Path) -> None:
        path = tmp_path / "jobs.toml"
        path.write_text(
            "[defaults]\nauthor = 'me'\noptions = ['--epochs', '50']\n"
            "[[jobs]]\ndataset = 'cats'\ntitle = 'cat'\n[[jobs]]\ndataset = 'dogs'\noptions = []\n"
        )
        first, second = read_jobs(path)
        assert (first.title, first.author, first.options, first.folder) == ("cat", "me", ("--epochs", "50"), tmp_path)
        assert (second.title, second.options) == (None, ())

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("", "must be from 1"),
            ("[[jobs]]\ntitle = 'x'", "jobs 1: dataset is missing"),
            ("[[jobs]]\ndataset = 5", "jobs 1: dataset must be text"),
            ("[[jobs]]\ndataset = 'x'\nepochs = 5", "jobs 1: epochs is unknown"),
            ("[[jobs]]\ndataset = 'x'\noptions = '--epochs 5'", "jobs 1: options must be a list"),
            ("[[jobs]]\ndataset = 'x'\noptions = [5]", "jobs 1: options must be a list"),
            ("jobs = 'all'", "must be tables"),
            ("more = 1\n[[jobs]]\ndataset = 'x'", "more: unknown"),
            ("defaults = 1\n[[jobs]]\ndataset = 'x'", "defaults: must be a table"),
            ("[[jobs", "is not TOML"),
            ("x = " + "[" * 5000, "is not TOML"),
        ],
    )
    def test_what_is_wrong_is_said(self, tmp_path: Path, text: str, told: str) -> None:
        path = tmp_path / "jobs.toml"
        path.write_text(text)
        with pytest.raises(BadInputError) as caught:
            read_jobs(path)
        assert told in caught.value.message

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(BadInputError, match="cannot be read"):
            read_jobs(tmp_path / "jobs.toml")
