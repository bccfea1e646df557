"""Stands in for musubi-tuner's training: counts, waits, and writes what the real one writes."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from scripted_costs import break_down, factor, held_bytes, is_too_much
from scripted_faults import Faults, attempt_of, strike
from scripted_program import (
    bar,
    hold_ram,
    load_model,
    log,
    occupy_gpu,
    parse_options,
    record,
    say,
    seconds,
    trained,
)
from scripted_samples import after_epoch, encode_prompts
from scripted_saving import Keeper, Position, read_state

_HELD_BYTES = 20 * 1024**3
_LOWEST_RATE = 1e-7


def main() -> None:
    options = parse_options("wan_train_network.py")
    place = "high" if (options.min_timestep or 0) > 0 else "low"
    faults = Faults(place, attempt_of(options.output_dir))
    record("start", place=place, argv=vars(options))
    occupy_gpu(place)
    say("Trying to import sageattention\nFailed to import sageattention")
    faults.at_start()
    items = trained(options.dataset_config)
    record("items", place=place, names=list(items))
    batches = sum(items.values())
    log("musubi_tuner.dataset.image_video_dataset", f"total batches: {batches}")
    if not batches:
        raise ValueError("No training items found in the dataset / データセットに学習データがありません")
    encode_prompts(options)
    if not Path(options.dit).is_file():
        raise FileNotFoundError(2, "No such file or directory", options.dit)
    log("musubi_tuner.wan.modules.model", f"Loading DiT model from {options.dit}, device=cuda")
    held = held_bytes(options, _HELD_BYTES)
    if is_too_much(held):
        strike("oom")
    load_model(held)
    break_down(options)
    hold_ram()
    log("musubi_tuner.networks.lora", "create LoRA for U-Net/DiT: 40 modules.")
    position = Position()
    if options.resume:
        say(f"resume training from local state: {options.resume}")
        position = read_state(Path(options.resume))
    steps = -(-batches // (options.gradient_accumulation_steps or 1))
    if options.max_train_epochs is not None:
        options.max_train_steps = steps * options.max_train_epochs
        say(
            f"override steps. steps for {options.max_train_epochs} epochs is / "
            f"指定エポックまでのステップ数: {options.max_train_steps}"
        )
    total = options.max_train_steps
    say("running training / 学習開始")
    say(f"  num train items / 学習画像、動画数: {batches}")
    say(f"  total optimization steps / 総最適化ステップ数: {total}")
    _train(options, faults, place, steps, position)
    record("end", place=place)


def _train(options: argparse.Namespace, faults: Faults, place: str, steps: int, position: Position) -> None:
    keeper = Keeper(options, faults, steps)
    total = options.max_train_steps
    epochs = -(-total // steps)
    pause = seconds("STEP", 0.002) * factor(options)
    started = time.monotonic()
    bar("steps: ", 0, total, started)
    if options.sample_at_first:
        after_epoch(options, faults, 0)
    Path(options.output_dir).mkdir(parents=True, exist_ok=True)
    with (Path(options.output_dir) / "lr.jsonl").open("a") as rates:
        for epoch in range(1, epochs + 1):
            say(f"\nepoch {epoch}/{epochs}")
            for number in range(1, steps + 1):
                step = (epoch - 1) * steps + number
                if step > total:
                    break
                faults.before_step(epoch=epoch, step=step, first_of_epoch=number == 1)
                time.sleep(pause)
                rate = _rate(options, position.steps, total)
                rates.write(json.dumps({"step": step, "position": position.steps, "lr": rate}) + "\n")
                rates.flush()
                position.steps += 1
                loss = "nan" if faults.loss_is_nan(epoch=epoch, step=step) else f"{1 / (1 + position.steps):.3g}"
                bar("steps: ", step, total, started)
                bar("steps: ", step, total, started, f", avr_loss={loss}")
                if number == steps:
                    position.epochs += 1
                    # Before anything is saved: a watcher may end this program as soon as it sees the last file.
                    record("epoch", place=place, epoch=epoch, in_all=position.epochs)
                keeper.after_step(step, position)
            keeper.after_epoch(epoch, position)
            after_epoch(options, faults, epoch)
    keeper.finish(position)


def _rate(options: argparse.Namespace, done: int, total: int) -> float:
    """Return the learning rate before step `done` + 1: transformers' polynomial schedule down to 1e-7."""
    left = max(0.0, 1 - done / total)
    return (options.learning_rate - _LOWEST_RATE) * left ** (options.lr_scheduler_power or 1) + _LOWEST_RATE


if __name__ == "__main__":
    main()
