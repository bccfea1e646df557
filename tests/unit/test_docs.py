"""The documents and the program agree: flags, settings, recipe keys, problems, causes, events, files and links."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import generate_flags
import pytest
import typer.main

from wan_train.base import settings
from wan_train.base.codec import tag_of
from wan_train.base.errors import ExitCode
from wan_train.caching.decide import WORDS
from wan_train.cli import main
from wan_train.cli.app import app
from wan_train.cli.command import START
from wan_train.dataset.model import ProblemKind, Severity
from wan_train.dataset.schema import ANYWHERE, IMAGES_ONLY, UNUSED, VIDEOS_ONLY
from wan_train.engine.extra_arguments import OWN_OPTIONS
from wan_train.engine.failures import Cause
from wan_train.recipe import adaptation, load, values
from wan_train.recipe.model import Training
from wan_train.recipe.terms import Task
from wan_train.run import attempt_watch, retry
from wan_train.run.directory import AttemptDirectory, RunDirectory
from wan_train.run.events import Event

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
HIDDEN = {"rehearsal", "build", "dist", "node_modules"}
DOCUMENTS = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part in HIDDEN for part in path.relative_to(ROOT).parts[:-1])
)
# Typer brings its own classes of commands and options, so they are known by what they have.


def commands_of(group: object, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every command by the words that call it."""
    for name, command in getattr(group, "commands", {}).items():
        if hasattr(command, "commands"):
            yield from commands_of(command, f"{prefix}{name} ")
        else:
            yield (
                f"{prefix}{name}".removesuffix(f" {START}"),
                command,
            )  # `launch DATASET` needs no word for what it does


PROGRAM: Any = typer.main.get_command(app)
COMMANDS: Mapping[str, Any] = dict(commands_of(PROGRAM))


