"""Run directories: names that nobody else has, and finding them again."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.runs import T0, make_plan
from wan_train.base.codec import CorruptRecordError
from wan_train.base.errors import AmbiguousRunError, BadInputError, ExitCode, NotReadyError
from wan_train.run.directory import RunDirectory, all_runs, create, find, slug


def make(runs: Path, title: str, *, now: float = T0) -> RunDirectory:
    run = create(runs, title, now=now)
    run.write_plan(make_plan(title=title, run_dir=run.path))
    return run


class TestCreating:
    def test_two_runs_of_one_moment_and_title(self, tmp_path: Path) -> None:
        first, second, third = (create(tmp_path / "new" / "runs", "cat", now=T0) for _ in range(3))
        assert re.fullmatch(r"\d{8}-\d{6}-cat", first.run_id)
        assert (second.run_id, third.run_id) == (f"{first.run_id}-2", f"{first.run_id}-3")
        assert first.path.stat().st_mode & 0o777 == 0o700

    def test_a_file_in_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        for runs in (tmp_path / "file", tmp_path / "file" / "runs"):
            with pytest.raises(NotReadyError) as caught:
                create(runs, "cat", now=T0)
            assert str(runs) in caught.value.message
            assert caught.value.hint is not None
            assert "--runs-dir" in caught.value.hint

    @given(st.text(max_size=80))
    def test_every_title_becomes_a_plain_name(self, title: str) -> None:
        name = slug(title)
        assert re.fullmatch(r"[\w-]{1,40}", name)
        assert not name.startswith("-")
        assert Path(name).name == name

    @pytest.mark.parametrize(
        ("title", "name"),
        [("my cat", "my-cat"), ("../../etc", "etc"), ("夜の街", "夜の街"), ("--", "run"), ("", "run")],
    )
    def test_titles(self, title: str, name: str) -> None:
        assert slug(title) == name


class TestFinding:
    @pytest.fixture
    def runs(self, tmp_path: Path) -> Path:
        for number, title in enumerate(("cat", "dog", "cat-blue")):
            make(tmp_path, title, now=T0 + number)
        (tmp_path / "20990101-000000-no-run").mkdir()
        (tmp_path / "a file").touch()
        return tmp_path

    def test_newest_first(self, runs: Path) -> None:
        assert [run.run_id.split("-", 2)[2] for run in all_runs(runs)] == ["cat-blue", "dog", "cat"]

    @pytest.mark.parametrize(("name", "title"), [(None, "blue"), ("last", "blue"), ("dog", "dog"), ("blue", "blue")])
    def test_by_a_part_of_the_name(self, runs: Path, name: str | None, title: str) -> None:
        assert find(runs, name).run_id.endswith(title)

    def test_by_the_whole_name_even_if_it_is_part_of_another(self, runs: Path) -> None:
        cat = all_runs(runs)[-1]
        twin = RunDirectory(runs / f"{cat.run_id}-2")
        twin.path.mkdir()
        twin.write_plan(make_plan(run_dir=twin.path))
        assert find(runs, cat.run_id) == cat

    def test_by_path_from_anywhere(self, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        run = find(runs, "dog")
        assert find(tmp_path / "elsewhere", str(run.path)) == run
        monkeypatch.chdir(runs)
        assert find(tmp_path / "elsewhere", f"./{run.run_id}") == run

    @pytest.mark.parametrize("name", ["cow", "../x", "~nobody-of-that-name/x", "/", "\x1b[31m"])
    def test_what_is_not_there(self, runs: Path, name: str) -> None:
        with pytest.raises(BadInputError) as caught:
            find(runs, name)
        assert caught.value.exit_code is ExitCode.BAD_INPUT
        assert "\x1b" not in caught.value.message

    def test_what_fits_several(self, runs: Path) -> None:
        with pytest.raises(AmbiguousRunError, match="matches 2 runs") as caught:
            find(runs, "cat")
        assert any("cat-blue" in run_id for run_id in caught.value.matches)

    def test_no_runs_at_all(self, tmp_path: Path) -> None:
        assert all_runs(tmp_path / "none") == []
        for name in (None, "x"):
            with pytest.raises(BadInputError, match="no runs"):
                find(tmp_path / "none", name)


class TestPlans:
    @pytest.mark.parametrize("changes", [{}, {"keep_every_epochs": 10}, {"gpu_uuids": ()}, {"env": {"A": "é"}}])
    def test_there_and_back(self, tmp_path: Path, changes: dict[str, object]) -> None:
        run = create(tmp_path, "cat", now=T0)
        plan = replace(make_plan(title="夜 'x'", run_dir=run.path), **changes)  # type: ignore[arg-type]  # names above
        run.write_plan(plan)
        assert run.read_plan() == plan

    def test_a_directory_that_is_no_run(self, tmp_path: Path) -> None:
        with pytest.raises(BadInputError, match="is not a run"):
            RunDirectory(tmp_path).read_plan()

    @pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"schema": 1}'])
    def test_a_damaged_plan(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "plan.json").write_text(text)
        with pytest.raises(CorruptRecordError, match=r"plan\.json"):
            RunDirectory(tmp_path).read_plan()

    def test_every_path_is_inside(self, tmp_path: Path) -> None:
        run = RunDirectory(tmp_path)
        attempt = run.attempt("train-high", 2)
        assert attempt.path == tmp_path / "train-high" / "2"
        inside = [run.plan, run.events, run.live, run.lock, run.recipe, run.stop_request, attempt.log, attempt.output]
        assert all(path.is_relative_to(tmp_path) for path in inside)
        assert len(set(inside)) == len(inside)
