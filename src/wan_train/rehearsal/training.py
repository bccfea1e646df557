"""The training loop: flow matching of LoRA adapters on a frozen tiny DiT, under accelerate."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import logging
import math
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]  # has no types of its own

from wan_train.rehearsal import saving
from wan_train.rehearsal.command_line import ATTENTION_FLAGS, without_effect
from wan_train.rehearsal.data import describe, load_datasets
from wan_train.rehearsal.sampling import Sampler, sampler
from wan_train.rehearsal.tiny_model import DTYPES, TIMESTEPS, Network, TinyWan
from wan_train.rehearsal.trainset import Batch, TrainSet

logger = logging.getLogger(__name__)

DEFAULT_RANK = 4
MAX_THREADS = 2
LR_END = 1e-7
"""Where the polynomial schedule ends, whatever `--lr_scheduler_min_lr_ratio` says (transformers' default)."""
SCHEDULE_ARGUMENTS = {"cosine": "num_cycles", "polynomial": "lr_end"}
"""What `--lr_scheduler_args` may set, by schedule. The trainer passes the others' arguments itself."""
MAX_DRAWS = 1000


class LossRecorder:
    """The mean over an epoch's steps of each step's newest loss. One NaN stays in it forever."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.total = 0.0

    def add(self, step: int, loss: float) -> None:
        if step == len(self.losses):
            self.losses.append(0.0)
        self.total += loss - self.losses[step]
        self.losses[step] = loss

    @property
    def average(self) -> float:
        return self.total / len(self.losses)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """Everything a training step touches, as accelerate prepared it."""

    accelerator: Accelerator
    transformer: TinyWan
    network: Network
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LambdaLR
    loader: torch.utils.data.DataLoader
    optimizer_name: str
    sampler: Sampler


def train(args: argparse.Namespace) -> None:
    """Train the LoRA that the options describe and save it.

    Epochs and steps are counted from zero even after `--resume`, which restores weights, optimizer, learning
    rate and random generators only. Sets `args.seed` and `args.max_train_steps` to the values in force.

    Raises:
        ValueError: options or a dataset that cannot be trained.
    """
    _check(args)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(MAX_THREADS, os.cpu_count() or 1))
    args.seed = random.randint(0, 2**32 - 1) if args.seed is None else args.seed  # noqa: S311 - recorded, not secret
    set_seed(args.seed)
    items = TrainSet(load_datasets(Path(args.dataset_config)))
    if items.num_items == 0:
        raise ValueError("No training items found in the dataset")
    shop = _workshop(args, items)
    epochs = math.ceil(args.max_train_steps / _steps_per_epoch(args, shop.loader))
    _announce(args, shop, items, epochs=epochs)
    keeper = _keeper(args, shop, items, epochs=epochs)
    shop.accelerator.init_trackers(args.log_tracker_name or "network_train")
    bar = tqdm(range(args.max_train_steps), smoothing=0, desc="steps")
    logger.info("DiT dtype: torch.float32, device: %s", shop.accelerator.device)
    steps, recorder = 0, LossRecorder()
    shop.sampler.after(0, steps=0)
    for epoch in range(epochs):
        shop.accelerator.print(f"\nepoch {epoch + 1}/{epochs}")
        items.set_epoch(epoch + 1)
        for number, batch in enumerate(shop.loader):
            loss = _step(args, shop, batch)
            if shop.accelerator.sync_gradients:
                bar.update(1)
                steps += 1
                keeper.after_step(steps, epoch)
            recorder.add(number, loss)
            bar.set_postfix(avr_loss=recorder.average)
            rate = shop.scheduler.get_last_lr()[0]
            shop.accelerator.log({"loss/current": loss, "loss/average": recorder.average, "lr/unet": rate}, step=steps)
            if steps >= args.max_train_steps:
                break
        shop.accelerator.log({"loss/epoch": recorder.average}, step=epoch + 1)
        keeper.after_epoch(epoch + 1, steps=steps, epochs=epochs)
        shop.sampler.after(epoch + 1, steps=steps)
    shop.accelerator.end_training()
    keeper.finish(steps=steps, epochs=epochs)


def _step(args: argparse.Namespace, shop: Workshop, batch: Batch) -> float:
    with shop.accelerator.accumulate(shop.network):
        loss = _loss(args, shop, batch)
        shop.accelerator.backward(loss)
        if shop.accelerator.sync_gradients and args.max_grad_norm != 0.0:
            shop.accelerator.clip_grad_norm_(shop.network.parameters(), args.max_grad_norm)
        shop.optimizer.step()
        shop.scheduler.step()
        shop.optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


def _loss(args: argparse.Namespace, shop: Workshop, batch: Batch) -> Tensor:
    """Mean squared error of the predicted flow at a noise level drawn from the expert's range."""
    latents = batch["latents"]
    noise = torch.randn_like(latents)
    t = draw_noise_levels(args, len(latents), noise.device)
    mixed = torch.lerp(latents, noise, t.view(-1, 1, 1, 1, 1))
    condition = batch["latents_image"] if "i2v" in args.task else None
    with shop.accelerator.autocast():
        predicted = shop.transformer(mixed, t * TIMESTEPS + 1, batch["t5"], condition)
    return torch.nn.functional.mse_loss(predicted.float(), noise - latents)


def _workshop(args: argparse.Namespace, items: TrainSet) -> Workshop:
    logger.info("preparing accelerator")
    accelerator = _accelerator(args)
    logger.info("DiT precision: torch.float32, weight precision: torch.float32")
    logger.info("Loading DiT model from %s", args.dit)
    logger.info("rehearsal: a tiny DiT made from a fixed seed stands in for it")
    if ignored := without_effect(args):
        logger.info("rehearsal: options without effect on the tiny model: %s", " ".join(ignored))
    transformer = TinyWan(i2v="i2v" in args.task).to(accelerator.device)
    samples = sampler(args, accelerator, transformer)
    network = _network(args, accelerator, transformer)
    accelerator.print("prepare optimizer, data loader etc.")
    optimizer, optimizer_name = _optimizer(args, network)
    loader = torch.utils.data.DataLoader(items, batch_size=1, shuffle=True, collate_fn=itemgetter(0))
    if args.max_train_epochs is not None:
        args.max_train_steps = args.max_train_epochs * _steps_per_epoch(args, loader)
        steps = f"指定エポックまでのステップ数: {args.max_train_steps}"
        accelerator.print(f"override steps. steps for {args.max_train_epochs} epochs is / {steps}")
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_factor(args, args.max_train_steps))
    # The frozen DiT stays out of `prepare`, so that a state folder holds the adapters only.
    network, optimizer, loader, scheduler = accelerator.prepare(network, optimizer, loader, scheduler)
    if args.resume:
        logger.info("resume training from local state: %s", args.resume)
        accelerator.load_state(args.resume)
    return Workshop(
        accelerator=accelerator,
        transformer=transformer,
        network=network,
        optimizer=optimizer,
        scheduler=scheduler,
        loader=loader,
        optimizer_name=optimizer_name,
        sampler=samples,
    )


