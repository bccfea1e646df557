"""Settings of this box, such as directories and timeouts, each with its source."""

from __future__ import annotations

import os
import re
import stat
import tomllib
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from wan_train.base import home
from wan_train.base.errors import BadInputError, NotReadyError, reason_of
from wan_train.base.files import can_be_written, write_whole
from wan_train.base.text import one_line
from wan_train.base.units import parse_dollars

_A_DAY = 86_400
_BETWEEN_TARGETS = re.compile(r"\n|\s+(?=(?:hf|hf-public|rclone):)")


class Source(StrEnum):
    """Where a value came from, weakest first: later sources override earlier ones."""

    DEFAULT = "default"
    FILE = "file"
    ENVIRONMENT = "environment"
    FLAG = "flag"


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError("must be a number of seconds") from None
    if not 0 < value <= _A_DAY:  # also refuses nan and inf
        raise ValueError(f"must be more than 0 and at most {_A_DAY} seconds")
    return value


def _path(text: str) -> Path:
    if not text.strip():
        raise ValueError("must not be empty")
    return home.expand(text).absolute()


class ReportTime(StrEnum):
    """When a run writes its report by itself."""

    AT_END = "at-end"
    NEVER = "never"


def _report(text: str) -> ReportTime:
    try:
        return ReportTime(text)
    except ValueError:
        raise ValueError(f"must be one of {', '.join(ReportTime)}") from None


def _addresses(text: str) -> tuple[str, ...]:
    """Parse addresses of message services, separated by spaces; `none` means no address."""
    words = text.split()
    if words == ["none"]:
        return ()
    if not all("://" in word for word in words):
        raise ValueError("must be addresses such as ntfy://TOPIC, separated by spaces, or none")
    return tuple(words)


def split_targets(text: str) -> tuple[str, ...]:
    """Split upload targets at spaces or line ends; a path may contain spaces. `none` means no target."""
    words = tuple(word for part in _BETWEEN_TARGETS.split(text) if (word := part.strip()))
    return () if words == ("none",) else words


def _vast_url(text: str) -> str:
    """Return a URL that the box's key may be sent to: https, or http on this machine."""
    try:
        parts = urllib.parse.urlsplit(text)
        local = parts.hostname in {"localhost", "127.0.0.1", "::1"}
        good = bool(parts.hostname) and (parts.scheme == "https" or (parts.scheme == "http" and local))
    except ValueError:
        good = False
    if not good:
        raise ValueError("must begin with https://")
    return text.rstrip("/")


def _setting(
    default: Any,  # noqa: ANN401  dataclass field of any type
    parse: Callable[[str], Any],
    about: str,
    *,
    unset: str | None = None,
    more: str = "",
    secret: bool = False,
) -> Any:  # noqa: ANN401  the same
    """Declare a setting. `unset` describes the default if `default` is None; `more` is Markdown for docs/flags.md.

    A `secret` is never quoted in messages or passed to child processes.
    """
    about_it = {"parse": parse, "about": about, "unset": unset, "more": more, "secret": secret}
    return field(default=default, repr=not secret, metadata=about_it)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One value per field; `sources` maps each field to where its value came from."""

    workspace: Path = _setting(Path("/workspace"), _path, "Working directory of the box.")
    musubi_dir: Path | None = _setting(None, _path, "The musubi-tuner checkout.", unset="musubi-tuner in the workspace")
    musubi_python: Path | None = _setting(
        None, _path, "Python of the trainer's environment.", unset="venv or .venv in the checkout"
    )
    runs_dir: Path | None = _setting(
        None,
        _path,
        "Directory for runs.",
        unset="wan-train-runs in the workspace",
        more="Without a workspace it is `~/.local/share/wan-train/runs`.",
    )
    cache_dir: Path | None = _setting(
        None,
        _path,
        "Directory for all caches.",
        unset="the dataset's cache_directory",
        more="See [caches](datasets.md#where-caches-go).",
    )
    lease_dir: Path = _setting(
        Path("/tmp/wan-train-leases"),  # noqa: S108  one place for all users; the lease room checks owner and mode
        _path,
        "Directory of the GPU leases, shared by all users of the box.",
        more="It must be on a local disk.",
    )
    gpus: str | None = _setting(
        None,
        str,
        "GPUs that may be used: all, or indices or UUIDs, comma-separated.",
        unset="all",
        more="Indices are those of `nvidia-smi`. `0:1` is a [MIG instance](doctor.md#mig). "
        "An inherited `CUDA_VISIBLE_DEVICES` limits them.",
    )
    poll_seconds: float = _setting(1.0, _seconds, "Time between two checks of a running job.")
    settle_seconds: float = _setting(0.2, _seconds, "Time between two checks of a GPU before it is used.")
    term_grace_seconds: float = _setting(10.0, _seconds, "Time between TERM and KILL.")
    stall_seconds: float = _setting(
        300.0,
        _seconds,
        "Longest silence of a training before it counts as stalled.",
        more="See [silence](reliability.md#silence).",
    )
    pause_seconds: float = _setting(10.0, _seconds, "Shortest pause before a retry.")
    probe_timeout_seconds: float = _setting(10.0, _seconds, "Longest wait for the NVIDIA driver.")
    report: ReportTime = _setting(ReportTime.AT_END, _report, "When a run writes its report: at-end or never.")
    price: float | None = _setting(
        None,
        parse_dollars,
        "What an hour of this box costs, in dollars.",
        unset="from Vast on its boxes, else unknown",
        more="See [time and money](money.md).",
    )
    notify: tuple[str, ...] = _setting(
        (),
        _addresses,
        "Send messages about runs to this service; repeatable.",
        unset="no messages",
        more="An address of apprise: Discord, Telegram, ntfy, mail and others. The variable holds several, separated "
        "by spaces. It is remembered; `none` forgets it. See [notifications](endings.md#notifications).",
        secret=True,
    )
    upload: tuple[str, ...] = _setting(
        (),
        split_targets,
        "Upload the results to this target; repeatable.",
        unset="none",
        more="`hf:USER/REPO` or `rclone:REMOTE:PATH`. The variable holds several, separated by spaces; "
        "`none` means no upload. See [uploads](uploads.md).",
    )
    vast_url: str = _setting(
        "https://console.vast.ai",
        _vast_url,
        "Address of Vast's API, for prices and for renting and ending boxes.",
    )
    sources: Mapping[str, Source] = field(default_factory=dict)

    @property
    def trainer_dir(self) -> Path:
        return self.musubi_dir or self.workspace / "musubi-tuner"

    @property
    def box_dir(self) -> Path:
        """Logs and records of provision."""
        return self.workspace / "wan-train-provision"

    @property
    def runs(self) -> Path:
        """The directory of run directories. Without a workspace (a laptop) it is in the user's data directory."""
        if self.runs_dir is not None:
            return self.runs_dir
        if self.workspace.is_dir():
            return self.workspace / "wan-train-runs"
        return user_data_dir() / "runs"

    def source_of(self, name: str) -> Source:
        return self.sources.get(name, Source.DEFAULT)

    def environment(self) -> dict[str, str]:
        """Return the settings that were set, without secrets, as environment variables for a child of wan-train."""
        return {
            environment_name(name): "\n".join(value) if isinstance(value := getattr(self, name), tuple) else str(value)
            for name in (f.name for f in fields(self) if f.name != "sources" and not f.metadata["secret"])
            if self.source_of(name) is not Source.DEFAULT and getattr(self, name) is not None
        }


