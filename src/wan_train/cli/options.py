"""The table of options: one object for each option and argument of the commands.

Typer's parameters, the WAN_TRAIN_ variables, messages, completion, the defaults in `--help` and docs/flags.md all come
from it. Settings of `base.settings` are options too; their help and defaults are defined there.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from wan_train.cli import completion
from wan_train.cli.option import (
    ExpertsChoice,
    Group,
    ModelsChoice,
    NotifyAction,
    Option,
    TaskChoice,
    VersionChoice,
    in_new_file,
    of_dataset,
    of_setting,
)
from wan_train.dataset.model import DatasetPreset, FrameExtraction
from wan_train.recipe.terms import Attention, EngineKind, Preset
from wan_train.run.titles import DEFAULT_AUTHOR, DEFAULT_TITLE

_TRAINS = "train, rehearse"
_LISTED = "explain, report, compare, pick, upload, status, runs, logs, stop"
_RECIPES = "recipe show, recipe diff"
_LAUNCHED = "launch attach, launch status, launch stop, launch logs, launch reap"
_WHAT, _RENT, _HOW, _CLIPS = Group.WHAT, Group.RENT, Group.HOW, Group.CLIPS
_AFTER, _OUTPUT = Group.AFTER, Group.OUTPUT

# Arguments come first, in the order of `Usage:`.
DATASET_PATH = Option(
    str, "path", "dataset check", "Folder of captioned pictures or clips, or a dataset.toml.", is_required=True
)
DATASET_FOLDERS = Option(
    str, "paths", "dataset write", "Folders of captioned pictures or clips.", is_required=True, is_repeatable=True
)
OWN_PICTURES = Option(
    str, "dataset", "rehearse", "Your own pictures: a folder or a dataset.toml.", shown="eight drawn ones"
)
RECIPE_OR_RUN = Option(
    str,
    "recipe",
    _RECIPES,
    "A recipe file, the name of a shipped recipe, or a run.",
    metavar="RECIPE|RUN",
    default="t2v-a14b",
    completion=completion.run_names,
)
OTHER_RECIPE_OR_RUN = replace(RECIPE_OR_RUN, word="other", commands="recipe diff", help="What to compare it with.")
RUN = Option(
    str,
    "run",
    "attach, resume, report, status, logs, stop, preview",
    "Run ID or a part of it.",
    more="The path of a run directory works too. If several runs match, the full command for each is listed.",
    shown="the newest run",
    completion=completion.run_names,
)
RUN_OR_LOG = replace(RUN, commands="explain", metavar="RUN|LOG", help="A run, or any log file of the trainer.", more="")
RUNS = Option(
    str,
    "run",
    "compare",
    "Two or more runs, by IDs or parts of them.",
    is_required=True,
    is_repeatable=True,
    completion=completion.run_names,
)
PICK_RUN = replace(RUN, commands="pick")
PICKED_EPOCHS = Option(
    str,
    "epochs",
    "pick",
    "The epoch, or HIGH:LOW for one of each expert.",
    metavar="EPOCH",
    shown="lists what can be picked",
)
UPLOAD_RUN = replace(RUN, commands="upload")
UPLOAD_TARGETS = Option(
    str,
    "target",
    "upload",
    "hf:USER/REPO or rclone:REMOTE:PATH; one or more.",
    more="See [uploads](uploads.md).",
    shown="those of the run's --upload",
    is_repeatable=True,
)
RUNS_TO_REMOVE = Option(
    str,
    "run",
    "clean",
    "Runs to remove, with their LoRAs.",
    shown="only unneeded files",
    is_repeatable=True,
    completion=completion.run_names,
)
LAUNCH_DATASETS = Option(
    str,
    "datasets",
    "launch",
    "Folders of captioned pictures or clips, one LoRA each; or a jobs.toml.",
    metavar="DATASET|jobs.toml",
    shown="asks",
    is_repeatable=True,
)
LAUNCH = Option(
    str,
    "launch",
    "launch attach, launch status, launch stop, launch logs",
    "Launch ID or its beginning.",
    metavar="ID",
    shown="the newest launch",
    completion=completion.launch_names,
)
REAPED = replace(
    LAUNCH,
    commands="launch reap",
    help="Also end the boxes of this launch, even if another computer manages it.",
    shown="boxes that launches of this computer left",
    completion=None,
)

NOTIFY_ACTION = Option(
    NotifyAction, "action", "notify", "`show` the services, or `test` them now.", default=NotifyAction.SHOW
)

TITLE = Option(
    str,
    "--title",
    "train",
    "Name of the LoRA, part of its file name.",
    more='At most 120 bytes, none of `/ \\ < > : " \\| ? *`, no `-` or `.` at the beginning.',
    group=_WHAT,
    shown=DEFAULT_TITLE,
)
LAUNCH_TITLE = replace(TITLE, commands="launch", shown="the name of the folder")
REHEARSAL_TITLE = replace(TITLE, commands="rehearse", default="rehearsal", shown=None)
AUTHOR = Option(
    str, "--author", f"{_TRAINS}, launch", "Author, kept in the LoRA's metadata.", group=_WHAT, shown=DEFAULT_AUTHOR
)
DATASET = Option(
    str,
    "--dataset",
    "train",
    "Folder of captioned pictures or clips, or a dataset.toml.",
    more="See [datasets](datasets.md).",
    group=_WHAT,
    shown="dataset/dataset.toml in the checkout",
)
TUNE_DATASET = Option(
    str,
    "--dataset",
    "tune",
    "Dataset whose sizes and caches are measured.",
    group=_WHAT,
    shown="made-up caches of 960x960",
)
TASK = Option(
    TaskChoice,
    "--task",
    "train, tune, launch, dataset check",
    "Text-to-video or image-to-video.",
    more="Chooses the shipped recipe; a `--recipe` names its own task.",
    group=_WHAT,
    default=TaskChoice.T2V,
)
MODELS_TASK = Option(
    ModelsChoice,
    "--task",
    "provision, doctor",
    "Models for text-to-video, image-to-video, or both.",
    default=ModelsChoice.T2V,
)
EXPERTS = Option(
    ExpertsChoice, "--experts", "train, launch", "Experts to train.", group=_WHAT, default=ExpertsChoice.BOTH
)
RECIPE = Option(
    str,
    "--recipe",
    "train, tune, launch",
    "A recipe file.",
    more="See [recipes](recipes.md).",
    metavar="FILE",
    group=_WHAT,
    shown="the shipped one of --task",
)
PRESET = Option(
    Preset,
    "--preset",
    "train, tune, launch",
    "Settings for a subject; `wan-train presets` lists them.",
    more="Applied on top of the shipped recipe of `--task`; options override it. See [recipes](recipes.md#presets).",
    group=_WHAT,
    default=Preset.GUIDE,
)
DATASET_PRESET = Option(
    DatasetPreset,
    "--preset",
    "dataset write",
    "Sizes of pictures and clips; `wan-train presets` lists them.",
    more="Not together with `--resolution`; other options override it. See [dataset presets](datasets.md#presets).",
    shown="none",
)
ENGINE = Option(
    EngineKind,
    "--engine",
    "train",
    "The real trainer, or the tiny one that needs no GPU.",
    group=_WHAT,
    default=EngineKind.MUSUBI,
)
READING_VERSION = Option(
    VersionChoice,
    "--engine",
    "dataset check",
    "Trainer version that will read the dataset.",
    shown="the installed one, else guide",
)
INSTALLED_VERSION = Option(
    str,
    "--engine",
    "provision, doctor",
    "Trainer version: guide, v0.3.4, or a .toml file.",
    metavar="NAME|FILE",
    shown="the installed one, else guide",
    completion=completion.shipped_engines,
)
SKIP_MODELS = Option(bool, "--skip-models", "provision", "Install only the trainer: no models, no tokenizer.")
MODELS_ONLY = Option(bool, "--models-only", "provision", "Download only the models.")
WITH = Option(
    str,
    "--with",
    "provision",
    "A package to add, or lightning; repeatable.",
    more="`NAME` or `NAME==VERSION`; it is [kept](provision.md#further-packages). `lightning`: the models of "
    "[`preview --fast`](previews.md#fast).",
    metavar="NAME",
    is_repeatable=True,
)
CHECK_ONLY = Option(bool, "--check", "provision", "Change nothing; exit code 3 when something is missing.")
VERIFY = Option(
    bool,
    "--verify",
    "provision",
    "Read all model files and compare their sha256.",
    more="See [provision](provision.md#check-only).",
)

GPU = Option(
    str,
    "--gpu",
    "launch",
    "Kinds of GPUs, and how many in one box: RTX4090 or RTX5090:2,H100.",
    metavar="KINDS",
    group=_RENT,
    shown="every card with 24 GB or more, one or two in a box",
)
MAX_PRICE = Option(
    str,
    "--max-price",
    "launch",
    "Dollars an hour for one box, its disk included.",
    metavar="DOLLARS",
    group=_RENT,
    shown="half as much again as the best offer",
)
SPOT = Option(
    bool,
    "--spot",
    "launch",
    "An interruptible box: cheaper; a higher bid takes it away.",
    more="The training is then resumed on another box. See [launch](launch.md#what-happens-to-a-job).",
    group=_RENT,
)
BID = Option(
    str,
    "--bid",
    "launch",
    "With --spot: your bid in dollars an hour, without the disk.",
    metavar="DOLLARS",
    group=_RENT,
    shown="a tenth above the market's lowest",
)
BOXES = Option(int, "--boxes", "launch", "Boxes at once.", metavar="N", group=_RENT, default=1)
LAUNCH_MAX_HOURS = Option(
    float,
    "--max-hours",
    "launch",
    "Maximum hours of a box; then results come home and all boxes end.",
    metavar="N",
    group=_RENT,
    shown="12 for each LoRA of a box",
)
LAUNCH_BUDGET = Option(
    str,
    "--budget",
    "launch",
    "Maximum dollars for the launch; then results come home and all boxes end.",
    metavar="DOLLARS",
    group=_RENT,
    shown="boxes x hours x price, and the traffic",
)
ON = Option(
    str,
    "--on",
    "launch",
    "Provider: vast, runpod, lambda, aws, gcp, kubernetes and others.",
    metavar="INFRA",
    group=_RENT,
    default="vast",
)

EPOCHS = Option(
    int,
    "--epochs",
    "train, launch, dataset check",
    "Times the whole dataset is seen.",
    group=_HOW,
    recipe_key="max_train_epochs",
)
REHEARSAL_EPOCHS = replace(EPOCHS, commands="rehearse", default=20)
"""Both experts finish the eight drawn pictures in about a minute on two cores."""
LONGER_TOTAL = Option(int, "--epochs", "resume", "Train a finished run to this larger total.", shown="the run's own")
UNTIL = Option(
    str,
    "--until",
    f"{_TRAINS}, launch",
    "When to end: all, an epoch, or a share such as 99.65%.",
    more="The learning-rate schedule stays the same. See [ending early](how-to.md#end-when-the-learning-is-done).",
    metavar="all|N|N%",
    group=_HOW,
    shown="all",
    recipe_key="until",
)
LATER_END = replace(
    UNTIL,
    commands="resume",
    help="Train to a later end of the same schedule.",
    more="See [ending early](how-to.md#end-when-the-learning-is-done).",
    group=None,
    shown="the run's own",
    recipe_key=None,
)
SAVE_EVERY = Option(
    int, "--save-every", "train, launch", "Keep a LoRA every N epochs.", group=_HOW, recipe_key="save_every_n_epochs"
)
SAMPLE_PROMPTS = Option(
    str,
    "--sample-prompts",
    _TRAINS,
    "Draw the prompts of this file during training.",
    more="See [samples](samples.md). A rehearsal draws blots of colour.",
    metavar="FILE",
    group=_HOW,
    shown="no samples",
    recipe_key="sample_prompts",
)
SAMPLE_EVERY = Option(
    int,
    "--sample-every",
    _TRAINS,
    "Epochs between samples.",
    group=_HOW,
    shown="a tenth of --epochs",
    recipe_key="sample_every_n_epochs",
)
PROMPTS_AT_END = Option(
    str,
    "--preview-prompts",
    _TRAINS,
    "Draw the prompts of this file at the end, with both LoRAs.",
    more="As `wan-train preview` does. Keeps a LoRA every tenth of the epochs, unless --save-every is set.",
    metavar="FILE",
    group=_HOW,
    shown="no preview",
)
RANK = Option(int, "--rank", "train, tune, launch", "Rank of the LoRA.", group=_HOW, recipe_key="network_dim")
ALPHA = Option(float, "--alpha", "train, launch", "Alpha of the LoRA.", group=_HOW, recipe_key="network_alpha")
LEARNING_RATE = Option(
    float, "--learning-rate", "train, launch", "Learning rate at the start.", group=_HOW, recipe_key="learning_rate"
)
SEED = Option(int, "--seed", "train, launch", "Seed of all random numbers.", group=_HOW, recipe_key="seed")
RESOLUTION = Option(
    str,
    "--resolution",
    "train, tune, launch, dataset check",
    "Training resolution, instead of dataset.toml's.",
    more="`960` is a square.",
    metavar="WxH",
    group=_HOW,
    shown=in_new_file("resolution"),
)
REHEARSAL_RESOLUTION = replace(RESOLUTION, commands="rehearse", default="256x256", shown=None)
RESOLUTIONS = Option(
    str,
    "--resolution",
    "dataset write",
    "Training resolution; repeat it to train at several.",
    metavar="WxH",
    shown=partial(of_dataset, "resolution"),
    is_repeatable=True,
)
BATCH_SIZE = Option(
    int,
    "--batch-size",
    "train, launch, dataset check",
    "Items per step, instead of dataset.toml's.",
    group=_HOW,
    shown=in_new_file("batch_size"),
)
NEW_BATCH_SIZE = Option(
    int, "--batch-size", "dataset write", "Items per step.", shown=partial(of_dataset, "batch_size")
)
REPEATS = Option(
    int,
    "--repeats",
    "train, launch, dataset check",
    "Times an item is seen per epoch, instead of dataset.toml's.",
    group=_HOW,
    shown=in_new_file("num_repeats"),
)
NEW_REPEATS = Option(
    int, "--repeats", "dataset write", "Times an item is seen per epoch.", shown=partial(of_dataset, "num_repeats")
)
BUDGET = Option(
    str,
    "--budget",
    _TRAINS,
    "Save everything and stop before the run costs this much.",
    more="In dollars, for all its attempts. See [a budget](money.md#a-budget).",
    metavar="DOLLARS",
    group=_HOW,
    shown="none",
)
OTHER_BUDGET = Option(
    str,
    "--budget",
    "resume",
    "Most that the run may cost, earlier attempts included.",
    more="See [a budget](money.md#a-budget).",
    metavar="DOLLARS",
    shown="the one it had",
)
ATTENTION = Option(
    Attention,
    "--attention",
    "train, launch",
    "Attention: auto, sdpa, xformers, flash or flash3.",
    metavar="NAME",
    group=_HOW,
    default=Attention.AUTO,
    recipe_key="attention",
)
BLOCKS_TO_SWAP = Option(
    str,
    "--blocks-to-swap",
    "train, launch",
    "DiT blocks kept in RAM instead of GPU memory.",
    metavar="auto|N",
    group=_HOW,
    default="auto",
    recipe_key="blocks_to_swap",
)
FP8 = Option(bool, "--fp8/--no-fp8", "train, launch", "Keep the DiT in 8 bits.", group=_HOW, recipe_key="fp8_base")
NETWORK_WEIGHTS = Option(
    str,
    "--network-weights",
    "train",
    "Continue from a LoRA; from a folder or run each expert takes its own.",
    more="See [how-to](how-to.md#continue-from-a-lora).",
    metavar="FILE|DIR|RUN",
    group=_HOW,
)
HIGH = Option(
    str,
    "--high",
    "train, launch",
    "A setting for the high-noise expert only; repeatable.",
    more="See [recipes](recipes.md#one-expert-alone). The variable holds several, separated by spaces.",
    metavar="KEY=VALUE",
    group=_HOW,
    is_repeatable=True,
)
LOW = replace(HIGH, word="--low", help="A setting for the low-noise expert only; repeatable.", more="")

OTHER_UPLOAD = Option(
    str,
    "--upload",
    "resume",
    "Upload the results to this target; repeatable.",
    more="See [uploads](uploads.md).",
    metavar="TARGET",
    shown="the run's own",
    is_repeatable=True,
)
UPLOAD_WITH = Option(
    str,
    "--upload-with",
    _TRAINS,
    "Upload these too: samples, dataset.",
    more="Separated by a comma.",
    metavar="WHAT",
    group=_AFTER,
    shown="LoRAs, report, recipe and dataset.toml",
)
OTHER_UPLOAD_WITH = replace(UPLOAD_WITH, commands="resume", group=None, shown="the run's own")
BY_HAND_WITH = replace(UPLOAD_WITH, word="--with", commands="upload", group=None, shown="as the run's --upload-with")
THEN = Option(
    str,
    "--then",
    _TRAINS,
    "What to do with the box at the end: nothing, stop, destroy, 'run:COMMAND'.",
    more="At the end of the last run on it, in every outcome. See [endings](endings.md).",
    metavar="ENDING",
    group=_AFTER,
    shown="nothing",
)
OTHER_THEN = replace(THEN, commands="resume", group=None, shown="the run's own")
MAX_HOURS = Option(
    float,
    "--max-hours",
    _TRAINS,
    "End the box after this many hours, even if something hangs.",
    more="Counted from the start of the run. See [endings](endings.md#at-the-latest).",
    metavar="N",
    group=_AFTER,
    shown="no limit",
)
OTHER_MAX_HOURS = replace(
    MAX_HOURS,
    commands="resume",
    more="Counted from now; the run's own restarts only if the run was over. See [endings](endings.md#at-the-latest).",
    group=None,
    shown="the run's own",
)
GRACE = Option(
    float,
    "--grace",
    _TRAINS,
    "Minutes between the last run's end and the box's.",
    more="Any command that a person runs in this time cancels the ending. See [endings](endings.md#the-countdown).",
    metavar="MINUTES",
    group=_AFTER,
    shown="5",
)
OTHER_GRACE = replace(GRACE, commands="resume", group=None, shown="the run's own")

OUTPUT = Option(
    str,
    "--output -o",
    "dataset write",
    "The file to write; required for several folders.",
    metavar="FILE",
    shown="dataset.toml in the folder",
)
CAPTION_EXTENSION = Option(
    str,
    "--caption-extension",
    "dataset write",
    "File extension of the captions.",
    metavar=".txt",
    shown=partial(of_dataset, "caption_extension"),
)
TARGET_FRAMES = Option(
    str,
    "--target-frames",
    "dataset write",
    "Clip lengths in frames, each N*4+1.",
    metavar="N,N",
    group=_CLIPS,
    shown=partial(of_dataset, "target_frames"),
)
FRAME_EXTRACTION = Option(
    FrameExtraction,
    "--frame-extraction",
    "dataset write",
    "How clips are cut from videos.",
    group=_CLIPS,
    shown=partial(of_dataset, "frame_extraction"),
)
FRAME_STRIDE = Option(
    int, "--frame-stride", "dataset write", "Frames between clips, with slide extraction.", group=_CLIPS, shown="1"
)
FRAME_SAMPLE = Option(
    int, "--frame-sample", "dataset write", "Number of clips, with uniform extraction.", group=_CLIPS, shown="1"
)
MAX_FRAMES = Option(
    int, "--max-frames", "dataset write", "Longest clip in frames, with full extraction.", group=_CLIPS, shown="129"
)
SOURCE_FPS = Option(
    float, "--source-fps", "dataset write", "Frames per second of the videos.", group=_CLIPS, shown="16"
)
CHECK_PAGE = Option(
    str,
    "--html",
    "dataset check",
    "Also write a page with every picture, crop and caption.",
    more="See [dataset check](datasets.md#dataset-check).",
    metavar="FILE",
)
COMPARE_PAGE = Option(
    str,
    "--html",
    "compare",
    "Also write a page with their curves.",
    more="It asks before it replaces any other file.",
    metavar="FILE",
)
THOROUGH = Option(
    bool,
    "--thorough",
    "dataset check",
    "Decode every file, however long it takes.",
    more="See [dataset check](datasets.md#dataset-check).",
)
FIX = Option(
    bool,
    "--fix",
    "dataset check",
    "Fix what is safe to fix; originals are kept.",
    more="Shows the [fixes](datasets.md#fixing) and asks first.",
)
PREVIEW_PROMPTS = Option(
    str,
    "--prompts",
    "preview",
    "File of prompts, one per line; each is a column.",
    more="As for [samples](samples.md#the-file); what a line does not set comes from the options here.",
    metavar="FILE",
    shown="those drawn last",
)
PREVIEW_EPOCHS = Option(
    str,
    "--epochs",
    "preview",
    "Kept epochs to draw: auto, or numbers.",
    more="`auto` takes those whose LoRAs differ most, and never two that differ by less than 1 %.",
    metavar="auto|N,N",
    default="auto",
)
PAIRS = Option(
    str,
    "--pairs",
    "preview",
    "Pairs of epochs to draw, HIGH:LOW.",
    metavar="N:N,N:N",
    shown="none",
)
HIGH_FILE = Option(str, "--high", "preview", "A LoRA file of the high-noise expert.", metavar="FILE", shown="the run's")
LOW_FILE = replace(HIGH_FILE, word="--low", help="A LoRA file of the low-noise expert.")
PREVIEW_SIZE = Option(str, "--size", "preview", "Size in pixels, multiples of 16.", metavar="WxH", shown="832x480")
FRAMES = Option(int, "--frames", "preview", "Frames: 1 is a picture, 5, 9, 13, … a clip.", metavar="N", shown="1")
STEPS = Option(int, "--steps", "preview", "Sampling steps for each picture.", metavar="N", shown="20")
PREVIEW_SEED = Option(int, "--seed", "preview", "Seed, the same in all rows.", metavar="N", shown="the run's own")
FAST = Option(
    bool,
    "--fast",
    "preview",
    "Draw with Lightning: 4 steps, no guidance.",
    more="A tenth of the computing; see [fast](previews.md#fast).",
)
STRENGTH = Option(float, "--strength", "preview", "Strength of all LoRAs.", metavar="X", default=1.0)
MINUTES = Option(
    float,
    "--minutes",
    "tune",
    "Longest time to measure; the guide's settings are always measured.",
    metavar="N",
    default=6.0,
    shown="6",
)
SHOW = Option(bool, "--show", "tune", "Show earlier measurements, and stop.")
EXPORT = Option(bool, "--export", "tune", "Print the fastest settings as rows for a public table, and stop.")
TIMEOUT = Option(
    float,
    "--timeout",
    "attach",
    "Stop watching after this time, with exit code 124; the run continues.",
    more="0 looks once. See [exit codes](exit-codes.md).",
    metavar="SECONDS",
    shown="none",
)
ALL_RUNS = Option(bool, "--all", "resume", "Resume every unfinished run that has no supervisor; watch none.")
STEP = Option(
    str,
    "--step",
    "logs",
    "The step: cache-latents, cache-text, train-high or train-low.",
    shown="the running one, else the last",
    completion=completion.step_names,
)
FOLLOW = Option(bool, "--follow -f", "logs", "Keep printing until the run is over.")
FOLLOW_LAUNCH = replace(FOLLOW, commands="launch logs", help="Continue until the launch is over.")
NOW = Option(bool, "--now", "stop", "Do not wait for the next checkpoint.")
LAUNCH_NOW = replace(NOW, commands="launch stop", help="Destroy the boxes at once; results not home yet are lost.")
OLDER_THAN = Option(
    float,
    "--older-than",
    "clean",
    "Also failed and stopped runs without a LoRA that are older than this.",
    metavar="DAYS",
    shown="none",
)

GPUS = of_setting("gpus", "train, tune, preview")
REHEARSAL_GPUS = of_setting("gpus", "rehearse", shown="two CPU slots")
OTHER_GPUS = Option(
    str,
    "--gpus",
    "resume",
    "GPUs to use from now on: all, indices or UUIDs.",
    more="See [on another box](reliability.md#on-another-box).",
    shown="those it had",
)
WORKSPACE = of_setting("workspace", "train, tune, preview, dataset check, provision, doctor, clean", metavar="DIR")
MUSUBI_DIR = of_setting("musubi_dir", f"train, tune, preview, dataset check, {_RECIPES}", metavar="DIR")
MUSUBI_PYTHON = of_setting("musubi_python", "train, tune, preview", metavar="FILE")
RUNS_DIR = of_setting(
    "runs_dir",
    f"{_TRAINS}, tune, preview, {_RECIPES}, attach, resume, {_LISTED}, clean, launch, {_LAUNCHED}",
    metavar="DIR",
)
CACHE_DIR = of_setting("cache_dir", f"{_TRAINS}, tune", metavar="DIR")
PRICE = of_setting("price", f"{_TRAINS}, preview, resume", metavar="DOLLARS")

UPLOAD = replace(of_setting("upload", _TRAINS, metavar="TARGET"), group=_AFTER, is_repeatable=True)
PREPARED_UPLOAD = replace(
    of_setting("upload", "provision", metavar="TARGET"),
    help="Install what uploads to this target need; repeatable.",
    more="See [uploads](uploads.md).",
    is_repeatable=True,
)
NOTIFY = replace(
    of_setting("notify", f"{_TRAINS}, resume, notify, launch", metavar="URL"), group=_AFTER, is_repeatable=True
)

YES = Option(
    bool,
    "--yes -y",
    "train, dataset check, dataset write, compare, provision, clean, launch, launch reap",
    "Ask nothing; accept the defaults and the changes.",
    group=_OUTPUT,
)
DRY_RUN = Option(bool, "--dry-run", "train", "Show the plan with its exact commands, and stop.", group=_OUTPUT)
DRY_PREVIEW = Option(bool, "--dry-run", "preview", "Show what would be drawn, and stop.", group=_OUTPUT)
DRY_LAUNCH = Option(bool, "--dry-run", "launch", "Show offers and every cost, and stop.", group=_OUTPUT)
DRY_CLEAN = Option(bool, "--dry-run", "clean", "Show what can be removed, and stop.", group=_OUTPUT)
SCRIPT = Option(
    str,
    "--script",
    "train",
    "With --dry-run: write a shell script that trains, and its files.",
    more="It [runs without wan-train](how-to.md#see-the-commands-without-running-them). Existing files are kept.",
    metavar="FILE",
    group=_OUTPUT,
)
JSON = Option(
    bool,
    "--json",
    f"{_TRAINS}, tune, preview, presets, dataset check, dataset write, {_RECIPES}, attach, resume, "
    f"{_LISTED}, notify, provision, doctor, clean, launch, {_LAUNCHED}",
    "Print only JSON on stdout.",
    more="See [JSON output](json-output.md).",
    group=_OUTPUT,
)
QUIET = Option(
    bool,
    "--quiet -q",
    f"{_TRAINS}, preview, attach, resume, provision",
    "Print only errors and the result.",
    more="To start a run it needs `--yes`; Ctrl-C then stops the run, also at a terminal.",
    group=_OUTPUT,
)
DETACH = Option(
    bool,
    "--detach -d",
    f"{_TRAINS}, resume",
    "Return at once; the run continues.",
    more="Prints the run's ID.",
    group=_OUTPUT,
)
DETACH_LAUNCH = replace(
    DETACH, commands="launch", help="Return at once; the launch continues.", more="Prints the launch's ID."
)

TABLE: tuple[Option[Any], ...] = tuple(each for each in list(globals().values()) if isinstance(each, Option))
"""Every option, in the order of `--help`."""


def options_of(command: str) -> list[Option[Any]]:
    return [each for each in TABLE if command in each.commands.split(", ")]


def flag_of(recipe_key: str) -> str:
    """Return the option that sets a recipe key, for messages; the key itself if no option does."""
    return next((each.flag for each in TABLE if each.recipe_key == recipe_key), recipe_key)
