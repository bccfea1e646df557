"""What `--resume` restores and what it forgets: the facts our way of resuming stands on."""

from __future__ import annotations

from pathlib import Path

import pytest

from musubi.trainer import SIZES, Dataset, Trainer, TrainingRun, text_of
from wan_train.engine.checkpoints import checkpoint_epochs, state_dir
from wan_train.engine.log_parser import EpochStarted, OutputParser

EPOCHS = 4
DONE = 2
STEPS = len(SIZES)
"""Per epoch."""
FLOOR = 1e-7
"""Where the trainer's polynomial schedule ends, whatever --lr_scheduler_min_lr_ratio says."""


@pytest.fixture(scope="module")
def straight(trainer: Trainer, cached: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of EPOCHS epochs in one go, with a state after each and its learning rates logged."""
    home = tmp_path_factory.mktemp("straight")
    run = TrainingRun(output=home / "output", epochs=EPOCHS)
    done = trainer.train(cached, run, "--save_state", "--logging_dir", str(home / "logs"))
    assert done.returncode == 0, text_of(done)
    return home


def learning_rates(trainer: Trainer, home: Path) -> list[float]:
    """One for each step, in order."""
    return [value for _, value in sorted(trainer.ask("dump_scalars.py", str(home / "logs"))["lr/unet"])]


def test_schedule_falls_to_its_floor(trainer: Trainer, straight: Path) -> None:
    rates = learning_rates(trainer, straight)

    assert len(rates) == EPOCHS * STEPS
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(FLOOR)


def test_resume_counts_from_zero_and_goes_on_with_the_learning_rate(
    trainer: Trainer, cached: Dataset, straight: Path, tmp_path: Path
) -> None:
    run = TrainingRun(output=tmp_path / "output", epochs=EPOCHS)
    state = state_dir(straight / "output", run.name, DONE)

    done = trainer.train(cached, run, "--resume", str(state), "--logging_dir", str(tmp_path / "logs"))

    assert done.returncode == 0, text_of(done)
    parser = OutputParser()
    records = [*parser.feed((done.stdout + "\n").encode()), *parser.finish()]
    epochs = [record.epoch for record in records if isinstance(record, EpochStarted)]
    assert epochs == [1, 2, 3, 4]
    assert checkpoint_epochs(run.output, run.name) == (1, 2, 3)
    resumed, whole = learning_rates(trainer, tmp_path), learning_rates(trainer, straight)
    assert resumed[: (EPOCHS - DONE) * STEPS] == pytest.approx(whole[DONE * STEPS :])
    # What it trains beyond the original end, it trains at the floor.
    assert resumed[(EPOCHS - DONE) * STEPS :] == pytest.approx([FLOOR] * DONE * STEPS)


def test_resume_for_the_remaining_epochs_only_loses_the_learning_rate(
    trainer: Trainer, cached: Dataset, straight: Path, tmp_path: Path
) -> None:
    run = TrainingRun(output=tmp_path / "output", epochs=EPOCHS - DONE)
    state = state_dir(straight / "output", run.name, DONE)

    done = trainer.train(cached, run, "--resume", str(state), "--logging_dir", str(tmp_path / "logs"))

    assert done.returncode == 0, text_of(done)
    assert learning_rates(trainer, tmp_path) == pytest.approx([FLOOR] * (EPOCHS - DONE) * STEPS)
