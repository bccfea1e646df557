"""Questions answered by keyboard: the three of a training, its confirmation, and what would replace a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tty_keys import CTRL_C, CTRL_D, CTRL_U, ENTER, TAB, Start

from support.trainers import ScriptedBox, make_dataset

TITLE, AUTHOR, DATASET, START = "Title of the LoRA", "Author", "Dataset (folder of pictures", "Start?"
QUESTIONS = [TITLE, AUTHOR, DATASET, START]


def nothing_was_started(box: ScriptedBox) -> bool:
    return not box.runs.exists() and not (box.dataset / "dataset.toml").exists() and box.recorded() == []


def test_the_questions_come_with_the_guides_defaults(terminal: Start, scripted_box: ScriptedBox) -> None:
    screen = terminal()
    screen.sees(f"{TITLE} mylora")
    screen.types(ENTER)
    screen.sees(f"{AUTHOR} authorName")
    screen.types(ENTER)
    screen.sees(f"{DATASET}, or dataset.toml)")
    screen.sees(str(scripted_box.checkout / "dataset" / "dataset.toml")[-40:])
    screen.types(CTRL_C)
    assert screen.ends() == 130


def test_the_first_key_removes_the_default(terminal: Start) -> None:
    screen = terminal(columns=80)
    screen.shows(lambda lines: f"? {TITLE} mylora" in lines)
    screen.types("b")
    screen.shows(lambda lines: f"? {TITLE} b" in lines)
    screen.types("lackcat" + ENTER)
    screen.shows(lambda lines: f"? {TITLE} blackcat" in lines and f"? {AUTHOR} authorName" in lines)


def test_tab_takes_the_default_over_to_change_it(terminal: Start) -> None:
    screen = terminal(columns=80)
    screen.sees(f"{TITLE} mylora")
    screen.types(TAB + "-v2" + ENTER)
    screen.shows(lambda lines: f"? {TITLE} mylora-v2" in lines)


def test_one_enter_takes_a_path_while_completions_are_shown(terminal: Start, scripted_box: ScriptedBox) -> None:
    (scripted_box.root / "picz").mkdir()
    screen = terminal("--title", "cat", "--author", "me", columns=120)
    screen.sees(DATASET)
    screen.types(str(scripted_box.root / "pic") + TAB + TAB)
    screen.shows(lambda lines: any(line.strip() == "picz/" for line in lines) and "  pictures/" in lines)
    screen.types(TAB + ENTER)
    screen.sees(START)
    screen.types("n")
    assert screen.ends() == 0


def test_an_error_stands_below_the_field_without_broken_words(terminal: Start) -> None:
    screen = terminal("--title", "cat", "--author", "me", columns=80)
    screen.answers(DATASET, "/nowhere/" + "some words " * 9)
    lines = screen.shows(lambda lines: any("hint:" in line for line in lines))
    end = next(number for number, line in enumerate(lines) if "hint:" in line)
    said = lines[next(number for number, line in enumerate(lines) if line.startswith("  /nowhere")) : end]
    assert len(said) > 1
    assert " ".join(" ".join(said).split()) == f"/nowhere/{'some words ' * 9}does not exist"
    screen.types("x")
    screen.shows(lambda lines: not any("hint:" in line for line in lines))


def test_enter_takes_the_defaults_to_the_end(terminal: Start, scripted_box: ScriptedBox) -> None:
    make_dataset(scripted_box.checkout / "dataset")
    screen = terminal("--epochs", "1")
    for question in QUESTIONS:
        screen.answers(question)
    assert screen.ends() == 0
    assert (scripted_box.run() / "WAN2.2-HighNoise_mylora.safetensors").is_file()
    assert (scripted_box.run() / "WAN2.2-LowNoise_mylora.safetensors").is_file()


@pytest.mark.parametrize(
    ("bad", "said"), [("../x", "cannot be in a file name"), ("   ", "the title is empty"), ("-x", "begins with")]
)
def test_a_bad_title_is_shown_and_asked_again(terminal: Start, bad: str, said: str) -> None:
    screen = terminal()
    screen.answers(TITLE, bad)
    screen.sees(said)
    screen.types(CTRL_U + "good" + ENTER)
    screen.sees(AUTHOR)


def test_an_empty_author_is_asked_again(terminal: Start) -> None:
    screen = terminal("--title", "cat")
    screen.answers(AUTHOR, "  ")
    screen.sees("the author is empty")
    screen.types(CTRL_U + "me" + ENTER)
    screen.sees(DATASET)


def test_a_missing_dataset_is_asked_again(terminal: Start, scripted_box: ScriptedBox) -> None:
    screen = terminal("--title", "cat", "--author", "me")
    screen.answers(DATASET, "/nowhere/at/all")
    screen.sees("/nowhere/at/all")
    screen.types(CTRL_U + str(scripted_box.dataset) + ENTER)
    screen.sees(START)
    screen.types("n")
    assert screen.ends() == 0


def test_flags_and_variables_skip_their_questions(terminal: Start, scripted_box: ScriptedBox) -> None:
    screen = terminal("--title", "cat", WAN_TRAIN_AUTHOR="somebody", WAN_TRAIN_DATASET=str(scripted_box.dataset))
    screen.sees("cat by somebody")
    screen.sees(START)
    for question in (TITLE, f"? {AUTHOR}", DATASET):
        assert question not in screen.text
    screen.types("n")
    assert screen.ends() == 0


def test_yes_asks_nothing(terminal: Start, scripted_box: ScriptedBox) -> None:
    screen = terminal("--yes", "--epochs", "1", "--dataset", str(scripted_box.dataset))
    assert screen.ends() == 0
    for question in (TITLE, START):
        assert question not in screen.text


def test_the_summary_comes_before_the_last_question(terminal: Start, scripted_box: ScriptedBox) -> None:
    screen = terminal("--title", "cat", "--author", "me", "--dataset", str(scripted_box.dataset))
    for words in ("high-noise on GPU 0", "low-noise on GPU 1", "Output", START):
        screen.sees(words)
    screen.types("n")
    assert screen.ends() == 0


def test_d_at_the_last_question_shows_everything_and_asks_again(terminal: Start, scripted_box: ScriptedBox) -> None:
    screen = terminal("--title", "cat", "--author", "me", "--dataset", str(scripted_box.dataset), columns=80)
    screen.sees(START)
    assert "--save_state" not in screen.text
    screen.types("d")
    screen.sees("--save_state")
    screen.sees(START)
    screen.types("n")
    assert screen.ends() == 0
    assert nothing_was_started(scripted_box)


def test_no_starts_nothing_and_writes_nothing(terminal: Start, scripted_box: ScriptedBox) -> None:
    screen = terminal("--title", "cat", "--author", "me", "--dataset", str(scripted_box.dataset))
    screen.sees(START)
    screen.types("n")
    assert screen.ends() == 0
    assert "Nothing was started" in screen.text
    assert nothing_was_started(scripted_box)


@pytest.mark.parametrize("at", QUESTIONS)
def test_ctrl_c_at_any_question_starts_nothing(terminal: Start, scripted_box: ScriptedBox, at: str) -> None:
    screen = terminal()
    given = {TITLE: "cat", AUTHOR: "me", DATASET: str(scripted_box.dataset)}
    for question in QUESTIONS[: QUESTIONS.index(at)]:
        screen.answers(question, given[question])
    screen.sees(at)
    screen.types(CTRL_C)
    assert screen.ends() == 130
    assert "Traceback" not in screen.text
    assert screen.text.splitlines()[-1] == "error: interrupted; nothing was started"
    assert screen.text.count("interrupted") == 1
    assert nothing_was_started(scripted_box)


def test_the_end_of_input_at_a_question_is_the_same(terminal: Start, scripted_box: ScriptedBox) -> None:
    screen = terminal()
    screen.sees(TITLE)
    screen.types(CTRL_U + CTRL_D)
    assert screen.ends() == 130
    assert "bug" not in screen.text
    assert nothing_was_started(scripted_box)


def test_the_last_answers_are_the_next_defaults(terminal: Start, scripted_box: ScriptedBox) -> None:
    first = terminal("--epochs", "1")
    for question, answer in zip(QUESTIONS, ["kitten", "somebody", str(scripted_box.dataset), ""], strict=True):
        first.answers(question, answer)
    assert first.ends() == 0
    second = terminal()
    second.sees(f"{TITLE} kitten")
    second.types(ENTER)
    second.sees(f"{AUTHOR} somebody")
    second.types(ENTER)
    second.sees(DATASET)
    second.types(ENTER)
    second.sees("kitten by somebody")
    second.sees(START)
    second.types("n")
    assert second.ends() == 0


def test_the_last_question_offers_a_shorter_training_and_remembers_the_choice(
    terminal: Start, scripted_box: ScriptedBox
) -> None:
    words = ("--title", "cat", "--author", "me", "--dataset", str(scripted_box.dataset))
    first = terminal(*words, columns=80)
    first.sees("Start? (Y/e/n, d for details)")
    first.sees("y  all 100 epochs, as in the guide")
    first.sees("e  end after epoch 50: the same LoRA to about 0.4 %, half the time")
    first.types("e")
    first.sees("LoRAs are ready")
    assert first.ends() == 0
    plan = json.loads((scripted_box.run() / "plan.json").read_text())
    assert plan["ends"] == {"high": 50, "low": 50}
    assert "the last question" in (scripted_box.run() / "plan.json").read_text()
    second = terminal(*words, columns=80)
    second.sees("Start? (y/E/n, d for details)")
    second.types("y")
    second.sees("LoRAs are ready")
    assert second.ends() == 0
    assert json.loads((scripted_box.run_directories()[-1] / "plan.json").read_text())["ends"] == {}


def test_the_shorter_training_saves_as_often_as_its_budget_needs(terminal: Start, scripted_box: ScriptedBox) -> None:
    words = ("--title", "cat", "--author", "me", "--dataset", str(scripted_box.dataset), "--price", "36")
    budget = ("--budget", "4")  # of a price that makes it 400 seconds
    screen = terminal(*words, *budget, columns=80)
    screen.sees("e  end after epoch 50")
    screen.types("e")
    screen.sees("LoRAs are ready")
    assert screen.ends() == 0
    plan = json.loads((scripted_box.run() / "plan.json").read_text())
    assert plan["ends"] == {"high": 50, "low": 50}
    assert plan["state_every_epochs"] == 2  # a twentieth of the budget's seconds; without a budget it would be 33


@pytest.mark.parametrize("words", [("--until", "50"), ("--", "--lr_scheduler", "constant"), ("--epochs", "1")])
def test_where_there_is_no_choice_none_is_offered(
    terminal: Start, scripted_box: ScriptedBox, words: tuple[str, ...]
) -> None:
    screen = terminal("--title", "cat", "--author", "me", "--dataset", str(scripted_box.dataset), *words)
    screen.sees("Start? (Y/n, d for details)")
    screen.types("n")
    assert screen.ends() == 0


def test_answers_that_were_not_confirmed_are_not_kept(terminal: Start, scripted_box: ScriptedBox) -> None:
    first = terminal("--author", "me", "--dataset", str(scripted_box.dataset))
    first.answers(TITLE, "mistake")
    first.sees(START)
    first.types("n")
    assert first.ends() == 0
    second = terminal()
    second.sees(f"{TITLE} mylora")


def test_damaged_memory_of_answers_is_no_matter(terminal: Start, scripted_box: ScriptedBox) -> None:
    kept = scripted_box.home / ".local" / "share" / "wan-train" / "answers.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{not json", encoding="utf-8")
    terminal().sees(f"{TITLE} mylora")


def test_a_folder_gets_its_dataset_toml_only_after_the_yes(terminal: Start, scripted_box: ScriptedBox) -> None:
    written = scripted_box.dataset / "dataset.toml"
    screen = terminal("--title", "cat", "--author", "me", "--dataset", str(scripted_box.dataset), "--epochs", "1")
    screen.sees(START)
    assert not written.exists()
    screen.types("y")
    assert screen.ends() == 0
    assert written.is_file()


def test_an_existing_dataset_toml_stays_as_it_is(terminal: Start, scripted_box: ScriptedBox) -> None:
    folder = Path(scripted_box.dataset)
    text = f"# mine\n[general]\nresolution = [64, 64]\n\n[[datasets]]\nimage_directory = {json.dumps(str(folder))}\n"
    text += f'cache_directory = {json.dumps(str(folder / "cache"))}\ncaption_extension = ".txt"\n'
    (folder / "dataset.toml").write_text(text, encoding="utf-8")
    screen = terminal("--title", "cat", "--author", "me", "--dataset", str(folder), "--epochs", "1")
    screen.answers(START)
    assert screen.ends() == 0
    assert (folder / "dataset.toml").read_text(encoding="utf-8") == text


def test_the_targets_of_the_last_run_are_offered_and_none_is_none(terminal: Start, scripted_box: ScriptedBox) -> None:
    last = {"title": "cat", "author": "me", "dataset": "/nowhere", "until": "all", "uploads": ["rclone:/mnt/shelf"]}
    answers = scripted_box.home / ".local/share/wan-train/answers.json"
    answers.parent.mkdir(parents=True)
    answers.write_text(json.dumps(last), encoding="utf-8")
    screen = terminal("--title", "cat", "--author", "me", "--dataset", str(scripted_box.dataset), columns=80)
    screen.shows(lambda lines: "? Upload to (or: none) rclone:/mnt/shelf" in lines)
    screen.types("s3:bucket" + ENTER)
    screen.sees("cannot be uploaded to: it must begin with hf:, hf-public: or rclone:")
    screen.types(CTRL_U + "hf:me/cat" + ENTER)
    screen.shows(lambda lines: "  Upload    hf:me/cat" in lines)
    screen.sees(START)
    screen.types("n")
    assert screen.ends() == 0
    second = terminal("--title", "cat", "--author", "me", "--dataset", str(scripted_box.dataset), columns=80)
    second.sees("Upload to (or: none) rclone:/mnt/shelf")  # what was not confirmed is not kept
    second.types("none" + ENTER)
    second.sees(START)
    second.shows(lambda lines: not any(line.startswith("  Upload") for line in lines))
    second.types("n")
    assert second.ends() == 0
    assert nothing_was_started(scripted_box)


@pytest.mark.parametrize(("key", "code", "is_kept"), [(ENTER, 2, True), (CTRL_C, 130, True), ("y", 0, False)])
def test_a_file_that_is_no_page_of_ours_is_replaced_only_after_a_yes(
    terminal: Start, scripted_box: ScriptedBox, key: str, code: int, is_kept: bool
) -> None:
    target = scripted_box.root / "mine.html"
    target.write_text("<p>my own page", encoding="utf-8")
    screen = terminal("dataset", "check", str(scripted_box.dataset), "--html", str(target))
    screen.sees("Replace it?")
    screen.types(key)
    assert screen.ends() == code
    assert (target.read_text(encoding="utf-8") == "<p>my own page") == is_kept
