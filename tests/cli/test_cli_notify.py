"""`wan-train notify` and `--notify`: which services, a test of them, and addresses that nobody else sees."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.json_output import json_lines
from support.receiver import SECRET, Manners, Receiver, receiver
from wan_train.base.settings import Source, resolve
from wan_train.cli.main import run as wan_train
from wan_train.cli.notify import keep_addresses


@pytest.fixture
def service() -> Iterator[Receiver]:
    with receiver() as made:
        yield made


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The settings file of this test, which is not there yet."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("WAN_TRAIN_NOTIFY", raising=False)
    return tmp_path / "config/wan-train/settings.toml"


def test_without_an_address_it_says_how_to_try_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert wan_train(["notify"]) == 0
    assert "wan-train notify test --notify ntfy://TOPIC" in capsys.readouterr().out
    assert wan_train(["notify", "test"]) == 2
    assert "no notification address is set up" in capsys.readouterr().err


def test_a_test_message_arrives_and_a_service_that_refuses_is_named(
    service: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    assert wan_train(["notify", "test", "--notify", service.url, "--json"]) == 0
    (line,) = json_lines(capsys.readouterr().out)
    assert [(each["name"], each["sent"]) for each in line["services"]] == [("1 JSON at 127.0.0.1", True)]
    assert service.titles == ["wan-train: notifications work"]

    service.manners = Manners.REFUSES
    assert wan_train(["notify", "test", "--notify", service.url]) == 3
    said = capsys.readouterr()
    assert "1 JSON at 127.0.0.1: failed: the service refused it (status 503)" in said.out
    assert SECRET not in said.out + said.err


def test_the_services_of_the_settings_file_are_listed_without_their_secrets(
    service: Receiver, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.parent.mkdir(parents=True)
    config.write_text(f'notify = ["{service.url}", "ntfy://{SECRET}"]\n')
    config.chmod(0o644)
    assert wan_train(["notify"]) == 0
    said = capsys.readouterr()
    assert "1 JSON at 127.0.0.1" in said.out
    assert "2 ntfy" in said.out
    assert "other users can read it" in said.out
    assert SECRET not in said.out + said.err


@pytest.mark.parametrize("address", [f"nonsense://{SECRET}", f"{SECRET}", f"json://:{SECRET}"])
def test_an_address_that_cannot_be_used_is_refused_and_not_quoted(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["notify", "test", "--notify", address], ["--notify", address, "--yes", "--dataset", "/nowhere"]):
        assert wan_train(words) == 2
        said = capsys.readouterr()
        assert SECRET not in said.out + said.err


def test_an_address_given_once_is_kept_for_its_owner_only_and_leaves_the_environment(
    service: Receiver, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.parent.mkdir(parents=True)
    config.write_text("# mine\nprice = 0.5\n")
    config.chmod(0o644)
    monkeypatch.setenv("WAN_TRAIN_NOTIFY", f"{service.url} ntfy://topic")
    keep_addresses(resolve(flags={}))
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert "# mine" in config.read_text()
    kept = resolve(flags={})
    assert kept.notify == (service.url, "ntfy://topic")
    assert (kept.source_of("notify"), kept.price) == (Source.FILE, 0.5)
    assert SECRET not in repr(kept) + repr(kept.environment())

    keep_addresses(resolve(flags={"notify": "none"}))
    assert resolve(flags={}).notify == ()
