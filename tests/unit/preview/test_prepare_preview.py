"""What is checked and chosen before a GPU is booked, every problem with its reason."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from preview_world import Painter, World, lora, session, world
from safetensors.numpy import save_file

from support.runs import make_plan
from wan_train.base.errors import BadInputError, NotReadyError
from wan_train.preview.model import BASE, Precision
from wan_train.preview.prepared import PreparedPreview, prepare, refreshed, write_inputs
from wan_train.preview.request import PreviewRequest
from wan_train.recipe.terms import EngineKind, Expert, Task
from wan_train.run.picks import Epochs

GIB = 1024**3


def names(ready: PreparedPreview) -> list[str]:
    return [row.name for row in ready.preview.rows]


def refusal(own: World, **asked: Any) -> str:
    with pytest.raises(BadInputError) as refused:
        own.ready(**asked)
    return f"{refused.value.message}\n{refused.value.hint}"


def test_auto_draws_the_base_and_the_epochs_that_differ_and_says_what_is_left_out(tmp_path: Path) -> None:
    own = world(tmp_path)
    own.keep({10: 1.0, 20: 2.0, 30: 2.001, 40: 2.002})
    ready = own.ready()
    assert names(ready) == [BASE, "10", "40"]
    assert ready.preview.rows[1].distance == pytest.approx(0.5, abs=0.01)
    assert "Epochs 20, 30" not in " ".join(ready.notes)
    assert ready.notes == (
        "Epoch 20 is left out: differs from epoch 40 by 0.10 %.",
        "Epoch 30 is left out: differs from epoch 40 by 0.050 %.",
    )


def test_named_epochs_are_drawn_as_they_are_with_a_warning_where_they_look_alike(tmp_path: Path) -> None:
    own = world(tmp_path)
    own.keep({10: 1.0, 30: 2.001, 40: 2.002})
    ready = own.ready(epochs=(30, 40))
    assert names(ready) == [BASE, "30", "40"]
    assert ready.notes == ("Epochs 30 and 40 differ by 0.050 %: expect the same picture.",)


def test_pairs_take_the_high_noise_lora_of_one_epoch_and_the_low_noise_lora_of_another(tmp_path: Path) -> None:
    own = world(tmp_path)
    own.keep({10: 1.0, 40: 2.0})
    ready = own.ready(pairs=(Epochs.parse("10:40"),))
    assert names(ready) == [BASE, "10:40"]
    assert ready.preview.rows[1].loras[Expert.HIGH].path == own.kept(Expert.HIGH, 10)
    assert ready.preview.rows[1].loras[Expert.LOW].path == own.kept(Expert.LOW, 40)


def test_no_kept_loras_are_named_with_what_helps(tmp_path: Path) -> None:
    said = refusal(world(tmp_path))
    assert "has no LoRA to draw yet" in said
    assert "--save-every" in said


def test_an_epoch_that_was_not_kept_is_named_with_those_that_were(tmp_path: Path) -> None:
    own = world(tmp_path)
    own.keep({10: 1.0, 40: 2.0})
    said = refusal(own, epochs=(20, 40), pairs=(Epochs.parse("10:99"),))
    assert "2 problems" in said
    assert "--epochs 20: 20251122-120000-fox has no LoRA of that epoch (kept: 10, 40)" in said
    assert "--pairs 10:99: there is no LoRA of epoch 99 of the low-noise expert" in said


def test_one_expert_alone_is_drawn_beside_the_base_of_the_other(tmp_path: Path) -> None:
    own = world(tmp_path, experts=(Expert.LOW,))
    own.keep({10: 1.0, 40: 2.0}, experts=[Expert.LOW])
    ready = own.ready()
    assert set(ready.preview.rows[1].loras) == {Expert.LOW}
    assert "The high-noise expert has no LoRA here: it draws as the base model." in ready.notes


def test_a_broken_lora_among_many_is_left_out_and_a_named_one_is_refused(tmp_path: Path) -> None:
    own = world(tmp_path)
    own.keep({10: 1.0, 20: float("nan"), 40: 2.0})
    cut = own.kept(Expert.LOW, 10)
    cut.write_bytes(cut.read_bytes()[:-8])
    ready = own.ready()
    assert names(ready) == [BASE, "40"]
    assert any("Epoch 20 is left out" in note and "NaN or infinity" in note for note in ready.notes)
    assert any("Epoch 10 is left out" in note and "incomplete" in note for note in ready.notes)
    said = refusal(own, epochs=(10, 20))
    assert "incomplete" in said
    assert "NaN or infinity" in said


def test_when_all_loras_are_broken_each_reason_is_said(tmp_path: Path) -> None:
    own = world(tmp_path)
    own.keep({10: float("nan")})
    assert "none of the kept LoRAs can be drawn" in refusal(own)


def test_swapped_files_are_refused(tmp_path: Path) -> None:
    own = world(tmp_path)
    high, low = (lora(tmp_path / f"{each}.safetensors", 1.0, expert=each) for each in Expert)
    said = refusal(own, files={Expert.HIGH: low, Expert.LOW: high})
    assert "is a LoRA of the low-noise expert, not of the high-noise one" in said
    assert "is a LoRA of the high-noise expert, not of the low-noise one" in said


def test_other_files_are_one_row_beside_the_base(tmp_path: Path) -> None:
    own = world(tmp_path)
    own.keep({10: 1.0})
    high, low = (lora(tmp_path / f"cat-{each}.safetensors", 1.0, expert=each) for each in Expert)
    ready = own.ready(files={Expert.HIGH: high, Expert.LOW: low})
    assert names(ready) == [BASE, "cat-high + cat-low"]
    both = own.ready(files={Expert.HIGH: high}, epochs=(10,))
    assert names(both) == [BASE, "10", "cat-high"]


@pytest.mark.parametrize("stem", ["10", "10:40", "base"])
def test_a_file_named_like_another_row_is_a_row_of_its_own(tmp_path: Path, stem: str) -> None:
    own = world(tmp_path)
    own.keep({10: 1.0, 40: 2.0})
    path = lora(tmp_path / f"{stem}.safetensors", 3.0, expert=Expert.HIGH)
    asked = PreviewRequest(prompts=own.prompts("a fox --w 64 --h 32\n"), epochs=(10,), pairs=(Epochs.parse("10:40"),))
    first = own.ready(asked, files={Expert.HIGH: path})
    assert names(first) == [BASE, "10", f"file {stem}", "10:40"]
    write_inputs(first)
    unfinished = own.ready(PreviewRequest(prompts=None))
    assert names(unfinished) == [BASE, "10", "10:40", f"file {stem}"]
    session(first, Painter(), own.plan)[0].run()
    assert names(own.ready(asked, epochs=(10, 40))) == [BASE, "10", "40", "10:40", f"file {stem}"]


def test_a_lora_of_another_task_is_refused(tmp_path: Path) -> None:
    own = world(tmp_path)
    path = lora(
        tmp_path / "a.safetensors", 1.0, expert=Expert.HIGH, metadata={"ss_sd_model_name": "wan2.2_i2v_high_noise"}
    )
    assert "is a LoRA for image to video" in refusal(own, files={Expert.HIGH: path})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no prompts found"),
        ("# only a comment\n", "no prompts found"),
        ("a fox --w 100\n", "multiple of 16"),
        ("a fox --f 4\n", r"4 x N \+ 1"),
        ("a fox --g 3\n", "has no effect"),
        ("a fox --zz 3\n", "unknown option"),
        ("a fox --i start.png\n", "text-to-video starts from noise"),
    ],
)
def test_prompts_that_cannot_be_drawn_are_named_by_line(tmp_path: Path, text: str, said: str) -> None:
    own = world(tmp_path)
    own.keep({10: 1.0})
    with pytest.raises(BadInputError, match=said):
        own.ready(PreviewRequest(prompts=own.prompts(text)))


def test_options_of_the_command_hold_for_prompts_that_say_nothing_and_are_checked_too(tmp_path: Path) -> None:
    own = world(tmp_path)
    own.keep({10: 1.0})
    asked = PreviewRequest(prompts=own.prompts("a fox\na bird --w 64 --h 32 --s 7 --d 9 --l 2\n"), seed=5, steps=11)
    fox, bird = own.ready(asked, size=(320, 160), frames=5).preview.prompts
    assert (fox.width, fox.height, fox.frames, fox.steps, fox.seed) == (320, 160, 5, 11, 5)
    assert (bird.width, bird.height, bird.frames, bird.steps, bird.seed) == (64, 32, 5, 7, 9)
    assert fox.guidance == {Expert.HIGH: 4.0, Expert.LOW: 3.0}
    assert bird.guidance == {Expert.HIGH: 2, Expert.LOW: 2}, "the trainer's own option would set one expert's alone"
    with pytest.raises(BadInputError, match="multiple of 16"):
        own.ready(asked, size=(321, 160))


def test_the_same_question_has_the_same_name_and_another_one_another(tmp_path: Path) -> None:
    own = world(tmp_path)
    own.keep({10: 1.0, 40: 2.0})
    asked = PreviewRequest(prompts=own.prompts("a fox --w 64 --h 32\n"))
    assert own.ready(asked).directory == own.ready(asked, epochs=(10,)).directory
    assert own.ready(asked).directory != own.ready(asked, steps=10).directory
    assert own.ready(asked).directory != own.ready(asked, strength=0.5).directory


def test_without_a_file_the_prompts_that_were_drawn_last_are_drawn_again(tmp_path: Path) -> None:
    own = world(tmp_path, task=Task.I2V)
    for expert in Expert:
        lora(own.kept(expert, 10), 1.0, expert=expert, metadata={"ss_sd_model_name": f"wan2.2_i2v_{expert}_noise"})
    assert "has no prompts to draw yet" in refusal(own, prompts=None)
    Image.new("RGB", (64, 32), (200, 10, 10)).save(tmp_path / "start.png")
    first = own.ready(
        PreviewRequest(prompts=own.prompts("it moves --i start.png --w 64 --h 32 --n ugly --l 2 --fs 3\n"), seed=5)
    )
    write_inputs(first)
    (tmp_path / "start.png").unlink()
    (tmp_path / "prompts.txt").unlink()
    again = own.ready(PreviewRequest(prompts=None))
    assert again.directory == first.directory
    assert again.preview.prompts == first.preview.prompts
    other = own.ready(PreviewRequest(prompts=None, steps=7, seed=6, size=(96, 32)))
    assert [(each.steps, each.seed, each.width) for each in other.preview.prompts] == [(7, 6, 96)]
    assert other.directory.path.name.startswith("prompts-")
    with pytest.raises(BadInputError, match="multiple of 16"):
        own.ready(PreviewRequest(prompts=None, size=(97, 32)))


def test_an_unfinished_preview_goes_on_with_its_own_rows(tmp_path: Path) -> None:
    own = world(tmp_path)
    own.keep({10: 1.0, 20: 1.5, 40: 2.0})
    path = lora(tmp_path / "cat.safetensors", 1.0, expert=Expert.HIGH)
    asked = PreviewRequest(
        prompts=own.prompts("a fox --w 64 --h 32\n"), epochs=(20,), pairs=(Epochs.parse("10:40"),), strength=0.5
    )
    first = own.ready(replace(asked, files={Expert.HIGH: path}))
    write_inputs(first)
    again = own.ready(PreviewRequest(prompts=None))
    assert again.directory == first.directory
    assert names(again) == [BASE, "20", "10:40", "cat"]
    session(again, Painter(), own.plan)[0].run()
    assert again.preview.strength == 0.5
    assert names(own.ready(PreviewRequest(prompts=None))) == [BASE, "10", "20", "40"], "a finished one begins anew"


def test_the_prompts_for_the_end_of_a_training_are_the_runs_own(tmp_path: Path) -> None:
    own = world(tmp_path)
    own.keep({10: 1.0})
    asked = own.ready(PreviewRequest(prompts=own.prompts("a fox --w 64 --h 32 --s 20\n")))
    own.run.preview_prompts.write_text(
        '[{"prompt": "a fox", "width": 64, "height": 32, "seed": 5, "sample_steps": 20}]'
    )
    assert own.ready(PreviewRequest(prompts=None)).preview.prompts[0].text == "a fox"
    write_inputs(asked)
    assert (
        own.ready(PreviewRequest(prompts=own.prompts("a fox --w 64 --h 32 --s 20\n", "others.txt"))).directory
        == asked.directory
    )


def test_rows_that_another_call_drew_meanwhile_stay(tmp_path: Path) -> None:
    own = world(tmp_path)
    own.keep({10: 1.0, 40: 2.0})
    asked = PreviewRequest(prompts=own.prompts("a fox --w 64 --h 32\n"))
    one, other = own.ready(asked, epochs=(10,)), own.ready(asked, epochs=(40,))
    session(one, Painter(), own.plan)[0].run()
    assert names(refreshed(other)) == [BASE, "10", "40"]


def test_too_many_pictures_are_refused(tmp_path: Path) -> None:
    own = world(tmp_path)
    own.keep({10: 1.0})
    with pytest.raises(BadInputError, match="400 at most"):
        own.ready(PreviewRequest(prompts=own.prompts("".join(f"fox {n} --w 64 --h 32\n" for n in range(201)))))


def test_image_to_video_draws_from_the_runs_own_copy_of_the_picture(tmp_path: Path) -> None:
    own = world(tmp_path, task=Task.I2V)
    for expert in Expert:
        lora(own.kept(expert, 10), 1.0, expert=expert, metadata={"ss_sd_model_name": f"wan2.2_i2v_{expert}_noise"})
    Image.new("RGB", (64, 32), (200, 10, 10)).save(tmp_path / "start.png")
    asked = PreviewRequest(prompts=own.prompts("it moves --i start.png --w 64 --h 32\n"))
    ready = own.ready(asked)
    copy = ready.preview.prompts[0].image
    assert copy is not None
    write_inputs(ready)
    assert copy.read_bytes() == (tmp_path / "start.png").read_bytes()
    assert copy.is_relative_to(own.run.path)
    key = ready.preview.key(ready.preview.rows[0], 0)
    Image.new("RGB", (64, 32), (10, 200, 10)).save(tmp_path / "start.png")
    other = own.ready(asked)
    assert other.preview.key(other.preview.rows[0], 0) != key, "another picture is another cell"
    with pytest.raises(BadInputError, match="needs a picture to start from"):
        own.ready(PreviewRequest(prompts=own.prompts("it moves\n")))


def real_world(tmp_path: Path, experts: tuple[Expert, ...] = tuple(Expert)) -> World:
    """A run of the real trainer, whose model files hold one matrix each."""
    run_dir = tmp_path / "runs" / "20251122-120000-fox"
    run_dir.mkdir(parents=True)
    plan = make_plan(engine=EngineKind.MUSUBI, title="fox", run_dir=run_dir, experts=experts)
    root = tmp_path / "musubi-tuner"
    plan = replace(plan, trainer=replace(plan.trainer, root=root))
    models = root / "models"
    dits = models / "diffusion_models/split_files/diffusion_models"
    dits.mkdir(parents=True)
    (models / "vae/split_files/vae").mkdir(parents=True)
    (models / "text_encoders").mkdir()
    for expert in Expert:
        save_file(
            {"blocks.0.ffn.0.weight": np.ones((8, 4), np.float16)},
            dits / f"wan2.2_t2v_{expert}_noise_14B_fp16.safetensors",
        )
    save_file({"a": np.ones(3)}, models / "vae/split_files/vae/wan_2.1_vae.safetensors")
    (models / "text_encoders/models_t5_umt5-xxl-enc-bf16.pth").write_bytes(b"t5")
    own = World(folder=tmp_path, plan=plan)
    for expert in experts:
        path = lora(own.kept(expert, 10), 1.0, expert=expert)
        path.write_bytes(path.read_bytes().replace(b"ss_rehearsal", b"ss_something"))
    return own


def test_models_are_found_and_known_by_their_content(tmp_path: Path) -> None:
    own = real_world(tmp_path)
    ready = own.ready()
    assert set(ready.preview.models) == {"vae", "t5", "high", "low"}
    t5 = tmp_path / "musubi-tuner/models/text_encoders/models_t5_umt5-xxl-enc-bf16.pth"
    t5.write_bytes(b"another")
    assert own.ready().preview.models["t5"] != ready.preview.models["t5"]


def test_missing_models_are_named_before_a_gpu_is_booked(tmp_path: Path) -> None:
    own = real_world(tmp_path)
    shutil.rmtree(tmp_path / "musubi-tuner/models/text_encoders")
    with pytest.raises(NotReadyError) as refused:
        own.ready()
    assert "models_t5_umt5-xxl-enc-bf16.pth is missing" in refused.value.message
    assert "wan-train provision" in (refused.value.hint or "")


def test_the_expert_that_was_not_trained_is_needed_too(tmp_path: Path) -> None:
    own = real_world(tmp_path, experts=(Expert.HIGH,))
    assert own.ready().models is not None
    (dit,) = (tmp_path / "musubi-tuner/models/diffusion_models").rglob("*low_noise*")
    dit.unlink()
    with pytest.raises(NotReadyError, match="low_noise"):
        own.ready()


def test_a_lora_that_does_not_fit_the_models_is_refused(tmp_path: Path) -> None:
    own = real_world(tmp_path)
    for expert in Expert:
        path = own.kept(expert, 10)
        path.write_bytes(path.read_bytes().replace(b"blocks_0", b"blocks_9"))
    assert "match nothing in the model" in refusal(own, epochs=(10,))


@pytest.mark.parametrize(
    ("card", "precision"), [(24, Precision.FP8_SCALED), (32, Precision.FP8_SCALED), (80, Precision.AS_STORED)]
)
def test_the_precision_follows_the_smallest_card(tmp_path: Path, card: int, precision: Precision) -> None:
    own = real_world(tmp_path)
    ready = prepare(
        own.source,
        PreviewRequest(prompts=own.prompts("a fox\n")),
        own.plan.trainer,
        smallest_card=card * GIB,
        now=1.0,
    )
    assert ready.preview.precision is precision
