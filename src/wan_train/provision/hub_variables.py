"""What the environment tells the hub's client, judged before the client reads it.

Its library reads some of these when it is imported and raises what nobody can act on; each is named here with its fix.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from wan_train.base.text import one_line
from wan_train.engine.tokenizer import expanded, hub_home

_NUMBERS = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_PROXY_SCHEMES = frozenset({"http", "https", "socks5", "socks5h"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """A variable that no client can work with, and what to type."""

    reason: str
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """Where the token for the hub comes from; `remove` is the command that leaves it out. Never shown itself."""

    value: str
    source: str
    remove: str


def trouble(environ: Mapping[str, str]) -> Trouble | None:
    """The first variable that keeps the hub from being asked at all."""
    return _number(environ) or _endpoint(environ) or _certificates(environ) or _proxy(environ) or _token(environ)


def token_of(environ: Mapping[str, str]) -> Token | None:
    """The token that the hub's client will send, found in the order in which it looks."""
    for name in _TOKENS:
        if value := environ.get(name, "").strip():
            return Token(value=value, source=name, remove=f"`unset {name}`")
    path = expanded(environ.get("HF_TOKEN_PATH") or str(hub_home(environ) / "token"))
    try:
        value = path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
    return Token(value=value, source=f"the file {one_line(str(path))}", remove="`hf auth logout`") if value else None


def _number(environ: Mapping[str, str]) -> Trouble | None:
    for name in _NUMBERS:
        value = environ.get(name)
        if not value:
            continue
        try:
            int(value)
        except ValueError:
            return Trouble(
                reason=f"{name} is {one_line(value)!r}, which is not a whole number of seconds",
                hint=f"`unset {name}`, or give it a number: `export {name}=60`.",
            )
    return None


def _endpoint(environ: Mapping[str, str]) -> Trouble | None:
    value = environ.get("HF_ENDPOINT")
    if not value:
        return None
    try:
        parts = urlsplit(value.strip())
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname)
        _ = parts.port  # raises for one that is no number
    except ValueError:
        usable = False
    if usable:
        return None
    return Trouble(
        reason=f"HF_ENDPOINT is {one_line(value)!r}, which is not an address with https:// before it",
        hint="`unset HF_ENDPOINT`, or write the whole address: `export HF_ENDPOINT=https://huggingface.co`.",
    )


def _certificates(environ: Mapping[str, str]) -> Trouble | None:
    path = environ.get("SSL_CERT_FILE")
    if not path or Path(path).is_file():
        return None
    return Trouble(
        reason=f"SSL_CERT_FILE names a file that is not there: {one_line(path)}",
        hint="`unset SSL_CERT_FILE`, or correct it.",
    )


def _proxy(environ: Mapping[str, str]) -> Trouble | None:
    if "*" in (environ.get("no_proxy") or environ.get("NO_PROXY") or "").split(","):
        return None
    for name in _PROXIES:
        # Lower case wins, as for every client.
        spelled = name.lower() if environ.get(name.lower()) else name
        value = environ.get(spelled, "").strip()
        if not value:
            continue
        try:
            parts = urlsplit(value if "://" in value else f"http://{value}")
            usable = parts.scheme in _PROXY_SCHEMES and bool(parts.hostname)
            _ = parts.port  # raises for one that is no number
        except ValueError:
            usable = False
        if not usable:
            return Trouble(
                reason=f"{spelled} is not the address of a proxy: {one_line(value)!r}",
                hint=f"`unset {spelled}`, or write it as http://HOST:PORT.",
            )
        if parts.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
            return Trouble(
                reason=f"{spelled} names a SOCKS proxy, and the Python package socksio for it is not installed",
                hint=f"`unset {spelled}`, set an http:// proxy, or install socksio beside wan-train.",
            )
    return None


def _token(environ: Mapping[str, str]) -> Trouble | None:
    token = token_of(environ)
    if token is None or (token.value.isascii() and token.value.isprintable()):
        return None
    return Trouble(
        reason=f"the token from {token.source} has characters that no token has (outside ASCII, or a line end)",
        hint=f"{token.remove}: these models are public and need none. Or copy the token again.",
    )
