"""Vast.ai's API, as a box may use it about itself: one deadline for everything, never in the way of a training.

Inside a box `CONTAINER_ID` names the instance and `CONTAINER_API_KEY` is a key for it alone (docs.vast.ai, instance
portal).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from wan_train.box.rental import Rental, read_rental
from wan_train.box.vast_http import MISSING, REFUSED, Api, StatusError, VastError, why_refused

ID_VARIABLE = "CONTAINER_ID"
KEY_VARIABLE = "CONTAINER_API_KEY"
DEADLINE_SECONDS = 5.0
_DOWN = frozenset({"stopped", "exited", "offline"})


class UnknownBoxError(VastError):
    """Vast does not know this box: it was destroyed, or its ID is wrong."""


class RefusedKeyError(VastError):
    """Vast does not take this box's key."""


class Power(StrEnum):
    """What Vast says of a box's state."""

    ON = "on"
    GOING = "going"
    """It is to be stopped, or is stopped already."""
    GONE = "gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Vast:
    """The API as one box may use it."""

    address: str
    instance: str
    key: str = field(repr=False)

    @classmethod
    def of_this_box(cls, environ: Mapping[str, str], address: str) -> Vast | None:
        """None on a box that is not from Vast. `address` is `Settings.vast_url`."""
        instance, key = environ.get(ID_VARIABLE, "").strip(), environ.get(KEY_VARIABLE, "").strip()
        if not instance.isdecimal() or not instance.isascii() or not key:
            return None
        return cls(address=address, instance=instance, key=key)

    def rental(self, *, seconds: float = DEADLINE_SECONDS) -> Rental:
        """What this box costs and when its rental ends. Raises VastError, after about `seconds` at the latest."""
        found = read_rental(self._ask("GET", self._path, seconds))
        if found is None:
            raise VastError("Vast's answer has no price for this box")
        return found

    def power(self, *, seconds: float = DEADLINE_SECONDS) -> Power:
        """Whether this box runs, by its `intended_status` and `actual_status`. Raises VastError."""
        try:
            answer = self._ask("GET", self._path, seconds)
        except UnknownBoxError:
            return Power.GONE
        found = answer.get("instances") if isinstance(answer, dict) else None
        if not isinstance(found, dict):
            raise VastError("Vast's answer has no state of this box")
        down = found.get("intended_status") in _DOWN or found.get("actual_status") in _DOWN
        return Power.GOING if down else Power.ON

    def check(self, *, seconds: float = DEADLINE_SECONDS) -> None:
        """Make sure that Vast knows this box and takes its key. Raises VastError."""
        self._ask("GET", self._path, seconds)

    def stop(self, *, seconds: float = DEADLINE_SECONDS) -> None:
        """Ask that this box be stopped: its disk stays and is paid for. Raises VastError."""
        self._order("PUT", {"state": "stopped"}, seconds)

    def destroy(self, *, seconds: float = DEADLINE_SECONDS) -> None:
        """Ask that this box be destroyed with its disk. Raises VastError."""
        self._order("DELETE", {}, seconds)

    @property
    def _path(self) -> str:
        return f"/api/v0/instances/{self.instance}/"

    def _order(self, method: str, body: Mapping[str, str], seconds: float) -> None:
        try:
            answer = self._ask(method, self._path, seconds, body)
        except UnknownBoxError:
            if method == "DELETE":
                return  # a repeated order
            raise
        if (why := why_refused(answer)) is not None:
            raise VastError(why)

    def _ask(self, method: str, path: str, seconds: float, body: Mapping[str, str] | None = None) -> Any:  # noqa: ANN401  JSON of any shape
        api = Api(address=self.address, key=self.key, key_name=KEY_VARIABLE)
        try:
            return api.ask(method, path, seconds, body)
        except StatusError as error:
            if error.status == MISSING:
                raise UnknownBoxError(f"Vast does not know this box ({ID_VARIABLE}, status {MISSING})") from None
            if error.status in REFUSED:
                raise RefusedKeyError(f"Vast refused this box's key ({KEY_VARIABLE}, status {error.status})") from None
            raise


class Asking:
    """A question to Vast in a thread of its own, so that its caller need not wait."""

    def __init__(self, vast: Vast) -> None:
        self._vast = vast
        self._answer: Rental | VastError | None = None
        self._thread = threading.Thread(target=self._ask, name="vast", daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        try:
            self._answer = self._vast.rental()
        except VastError as error:
            self._answer = error

    @property
    def answer(self) -> Rental | VastError | None:
        """None while there is none yet."""
        return self._answer

    def wait(self) -> Rental | VastError:
        """The answer, after at most the deadline and a moment."""
        self._thread.join(DEADLINE_SECONDS + 1)
        return self._answer or VastError(f"Vast did not answer within {DEADLINE_SECONDS:g} s")
