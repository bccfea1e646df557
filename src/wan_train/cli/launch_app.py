"""The commands of `wan-train launch`: their help, and calls into their modules."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from wan_train.cli.call import Call
from wan_train.cli.command import START, register_in
from wan_train.cli.output import Result


class LaunchGroup(TyperGroup):
    """Lets `wan-train launch cats` start a launch: anything but a command of the group is a dataset."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing if not args else args[0] not in self.commands:
            args = [START, *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Complete commands of the group, and arguments that start a launch."""
        found = [item for item in super().shell_complete(ctx, incomplete) if item.value != START]
        start = super().get_command(ctx, START)
        return [*found, *(start.shell_complete(ctx, incomplete) if start is not None else [])]


launch_app = typer.Typer(
    cls=LaunchGroup,
    help="Rent a box, train there, bring the LoRAs home.",
    no_args_is_help=False,
)


@register_in(launch_app, path="launch", name=START)
def launch(call: Call) -> Result:
    """Rent a box, train there, bring the LoRAs home, destroy it.

    Example: wan-train launch cats --gpu RTX4090 --max-price 0.60

    It asks what is missing, shows offers and every cost, and rents nothing before you confirm. Several datasets, or a
    jobs.toml, are several LoRAs. Options of `wan-train train` such as --epochs hold for each; after `--` for the
    trainer.

    Other commands: `launch attach`, `status`, `stop`, `logs`, `reap`, each with --help.
    """
    from wan_train.cli.launch import launch as run

    return run(call)


@register_in(launch_app, path="launch attach", name="attach")
def launch_attach(call: Call) -> Result:
    """Watch a launch; continue it if it is not running.

    Example: wan-train launch attach

    It ends with the launch's exit code; Ctrl-C or q leaves the launch going.
    """
    from wan_train.cli.launches import attach as run

    return run(call)


@register_in(launch_app, path="launch status", name="status")
def launch_status(call: Call) -> Result:
    """Show the jobs and boxes of a launch, once.

    Example: wan-train launch status --json
    """
    from wan_train.cli.launches import status as run

    return run(call)


@register_in(launch_app, path="launch stop", name="stop")
def launch_stop(call: Call) -> Result:
    """End a launch: results come home, then all boxes are destroyed.

    Example: wan-train launch stop

    With --now the boxes are destroyed at once, and results not home yet are lost.
    """
    from wan_train.cli.launches import stop as run

    return run(call)


@register_in(launch_app, path="launch logs", name="logs")
def launch_logs(call: Call) -> Result:
    """Print what the program of a launch wrote.

    Example: wan-train launch logs -f
    """
    from wan_train.cli.launches import logs as run

    return run(call)


@register_in(launch_app, path="launch reap", name="reap")
def launch_reap(call: Call) -> Result:
    """End boxes that launches left behind.

    Example: wan-train launch reap

    Every launch command does so for launches of this computer. With the ID of a launch of another computer it also ends
    the boxes of that one, after a question.
    """
    from wan_train.cli.launches import reap as run

    return run(call)
