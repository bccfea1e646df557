"""The verbs of `wan-train dataset` and their flags."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from wan_train.base import settings as settings_module
from wan_train.cli import options
from wan_train.cli.command_group import Group
from wan_train.cli.invocation import invocation_of
from wan_train.cli.output import Sink
from wan_train.dataset.model import FrameExtraction

_CLIPS = "Clips"

app = typer.Typer(
    cls=Group,
    help="Check a dataset, fix it, write its dataset.toml.\n\nExample: wan-train dataset check /workspace/cats",
    no_args_is_help=False,
)


class VersionWord(StrEnum):
    """`--engine` of `dataset check`: whose reading of the dataset counts."""

    GUIDE = "guide"
    NEWEST = "v0.3.4"


Source = Annotated[
    str, typer.Argument(metavar="PATH", help="Folder of captioned pictures or clips, or a dataset.toml.")
]
Version = Annotated[
    VersionWord | None,
    typer.Option("--engine", help="Trainer version that will read it. \\[default: the installed one, else guide]"),
]


@app.command()
def check(
    context: typer.Context,
    path: Source,
    task: options.TaskOption = options.TaskWord.T2V,
    engine: Version = None,
    resolution: options.Resolution = None,
    batch_size: options.BatchSize = None,
    repeats: options.Repeats = None,
    epochs: options.Epochs = None,
    html: Annotated[
        str | None,
        typer.Option("--html", metavar="FILE", help="Also write a page with every picture, its crop and its caption."),
    ] = None,
    thorough: Annotated[bool, typer.Option("--thorough", help="Decode every file, however long that takes.")] = False,  # noqa: FBT002  a flag of the command line
    fix: Annotated[bool, typer.Option("--fix", help="Fix what is safe to fix; originals are kept.")] = False,  # noqa: FBT002  a flag
    workspace: options.Workspace = None,
    musubi_dir: options.MusubiDir = None,
    yes: options.Yes = False,  # noqa: FBT002  the same
    as_json: options.Json = False,  # noqa: FBT002  the same
) -> None:
    """List dataset problems and fixes. Only --fix changes anything.

    Exit code 2 when something would stop the training.

    Example: wan-train dataset check /workspace/cats
    """
    from wan_train.cli.dataset import Asked
    from wan_train.cli.dataset import check as run_check

    sink = invocation_of(context).use(Sink(as_json=as_json))
    settings = settings_module.resolve(flags={"workspace": workspace, "musubi_dir": musubi_dir})
    asked = Asked(
        path=path,
        task=task,
        engine=engine.value if engine is not None else None,
        resolution=resolution,
        batch_size=batch_size,
        repeats=repeats,
        is_thorough=thorough,
        fix=fix,
        epochs=epochs,
        html=html,
        yes=yes,
    )
    raise typer.Exit(run_check(asked, settings, sink))


Extraction = Annotated[
    FrameExtraction | None,
    typer.Option("--frame-extraction", help="How clips are cut from videos.", rich_help_panel=_CLIPS),
]


@app.command()
def write(
    context: typer.Context,
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Folders of captioned pictures or clips.")],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="The file. \\[default: dataset.toml in the folder]"),
    ] = None,
    resolution: Annotated[
        list[str] | None,
        typer.Option("--resolution", metavar="WxH", help="Training resolution; give it twice to train at two."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Items per step.")] = None,
    repeats: Annotated[int | None, typer.Option("--repeats", help="Times an item is seen per epoch.")] = None,
    caption_extension: Annotated[
        str | None, typer.Option("--caption-extension", metavar=".txt", help="Ending of the caption files.")
    ] = None,
    target_frames: Annotated[
        str | None,
        typer.Option("--target-frames", metavar="N,N", help="Lengths of clips, each N*4+1.", rich_help_panel=_CLIPS),
    ] = None,
    frame_extraction: Extraction = None,
    frame_stride: Annotated[
        int | None, typer.Option("--frame-stride", help="Frames between clips, for slide.", rich_help_panel=_CLIPS)
    ] = None,
    frame_sample: Annotated[
        int | None, typer.Option("--frame-sample", help="Number of clips, for uniform.", rich_help_panel=_CLIPS)
    ] = None,
    max_frames: Annotated[
        int | None, typer.Option("--max-frames", help="Longest clip, for full.", rich_help_panel=_CLIPS)
    ] = None,
    source_fps: Annotated[
        float | None,
        typer.Option("--source-fps", help="Frames per second of the videos, if not 16.", rich_help_panel=_CLIPS),
    ] = None,
    yes: options.Yes = False,  # noqa: FBT002  a flag of the command line
    as_json: options.Json = False,  # noqa: FBT002  the same
) -> None:
    """Write a dataset.toml, or change one and keep its comments. Shows the difference and asks first.

    Example: wan-train dataset write /workspace/cats --resolution 960 --resolution 480
    """
    from wan_train.cli.dataset_write import parse_frames
    from wan_train.cli.dataset_write import write as run_write
    from wan_train.cli.request import parse_resolution
    from wan_train.dataset.writing import ConfigValues

    sink = invocation_of(context).use(Sink(as_json=as_json))
    sizes = [parse_resolution(text) for text in resolution or ()]
    wishes = ConfigValues(
        resolutions=tuple(dict.fromkeys(size for size in sizes if size is not None)),
        batch_size=batch_size,
        num_repeats=repeats,
        caption_extension=caption_extension,
        target_frames=parse_frames(target_frames),
        frame_extraction=frame_extraction,
        frame_stride=frame_stride,
        frame_sample=frame_sample,
        max_frames=max_frames,
        source_fps=source_fps,
    )
    raise typer.Exit(run_write(paths, wishes, output, sink, yes=yes))
