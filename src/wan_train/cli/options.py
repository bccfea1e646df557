"""The flags that several verbs share, each declared once with its help and its environment variable."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from wan_train.cli.completion import run_names, step_names
from wan_train.recipe.terms import Attention, EngineKind

RUN = "What to train"
HOW = "How to train"
WHERE = "Where"
OUTPUT = "Running"


class TaskWord(StrEnum):
    """`--task` on the command line."""

    T2V = "t2v"
    I2V = "i2v"


class ExpertsWord(StrEnum):
    """`--experts` on the command line."""

    BOTH = "both"
    HIGH = "high"
    LOW = "low"


Title = Annotated[
    str | None,
    typer.Option(
        "--title", envvar="WAN_TRAIN_TITLE", help="Name of the LoRA, part of its file name.", rich_help_panel=RUN
    ),
]
Author = Annotated[
    str | None,
    typer.Option(
        "--author", envvar="WAN_TRAIN_AUTHOR", help="Author, kept in the LoRA's metadata.", rich_help_panel=RUN
    ),
]
Dataset = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        envvar="WAN_TRAIN_DATASET",
        help="Folder of captioned pictures or clips, or a dataset.toml.",
        rich_help_panel=RUN,
    ),
]
TaskOption = Annotated[
    TaskWord,
    typer.Option("--task", envvar="WAN_TRAIN_TASK", help="Text-to-video or image-to-video.", rich_help_panel=RUN),
]
Experts = Annotated[
    ExpertsWord,
    typer.Option("--experts", envvar="WAN_TRAIN_EXPERTS", help="Which of the two experts.", rich_help_panel=RUN),
]
Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        envvar="WAN_TRAIN_RECIPE",
        metavar="FILE",
        help="Recipe file instead of the shipped one.",
        rich_help_panel=RUN,
    ),
]
Engine = Annotated[
    EngineKind,
    typer.Option(
        "--engine",
        envvar="WAN_TRAIN_ENGINE",
        help="The real trainer, or the tiny one that needs no GPU.",
        rich_help_panel=RUN,
    ),
]

Epochs = Annotated[
    int | None,
    typer.Option("--epochs", envvar="WAN_TRAIN_EPOCHS", help="Times the whole dataset is seen.", rich_help_panel=HOW),
]
SaveEvery = Annotated[
    int | None,
    typer.Option(
        "--save-every", envvar="WAN_TRAIN_SAVE_EVERY", help="Keep a LoRA every N epochs.", rich_help_panel=HOW
    ),
]
SamplePrompts = Annotated[
    str | None,
    typer.Option(
        "--sample-prompts",
        envvar="WAN_TRAIN_SAMPLE_PROMPTS",
        metavar="FILE",
        help="Draw these prompts while it trains, one a line.",
        rich_help_panel=HOW,
    ),
]
SampleEvery = Annotated[
    int | None,
    typer.Option(
        "--sample-every",
        envvar="WAN_TRAIN_SAMPLE_EVERY",
        help="Epochs between samples. \\[default: a tenth of --epochs]",
        rich_help_panel=HOW,
    ),
]
Rank = Annotated[
    int | None, typer.Option("--rank", envvar="WAN_TRAIN_RANK", help="Rank of the LoRA.", rich_help_panel=HOW)
]
Alpha = Annotated[
    float | None, typer.Option("--alpha", envvar="WAN_TRAIN_ALPHA", help="Alpha of the LoRA.", rich_help_panel=HOW)
]
LearningRate = Annotated[
    float | None,
    typer.Option(
        "--learning-rate", envvar="WAN_TRAIN_LEARNING_RATE", help="Learning rate at the start.", rich_help_panel=HOW
    ),
]
Seed = Annotated[
    int | None, typer.Option("--seed", envvar="WAN_TRAIN_SEED", help="Seed of all random numbers.", rich_help_panel=HOW)
]
Resolution = Annotated[
    str | None,
    typer.Option(
        "--resolution",
        envvar="WAN_TRAIN_RESOLUTION",
        metavar="WxH",
        help="Training resolution, instead of dataset.toml's.",
        rich_help_panel=HOW,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        envvar="WAN_TRAIN_BATCH_SIZE",
        help="Items per step, instead of dataset.toml's.",
        rich_help_panel=HOW,
    ),
]
Repeats = Annotated[
    int | None,
    typer.Option(
        "--repeats",
        envvar="WAN_TRAIN_REPEATS",
        help="Times an item is seen per epoch, instead of dataset.toml's.",
        rich_help_panel=HOW,
    ),
]
AttentionOption = Annotated[
    Attention,
    typer.Option(
        "--attention",
        envvar="WAN_TRAIN_ATTENTION",
        metavar="WORD",
        help="auto, sdpa, xformers, flash or flash3.",
        rich_help_panel=HOW,
    ),
]
BlocksToSwap = Annotated[
    str,
    typer.Option(
        "--blocks-to-swap",
        envvar="WAN_TRAIN_BLOCKS_TO_SWAP",
        metavar="auto|N",
        help="DiT blocks that wait in RAM.",
        rich_help_panel=HOW,
    ),
]
Fp8 = Annotated[
    bool | None,
    typer.Option(
        "--fp8/--no-fp8",
        envvar="WAN_TRAIN_FP8",
        help="Keep the DiT in 8 bits.",
        show_default=False,
        rich_help_panel=HOW,
    ),
]

NetworkWeights = Annotated[
    str | None,
    typer.Option(
        "--network-weights",
        envvar="WAN_TRAIN_NETWORK_WEIGHTS",
        metavar="FILE|DIR|RUN",
        help="Continue from a LoRA; of a folder or run each expert takes its own.",
        rich_help_panel=HOW,
    ),
]
High = Annotated[
    list[str] | None,
    typer.Option(
        "--high",
        envvar="WAN_TRAIN_HIGH",
        metavar="KEY=VALUE",
        help="A setting of the high-noise expert alone; may be repeated.",
        rich_help_panel=HOW,
    ),
]
Low = Annotated[
    list[str] | None,
    typer.Option(
        "--low",
        envvar="WAN_TRAIN_LOW",
        metavar="KEY=VALUE",
        help="A setting of the low-noise expert alone; may be repeated.",
        rich_help_panel=HOW,
    ),
]

Gpus = Annotated[
    str | None,
    typer.Option(
        "--gpus", help="GPUs that may be used: all, or indices or UUIDs, comma-separated.", rich_help_panel=WHERE
    ),
]
OtherGpus = Annotated[
    str | None,
    typer.Option("--gpus", help="GPUs to use from here on: all, or indices or UUIDs.", rich_help_panel=WHERE),
]
Workspace = Annotated[
    str | None,
    typer.Option("--workspace", metavar="DIR", help="The box's working directory.", rich_help_panel=WHERE),
]
MusubiDir = Annotated[
    str | None, typer.Option("--musubi-dir", metavar="DIR", help="The musubi-tuner checkout.", rich_help_panel=WHERE)
]
MusubiPython = Annotated[
    str | None,
    typer.Option("--musubi-python", metavar="FILE", help="Python of the trainer's environment.", rich_help_panel=WHERE),
]
RunsDir = Annotated[
    str | None, typer.Option("--runs-dir", metavar="DIR", help="Where run directories go.", rich_help_panel=WHERE)
]

CacheDir = Annotated[
    str | None,
    typer.Option(
        "--cache-dir",
        metavar="DIR",
        help="Where caches go. \\[default: the dataset's cache_directory]",
        rich_help_panel=WHERE,
    ),
]

Yes = Annotated[
    bool,
    typer.Option(
        "--yes",
        "-y",
        envvar="WAN_TRAIN_YES",
        help="Ask nothing: defaults for what is not given.",
        rich_help_panel=OUTPUT,
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show the plan and its exact commands, and stop.", rich_help_panel=OUTPUT)
]
Script = Annotated[
    str | None,
    typer.Option(
        "--script",
        metavar="FILE",
        help="With --dry-run: write a shell script that trains, and its files.",
        rich_help_panel=OUTPUT,
        show_default=False,
    ),
]
Json = Annotated[
    bool, typer.Option("--json", envvar="WAN_TRAIN_JSON", help="Only JSON on stdout.", rich_help_panel=OUTPUT)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors and the result.", rich_help_panel=OUTPUT)]
Detach = Annotated[
    bool, typer.Option("--detach", "-d", help="Return at once; the run goes on.", rich_help_panel=OUTPUT)
]

Step = Annotated[
    str | None,
    typer.Option("--step", help="cache-latents, cache-text, train-high or train-low.", autocompletion=step_names),
]
RunName = Annotated[
    str | None,
    typer.Argument(
        metavar="RUN",
        help="Run id or a part of it; the newest when left out.",
        show_default=False,
        autocompletion=run_names,
    ),
]
