"""Which samples of a run count: true epochs over all attempts, no half files, none that a later attempt made anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import av
import pytest
from PIL import Image

from support.runs import SUPERVISOR, T0, make_plan
from wan_train.base import codec
from wan_train.engine.sample_files import SampleKind
from wan_train.engine.sample_prompts import SamplePrompt
from wan_train.run.directory import RunDirectory
from wan_train.run.plan import Plan, Sampling
from wan_train.run.samples import Sample, samples_of
from wan_train.run.state import Attempt, Job, RunState

HIGH = "train-high"
FIRST = Attempt(number=1, gpu_uuid=None, gpu_label=None, identity=SUPERVISOR, started=T0, total_epochs=20)
PROMPTS = (
    SamplePrompt(prompt="a red fox", seed=5, width=32, height=48),
    SamplePrompt(prompt="a blue bird", seed=7, width=64, height=32, frame_count=5),
)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    sampling = Sampling(prompts=PROMPTS, every_epochs=2, at_first=True, source=tmp_path / "prompts.txt")
    return make_plan(run_dir=tmp_path / "run", epochs=20, samples=sampling)


def place(plan: Plan, number: int, epoch: int, index: int = 0, *, step: str = HIGH) -> Path:
    """A sample as the trainer would leave it."""
    folder = RunDirectory(plan.run_dir).attempt(step, number).output / "sample"
    folder.mkdir(parents=True, exist_ok=True)
    prompt = PROMPTS[index]
    stem = f"{plan.step(step).produces}_e{epoch:06d}_{index:02d}_20260102030405_{prompt.seed}"
    picture = Image.new("RGB", (prompt.width, prompt.height), (epoch, 0, 0))
    if prompt.frame_count == 1:
        picture.save(folder / f"{stem}_000.png")
        return folder / f"{stem}_000.png"
    with av.open(str(folder / f"{stem}.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=16)
        stream.width, stream.height, stream.pix_fmt = prompt.width, prompt.height, "yuv420p"
        for _ in range(prompt.frame_count):
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode(None))
    return folder / f"{stem}.mp4"


def found(plan: Plan, *attempts: Attempt) -> tuple[Sample, ...]:
    jobs = {step.id: Job(step=step.id, attempts=attempts if step.expert else ()) for step in plan.steps}
    return samples_of(RunDirectory(plan.run_dir), plan, RunState(jobs=jobs))


def places(samples: Sequence[Sample]) -> list[tuple[str, int, int, int]]:
    return [(sample.step, sample.attempt, sample.epoch, sample.prompt_index) for sample in samples]


def test_pictures_and_clips_are_told_with_prompt_seed_and_size(plan: Plan) -> None:
    place(plan, 1, 0)
    place(plan, 1, 2, 1, step="train-low")
    picture, clip = found(plan, FIRST)
    assert (picture.expert.value, picture.epoch, picture.kind) == ("high", 0, SampleKind.PICTURE)
    assert (picture.prompt, picture.seed, picture.width, picture.height) == ("a red fox", 5, 32, 48)
    assert (clip.expert.value, clip.epoch, clip.kind) == ("low", 2, SampleKind.CLIP)
    assert (clip.prompt, clip.seed, clip.width, clip.height) == ("a blue bird", 7, 64, 32)
    assert clip.path.is_file()


def test_epochs_of_a_resumed_attempt_count_on(plan: Plan) -> None:
    place(plan, 1, 2)
    place(plan, 1, 4)
    place(plan, 2, 2)
    place(plan, 2, 4)
    second = replace(FIRST, number=2, epochs_before=5)
    assert places(found(plan, FIRST, second)) == [(HIGH, 1, 2, 0), (HIGH, 1, 4, 0), (HIGH, 2, 7, 0), (HIGH, 2, 9, 0)]


def test_what_a_later_attempt_made_anew_is_left_out(plan: Plan) -> None:
    for epoch in (2, 4, 6):
        place(plan, 1, epoch)
    place(plan, 2, 2)
    third = replace(FIRST, number=3, epochs_before=3)
    # The second died before its first state, so the third went on from the state of epoch 3 again.
    assert places(found(plan, FIRST, replace(third, number=2), third)) == [(HIGH, 1, 2, 0)]


def test_epochs_beyond_the_end_are_left_out(plan: Plan) -> None:
    # Nobody was there to stop the resumed trainer at the last epoch that was missing.
    place(plan, 2, 4)
    place(plan, 2, 6)
    assert places(found(plan, FIRST, replace(FIRST, number=2, epochs_before=15))) == [(HIGH, 2, 19, 0)]


@pytest.mark.parametrize("index", [0, 1])
def test_a_half_written_sample_is_left_out(plan: Plan, index: int) -> None:
    path = place(plan, 1, 2, index)
    whole = path.read_bytes()
    assert len(found(plan, FIRST)) == 1
    for length in (0, 5, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert found(plan, FIRST) == ()


def test_other_files_are_no_samples(plan: Plan) -> None:
    path = place(plan, 1, 2)
    for name in ("notes.png", path.name.replace("_00_", "_07_"), f"x{path.name}", path.name.replace("_e", "_")):
        path.with_name(name).write_bytes(path.read_bytes())
    assert places(found(plan, FIRST)) == [(HIGH, 1, 2, 0)]


def test_a_run_without_samples_has_none(plan: Plan) -> None:
    assert found(plan, FIRST) == ()
    assert found(replace(plan, samples=None), FIRST) == ()


def test_a_plan_with_samples_is_read_back_as_written(plan: Plan) -> None:
    assert codec.from_json(codec.to_json(plan), Plan, where="here") == plan
