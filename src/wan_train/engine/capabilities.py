"""What each trainer version's scripts accept: every option, as their own argument parsers report it."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources

from wan_train.base.errors import BadInputError
from wan_train.base.text import one_line


class Script(StrEnum):
    """The trainer's three programs; the value is the file name."""

    CACHE_LATENTS = "wan_cache_latents.py"
    CACHE_TEXT = "wan_cache_text_encoder_outputs.py"
    TRAIN = "wan_train_network.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option: takes no value, one value, or (`many`) any number of values."""

    name: str
    takes_value: bool
    many: bool
    kind: str = "str"
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """All options of one trainer version and how it behaves where versions differ."""

    version: str
    options: Mapping[Script, Mapping[str, Option]]
    drops_uncaptioned: bool
    """A picture without caption is silently left out (v0.3.4) instead of stopping the caching (d0a1930)."""
    saves_float32: bool
    """LoRAs are float32 unless --save_precision says otherwise (v0.3.4)."""
    trains_schedule_free: bool
    """Optimizers named `...ScheduleFree` work. At d0a1930 they all fail at the start, because `get_dummy_scheduler()`
    lacks `self` there."""
    warms_up_from_floor: bool
    """warmup_stable_decay begins at its lowest learning rate (transformers of v0.3.4) instead of zero (of d0a1930)."""

    def has(self, script: Script, option: str) -> bool:
        return option in self.options[script]


KNOWN_COMMITS: Mapping[str, str] = {
    "d0a193061a23a51c90664282205d753605a641c1": "d0a1930",
    "30c658c4f4b0bf05038b3346eff9670259b10fc7": "v0.3.4",
}
"""Commits of musubi-tuner with a stored option table."""

REHEARSAL_VERSION = "rehearsal"


@functools.cache
def stored(version: str) -> Capabilities:
    """The stored table of a known version (a value of KNOWN_COMMITS, or REHEARSAL_VERSION)."""
    text = resources.files("wan_train.engine").joinpath(f"contract/{version}.json").read_text(encoding="utf-8")
    return Capabilities(
        version=version,
        options={Script(script): _options(entries) for script, entries in json.loads(text).items()},
        drops_uncaptioned=version == "v0.3.4",
        saves_float32=version == "v0.3.4",
        trains_schedule_free=version != "d0a1930",
        warms_up_from_floor=version == "v0.3.4",
    )


def from_help(version: str, help_texts: Mapping[Script, str]) -> Capabilities:
    """The table of an unknown version, read from its scripts' `--help`.

    Its options show which behaviour it has where versions differ.
    """
    options = {script: _options_from_help(text) for script, text in help_texts.items()}
    newer = "--save_precision" in options[Script.TRAIN]
    return Capabilities(
        version=version,
        options=options,
        drops_uncaptioned=newer,
        saves_float32=newer,
        trains_schedule_free=newer,
        warms_up_from_floor=newer,
    )


def check_optimizer(optimizer_type: str, capabilities: Capabilities) -> None:
    """Raise BadInputError for an optimizer that this version cannot train with, whatever is installed."""
    if is_schedule_free(optimizer_type) and not capabilities.trains_schedule_free:
        raise BadInputError(
            f"the trainer ({capabilities.version}) cannot train with {one_line(optimizer_type)!r}: "
            "it fails at the start with every optimizer whose name ends in ScheduleFree",
            hint="Install the newer trainer: wan-train provision --engine v0.3.4\nOr choose another optimizer.",
        )


def is_schedule_free(optimizer_type: str) -> bool:
    """Whether the trainer gives this optimizer only a dummy scheduler (`is_schedulefree_optimizer`)."""
    return optimizer_type.lower().endswith("schedulefree")


def _options(entries: Mapping[str, Mapping[str, object]]) -> dict[str, Option]:
    return {
        name: Option(
            name=name,
            takes_value=entry["kind"] != "flag",
            many="nargs" in entry,
            kind=str(entry.get("type", "str")),
            choices=tuple(str(c) for c in choices) if isinstance(choices := entry.get("choices"), list) else (),
        )
        for name, entry in entries.items()
    }


# argparse indents options by two spaces. Wrapped descriptions may begin with an option's name but have more indent.
_HELP_OPTION = re.compile(
    r"^ {2}(?:-\w(?: \S+)?, )?(--[\w-]+)(?P<value>[ =][^\s]+)?(?P<many> \[\S+ \.\.\.\])?", re.MULTILINE
)


def _options_from_help(text: str) -> dict[str, Option]:
    found = {}
    for match in _HELP_OPTION.finditer(text):
        value = match["value"]
        found[match[1]] = Option(
            name=match[1],
            takes_value=value is not None,
            many=bool(value and (value.strip().startswith("[") or match["many"])),
            kind="any",  # help texts do not show it
        )
    return found
