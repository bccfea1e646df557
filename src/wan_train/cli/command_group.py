"""The program as a group of verbs: `train` is meant where none is named, and its help fits one screen."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from wan_train.base.errors import InterruptionError
from wan_train.cli.defaults import default_of

_ROOT_FLAGS = frozenset({"--help", "-h", "--version", "-V", "--install-completion", "--show-completion"})
_PANELS = ("Train", "Runs", "Box")
_DEFAULT = "train"
_SHORT = 66
"""Characters of a verb's first sentence that 80 columns have room for."""
# Typer hands over classes of its own for commands, parameters and completions, which its public names do not cover.


class Group(TyperGroup):
    """Verbs whose help is fit for 80 columns."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401  see above
        """A verb whose help shows no `<bool>` and no variables: at 80 columns these cost more than they say."""
        command: Any = super().get_command(ctx, cmd_name)
        if command is not None:
            for parameter in command.get_params(ctx):
                if getattr(parameter, "is_flag", False):
                    parameter.metavar = ""
                parameter.show_envvar = False
                default = default_of(cmd_name, parameter.name)
                if default is not None and "[default:" not in (parameter.help or ""):
                    parameter.help = f"{parameter.help} \\[default: {default}]"
        return command


class Verbs(Group):
    """The verbs of `wan-train`; help and completion follow the same rule of the verb that is left out."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401  see above
        """As Typer's, with `train` put in when no command is named; while words are completed only before options."""
        if args[:1] == ["help"] and not ctx.resilient_parsing:
            args = [*args[1:], "--help"]
        if (not args and not ctx.resilient_parsing) or (
            args and args[0].startswith("-") and args[0] not in _ROOT_FLAGS
        ):
            args = [_DEFAULT, *args]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401  see above
        """As Typer's, which would make an exit code of Ctrl-C that says nothing."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise InterruptionError("interrupted") from None

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:  # noqa: ANN401  see above
        """Verbs, flags of the program, and those of `train`: it need not be named."""
        found = super().shell_complete(ctx, incomplete)
        if not incomplete.startswith("-"):
            return found
        known = {item.value for item in found}
        meant = super().get_command(ctx, _DEFAULT)
        more = meant.shell_complete(ctx, incomplete) if meant is not None else []
        return [*found, *(item for item in more if item.value not in known)]

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401  see above
        """One line for each verb, 80 columns, and one screen of 24 lines in all."""
        commands = {name: command for name in self.list_commands(ctx) if (command := self.get_command(ctx, name))}
        widest = max(len(name) for name in commands)
        formatter.write(
            f"{_bold('Usage:')} wan-train [COMMAND] [OPTIONS]     wan-train help COMMAND explains one\n{self.help}\n"
        )
        for panel in _PANELS:
            formatter.write(f"{_bold(panel)}\n")
            for name, command in commands.items():
                if getattr(command, "rich_help_panel", None) == panel:
                    formatter.write(f"  {name:<{widest}}  {_short(command)}\n")
        formatter.write(f"{_bold('Options:')} -V, --version, -h, --help, --install-completion (Tab completes names)\n")


def _short(command: Any) -> str:  # noqa: ANN401  see above
    text: str = command.get_short_help_str(_SHORT)
    return text if text.endswith("...") else text.removesuffix(".")


def _bold(text: str) -> str:
    return typer.style(text, bold=True)