def _steps_per_epoch(args: argparse.Namespace, loader: torch.utils.data.DataLoader) -> int:
    batches: int = len(loader)
    return math.ceil(batches / int(args.gradient_accumulation_steps))


def _keeper(args: argparse.Namespace, shop: Workshop, items: TrainSet, *, epochs: int) -> saving.Keeper:
    described = saving.training_metadata(
        args,
        optimizer=shop.optimizer_name,
        datasets=[describe(part.subset) for part in items.buckets],
        num_items=items.num_items,
        num_batches=len(shop.loader),
        num_epochs=epochs,
    )

    def save_lora(path: Path, steps: int, epoch: int) -> None:
        shop.accelerator.unwrap_model(shop.network).save(
            path,
            dtype=DTYPES[args.save_precision or "float"],
            metadata=saving.checkpoint_metadata(args, described, steps=steps, epoch=epoch),
        )

    return saving.Keeper(args=args, accelerator=shop.accelerator, save_lora=save_lora)


def _check(args: argparse.Namespace) -> None:
    for name in ("dataset_config", "dit", "output_dir", "output_name"):
        if getattr(args, name) is None:
            raise ValueError(f"--{name} is required")
    if args.fp8_scaled and not args.fp8_base:
        raise ValueError("fp8_scaled requires fp8_base")
    if not any(getattr(args, name) for name in ATTENTION_FLAGS):
        raise ValueError("either --sdpa, --flash_attn, --flash3 or --xformers must be specified")
    if args.network_module != "networks.lora_wan":
        raise ValueError(f"the rehearsal trains networks.lora_wan, not {args.network_module}")


