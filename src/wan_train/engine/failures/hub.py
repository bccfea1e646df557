"""Failures of the Hugging Face hub and the network to it. Training needs it only for the T5 tokenizer."""

from __future__ import annotations

import re

from wan_train.engine.failures import Cause
from wan_train.engine.failures.kinds import kind

_WINDOW_SECONDS = 300.0
"""The hub counts requests over five minutes."""
_AFTER = r"(?:[\s\S]*?[Rr]etry[- ][Aa]fter:? (?P<seconds>\d+))?"
_TOKENIZER = "`wan-train provision` installs the T5 tokenizer, so that training does not need the hub. Then resume."
_PUBLIC = "The models and the tokenizer are public and need no token: `unset HF_TOKEN`, `hf auth logout`, then resume."


def _seconds(found: re.Match[str]) -> float:
    return float(found["seconds"] or _WINDOW_SECONDS)


def _says_seconds(found: re.Match[str]) -> dict[str, str]:
    return {"wait": f"{_seconds(found):.0f} seconds{'' if found['seconds'] else ', if it names no time'}"}


HUB_KINDS = (
    kind(
        rf"(?:429 Client Error|Too Many Requests|'429 |rate limit){_AFTER}",
        Cause.HUB,
        "the hub limits requests from this address (HTTP 429)",
        "Wait {wait}, or sign in with a token (`export HF_TOKEN=…`), which has a higher limit. " + _TOKENIZER,
        facts=_says_seconds,
        seconds=_seconds,
    ),
    kind(
        r"GatedRepoError|[Cc]annot access gated repo|access a gated repo|Access to model .* is restricted"
        r"|is not in the authorized list",
        Cause.HUB_REFUSED,
        "the repository is gated: its terms must be accepted (HTTP 401 or 403)",
        "Accept the terms on its page in the browser and `export HF_TOKEN=…` with that account's token; then resume.",
    ),
    kind(
        r"Missing dependencies for SOCKS|SOCKS proxy, but the 'socksio' package|SOCKSHTTP|InvalidSchema: Missing dep",
        Cause.HUB_REFUSED,
        "a SOCKS proxy is set, and its package is missing",
        "`unset ALL_PROXY HTTPS_PROXY HTTP_PROXY all_proxy https_proxy http_proxy`, or set an http:// proxy; "
        "then resume.",
    ),
    kind(
        r"invalid path: (?P<path>\S+)|Could not find a suitable TLS CA certificate bundle",
        Cause.HUB_REFUSED,
        "SSL_CERT_FILE, REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE names a missing file",
        "`unset SSL_CERT_FILE REQUESTS_CA_BUNDLE CURL_CA_BUNDLE`, or correct the one that is set; then resume.",
    ),
    kind(
        r"CERTIFICATE_VERIFY_FAILED|SSLCertVerificationError|SSLError",
        Cause.HUB_REFUSED,
        "the hub's certificate is not trusted: a proxy answers in its place, or the clock is wrong",
        "Behind a company's proxy set SSL_CERT_FILE to its certificate; check that `date` is right. Then resume.",
    ),
    kind(
        r"ProxyError|Unable to connect to proxy|Tunnel connection failed|Unknown scheme for proxy"
        r"|proxy URL had no scheme"
        r"|407 Proxy Authentication",
        Cause.HUB_REFUSED,
        "the proxy does not work",
        "`env | grep -i proxy` shows what is set: correct it or unset it, then resume.",
    ),
    kind(
        r"No scheme supplied|missing an 'https?://' or 'https?://' protocol|MissingSchema|UnsupportedProtocol",
        Cause.HUB_REFUSED,
        "an address has no https:// before it, most often HF_ENDPOINT",
        "`export HF_ENDPOINT=https://…` with its scheme, or `unset HF_ENDPOINT`; then resume.",
    ),
    kind(
        r"(?:'ascii'|'latin-1') codec can't encode|Illegal header value",
        Cause.HUB_REFUSED,
        "the token contains non-ASCII characters or a line break",
        f"Copy it again. {_PUBLIC}",
        at=r"huggingface_hub|httpx|requests|http/client|urllib3",
    ),
    kind(
        r"OfflineModeIsEnabled|outgoing traffic has been disabled|HF_HUB_OFFLINE=1",
        Cause.HUB_REFUSED,
        "HF_HUB_OFFLINE is set, and the T5 tokenizer is not in the cache",
        f"`unset HF_HUB_OFFLINE TRANSFORMERS_OFFLINE`. {_TOKENIZER}",
    ),
    kind(
        r"401 (?:Client Error|Unauthorized)|Invalid user token|Invalid username or password|'401 ",
        Cause.HUB_REFUSED,
        "the hub rejects the token, or requires one (HTTP 401)",
        _PUBLIC,
    ),
    kind(
        r"403 (?:Client Error|Forbidden)|'403 ",
        Cause.HUB_REFUSED,
        "the hub refuses this file to this account or address (HTTP 403)",
        "A token needs the right to read public gated repositories; some networks are blocked. " + _PUBLIC,
    ),
    kind(
        r"404 (?:Client Error|Not Found)|'404 |EntryNotFoundError: 404|RepositoryNotFoundError|RevisionNotFoundError",
        Cause.HUB_REFUSED,
        "the hub does not have the file (HTTP 404)",
        "HF_ENDPOINT may be a mirror without it (`unset HF_ENDPOINT`). " + _TOKENIZER,
    ),
    kind(
        r"(?:5[02]\d (?:Server Error|Internal Server Error|Bad Gateway|Service Unavailable|Gateway Time)"
        r"|Server error '5\d\d)" + _AFTER,
        Cause.HUB,
        "the hub has a server error (HTTP 5xx)",
        _TOKENIZER,
        seconds=lambda found: float(found["seconds"]) if found["seconds"] else None,
    ),
    kind(
        r"ConnectionError|ConnectError|ConnectTimeout|ReadTimeout|NewConnectionError|MaxRetryError|NameResolutionError"
        r"|Temporary failure in name resolution|Name or service not known|Connection refused|Connection reset by peer"
        r"|Network is unreachable|RemoteProtocolError|ChunkedEncodingError|IncompleteRead|Read timed out"
        r"|Consistency check failed",
        Cause.HUB,
        "the hub could not be reached",
        f"Check the network (`curl -I https://huggingface.co`). {_TOKENIZER}",
    ),
    kind(
        r"LocalEntryNotFoundError|We couldn't connect to|Can't load tokenizer|couldn't find (?:it"
        r"|them) in the cached files",
        Cause.HUB,
        "the T5 tokenizer is not on this box and could not be fetched",
        _TOKENIZER,
        wrapper=True,
    ),
)
