"""The commands of `wan-train`: their help, and the call into the module of each."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from wan_train.base.errors import InterruptionError
from wan_train.cli.call import Call
from wan_train.cli.command import register_in
from wan_train.cli.launch_app import launch_app
from wan_train.cli.output import Result

_ROOT_OPTIONS = frozenset({"--help", "-h", "--version", "-V", "--install-completion", "--show-completion"})
_PANELS = ("Train", "Runs", "Box")
_DEFAULT = "train"
_TOGETHER = {
    "recipe, presets": "Show and compare settings; list presets",
    "preview, pick": "Draw LoRAs epoch by epoch; choose the best",
    "status, runs": "Show the state of a run; list all runs",
    "report, compare": "Write an HTML report of a run; compare runs",
    "stop, notify": "Stop a run; get messages by chat or mail",
}
"""Commands that share a line of the help, in the panel of the first."""
_SHORT = 61
"""Characters of a command's first sentence that fit into 80 columns."""


class Group(TyperGroup):
    """The commands of `wan-train`; `train` is the default command in calls, help and completion."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse as Typer does, but insert `train` if no command is named; in completion only before options."""
        if args[:1] == ["help"] and not ctx.resilient_parsing:
            args = [*args[1:], "--help"]
        if (not args and not ctx.resilient_parsing) or (
            args and args[0].startswith("-") and args[0] not in _ROOT_OPTIONS
        ):
            args = [_DEFAULT, *args]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Invoke as Typer does, but raise on Ctrl-C: Typer would exit without a message."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise InterruptionError("interrupted") from None

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Return commands, options of the program, and options of `train`."""
        found = super().shell_complete(ctx, incomplete)
        if not incomplete.startswith("-"):
            return found
        known = {item.value for item in found}
        train = super().get_command(ctx, _DEFAULT)
        more = train.shell_complete(ctx, incomplete) if train is not None else []
        return [*found, *(item for item in more if item.value not in known)]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write one line per command, within 80 columns and 24 lines."""
        commands = {name: command for name in self.list_commands(ctx) if (command := self.get_command(ctx, name))}
        panels = {name: getattr(command, "rich_help_panel", None) for name, command in commands.items()}
        rows = _rows({name: _short(command) for name, command in commands.items()})
        widest = max(len(names) for names, _ in rows)
        formatter.write(f"{_bold('Usage:')} wan-train [COMMAND] [OPTIONS]  {self.help}\n")
        for panel in _PANELS:
            formatter.write(f"{_bold(panel)}\n")
            for names, text in rows:
                if panels[names.partition(",")[0]] == panel:
                    formatter.write(f"  {names:<{widest}}  {text}\n")
        formatter.write("`wan-train` alone asks; `help COMMAND` explains. --version, --install-completion\n")


