"""The services that get messages: apprise addresses, which hold secrets, and names, which do not."""

from __future__ import annotations

import importlib.util
import ipaddress
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wan_train.base.errors import BadInputError, NotReadyError
from wan_train.base.text import one_line

if TYPE_CHECKING:
    from apprise import NotifyBase

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,29})://")
_HOST = re.compile(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+", re.ASCII)
INSTALL = "pip install 'wan-train[notify]'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One service. `url` is a secret; `name` holds a unique number, the service and at most its host."""

    url: str = field(repr=False)
    name: str


def is_installed() -> bool:
    """Whether apprise is installed; does not import it."""
    return importlib.util.find_spec("apprise") is not None


def read_targets(urls: Sequence[str]) -> tuple[Target, ...]:
    """The services of these addresses, in order.

    Raises NotReadyError without apprise, and BadInputError for an address it cannot use. Errors quote no address.
    """
    if urls and not is_installed():
        raise NotReadyError("notifications need apprise, which is not installed", hint=f"Install it: {INSTALL}")
    quiet()
    found = []
    for number, url in enumerate(urls, 1):
        service = plugin_of(url)
        if service is None:
            scheme = _SCHEME.match(url)
            kind = f" ({one_line(scheme[1])}://...)" if scheme is not None else ", it does not begin with SERVICE://"
            raise BadInputError(
                f"notification address {number} cannot be used{kind}",
                hint="Use an address such as discord://ID/TOKEN or ntfy://TOPIC.\n"
                "All services are at https://github.com/caronc/apprise/wiki.",
            )
        found.append(Target(url=url, name=f"{number} {_name(service)}"))
    return tuple(found)


def plugin_of(url: str) -> NotifyBase | None:
    """Apprise's object for an address; None if it supports none. It keeps no files and starts no threads."""
    from apprise import Apprise, AppriseAsset
    from apprise.common import PersistentStoreMode

    asset = AppriseAsset(
        app_id="wan-train", app_desc="wan-train", storage_mode=PersistentStoreMode.MEMORY, async_mode=False
    )
    made = Apprise.instantiate(url, asset=asset, suppress_exceptions=True)
    return made or None


def quiet() -> None:
    """Keep apprise's log, which quotes addresses, away from every handler of this process."""
    logger = logging.getLogger("apprise")
    logger.propagate = False
    logger.handlers = [each for each in logger.handlers if isinstance(each, logging.NullHandler)] or [
        logging.NullHandler()
    ]


def _name(service: NotifyBase) -> str:
    """The service's name and, unless private, its host. Other parts of an address are secrets."""
    name = one_line(str(service.service_name), 40)
    has_host = "host" in service.template_tokens and not service.template_tokens["host"].get("private", False)
    host = getattr(service, "host", None)
    return f"{name} at {host}" if has_host and isinstance(host, str) and _is_host(host) else name


def _is_host(text: str) -> bool:
    try:
        ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return text == "localhost" or _HOST.fullmatch(text) is not None
    return True
