"""The ssh address of a rented box, which its provider sets in the environment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:-]*")
_LAST_PORT = 65_535


@dataclass(frozen=True, slots=True, kw_only=True)
class Shell:
    """Where ssh goes."""

    host: str
    port: int


def shell_of(environ: Mapping[str, str]) -> Shell | None:
    """Vast's boxes with a public port for ssh have both in their environment (docs.vast.ai, instance variables)."""
    host, port = environ.get("PUBLIC_IPADDR", "").strip(), environ.get("VAST_TCP_PORT_22", "").strip()
    if not _HOST.fullmatch(host) or not port.isdecimal() or not port.isascii() or not 0 < int(port) <= _LAST_PORT:
        return None
    return Shell(host=host, port=int(port))
