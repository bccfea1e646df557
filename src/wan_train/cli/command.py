"""Register a command of `wan-train`: options from the table, help with defaults, and the call of its function."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from wan_train.cli.call import Call, Invocation
from wan_train.cli.option import Option
from wan_train.cli.options import options_of
from wan_train.cli.output import Result

START = "start"
"""The default command of `launch`."""


class Command(TyperCommand):
    """A command whose help shows the table's defaults; they are read only for help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        known = {each.name: each for each in options_of(self._path(ctx))}
        for parameter in self.params:
            option = known.get(parameter.name or "")
            default = option.default_text if option is not None else None
            if option is not None and default is not None:
                parameter.help = f"{option.help} \\[default: {default}]"  # type: ignore[attr-defined]  # every kind of parameter has it
        super().format_help(ctx, formatter)

    def get_usage(self, ctx: Any) -> str:
        return super().get_usage(ctx).replace(f" launch {START}", " launch", 1)

    @staticmethod
    def _path(ctx: Any) -> str:
        return str(ctx.command_path).partition(" ")[2].removesuffix(f" {START}")


def register_in(
    group: typer.Typer, panel: str | None = None, *, below: str = "", path: str | None = None, name: str | None = None
) -> Callable[[Callable[[Call], Result]], Callable[[Call], Result]]:
    """Return a decorator that adds a function to a group as a command, with its options from the table.

    Its path, the words after `wan-train`, is `path`, or `below` and the function's name. `name` is the last word.
    """

    def register(body: Callable[[Call], Result]) -> Callable[[Call], Result]:
        path_of_it = path or f"{below}{body.__name__}"

        def run(context: typer.Context, **values: Any) -> int:
            from wan_train.cli.cancel_ending import cancel_ending

            call = Call(path_of_it, values, context.find_object(Invocation) or Invocation())
            cancel_ending(call, path_of_it)
            return call.sink.render(body(call))

        given = [_parameter(option) for option in options_of(path_of_it)]
        first = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
        run.__signature__ = inspect.Signature([first, *given])  # type: ignore[attr-defined]  # Typer reads it
        run.__annotations__ = {each.name: each.annotation for each in (first, *given)}
        run.__name__, run.__doc__ = body.__name__, _unwrapped(inspect.getdoc(body) or "")
        group.command(name, cls=Command, rich_help_panel=panel)(run)
        return body

    return register


def _unwrapped(text: str) -> str:
    """Join each paragraph into one line: the source's line ends would show at any terminal width."""
    return "\n\n".join(" ".join(paragraph.split("\n")) for paragraph in text.split("\n\n"))


def _parameter(option: Option[Any]) -> inspect.Parameter:
    kind: Any = list[option.kind] if option.is_repeatable else option.kind  # type: ignore[name-defined]  # made at run time
    is_switch = option.kind is bool and "/" not in option.word
    default = False if is_switch else option.default
    common: dict[str, Any] = {"help": option.help, "metavar": option.metavar, "show_default": False}
    common["autocompletion"] = option.completion
    if option.is_argument:
        about = typer.Argument(**{**common, "metavar": option.metavar or option.word.upper()})
    else:
        about = typer.Option(
            *option.flags,
            envvar=None if option.is_setting else option.variable,
            show_envvar=False,
            rich_help_panel=option.group,
            **{**common, "metavar": "" if option.kind is bool else option.metavar},
        )
    return inspect.Parameter(
        option.name,
        inspect.Parameter.KEYWORD_ONLY,  # a required option may follow optional ones
        default=inspect.Parameter.empty if option.is_required else default,
        annotation=Annotated[kind if option.is_required or default is not None else kind | None, about],
    )