def _accelerator(args: argparse.Namespace) -> Accelerator:
    precision = args.mixed_precision
    if precision == "fp16" and not torch.cuda.is_available():
        logger.info("rehearsal: mixed precision fp16 needs a GPU, training in float32")
        precision = "no"
    folder = None
    if args.logging_dir is not None:
        folder = f"{args.logging_dir}/{args.log_prefix or ''}{time.strftime('%Y%m%d%H%M%S', time.localtime())}"
    has_board = importlib.util.find_spec("tensorboard") or importlib.util.find_spec("tensorboardX")
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=precision,
        log_with="tensorboard" if folder and has_board else None,
        project_dir=folder,
    )
    accelerator.print("accelerator device:", accelerator.device)
    return accelerator


def _network(args: argparse.Namespace, accelerator: Accelerator, transformer: TinyWan) -> Network:
    accelerator.print("import network module:", args.network_module)
    rank = DEFAULT_RANK if args.network_dim is None else args.network_dim
    logger.info("create LoRA network. base dim (rank): %d, alpha: %s", rank, args.network_alpha)
    network = Network(transformer, rank=rank, alpha=args.network_alpha, dropout=args.network_dropout)
    logger.info("create LoRA for U-Net/DiT: %d modules.", len(list(network.children())))
    if args.network_weights is not None:
        network.load(args.network_weights)
        accelerator.print(f"load network weights from {args.network_weights}")
    return network


def _optimizer(args: argparse.Namespace, network: Network) -> tuple[torch.optim.Optimizer, str]:
    if args.optimizer_type.lower() not in ("adamw", "adamw8bit", ""):
        raise ValueError(f"the rehearsal has no optimizer {args.optimizer_type}")
    options = _arguments(args.optimizer_args)
    logger.info("use AdamW optimizer | %s", options)
    written = ",".join(f"{key}={value}" for key, value in options.items())
    optimizer = torch.optim.AdamW(network.parameters(), lr=args.learning_rate, **options)
    return optimizer, f"torch.optim.adamw.AdamW({written})"


def _arguments(pairs: list[str] | None) -> dict[str, Any]:
    """`KEY=VALUE` pairs with Python literals."""
    return {key: ast.literal_eval(value) for key, _, value in (pair.partition("=") for pair in pairs or [])}


def _announce(args: argparse.Namespace, shop: Workshop, items: TrainSet, *, epochs: int) -> None:
    sizes = ", ".join(str(part.subset.batch_size) for part in items.buckets)
    accumulation = args.gradient_accumulation_steps
    for line in (
        "running training / 学習開始",
        f"  num train items / 学習画像、動画数: {items.num_items}",
        f"  num batches per epoch / 1epochのバッチ数: {len(shop.loader)}",
        f"  num epochs / epoch数: {epochs}",
        f"  batch size per device / バッチサイズ: {sizes}",
        f"  gradient accumulation steps / 勾配を合計するステップ数 = {accumulation}",
        f"  total optimization steps / 学習ステップ数: {args.max_train_steps}",
    ):
        shop.accelerator.print(line)
    logger.info("set DiT model name for metadata: %s", args.dit)
    logger.info("set VAE model name for metadata: %s", args.vae)


