"""Single lines of the trainer's output, and logs that behave badly."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_train.engine.log_parser import (
    CacheProgress,
    CheckpointBegun,
    EpochStarted,
    OutputParser,
    Record,
    StepRecord,
    last_words,
    parse_line,
)


def feed(*chunks: bytes) -> list[Record]:
    parser = OutputParser()
    return [record for chunk in chunks for record in parser.feed(chunk)] + list(parser.finish())


def bar(postfix: str, *, clock: str = "00:10<00:20", rate: str = "1.00s/it") -> str:
    return f"steps:  33%|███▎      | 8/24 [{clock}, {rate}{postfix}]"


@pytest.mark.parametrize(
    ("text", "loss"),
    [
        ("1.13", 1.13),
        ("0.0926", 0.0926),
        ("1e-5", 1e-5),
        ("1.2e-05", 1.2e-5),
        ("1e+03", 1000.0),
        ("0", 0.0),
        ("-0.5", -0.5),
    ],
)
def test_numbers_of_the_postfix(text: str, loss: float) -> None:
    assert parse_line(bar(f", avr_loss={text}")) == StepRecord(step=8, steps=24, loss=loss)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
def test_numbers_that_are_none(text: str) -> None:
    record = parse_line(bar(f", avr_loss={text}"))
    assert isinstance(record, StepRecord)
    assert record.loss is not None
    assert not math.isfinite(record.loss)
    assert str(record.loss) == text


@pytest.mark.parametrize("clock", ["00:00<?", "59:59<1:00:00", "1:02:03<10:00:00", "100:00:01<00:00"])
def test_clocks_of_hours_and_days(clock: str) -> None:
    assert parse_line(bar(", avr_loss=1.13", clock=clock)) == StepRecord(step=8, steps=24, loss=1.13)


def test_an_unknown_speed() -> None:
    first = "steps:   0%|          | 0/24 [00:00<?, ?it/s]INFO:trainer:DiT dtype: torch.float16"
    assert parse_line(first) == StepRecord(step=0, steps=24, loss=None)


def test_a_message_that_sticks_to_the_bar() -> None:
    glued = bar(", avr_loss=1.13") + "INFO:musubi_tuner.utils.train_utils:"
    assert parse_line(glued) == StepRecord(step=8, steps=24, loss=1.13)


def test_a_further_postfix_does_not_hide_the_loss() -> None:
    record = parse_line(bar(", avr_loss=0.5, lr=0.0003"))
    assert isinstance(record, StepRecord)
    assert record.loss == 0.5


def test_bars_with_and_without_a_total() -> None:
    assert parse_line("12it [00:03,  3.63it/s]") == CacheProgress(done=12)
    assert parse_line(" 50%|█████     | 3/6 [00:01<00:01,  2.00it/s]") == CacheProgress(done=3)


@pytest.mark.parametrize(
    "line", ["", "steps: nonsense", "epoch one/two", "epoch 1/4 of something", "saving checkpoint", "\x1b[2K", "it/s"]
)
def test_lines_that_say_nothing(line: str) -> None:
    assert parse_line(line) is None


def test_windows_line_ends() -> None:
    assert feed(b"epoch 1/4\r\nepoch 2/4\r\n") == [EpochStarted(epoch=1, epochs=4), EpochStarted(epoch=2, epochs=4)]


def test_the_last_line_counts_without_a_line_end() -> None:
    assert feed(b"epoch 3/", b"4") == [EpochStarted(epoch=3, epochs=4)]


def test_bytes_that_are_no_text_do_not_hide_the_next_line() -> None:
    assert feed(b"\xff\xfe\x00\x80 rubbish \xe3\x81\nepoch 1/4\n") == [EpochStarted(epoch=1, epochs=4)]


def test_a_path_in_any_script_survives_a_cut_within_a_character() -> None:
    line = "saving checkpoint: /runs/夜の街-000002.safetensors\n".encode()
    for cut in range(len(line)):
        assert feed(line[:cut], line[cut:]) == [CheckpointBegun(path="/runs/夜の街-000002.safetensors")]


def test_a_flood_without_line_ends_is_not_kept() -> None:
    parser = OutputParser()
    for _ in range(200):
        assert list(parser.feed(b"x" * 65_536)) == []
    assert len(parser._rest) <= 65_536
    assert list(parser.feed(b"\nepoch 1/4\n")) == [EpochStarted(epoch=1, epochs=4)]


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_any_bytes_in_any_pieces(chunks: list[bytes]) -> None:
    assert feed(*chunks) == feed(b"".join(chunks))


@given(st.text())
def test_any_line(line: str) -> None:
    parse_line(line)


def test_last_words_show_the_final_redraw_of_each_line_only() -> None:
    tail = "old\n\nsteps: 1/3\rsteps: 2/3\rsteps: 3/3\r\nTraceback\n   \nValueError: no\n"
    assert last_words(tail, 3) == ["steps: 3/3", "Traceback", "ValueError: no"]
