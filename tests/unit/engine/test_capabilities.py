"""What each trainer version accepts: stored tables, tables read from --help, and the check of words after `--`."""

from __future__ import annotations

import argparse
import json
from importlib import resources
from typing import Any

import pytest

from wan_train.engine.capabilities import (
    KNOWN_COMMITS,
    REHEARSAL_VERSION,
    Capabilities,
    Option,
    Script,
    from_help,
    stored,
)

VERSIONS = ("d0a1930", "v0.3.4")


def table(version: str) -> dict[str, dict[str, dict[str, Any]]]:
    text = resources.files("wan_train.engine").joinpath(f"contract/{version}.json").read_text(encoding="utf-8")
    loaded: dict[str, dict[str, dict[str, Any]]] = json.loads(text)
    return loaded


@pytest.mark.parametrize("version", [*KNOWN_COMMITS.values(), REHEARSAL_VERSION])
def test_every_stored_table_has_the_options_every_run_needs(version: str) -> None:
    capabilities = stored(version)
    for script, needed in (
        (Script.CACHE_LATENTS, ("--dataset_config", "--vae", "--i2v")),
        (Script.CACHE_TEXT, ("--dataset_config", "--t5")),
        (Script.TRAIN, ("--dit", "--save_state", "--resume", "--blocks_to_swap")),
    ):
        assert all(capabilities.has(script, option) for option in needed)


def test_the_versions_differ_where_they_do() -> None:
    old, new = (stored(version) for version in VERSIONS)
    assert (old.drops_uncaptioned, new.drops_uncaptioned) == (False, True)
    assert (old.saves_float32, new.saves_float32) == (False, True)
    assert not old.has(Script.TRAIN, "--save_precision")
    assert new.has(Script.TRAIN, "--save_precision")


def parser_for(entries: dict[str, dict[str, Any]]) -> argparse.ArgumentParser:
    """A parser with the options of a stored table, as musubi-tuner declares them."""
    parser = argparse.ArgumentParser(prog="wan_train_network.py", formatter_class=argparse.HelpFormatter)
    for index, (name, entry) in enumerate(entries.items()):
        words = "a long description " * (index % 9)
        about = f"{words}needs\n--xformers or --sdpa to be set, see --dit / 説明 100%%" if index % 3 else None
        if entry["kind"] == "flag":
            parser.add_argument(name, action="store_true", help=about)
        else:
            more = {key: entry[key] for key in ("choices", "nargs") if key in entry}
            parser.add_argument(name, help=about, **more)
    return parser


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("columns", ["80", "200"])
def test_a_table_read_from_help_equals_the_stored_one(
    version: str, columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    texts = {script: parser_for(table(version)[script]).format_help() for script in Script}
    read = from_help("abc1234", texts)
    for script in Script:
        known = stored(version).options[script]
        found = {name: option for name, option in read.options[script].items() if name != "--help"}
        assert {name: (o.takes_value, o.many) for name, o in found.items()} == {
            name: (o.takes_value, o.many) for name, o in known.items()
        }
    assert read.drops_uncaptioned == stored(version).drops_uncaptioned
    assert read.saves_float32 == stored(version).saves_float32


def test_short_names_and_lists_of_at_least_one() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("-c", "--dataset_config", help="file")
    parser.add_argument("--names", nargs="+", help="one or more")
    parser.add_argument("-f", "--fast", action="store_true", help="fast")
    help_text = parser.format_help()
    found = from_help("x", dict.fromkeys(Script, help_text)).options[Script.TRAIN]
    assert found["--dataset_config"].takes_value
    assert (found["--names"].takes_value, found["--names"].many) == (True, True)
    assert not found["--fast"].takes_value


def test_options_without_a_table_are_asked_for_by_name() -> None:
    option = Option(name="--a", takes_value=True, many=False)
    capabilities = Capabilities(
        version="x",
        options={script: {"--a": option} for script in Script},
        drops_uncaptioned=False,
        saves_float32=False,
        trains_schedule_free=False,
        warms_up_from_floor=False,
    )
    assert capabilities.has(Script.TRAIN, "--a")
    assert not capabilities.has(Script.TRAIN, "--b")
