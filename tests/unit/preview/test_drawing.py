"""A drawing and whatever can end it: what is finished stays, nothing is drawn twice, and the reason is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from preview_world import (
    DISK_FULL,
    KILLED,
    OUT_OF_MEMORY,
    Hand,
    Painter,
    Script,
    blank,
    everything,
    noise,
    session,
    world,
)

from wan_train.base.errors import InterruptionError
from wan_train.engine.failures import Cause
from wan_train.engine.generate import Memory
from wan_train.preview.drawing_session import DrawingError
from wan_train.preview.model import BASE, drawn
from wan_train.preview.prepared import drawn_places
from wan_train.preview.request import PreviewRequest
from wan_train.recipe.terms import Expert
from wan_train.run.events import Exited, Lost, Signaled

TWO = {20: 1.0, 40: 2.0}


def test_every_cell_is_drawn_opened_and_recorded(tmp_path: Path) -> None:
    own = world(tmp_path)
    own.keep(TWO)
    ready = own.ready()
    painter = Painter()
    drawing, watched = session(ready, painter, own.plan)
    drawing.run()

    cells = drawn(ready.directory, ready.preview)
    assert set(cells) == {(row, number) for row in (BASE, "20", "40") for number in (0, 1)}
    assert len(cells[BASE, 0].files) == 1
    assert len(cells["40", 1].files) == 5
    assert (cells[BASE, 0].width, cells[BASE, 0].height) == (64, 32)
    assert cells[BASE, 0].seconds == 4.5
    assert cells[BASE, 0].deviation > 30
    assert [each.done for each in watched.progress if each.cell is not None] == [1, 2, 3, 4, 5, 6]
    assert not ready.directory.work.exists(), "latents and logs of what went well are of no use"
    assert [drawing.cells for drawing in ready.directory.read_drawings()] == [6]


def test_a_second_call_draws_nothing(tmp_path: Path) -> None:
    own = world(tmp_path)
    own.keep(TWO)
    session(own.ready(), Painter(), own.plan)[0].run()
    again = Painter()
    session(own.ready(), again, own.plan)[0].run()
    assert again.jobs == []


def test_another_epoch_draws_its_own_row_alone_and_the_sheet_keeps_the_others(tmp_path: Path) -> None:
    own = world(tmp_path)
    own.keep({**TWO, 60: 3.0})
    session(own.ready(epochs=(20, 40)), Painter(), own.plan)[0].run()
    more, ready = Painter(), own.ready(epochs=(60,))
    session(ready, more, own.plan)[0].run()
    assert len(list(more.drawn_keys())) == 2
    assert [row.name for row in ready.directory.read().rows] == [BASE, "20", "40", "60"]


def test_a_run_that_still_trains_draws_what_is_there_and_later_only_the_rest(tmp_path: Path) -> None:
    own = world(tmp_path)
    own.keep({20: 1.0})
    first = own.ready()
    assert [row.name for row in first.preview.rows] == [BASE, "20"]
    session(first, Painter(), own.plan)[0].run()
    own.keep({40: 2.0})
    painter, ready = Painter(), own.ready()
    session(ready, painter, own.plan)[0].run()
    assert [row.name for row in ready.preview.rows] == [BASE, "20", "40"]
    assert len(list(painter.drawn_keys())) == 2


def test_a_retrained_epoch_is_drawn_anew_beside_the_old_picture(tmp_path: Path) -> None:
    own = world(tmp_path)
    own.keep(TWO)
    first = own.ready()
    session(first, Painter(), own.plan)[0].run()
    old = {path.name for path in first.directory.path.glob("40_01_*.png")}
    own.keep({40: 2.5})
    painter, ready = Painter(), own.ready()
    session(ready, painter, own.plan)[0].run()
    assert len(list(painter.drawn_keys())) == 2
    assert old < {path.name for path in ready.directory.path.glob("40_01_*.png")}


def test_the_same_prompt_in_another_file_is_not_drawn_again(tmp_path: Path) -> None:
    own = world(tmp_path)
    own.keep(TWO)
    one = PreviewRequest(prompts=own.prompts("a fox --w 64 --h 32\n", "one.txt"))
    two = PreviewRequest(prompts=own.prompts("a bird --w 64 --h 32\na fox --w 64 --h 32\n", "two.txt"))
    session(own.ready(one), Painter(), own.plan)[0].run()
    painter, ready = Painter(), own.ready(two)
    assert drawn_places(ready) == {(row, 1) for row in (BASE, "20", "40")}
    session(ready, painter, own.plan)[0].run()
    assert {cell["prompt"] for job in painter.jobs for cell in job["cells"]} == {0}
    assert len(drawn(ready.directory, ready.preview)) == 6


@pytest.mark.parametrize("stage", ["loading", "high", "low", "decoding"])
@pytest.mark.parametrize("end", [KILLED, Lost(reason="the machine went down")])
def test_a_killed_driver_costs_one_cell(tmp_path: Path, stage: str, end: Signaled | Lost) -> None:
    own = world(tmp_path)
    own.keep(TWO)

    def killed(hand: Hand) -> Signaled | Lost:
        hand.load("high")
        if stage == "loading":
            return end
        hand.draw(hand.cells[0])
        hand.stage(hand.cells[1], "high")
        if stage != "high":
            hand.stage(hand.cells[1], "low")
        if stage == "decoding":
            frames = hand.cells[1]["frames"]
            noise((32, 32)).save(Path(frames[0]).parent.mkdir() or frames[0])
        return end

    painter, ready = Painter((killed, everything)), own.ready()
    session(ready, painter, own.plan)[0].run()
    assert len(drawn(ready.directory, ready.preview)) == 6
    assert len(painter.jobs[1]["cells"]) == (6 if stage == "loading" else 5)


def test_what_a_killed_call_left_undrawn_is_found_by_the_next(tmp_path: Path) -> None:
    """Its driver went on alone; nobody recorded the cells."""
    own = world(tmp_path)
    own.keep(TWO)
    ready = own.ready()
    drawing, _ = session(ready, Painter((lambda _: None,)), own.plan)

    class KilledCallError(Exception):
        pass

    def draw_and_die(hand: Hand) -> None:
        for cell in hand.cells[:4]:
            hand.draw(cell)
        raise KilledCallError

    drawing.launcher = Painter((draw_and_die,))
    with pytest.raises(KilledCallError):
        drawing.run()
    assert drawn(ready.directory, ready.preview) == {}
    painter = Painter()
    session(ready, painter, own.plan)[0].run()
    assert len(list(painter.drawn_keys())) == 2
    assert {cell.seconds for cell in drawn(ready.directory, ready.preview).values()} == {4.5}


def out_of_memory(what: str, *, at: str = "loading") -> Script:
    """Memory that is not enough while `what` is loaded, or at a later moment of it."""

    def script(hand: Hand) -> Exited:
        hand.load(what)
        if at == "step":
            hand.tell("drawing", key=hand.cells[0]["key"], expert=what, number=1, of=len(hand.cells))
        if at == "decoding":
            hand.stage(hand.cells[0], what)
            hand.tell("decoding", key=hand.cells[0]["key"])
        hand.say(OUT_OF_MEMORY)
        return Exited(code=1)

    return script


@pytest.mark.parametrize("expert", ["high", "low"])
@pytest.mark.parametrize("at", ["loading", "step"])
def test_out_of_memory_swaps_more_blocks_until_it_fits(tmp_path: Path, expert: str, at: str) -> None:
    own = world(tmp_path)
    own.keep(TWO)
    short = out_of_memory(expert, at=at)
    painter, ready = Painter((short, short, everything)), own.ready()
    drawing, watched = session(ready, painter, own.plan)
    drawing.run()
    assert drawing.memory == Memory(blocks_to_swap=20)
    assert watched.said == [
        "The GPU ran out of memory. Retrying: 10 of 40 blocks are kept in RAM.",
        "The GPU ran out of memory. Retrying: 20 of 40 blocks are kept in RAM.",
    ]
    assert len(drawn(ready.directory, ready.preview)) == 6


def test_out_of_memory_while_encoding_text_uses_the_cpu_for_it(tmp_path: Path) -> None:
    own = world(tmp_path)
    own.keep(TWO)
    drawing, watched = session(own.ready(), Painter((out_of_memory("text"), everything)), own.plan)
    drawing.run()
    assert drawing.memory == Memory(text_on_cpu=True)
    assert watched.said == ["The GPU ran out of memory. Retrying: the prompts are encoded on the CPU."]


@pytest.mark.parametrize("what", ["low", "decoder"])
def test_out_of_memory_while_decoding_decodes_alone(tmp_path: Path, what: str) -> None:
    own = world(tmp_path)
    own.keep(TWO)
    painter = Painter((out_of_memory(what, at="decoding" if what == "low" else "loading"), everything))
    drawing, watched = session(own.ready(), painter, own.plan)
    drawing.run()
    assert [job["decode"] for job in painter.jobs] == ["each", "end"]
    assert watched.said == ["The GPU ran out of memory. Retrying: pictures are decoded at the end."]


def test_out_of_memory_with_everything_swapped_is_said_with_what_helps(tmp_path: Path) -> None:
    own = world(tmp_path)
    own.keep(TWO)
    painter = Painter((out_of_memory("high"),))
    drawing, _ = session(own.ready(), painter, own.plan)
    with pytest.raises(DrawingError) as failed:
        drawing.run()
    assert len(painter.jobs) == 5
    assert "6 of 6 pictures could not be drawn" in failed.value.message
    assert "output.log" in failed.value.message
    assert failed.value.hint is not None
    assert "--size" in failed.value.hint


def test_a_full_disk_is_said_at_once_and_what_is_drawn_stays(tmp_path: Path) -> None:
    own = world(tmp_path)
    own.keep(TWO)

    def full(hand: Hand) -> Exited:
        hand.draw(hand.cells[0])
        hand.say(DISK_FULL)
        return Exited(code=1)

    painter, ready = Painter((full,)), own.ready()
    with pytest.raises(DrawingError) as failed:
        session(ready, painter, own.plan)[0].run()
    assert failed.value.diagnosis.cause is Cause.DISK_FULL
    assert len(painter.jobs) == 1
    assert len(drawn(ready.directory, ready.preview)) == 1
    again = Painter()
    session(ready, again, own.plan)[0].run()
    assert len(list(again.drawn_keys())) == 5


@pytest.mark.parametrize("code", [0, 1])
def test_exit_code_0_without_pictures_proves_nothing(tmp_path: Path, code: int) -> None:
    own = world(tmp_path)
    own.keep(TWO)
    painter = Painter((lambda _: Exited(code=code),))
    with pytest.raises(DrawingError, match="6 of 6 pictures could not be drawn"):
        session(own.ready(), painter, own.plan)[0].run()
    assert len(painter.jobs) == 2, "one retry, and then it is given up"


def test_a_blank_picture_is_not_kept_and_not_drawn_for_ever(tmp_path: Path) -> None:
    own = world(tmp_path)
    own.keep(TWO)

    def nan(hand: Hand) -> Exited:
        for cell in hand.cells:
            hand.draw(cell, picture=blank if cell["prompt"] == 0 else None)
        return Exited(code=0)

    painter, ready = Painter((nan,)), own.ready()
    drawing, watched = session(ready, painter, own.plan)
    drawing.run()
    assert len(painter.jobs) == 1
    assert set(drawing.recorder.flawed) == {(row, 0) for row in (BASE, "20", "40")}
    assert "Row 20, prompt 1: it is blank" in watched.said[1]
    assert not list(ready.directory.path.glob("20_01_*"))
    assert set(drawn(ready.directory, ready.preview)) == {(row, 1) for row in (BASE, "20", "40")}


def test_a_picture_of_another_size_is_not_kept(tmp_path: Path) -> None:
    own = world(tmp_path)
    own.keep(TWO)

    def small(hand: Hand) -> Exited:
        for cell in hand.cells:
            hand.draw(cell, picture=lambda _: noise((16, 16)))
        return Exited(code=0)

    drawing, _ = session(own.ready(), Painter((small,)), own.plan)
    drawing.run()
    assert drawing.recorder.flawed[BASE, 0] == "it has 16x16 pixels instead of 64x32"


def test_half_a_file_is_not_kept(tmp_path: Path) -> None:
    own = world(tmp_path)
    own.keep(TWO)

    def cut(hand: Hand) -> Exited:
        for cell in hand.cells:
            hand.paint(cell)
            for frame in cell["frames"]:
                data = Path(frame).read_bytes()
                Path(frame).write_bytes(data[: len(data) // 2])
            hand.tell("cell", key=cell["key"], seconds=1.0)
        return Exited(code=0)

    drawing, _ = session(own.ready(), Painter((cut,)), own.plan)
    drawing.run()
    assert len(drawing.recorder.flawed) == 6
    assert "cannot be opened" in drawing.recorder.flawed[BASE, 0]


def test_a_silent_driver_is_ended_and_started_again(tmp_path: Path) -> None:
    own = world(tmp_path)
    own.keep(TWO)

    def silent(hand: Hand) -> None:
        hand.load("high")

    painter, ready = Painter((silent, everything)), own.ready()
    session(ready, painter, own.plan)[0].run()
    assert painter.terminated >= 1
    assert len(drawn(ready.directory, ready.preview)) == 6


def test_an_interruption_ends_the_driver_and_keeps_what_is_drawn(tmp_path: Path) -> None:
    own = world(tmp_path)
    own.keep(TWO)

    def some(hand: Hand) -> None:
        hand.draw(hand.cells[0])

    painter, ready = Painter((some,)), own.ready()
    with pytest.raises(InterruptionError) as interrupted:
        session(ready, painter, own.plan, is_interrupted=lambda: True)[0].run()
    assert "To continue" in (interrupted.value.hint or "")
    assert painter.terminated == 1
    assert len(drawn(ready.directory, ready.preview)) == 1


def test_rows_with_one_high_noise_lora_share_its_steps(tmp_path: Path) -> None:
    """The high-noise expert ended at epoch 20: later rows differ in the low-noise LoRA alone."""
    own = world(tmp_path)
    own.keep({20: 1.0})
    own.keep({40: 2.0}, experts=[Expert.LOW])
    painter = Painter()
    session(own.ready(), painter, own.plan)[0].run()
    (job,) = painter.jobs
    latents = {cell["key"]: cell["latents"]["high"] for cell in job["cells"] if cell["prompt"] == 0}
    assert len(latents) == 3
    assert len(set(latents.values())) == 2


def test_the_models_own_negative_prompt_is_written_down(tmp_path: Path) -> None:
    own = world(tmp_path)
    own.keep(TWO)

    def telling(hand: Hand) -> Exited:
        hand.tell("facts", negative="no blots", boundary=0.875)
        return everything(hand)

    ready = own.ready()
    session(ready, Painter((telling,)), own.plan)[0].run()
    assert ready.directory.read().model_negative == "no blots"
    assert own.ready().preview.model_negative == "no blots"


def test_the_pictures_of_a_cell_can_be_opened(tmp_path: Path) -> None:
    own = world(tmp_path)
    own.keep(TWO)
    ready = own.ready()
    session(ready, Painter(), own.plan)[0].run()
    for cell in drawn(ready.directory, ready.preview).values():
        for file in cell.files:
            with Image.open(ready.directory.path / file) as picture:
                assert picture.size == (cell.width, cell.height)
