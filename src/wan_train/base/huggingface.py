"""Environment variables for clients of the Hugging Face hub, and the causes of their errors.

huggingface_hub reads some variables on import and fails with an unhelpful error, so they are checked first.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from wan_train.base.home import expanded
from wan_train.base.text import one_line

HUB_ENV: Mapping[str, str] = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # Images set both. The first breaks all downloads if its package is missing; the second takes all CPUs and RAM.
    "HF_HUB_ENABLE_HF_TRANSFER": "0",
    "HF_XET_HIGH_PERFORMANCE": "0",
}
"""Variables for every program that uses the hub; they override the image's."""
_WORDS = {
    "ConnectTimeout": "no connection in time",
    "ReadTimeout": "the connection was silent for too long",
    "WriteTimeout": "the connection took nothing for too long",
    "RemoteProtocolError": "the connection ended too early",
}
"""Texts for exceptions of the HTTP client that no system error caused."""
_RATE_LIMIT = re.compile(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)")
"""The hub reports the end of a rate limit as `RateLimit: "resolvers";r=0;t=SECONDS`, not as Retry-After."""

_NUMBERS = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_PROXY_SCHEMES = frozenset({"http", "https", "socks5", "socks5h"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How a request failed: `status` is None without an answer; `retry_after` is in seconds."""

    status: int | None
    words: str
    retry_after: float | None = None


def hub_home(environ: Mapping[str, str]) -> Path:
    """Return the user's directory of the hub's libraries, which also holds accelerate's configuration."""
    if home := environ.get("HF_HOME"):
        return expanded(home)
    if xdg := environ.get("XDG_CACHE_HOME"):
        return expanded(xdg) / "huggingface"
    return Path.home() / ".cache" / "huggingface"


def answer_of(error: BaseException) -> Answer:
    """Return the cause of a huggingface_hub exception, without the exception's text: it quotes URLs."""
    seen: BaseException | None = error
    root, words = error, None
    while seen is not None:
        response: Any = getattr(seen, "response", None)
        status = getattr(response, "status_code", None)
        if isinstance(status, int):
            return Answer(status=status, words=type(error).__name__, retry_after=_retry_after(response.headers))
        words = words or _WORDS.get(type(seen).__name__)  # the library wraps the error of a single file
        root, seen = seen, seen.__cause__ or seen.__context__
    if isinstance(root, OSError) and root.strerror:
        words = root.strerror.lower()
    return Answer(status=None, words=words or type(error).__name__)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    text = headers.get("Retry-After")
    if text is None:
        limit = _RATE_LIMIT.search(headers.get("RateLimit", ""))
        return float(limit[1]) if limit else None
    if text.strip().isdecimal():
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class VariableProblem:
    """A variable that no client can use, and its fix."""

    reason: str
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """The hub token and its source; `remove` is the command that removes it. The value is never shown."""

    value: str
    source: str
    remove: str


def variable_problem(environ: Mapping[str, str]) -> VariableProblem | None:
    """Return the first variable that prevents all requests to the hub; None if all are fine."""
    return _number(environ) or _endpoint(environ) or _certificates(environ) or _proxy(environ) or _token(environ)


def token_of(environ: Mapping[str, str]) -> Token | None:
    """Return the token that the hub's client will send; the sources are searched in the client's order."""
    for name in _TOKENS:
        if value := environ.get(name, "").strip():
            return Token(value=value, source=name, remove=f"`unset {name}`")
    path = expanded(environ.get("HF_TOKEN_PATH") or str(hub_home(environ) / "token"))
    try:
        value = path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
    return Token(value=value, source=f"the file {one_line(str(path))}", remove="`hf auth logout`") if value else None


def _number(environ: Mapping[str, str]) -> VariableProblem | None:
    for name in _NUMBERS:
        value = environ.get(name)
        if not value:
            continue
        try:
            int(value)
        except ValueError:
            return VariableProblem(
                reason=f"{name} is {one_line(value)!r}, which is not a whole number of seconds",
                hint=f"`unset {name}`, or give it a number: `export {name}=60`.",
            )
    return None


def _endpoint(environ: Mapping[str, str]) -> VariableProblem | None:
    value = environ.get("HF_ENDPOINT")
    if not value or _scheme(value.strip()) in {"http", "https"}:
        return None
    return VariableProblem(
        reason=f"HF_ENDPOINT is {one_line(value)!r}, which is not an address with https:// before it",
        hint="`unset HF_ENDPOINT`, or write the whole address: `export HF_ENDPOINT=https://huggingface.co`.",
    )


def _scheme(address: str) -> str:
    """Return the scheme of a URL with a host; "" for anything else."""
    try:
        parts = urlsplit(address)
        _ = parts.port  # raises for an invalid port
    except ValueError:
        return ""
    return parts.scheme if parts.hostname else ""


def _certificates(environ: Mapping[str, str]) -> VariableProblem | None:
    path = environ.get("SSL_CERT_FILE")
    if not path or Path(path).is_file():
        return None
    return VariableProblem(
        reason=f"SSL_CERT_FILE names a missing file: {one_line(path)}",
        hint="`unset SSL_CERT_FILE`, or correct it.",
    )


def _proxy(environ: Mapping[str, str]) -> VariableProblem | None:
    if "*" in (environ.get("no_proxy") or environ.get("NO_PROXY") or "").split(","):
        return None
    for name in _PROXIES:
        # Lower case wins, as for every client.
        spelled = name.lower() if environ.get(name.lower()) else name
        value = environ.get(spelled, "").strip()
        if not value:
            continue
        scheme = _scheme(value if "://" in value else f"http://{value}")
        if scheme not in _PROXY_SCHEMES:
            return VariableProblem(
                reason=f"{spelled} is not the address of a proxy: {one_line(value)!r}",
                hint=f"`unset {spelled}`, or write it as http://HOST:PORT.",
            )
        if scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
            return VariableProblem(
                reason=f"{spelled} names a SOCKS proxy, and the Python package socksio for it is not installed",
                hint=f"`unset {spelled}`, set an http:// proxy, or install socksio beside wan-train.",
            )
    return None


def _token(environ: Mapping[str, str]) -> VariableProblem | None:
    token = token_of(environ)
    if token is None or (token.value.isascii() and token.value.isprintable()):
        return None
    return VariableProblem(
        reason=f"the token from {token.source} has invalid characters (outside ASCII, or a line end)",
        hint=f"{token.remove}: these models are public and need none. Or copy the token again.",
    )
