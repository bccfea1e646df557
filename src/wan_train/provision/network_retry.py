"""A second try for what goes over the network: package indexes and git hosts hiccup."""

from __future__ import annotations

from collections.abc import Callable

from wan_train.base.errors import NotReadyError
from wan_train.provision.work import EndedError, Work


def again(work: Work, pause_seconds: float, do: Callable[[], None]) -> None:
    """Do it; when it fails, pause and do it once more. The second failure is raised."""
    try:
        do()
    except EndedError:
        raise
    except NotReadyError as error:
        work.say(f"{error.message.splitlines()[0].rstrip(':')}; tried once more in {pause_seconds:.0f} s")
        work.pause(pause_seconds)
        do()