def environment_name(setting: str) -> str:
    return f"WAN_TRAIN_{setting.upper()}"


def user_data_dir() -> Path:
    """`$XDG_DATA_HOME/wan-train`, by default `~/.local/share/wan-train`; a temporary directory if unusable."""
    path = _xdg("XDG_DATA_HOME", ".local/share")
    if os.environ.get("XDG_DATA_HOME") or can_be_written(path) or path.is_dir():
        return path
    return home.own_temporary()


def user_config_file() -> Path:
    """`$XDG_CONFIG_HOME/wan-train/settings.toml`, by default `~/.config/wan-train/settings.toml`."""
    return _xdg("XDG_CONFIG_HOME", ".config") / "settings.toml"


def resolve(
    *, flags: Mapping[str, str | None], environ: Mapping[str, str] | None = None, file: Path | None = None
) -> Settings:
    """Return the settings from the config file, `WAN_TRAIN_*` and options; later sources override earlier ones.

    Raises BadInputError naming the value, its source and its problem.
    """
    environ = os.environ if environ is None else environ
    path = user_config_file() if file is None else file
    values: dict[str, Any] = {}
    sources: dict[str, Source] = {}
    known = {f.name: f for f in fields(Settings) if f.name != "sources"}

    def put(name: str, text: str, source: Source, where: str) -> None:
        try:
            values[name] = known[name].metadata["parse"](text)
        except (ValueError, BadInputError) as error:  # BadInputError: `~name` of an unknown user
            value = "" if known[name].metadata["secret"] else f"is {one_line(text)!r}: "
            raise BadInputError(
                f"{where} {value}{error}", hint="Correct it, or leave it out to take the default."
            ) from error
        sources[name] = source

    for name, value in _read_config(path).items():
        if name not in known:
            raise BadInputError(
                f"unknown setting {one_line(name)!r} in {path}", hint=f"Known settings: {', '.join(sorted(known))}."
            )
        text = "\n".join(map(str, value)) if isinstance(value, list) else str(value)
        put(name, text, Source.FILE, f"{name} in {path}")
    for name in known:
        variable = environment_name(name)
        if environ.get(variable):
            put(name, environ[variable], Source.ENVIRONMENT, variable)
        flag = flags.get(name)
        if flag is not None:
            put(name, flag, Source.FLAG, f"--{name.replace('_', '-')}")
    return Settings(**values, sources=sources)


def remember(name: str, values: Sequence[str]) -> Path:
    """Save a list in the settings file, readable by its owner only; returns the file. Other settings stay.

    Raises BadInputError if the file cannot be read, NotReadyError if it cannot be written.
    """
    import tomlkit

    path = user_config_file()
    _read_config(path)
    try:
        document = tomlkit.parse(path.read_text(encoding="utf-8")) if path.exists() else tomlkit.document()
        document[name] = list(values)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path.resolve(), tomlkit.dumps(document))
    except OSError as error:
        raise NotReadyError(
            f"the settings file {path} cannot be written: {error.strerror}",
            hint="Choose another place for it: `export XDG_CONFIG_HOME=DIR`",
        ) from error
    return path


def is_readable_by_others() -> bool:
    """Whether other users of the box can read the settings file."""
    try:
        return bool(user_config_file().stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))
    except OSError:
        return False


def shipped_configs() -> Path:
    """The `configs/` directory: inside an installed package, or at the top of a source checkout."""
    package = Path(__file__).parent.parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent.parent / "configs"


def _xdg(variable: str, below_home: str) -> Path:
    base = os.environ.get(variable)
    return (Path(base) if base else Path.home() / below_home) / "wan-train"


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as error:  # ValueError: invalid UTF-8 or TOML, numbers too long
        raise BadInputError(
            f"the settings file {path} cannot be read: {reason_of(error)}",
            hint="One `name = value` on a line; text in quotes.",
        ) from error
