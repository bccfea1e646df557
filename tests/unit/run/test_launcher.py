"""Secrets in the logs of attempts that are over: hidden also in a log that is read in parts, and on a full disk."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from wan_train.run.launcher import hide_secrets

MIB = 1024 * 1024
SHORT = "geheim12"
"""A secret that is hidden only because it is in the environment."""
TOKEN = f"hf_{'a' * 34}"
BAR = b"\rsteps:  29%|\xe2\x96\x88\xe2\x96\x8a   | 1234/24000 [00:01<00:04,  3.93it/s, avr_loss=0.1]"


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MY_API_KEY", SHORT)
    monkeypatch.setenv("MY_SECRET_TEXT", "first line\nsecond line")
    return tmp_path / "output.log"


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """As on a full disk, no file grows beyond this size."""
    old_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old_limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
        signal.signal(signal.SIGXFSZ, old_handler)


def test_a_log_without_secrets_is_left_as_it_is(log: Path) -> None:
    log.write_bytes(b"epoch 1/2\n\xff\xfe" + BAR)
    before = log.stat()
    hide_secrets(log)
    assert (log.stat().st_ino, log.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_log_that_is_gone_is_no_error(log: Path) -> None:
    hide_secrets(log)


@pytest.mark.parametrize("end", ["", "\n", "\r"])
def test_only_the_secrets_change(log: Path, end: str) -> None:
    log.write_bytes(f"a {SHORT} b\n{TOKEN}\nfirst line\nsecond line\nPASSWORD:\nabcdef{end}".encode() + b"\xff")
    hide_secrets(log)
    assert log.read_bytes() == f"a [hidden] b\n[hidden]\n[hidden]\nPASSWORD:\n[hidden]{end}".encode() + (
        b"\xff" if end else b""
    )
    assert [path.name for path in log.parent.iterdir()] == [log.name]


@pytest.mark.parametrize("line", [b"\n", b""])
def test_a_log_that_is_read_in_parts_is_cleaned_too(log: Path, line: bytes) -> None:
    """Wherever a part of the file ends: within a token, or between the lines of a secret."""
    piece = BAR * 400 + f" {TOKEN} first line\nsecond line PASSWORD:\nabcdef".encode() + line
    log.write_bytes(piece * (3 * MIB // len(piece)))
    hide_secrets(log)
    expected = BAR * 400 + b" [hidden] [hidden] PASSWORD:\n[hidden]" + line
    assert log.read_bytes() == expected * (3 * MIB // len(piece))


def test_a_full_disk_costs_the_oldest_bytes_and_shows_no_secret(log: Path) -> None:
    """`[hidden]` is longer than the shortest named secret, so the clean log would be longer than the old one."""
    text = f"{'x ' * (MIB // 8)}\nMY_PASSWORD=abcdef\n" * 10 + "the last line\n"
    log.write_text(text)
    with no_file_larger_than(len(text)):
        hide_secrets(log)
    clean = text.replace("abcdef", "[hidden]")
    assert log.read_text() == clean[len(clean) - len(text) :]
    assert [path.name for path in log.parent.iterdir()] == [log.name]
