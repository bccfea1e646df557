"""The commands of `wan-train launch`: help, and the call into the module of each."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from wan_train.cli.call import Call
from wan_train.cli.command import START, register_in
from wan_train.cli.output import Result


class LaunchGroup(TyperGroup):
    """`wan-train launch cats` needs no word for what it does: anything but a command of the group is a dataset."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing if not args else args[0] not in self.commands:
            args = [START, *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Commands of the group, and what the start of a launch offers."""
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
