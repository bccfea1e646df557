"""Titles and authors: what may become part of file names and command lines."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_train.base.errors import BadInputError
from wan_train.engine.traits import MUSUBI, REHEARSAL, TrainerTraits
from wan_train.recipe.terms import Expert, Task
from wan_train.run.plan import result_name
from wan_train.run.titles import check_author, check_title, problem_with_title


@pytest.mark.parametrize("title", ["mylora", "My LoRA v1.2", "夜の街", "a", "x" * 120, "it's_(1)", "naïve", "🐱"])
def test_good_titles(title: str) -> None:
    assert check_title(title) == title


@pytest.mark.parametrize(
    ("title", "said"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("../../x", "cannot be in a file name"),
        ("a/b", "cannot be in a file name"),
        ("a\\b", "cannot be in a file name"),
        ("-x", "begins with '-'"),
        (".hidden", "begins with '.'"),
        ("x" * 300, "longer than"),
        ("夜" * 41, "longer than"),
        ("a\nb", "control characters"),
        ("a\x1b[31m", "control characters"),
        ("a\0", "control characters"),
        ("\u202egnp", "control characters"),
        (" x", "space"),
        ("x ", "space"),
        ("a\udc80", "control characters"),
    ],
)
def test_bad_titles(title: str, said: str) -> None:
    with pytest.raises(BadInputError) as caught:
        check_title(title)
    assert said in caught.value.message
    assert caught.value.message.isprintable()
    assert caught.value.hint is not None


@given(st.text(max_size=150))
def test_an_accepted_title_is_a_file_name_on_any_system(title: str) -> None:
    if problem_with_title(title) is not None:
        return
    accepted = check_title(title)
    assert unicodedata.is_normalized("NFC", accepted)
    for task in Task:
        for engine in (MUSUBI, REHEARSAL):
            name = f"{result_name(accepted, task, Expert.HIGH, engine)}-000100-state"
            assert Path(name).name == name
            assert len(name.encode()) <= 255


def test_two_spellings_of_one_title_are_the_same() -> None:
    assert check_title("cafe\u0301") == check_title("caf\u00e9")


@pytest.mark.parametrize("author", ["authorName", "-x", "A. B / C", "夜"])
def test_good_authors(author: str) -> None:
    assert check_author(author) == author


@pytest.mark.parametrize("author", ["", " ", "a\nb", "x" * 201, "\x1b[2J"])
def test_bad_authors(author: str) -> None:
    with pytest.raises(BadInputError):
        check_author(author)


@pytest.mark.parametrize(
    ("task", "expert", "engine", "name"),
    [
        (Task.T2V, Expert.HIGH, MUSUBI, "WAN2.2-HighNoise_cat"),
        (Task.T2V, Expert.LOW, MUSUBI, "WAN2.2-LowNoise_cat"),
        (Task.I2V, Expert.HIGH, MUSUBI, "WAN2.2-I2V_HighNoise_cat"),
        (Task.T2V, Expert.LOW, REHEARSAL, "REHEARSAL_WAN2.2-LowNoise_cat"),
    ],
)
def test_names_of_results(task: Task, expert: Expert, engine: TrainerTraits, name: str) -> None:
    assert result_name("cat", task, expert, engine) == name