def _rows(commands: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the names and the text of each help line."""
    shared = {name: names for names in _TOGETHER for name in names.split(", ")}
    rows = []
    for name, text in commands.items():
        names = shared.get(name, name)
        if names.partition(",")[0] == name:
            rows.append((names, _TOGETHER.get(names, text)))
    return rows


def _short(command: Any) -> str:
    text: str = command.get_short_help_str(_SHORT)
    return text if text.endswith("...") else text.removesuffix(".")


def _bold(text: str) -> str:
    return typer.style(text, bold=True)


app = typer.Typer(
    name="wan-train",
    cls=Group,
    help="Turn pictures and clips into Wan 2.2 LoRAs",
    no_args_is_help=False,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
dataset_app = typer.Typer(
    help="Check a dataset, fix it, write its dataset.toml.\n\nExample: wan-train dataset check /workspace/cats",
    no_args_is_help=False,
)
recipe_app = typer.Typer(
    help="Show and compare the settings of recipes and runs.\n\nExample: wan-train recipe show",
    no_args_is_help=False,
)
app.add_typer(dataset_app, name="dataset", rich_help_panel="Train")
app.add_typer(launch_app, name="launch", rich_help_panel="Train")
app.add_typer(recipe_app, name="recipe", rich_help_panel="Train")

_command = partial(register_in, app)


@app.callback()
def root(
    *,
    version: Annotated[bool, typer.Option("--version", "-V", help="Print the version and exit.")] = False,
) -> None:
    """Options of the program itself; `main` answers `--version` before Typer is loaded."""


@_command("Train")
def train(call: Call) -> Result:
    """Train both experts on a dataset.

    Example: wan-train --title cat --author me --dataset /workspace/cats --yes

    `wan-train` alone does the same. Options can also be set as variables: WAN_TRAIN_EPOCHS=50 is --epochs 50.

    Everything after `--` is passed to the trainer unchanged: wan-train --yes -- --optimizer_type=adamw8bit
    """
    from wan_train.cli.train import train as run

    return run(call)


@_command("Train")
def rehearse(call: Call) -> Result:
    """Try the whole pipeline without a GPU, in about a minute.

    Example: wan-train rehearse

    A tiny trainer takes the place of the real one. Its LoRAs are not usable, and say so in their names.
    """
    from wan_train.cli.train import rehearse as run

    return run(call)


@_command("Train")
def tune(call: Call) -> Result:
    """Measure the fastest settings on this card, in minutes.

    Example: wan-train tune --dataset /workspace/cats

    It trains a few steps with each candidate, the most promising first. It keeps every row, so the next call continues.
    Later trainings use the fastest settings where you choose none.
    """
    from wan_train.cli.tune import tune as run

    return run(call)


@_command("Train")
def presets(call: Call) -> Result:
    """List settings for characters, styles and motion.

    Example: wan-train presets

    Nothing is changed. `wan-train recipe diff guide character` shows what a preset sets, and its sources.
    """
    from wan_train.cli.recipe import presets as run

    return run(call)


@register_in(dataset_app, below="dataset ")
def check(call: Call) -> Result:
    """List dataset problems and fixes.

    Example: wan-train dataset check /workspace/cats

    Only --fix changes anything; exit code 2 when something would stop the training.
    """
    from wan_train.cli.dataset import check as run

    return run(call)


@register_in(dataset_app, below="dataset ")
def write(call: Call) -> Result:
    """Write or change a dataset.toml.

    Example: wan-train dataset write /workspace/cats --resolution 960 --resolution 480

    Comments and keys without an option here are kept. It shows changes to an existing file and asks first.
    """
    from wan_train.cli.dataset import write as run

    return run(call)


@register_in(recipe_app, below="recipe ")
def show(call: Call) -> Result:
    """Show every setting with its source.

    Example: wan-train recipe show t2v-a14b
    """
    from wan_train.cli.recipe import show as run

    return run(call)


@register_in(recipe_app, below="recipe ")
def diff(call: Call) -> Result:
    """Show every setting in which two recipes or runs differ.

    Example: wan-train recipe diff mine.toml t2v-a14b
    """
    from wan_train.cli.recipe import diff as run

    return run(call)


@_command("Runs")
def attach(call: Call) -> Result:
    """Watch a run from any terminal.

    Example: wan-train attach

    It ends with the run's exit code.
    """
    from wan_train.cli.runs import attach as run

    return run(call)


@_command("Runs")
def resume(call: Call) -> Result:
    """Resume a crashed, failed or stopped run.

    Example: wan-train resume

    The run continues from its latest checkpoint.
    """
    from wan_train.cli.runs import resume as run

    return run(call)


@_command("Runs")
def explain(call: Call) -> Result:
    """Explain a failure and how to fix it.

    Example: wan-train explain train.log

    It reads any log file of the trainer, too.
    """
    from wan_train.cli.explain import explain as run

    return run(call)


@_command("Runs")
def report(call: Call) -> Result:
    """Write an HTML report of a run.

    Example: wan-train report

    It writes report.html, one file for any browser, and report.json into the run directory. Every run does so at its
    end; this command works at any time.
    """
    from wan_train.cli.report import report as run

    return run(call)


@_command("Runs")
def compare(call: Call) -> Result:
    """Compare the settings and results of runs.

    Example: wan-train compare cat-rank16 cat-rank32 --html compared.html
    """
    from wan_train.cli.report import compare as run

    return run(call)


@_command("Runs")
def preview(call: Call) -> Result:
    """Draw both LoRAs together, epoch by epoch.

    Example: wan-train preview --prompts prompts.txt

    Rows are the base model and kept epochs, columns your prompts, with the same seed in all rows.
    Nothing is drawn twice: repeat the command to continue.
    """
    from wan_train.cli.preview import preview as run

    return run(call)


@_command("Runs")
def pick(call: Call) -> Result:
    """Choose the epochs to use, for example 60 or 60:40.

    Example: wan-train pick cat 60:40

    It puts the LoRAs of these epochs beside the results, with `_picked` in their names: here the high-noise expert's
    epoch 60 and the low-noise expert's epoch 40. No file is replaced. Without an epoch it lists those that were kept.
    """
    from wan_train.cli.pick import pick as run

    return run(call)


@_command("Runs")
def upload(call: Call) -> Result:
    """Upload the results of a run, and verify them there.

    Example: wan-train upload cat hf:me/cat-lora

    Only what is ready and not yet verified is sent. Interrupt and repeat it at any time. A run with --upload does this
    by itself.
    """
    from wan_train.cli.upload import upload as run

    return run(call)


@_command("Runs")
def status(call: Call) -> Result:
    """Show the state of a run, once.

    Example: wan-train status --json
    """
    from wan_train.cli.runs import status as run

    return run(call)


@_command("Runs")
def runs(call: Call) -> Result:
    """List all runs, newest first.

    Example: wan-train runs
    """
    from wan_train.cli.runs import runs as run

    return run(call)


@_command("Runs")
def logs(call: Call) -> Result:
    """Print the trainer's own output.

    Example: wan-train logs -f --step train-high
    """
    from wan_train.cli.runs import logs as run

    return run(call)


@_command("Runs")
def stop(call: Call) -> Result:
    """Stop a run after its next checkpoint, or at once.

    Example: wan-train stop --now

    The command returns at once and shows when that checkpoint is due.
    """
    from wan_train.cli.runs import stop as run

    return run(call)


@_command("Runs")
def notify(call: Call) -> Result:
    """Show which services get messages, or test them.

    Example: wan-train notify test --notify ntfy://TOPIC

    With the same --notify, a training reports its end, failures and waiting. The address is remembered.
    """
    from wan_train.cli.notify import notify as run

    return run(call)


@_command("Box")
def provision(call: Call) -> Result:
    """Install musubi-tuner, its environment and the models.

    Example: wan-train provision --check

    It is safe to rerun at any time. Without --yes it asks once, at a terminal only.
    """
    from wan_train.cli.provision import provision as run

    return run(call)


@_command("Box")
def doctor(call: Call) -> Result:
    """Check a box and list likely problems.

    Example: wan-train doctor

    It changes nothing; exit code 3 when the box is not ready.
    """
    from wan_train.cli.doctor import doctor as run

    return run(call)


@_command("Box")
def clean(call: Call) -> Result:
    """Remove unneeded files, or whole runs by name.

    Example: wan-train clean --dry-run

    It lists the files with their sizes and asks first. Without names: rehearsals, states of earlier attempts of
    finished runs, unfinished downloads.
    """
    from wan_train.cli.clean import clean as run

    return run(call)
