"""Settings: default, file, environment, flag; the later wins and every value knows where it came from."""

from __future__ import annotations

from pathlib import Path

import pytest

from wan_train.base import settings
from wan_train.base.errors import BadInputError, ExitCode
from wan_train.base.settings import Settings, Source, resolve


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "settings.toml"


class TestOrder:
    def test_defaults(self, file: Path) -> None:
        found = resolve(flags={}, environ={}, file=file)
        assert found == Settings()
        assert found.source_of("workspace") is Source.DEFAULT
        assert found.environment() == {}

    def test_each_one_overrides_those_before(self, file: Path) -> None:
        file.write_text('workspace = "/from/file"\ngpus = 0\npoll_seconds = 2.5\n')
        environ = {"WAN_TRAIN_WORKSPACE": "/from/environment", "WAN_TRAIN_GPUS": "1"}
        found = resolve(flags={"workspace": "/from/flag", "runs_dir": None}, environ=environ, file=file)
        assert (found.workspace, found.gpus, found.poll_seconds) == (Path("/from/flag"), "1", 2.5)
        assert [found.source_of(name) for name in ("workspace", "gpus", "poll_seconds", "runs_dir")] == [
            Source.FLAG,
            Source.ENVIRONMENT,
            Source.FILE,
            Source.DEFAULT,
        ]

    def test_an_empty_variable_is_an_unset_one(self, file: Path) -> None:
        assert resolve(flags={}, environ={"WAN_TRAIN_GPUS": ""}, file=file).gpus is None

    def test_a_child_gets_the_same_settings(self, file: Path) -> None:
        found = resolve(flags={"workspace": "/w", "gpus": "0,1"}, environ={"WAN_TRAIN_POLL_SECONDS": "3"}, file=file)
        again = resolve(flags={}, environ=found.environment(), file=file)
        assert (again.workspace, again.gpus, again.poll_seconds) == (Path("/w"), "0,1", 3.0)


class TestPlaces:
    def test_relative_paths_count_from_here(self, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert resolve(flags={"runs_dir": "runs"}, environ={}, file=file).runs == tmp_path / "runs"

    def test_the_home_directory(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/home/somebody")
        assert resolve(flags={"runs_dir": "~/runs"}, environ={}, file=file).runs == Path("/home/somebody/runs")

    def test_runs_are_in_the_workspace_if_there_is_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
        assert Settings(workspace=tmp_path).runs == tmp_path / "wan-train-runs"
        assert Settings(workspace=tmp_path / "none").runs == tmp_path / "data" / "wan-train" / "runs"

    def test_the_trainer_is_in_the_workspace_unless_said_otherwise(self) -> None:
        assert Settings().trainer_dir == Path("/workspace/musubi-tuner")
        assert Settings(musubi_dir=Path("/opt/m")).trainer_dir == Path("/opt/m")

    def test_the_users_own_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
        settings.user_config_file().parent.mkdir()
        settings.user_config_file().write_text('gpus = "1"\n')
        assert resolve(flags={}, environ={}).gpus == "1"

    def test_shipped_files_are_there(self) -> None:
        assert (settings.shipped_configs() / "recipes" / "t2v-a14b.toml").is_file()


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "soon", "1e6", "1e400", "True"])
def test_wrong_times_name_their_place(text: str, file: Path) -> None:
    with pytest.raises(BadInputError, match="WAN_TRAIN_POLL_SECONDS") as caught:
        resolve(flags={}, environ={"WAN_TRAIN_POLL_SECONDS": text}, file=file)
    assert caught.value.exit_code is ExitCode.BAD_INPUT
    with pytest.raises(BadInputError, match="--term-grace-seconds"):
        resolve(flags={"term_grace_seconds": text}, environ={}, file=file)
    file.write_text(f'settle_seconds = "{text}"\n')
    with pytest.raises(BadInputError, match=r"settle_seconds in .*settings\.toml"):
        resolve(flags={}, environ={}, file=file)


@pytest.mark.parametrize("text", ["", "  ", "~nobody-of-that-name/x"])
def test_wrong_paths(text: str, file: Path) -> None:
    with pytest.raises(BadInputError, match="--runs-dir"):
        resolve(flags={"runs_dir": text}, environ={}, file=file)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"workspaces = 'x'", "unknown setting 'workspaces'"),
        (b"[gpus", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"gpus = " + b"[" * 5000, "cannot be read"),
        (b"poll_seconds = " + b"9" * 5000, "cannot be read"),
        (b"sources = 'x'", "unknown setting 'sources'"),
    ],
)
def test_wrong_files(content: bytes, said: str, file: Path) -> None:
    file.write_bytes(content)
    with pytest.raises(BadInputError) as caught:
        resolve(flags={}, environ={}, file=file)
    assert said in caught.value.message
    assert str(file) in caught.value.message


def test_a_directory_in_place_of_the_file(file: Path) -> None:
    file.mkdir()
    with pytest.raises(BadInputError, match="cannot be read"):
        resolve(flags={}, environ={}, file=file)