def read(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    """What stands below a heading, up to the next one of any level."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"there is no section {heading!r}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of every table row but headings and rules."""
    lines = [line for line in prose(text).splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    rules = {index for index, row in enumerate(cells) if set("".join(row)) <= set("-: ")}
    return [row for index, row in enumerate(cells) if index not in rules and index + 1 not in rules]


def first_cells(text: str) -> list[str]:
    """Every word in back quotes in the first column of the tables."""
    return [word for row in rows(text) for word in re.findall(r"`([^`]+)`", row[0])]


def prose(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def test_there_are_commands_to_compare() -> None:
    assert {"train", "rehearse", "resume", "stop", "dataset check"} <= set(COMMANDS)


def test_every_command_has_a_section_and_every_section_a_command() -> None:
    headings = re.findall(r"^## (.+)$", read("flags.md"), re.MULTILINE)
    assert set(headings) - {"Questions", "Program", "Settings"} == set(COMMANDS)


def test_the_tables_of_options_are_current() -> None:
    """`make docs` writes them."""
    assert generate_flags.updated(read("flags.md")) == read("flags.md")


def test_events_and_their_fields() -> None:
    told = {
        row[0].strip("`"): set(re.findall(r"`(\w+)`", row[1]))
        for row in rows(section(read("run-directory.md"), "Events"))
    }
    events = {tag_of(kind): kind for kind in get_args(Event)}
    assert set(told) == set(events)
    for name, kind in events.items():
        fields = {field.name for field in dataclasses.fields(kind)} - {"at"}
        assert fields <= told[name], f"{name}: {fields - told[name]}"


def test_every_file_of_a_run() -> None:
    run = RunDirectory(Path("RUN"))
    attempt = AttemptDirectory(Path("STEP/N"))
    named = " ".join(row[0] for row in rows(section(read("run-directory.md"), "Files")))
    for holder in (run, attempt):
        for name, member in vars(type(holder)).items():
            if isinstance(member, property) and isinstance(path := getattr(holder, name), Path):
                assert path.name in named, path


def test_problems_of_datasets() -> None:
    table = section(read("datasets.md"), "Kinds of problems")
    assert set(first_cells(table)) == {kind.value for kind in ProblemKind}
    for row in rows(table):
        assert any(severity.value in row[1] for severity in Severity), row


def test_keys_of_datasets() -> None:
    text = section(read("datasets.md"), "Keys of dataset.toml")
    for key in (*ANYWHERE, *IMAGES_ONLY, *VIDEOS_ONLY, "cache_directory"):
        assert f"`{key}`" in text, key
    others = section(read("datasets.md"), "Keys of other models")
    for key in UNUSED:
        assert f"`{key}`" in others, key


def test_keys_of_recipes() -> None:
    table = section(read("recipes.md"), "Keys")
    told = set(first_cells(table))
    training = {field.name for field in dataclasses.fields(Training)} - {"options"} | set(values.ATTENTION_KEYS)
    own = {"name", "task", "base", "passthrough", "t5", "vae", "dit", "min_timestep", "max_timestep"}
    assert told == training | own


def test_values_and_ranges_of_recipes() -> None:
    told = {row[0].strip("`"): row for row in rows(section(read("recipes.md"), "Keys"))}
    for name, (low, high) in values.RANGES.items():
        lower, _, upper = told[name][2].partition(" to ")
        assert (float(lower), float(upper)) == (low, high), name
    shipped = load.shipped(Task.T2V).experts[0].training
    for field in dataclasses.fields(Training):
        value = getattr(shipped, field.name)
        if isinstance(value, int | float) and not isinstance(value, bool) and value and field.name in told:
            assert float(told[field.name][1]) == value, field.name


def test_rules_for_the_machine() -> None:
    text = section(read("recipes.md"), "Rules for the machine")
    for rule in adaptation.SWAP_RULES:
        assert f"{rule.blocks} below {rule.below_bytes // 1024**3} GiB" in text, rule


def test_options_that_are_refused_after_the_dashes() -> None:
    text = section(read("recipes.md"), "Words for the trainer").partition("Refused are")[2]
    assert set(re.findall(r"`(--\w+)`", text)) == {f"--{name}" for name in OWN_OPTIONS} - {"--help"}


def test_causes_and_their_retries() -> None:
    table = section(read("reliability.md"), "Failures and retries")
    told = {row[0].strip("`"): row for row in rows(table)}
    assert set(told) == {cause.value for cause in Cause}
    words = {"no": 0, "once": 1}
    base = settings.Settings().pause_seconds
    for cause, rule in retry.RULES.items():
        row = told[cause.value]
        number = re.search(r"\d+", row[2])
        assert (int(number[0]) if number else words[row[2].partition(":")[0]]) == rule.retries, row
        if rule.retries:
            pauses = [float(found) for found in re.findall(r"\d+", row[3].replace("at once", "0"))]
            assert pauses == [pause * base for pause in rule.pauses], row


def test_patience() -> None:
    text = section(read("reliability.md"), "Silence")
    for times in (attempt_watch.LOAD_STALL, attempt_watch.FIRST_STEP_STALL):
        assert f"{times:.0f} x base: {times * settings.Settings().stall_seconds / 60:.0f} minutes" in text
    assert f"{attempt_watch.STEPS_OF_SILENCE:.0f} times the recent seconds" in text


def commands_in(text: str) -> Iterator[tuple[list[str], bool]]:
    """The words after `wan-train` of every command, as a shell would split them, and whether it is a whole one.

    Those in blocks of code are; what stands in back quotes may name a verb without its arguments.
    """
    fences = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    blocks = "\n".join(body for language, body in fences if language in {"", "bash", "sh"})
    indented = "\n".join(re.findall(r"^    (wan-train .*)$", text, re.MULTILINE))
    quoted = "\n".join(re.findall(r"`(wan-train[^`\n]*)`", prose(text).replace("\\|", "|")))
    for lines, whole in ((f"{blocks}\n{indented}".replace("\\\n", " "), True), (quoted, False)):
        for line in lines.splitlines():
            for words in _calls(line):
                yield words, whole


def _calls(line: str) -> Iterator[list[str]]:
    if not re.search(r"(?:^|[(`&;$] ?|\s)wan-train(?:\s|$)", line):
        return
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:
        return  # half a quotation: output of a program, not a command
    while "wan-train" in words:
        words = words[words.index("wan-train") + 1 :]
        ends = [at for at, word in enumerate(words) if set(word) <= set("|&;<>()")]
        yield words[: ends[0]] if ends else words


PLACEHOLDERS = {"N": "3", "…": "x", "WxH": "640x480"}
# These would be carried out at once, into the home of whoever runs the tests.
AT_ONCE = {"--version", "--install-completion", "--show-completion", "VERB"}
GIVEN = [
    (path, words, whole)
    for path in DOCUMENTS
    for words, whole in commands_in(path.read_text(encoding="utf-8"))
    if not AT_ONCE & set(words[:1])
]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_can_be_pasted(path: Path) -> None:
    """Nothing in angle brackets: a shell would read from a file of that name."""
    blocks = re.findall(r"^```(?:bash|sh)\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert [found for block in blocks for found in re.findall(r"<\w[\w ]*>", block)] == []


def test_there_are_commands_to_try() -> None:
    assert len([words for _, words, whole in GIVEN if whole]) > 40


@pytest.mark.parametrize(
    ("path", "words", "whole"), GIVEN, ids=[f"{path.relative_to(ROOT)}: {' '.join(words)}" for path, words, _ in GIVEN]
)
def test_every_command_of_the_docs_is_one(path: Path, words: list[str], whole: bool) -> None:
    """Parsed by the program itself up to where it would begin."""
    ours, _ = main.split([PLACEHOLDERS.get(word, word) for word in words if not word.startswith("[")])
    try:
        context = PROGRAM.make_context("wan-train", list(ours))
        while hasattr(context.command, "commands"):
            rest = [*context._protected_args, *context.args]
            name, command, rest = context.command.resolve_command(context, rest)
            if not rest and not whole:
                return  # the command itself is named
            context = command.make_context(name, rest, parent=context)
    except typer.Exit:
        pass  # --help
    except Exception as error:
        if whole or type(error).__name__ != "MissingParameter":
            raise AssertionError(f"{path.name}: wan-train {' '.join(words)}: {error}") from error


def test_the_index_names_every_document() -> None:
    linked = set(re.findall(r"\]\(([\w-]+\.\w+)\)", read("README.md")))
    assert linked == {path.name for path in DOCS.iterdir() if path.is_file() and path.suffix != ".py"} - {"README.md"}


def anchors(path: Path) -> set[str]:
    """The names that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.+)$", prose(path.read_text(encoding="utf-8")), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()).strip() for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        linked = path.parent / name if name else path
        assert linked.exists(), f"{path.name} links to {target}"
        if anchor and linked.suffix == ".md":
            assert anchor in anchors(linked), f"{path.name} links to {target}"


FOREIGN = re.compile(
    r"""
    (?<![\w.~-])/(?:home|root(?!/onstart\.sh)|Users|mnt|work)/  # somebody's own; onstart.sh is on every Vast box
    | /tmp/(?!wan-train)
    | //(?:\d+\.){3}\d+ | //localhost | //[\w.-]+\.(?:internal|local|lan|corp)\b
    | \b(?:artifactory|nexus|devpi)\b | //[\w.-]*(?:registry|mirror|proxy|pypi|npmjs)[\w.-]*
    """,
    re.VERBOSE,
)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_machine_of_anybody_is_named(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert [found[0] for found in FOREIGN.finditer(text)] == []


def test_reasons_for_making_a_cache() -> None:
    table = section(read("datasets.md"), "When a cache is made again")
    assert {row[0].strip("`"): row[1] for row in rows(table)} == {reason.value: text for reason, text in WORDS.items()}


def test_every_exit_code_is_documented_with_its_name_and_what_to_do() -> None:
    text = (DOCS / "exit-codes.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| (.+?) \| (.+?) \|$", text, re.MULTILINE)
    assert {(int(code), name) for code, name, *_ in rows} == {(code.value, code.name) for code in ExitCode}
