"""Answers with every option of one of the trainer's scripts, as the script's own argument parser holds it.

`dump_options.py SCRIPT` runs the script up to where it would parse its arguments. Runs in the trainer's
environment; the JSON is alone on the last line, as the trainer prints while it is imported.
"""

from __future__ import annotations

import argparse
import json
import runpy
import sys
from typing import Any, NoReturn


def described(action: argparse.Action) -> dict[str, Any]:
    takes_value = action.nargs != 0
    entry: dict[str, Any] = {"kind": "value" if takes_value else "flag"}
    if action.choices is not None:
        entry["choices"] = list(action.choices)
    if takes_value and action.default is not None:
        entry["default"] = action.default
    if takes_value and action.nargs is not None:
        entry["nargs"] = action.nargs
    if action.required:
        entry["required"] = True
    if action.type is not None:
        entry["type"] = action.type.__name__
    return entry


def dump(parser: argparse.ArgumentParser, *_args: Any, **_kwargs: Any) -> NoReturn:
    options = {
        name: described(action)
        for action in parser._actions
        for name in action.option_strings
        if name.startswith("--") and name != "--help"
    }
    sys.stdout.write(f"\n{json.dumps(options, default=str)}\n")
    sys.exit(0)


argparse.ArgumentParser.parse_args = dump
argparse.ArgumentParser.parse_known_args = dump
script = sys.argv[1]
sys.argv = [script]
runpy.run_path(script, run_name="__main__")
