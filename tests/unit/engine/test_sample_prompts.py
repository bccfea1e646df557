"""Sample prompts: what is taken, and every problem at once with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from wan_train.base.errors import BadInputError, ExitCode
from wan_train.engine.sample_prompts import SamplePrompt, read_prompts, to_trainer
from wan_train.recipe.terms import Task


def write(folder: Path, text: str | bytes, name: str = "prompts.txt") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(path: Path, task: Task = Task.T2V) -> tuple[SamplePrompt, ...]:
    return read_prompts(path, task, seed=5)


def problems(path: Path, task: Task = Task.T2V) -> list[str]:
    with pytest.raises(BadInputError) as caught:
        read(path, task)
    assert caught.value.exit_code is ExitCode.BAD_INPUT
    return [line.strip() for line in caught.value.message.split("\n")[1:]]


def test_one_prompt_a_line(tmp_path: Path) -> None:
    text = (
        "\ufeff# a comment\n\n  a red fox, --w 832 --h 480 --f 17 --s 30 --d 42 --l 3.5 --fs 5 --n ugly, blurred \r\n"
        "I stand in the rain\n"
    )
    assert read(write(tmp_path, text)) == (
        SamplePrompt(
            prompt="a red fox,",
            width=832,
            height=480,
            frame_count=17,
            sample_steps=30,
            seed=42,
            cfg_scale=3.5,
            discrete_flow_shift=5.0,
            negative_prompt="ugly, blurred",
        ),
        # Not the option --i, for which the trainer would take it; and the recipe's seed, not another one each time.
        SamplePrompt(prompt="I stand in the rain", seed=5),
    )


def test_toml_and_json_say_the_same(tmp_path: Path) -> None:
    toml = (
        '[prompt]\nwidth = 64\nseed = 1\n[[prompt.subset]]\nprompt = "a"\n[[prompt.subset]]\nprompt = "b"\nseed = 2\n'
    )
    data = [{"prompt": "a", "width": 64, "seed": 1, "enum": 9}, "b --w 64 --d 2"]
    wanted = (SamplePrompt(prompt="a", width=64, seed=1), SamplePrompt(prompt="b", width=64, seed=2))
    assert read(write(tmp_path, toml, "p.toml")) == wanted
    assert read(write(tmp_path, json.dumps(data), "p.JSON")) == wanted


def test_every_problem_is_told_with_its_line(tmp_path: Path) -> None:
    text = (
        "fine --w 64\n"
        "a --w 100 --h -5 --f 4\n"
        "b --width 64 --foo\n"
        "c --s 0 --d x --l much --g 3\n"
        "--w 64\n"
        "d --w 64 --w 80\n"
        "e --i picture.png --cn video\n"
        "f\x1b[2J\n"
    )
    found = problems(write(tmp_path, text))
    dropped = "the trainer would drop it and what follows (--w --h --f --s --d --l --fs --n --i)"
    assert found == [
        "line 2: width (--w) must be a multiple of 16, not 100: for example 96",
        "line 2: height (--h) must be a whole number from 16 to 4096, not '-5'",
        "line 2: frame_count (--f) must be 1 or 4 x N + 1, not 4: for example 5",
        f"line 3: unknown option --width; {dropped}",
        f"line 3: unknown option --foo; {dropped}",
        "line 4: sample_steps (--s) must be a whole number from 1 to 1000, not '0'",
        "line 4: seed (--d) must be a whole number from 0 to 9223372036854775807, not 'x'",
        "line 4: cfg_scale (--l) must be a number from 0 to 100, not 'much'",
        "line 4: guidance_scale (--g) has no effect for Wan; the guidance is cfg_scale (--l)",
        "line 5: there is no prompt before the options",
        "line 6: --w is given twice",
        "line 7: control_video_path (--cn) has no effect for t2v-A14B",
        "line 7: image_path (--i) is for image-to-video training; text-to-video starts from noise",
        "line 8: prompt holds control characters: 'f\\x1b[2J'",
    ]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.txt", "# only a comment\n", "no prompts found"),
        ("p.json", "[]", "no prompts found"),
        ("p.json", "{}", "it is not a list of prompts"),
        ("p.json", "[", "it is not JSON"),
        ("p.json", "[" * 100_000, "it is not JSON"),
        ("p.json", "[1]", "prompt 1: it must be a table of options"),
        ("p.json", '[{"prompt": 3}]', "prompt 1: prompt must be text"),
        ("p.json", '[{"prompt": "\\ud800"}]', "prompt 1: prompt holds control characters"),
        ("p.json", '[{"prompt": "a", "width": true, "speed": 1}]', "prompt 1: unknown key speed"),
        ("p.toml", "a = 1", "it has no [[prompt.subset]]"),
        ("p.toml", "=", "it is not TOML"),
        ("p.toml", "[prompt]\nsubset = [1]", "subset 1: it must be a table of options"),
    ],
)
def test_files_of_other_kinds(tmp_path: Path, name: str, text: str, said: str) -> None:
    assert any(found.startswith(said) for found in problems(write(tmp_path, text, name)))


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("p.csv", b"a", "not a .txt, .toml or .json file"),
        ("p.txt", b"a\n\xff\xfe", "not UTF-8 text: line 2"),
        ("p.txt", b"a" * 2_000_000, "larger than 1 MB"),
    ],
)
def test_what_is_no_prompts_file_at_all(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    with pytest.raises(BadInputError, match=said):
        read(write(tmp_path, data, name))


def test_no_file_and_a_directory(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="cannot be read: No such file"):
        read(tmp_path / "none.txt")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(BadInputError, match="are not a file"):
        read(tmp_path / "folder.txt")


def test_image_to_video_needs_a_whole_picture_for_each_prompt(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "good one.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good one.png").read_bytes()[:60])
    good = write(tmp_path, "a --i good one.png\n")
    assert read(good, Task.I2V)[0].image_path == tmp_path / "good one.png"
    first, second, third = problems(write(tmp_path, "a\nb --i cut.png\nc --i none.png\n"), Task.I2V)
    assert first == "line 1: image-to-video needs a picture to start from: --i FILE"
    assert second.startswith("line 2: image_path (--i) 'cut.png': ")
    assert third == f"line 3: image_path (--i) 'none.png': there is no file {tmp_path / 'none.png'}"


def test_the_trainers_copy_holds_no_more_than_was_said(tmp_path: Path) -> None:
    prompts = read(write(tmp_path, "I stand\u2028in the rain --w 64\nb --n none\n"))
    assert json.loads(to_trainer(prompts)) == [
        {"prompt": "I stand in the rain", "seed": 5, "width": 64, "height": 256, "frame_count": 1, "sample_steps": 20},
        {
            "prompt": "b",
            "seed": 5,
            "width": 256,
            "height": 256,
            "frame_count": 1,
            "sample_steps": 20,
            "negative_prompt": "none",
        },
    ]
    assert read(write(tmp_path, to_trainer(prompts), "again.json")) == prompts