def lr_factor(args: argparse.Namespace, total: int) -> Callable[[int], float]:
    """Map a step number to its share of `--learning_rate`; `total` is the step count of the whole training.

    The formulas are those of transformers' `get_*_schedule_with_warmup`, with the arguments that the trainer passes.

    Raises:
        ValueError: unsupported schedule, or a value that the trainer's schedule refuses.
        TypeError: an argument that the schedule does not take.
    """
    name = args.lr_scheduler
    given = _arguments(args.lr_scheduler_args)
    if unknown := [each for each in given if each != SCHEDULE_ARGUMENTS.get(name)]:
        raise TypeError(f"get_{name}_schedule() got an unexpected keyword argument '{unknown[0]}'")
    warmup = args.lr_warmup_steps if isinstance(args.lr_warmup_steps, int) else int(args.lr_warmup_steps * total)
    rest = max(1, total - warmup)
    curve: Callable[[int], float]
    match name:
        case "constant":
            if warmup:
                raise ValueError("constant does not require `num_warmup_steps`. Set None or 0.")
            curve = _flat
        case "constant_with_warmup":
            curve = _flat
        case "linear":
            curve = lambda step: max(0.0, (total - step) / rest)  # noqa: E731 - all curves are written in one place
        case "cosine":
            # The trainer passes `--lr_scheduler_num_cycles` to cosine_with_restarts, not to cosine.
            waves = given.get("num_cycles", 0.5)
            curve = lambda step: max(0.0, _cosine(waves * 2 * (step - warmup) / rest))  # noqa: E731 - see above
        case "cosine_with_restarts":
            cycles = args.lr_scheduler_num_cycles
            curve = lambda step: _restarting((step - warmup) / rest, cycles)  # noqa: E731 - see above
        case "polynomial":
            lowest, power = given.get("lr_end", LR_END), args.lr_scheduler_power
            if lowest >= args.learning_rate:
                raise ValueError(f"lr_end ({lowest}) must be smaller than initial lr ({args.learning_rate})")
            end = lowest / args.learning_rate
            curve = (  # noqa: E731 - see above
                lambda step: end if step > total else (1 - end) * (1 - (step - warmup) / rest) ** power + end
            )
        case other:
            raise ValueError(f"the rehearsal has no lr_scheduler {other}")
    return lambda step: step / max(1, warmup) if step < warmup else curve(step)


def _flat(_step: int) -> float:
    return 1.0


def _cosine(half_waves: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * half_waves))


def _restarting(progress: float, cycles: int) -> float:
    return 0.0 if progress >= 1 else _cosine((cycles * progress) % 1.0)


def draw_noise_levels(args: argparse.Namespace, count: int, device: torch.device) -> Tensor:
    """`count` noise levels t in [min_timestep, max_timestep] / 1000, float32, from torch's global generator.

    With `--preserve_distribution_shape`, draws outside the range are rejected. Otherwise the whole distribution is
    squeezed into it. If 1000 rounds do not fill a rare range, the squeezed draw is used and a warning logged.
    """
    low = (0 if args.min_timestep is None else args.min_timestep) / TIMESTEPS
    high = (TIMESTEPS if args.max_timestep is None else args.max_timestep) / TIMESTEPS
    if args.preserve_distribution_shape:
        kept = torch.empty(0, device=device)
        for _ in range(MAX_DRAWS):
            drawn = _draw(args, count, device)
            kept = torch.cat([kept, drawn[(drawn >= low) & (drawn <= high)]])
            if len(kept) >= count:
                return kept[:count]
        logger.warning("Could not sample %d valid timesteps in %d loops", count, MAX_DRAWS)
    return _draw(args, count, device) * (high - low) + low


def _draw(args: argparse.Namespace, count: int, device: torch.device) -> Tensor:
    if args.timestep_sampling in ("uniform", "sigma"):
        return torch.rand(count, device=device)
    t = torch.sigmoid(torch.randn(count, device=device) * args.sigmoid_scale)
    shift = args.discrete_flow_shift if args.timestep_sampling == "shift" else 1.0
    return t * shift / (1 + (shift - 1) * t)
