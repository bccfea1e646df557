"""Hostile text made safe, ordinary text left alone, secrets hidden."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_train.base.text import one_line, redact, visible

TOKEN = "hf_" + "aBcDeFgHiJ" * 3


@given(st.text())
def test_nothing_that_acts_on_a_terminal_is_left(text: str) -> None:
    shown = visible(text)
    assert {unicodedata.category(c) for c in shown if c not in "\u200d\ufe0f"}.isdisjoint(
        {"Cc", "Cf", "Cs", "Zl", "Zp"}
    )
    assert shown.splitlines() in ([shown], [])
    shown.encode()


@given(st.text(st.characters(categories=["L", "M", "N", "P", "S", "Zs"])))
def test_ordinary_text_of_any_script_is_left_alone(text: str) -> None:
    assert visible(text) == text


@pytest.mark.parametrize("text", ["👩‍👩‍👧‍👦 family", "❤️", "夜の街 (2)", "naïve café", "मेरा", "🏳️‍🌈"])
def test_emoji_and_scripts(text: str) -> None:
    assert visible(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\tc\rd", "a\\nb\\tc\\rd"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("a\u200bb", "a\\u200bb"),
        ("\x9b2J", "\\x9b2J"),
        ("\udcff", "\\udcff"),
        ("a\u2028b", "a\\u2028b"),
    ],
)
def test_what_acts_is_written_out(text: str, shown: str) -> None:
    assert visible(text) == shown


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"token {TOKEN} used", TOKEN),
        ("Authorization: Bearer abcdef.ghijkl-mnop", "abcdef.ghijkl-mnop"),
        ("https://user:geheim@host/path", "geheim"),
        ("HF_TOKEN=secret123", "secret123"),
        ("export WANDB_API_KEY='0123abcd'", "0123abcd"),
        ('{"password": "hunter22"}', "hunter22"),
        ("MY_SECRET: c2VjcmV0LXZhbHVl==", "c2VjcmV0LXZhbHVl"),
        ("PASSWORD=abc:defghij", "abc:defghij"),
        ("PASSWORD=abcdefghij:k", "abcdefghij"),
        ("token=a=b=c=defgh", "a=b=c"),
        (f"GET https://host/?token={TOKEN}&x=1", TOKEN),
    ],
)
def test_secrets_are_hidden(text: str, secret: str) -> None:
    hidden = redact(text)
    assert secret not in hidden
    assert "[hidden]" in hidden


def test_what_stands_around_a_secret_stays() -> None:
    assert redact("export HF_TOKEN='secret123' next") == "export HF_TOKEN='[hidden]' next"
    assert redact("https://user:geheim@host/path") == "https://[hidden]@host/path"


COMMIT = "d0a193061a23a51c90664282205d753605a641c1"


def test_commits_and_checksums_are_shown() -> None:
    assert redact(f"commit {COMMIT}") == f"commit {COMMIT}"


@pytest.mark.parametrize(
    "text",
    [
        "tokenizer=umt5-xxl-enc",
        "max_tokens: 512",
        "--learning_rate 3e-4 --optimizer_args weight_decay=0.1",
        "steps: 12/24 [00:01<00:01, avr_loss=0.123]",
        "https://huggingface.co/Wan-AI/Wan2.1-T2V-14B",
        "12:30:45 a:b@c",
    ],
)
def test_ordinary_output_is_not_hidden(text: str) -> None:
    assert redact(text) == text


@given(st.text(), st.integers(1, 300))
def test_one_line_is_one_short_line(text: str, limit: int) -> None:
    line = one_line(text, limit)
    assert len(line) <= limit
    assert "\n" not in line


def test_a_secret_at_the_end_of_a_quoted_line_is_hidden_before_it_is_shortened() -> None:
    assert "aBcDe" not in one_line("x" * 180 + " " + TOKEN)
