"""The uploads of a run as the guardian needs them, from `upload.status`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from wan_train.base.errors import WanTrainError
from wan_train.base.text import one_line
from wan_train.guardian.guardian import Uploaded
from wan_train.run.directory import RunDirectory
from wan_train.run.duties import Duties, read_duties
from wan_train.upload.status import Stage, all_verified, due, statuses

_LOOK_SECONDS = 5.0
_OPEN = frozenset({Stage.PENDING, Stage.SENDING, Stage.FAILED})


class RecordedUploads:
    """Reads the records of a run that works at most every few seconds."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[float, Duties, Uploaded]] = {}

    def look(self, run: RunDirectory, duties: Duties, now: float, *, fresh: bool) -> Uploaded:
        """Records that cannot be read make nothing safe, and nothing due."""
        seen = self._seen.get(run.path)
        if not fresh and seen is not None and 0 <= now - seen[0] < _LOOK_SECONDS and seen[1] == duties:
            return seen[2]
        found = _look(run, duties, now)
        self._seen[run.path] = now, duties, found
        return found


def verified_at(run: RunDirectory) -> Mapping[str, bool]:
    """Of each target of a run, whether everything that is ready is verified there. Raises what `statuses` raises."""
    duties = read_duties(run)
    if duties is None:
        return {}
    found = statuses(run, duties.uploads, duties.upload_extras)
    return {str(status.target): status.stage is Stage.VERIFIED for status in found}


def _look(run: RunDirectory, duties: Duties, now: float) -> Uploaded:
    try:
        _, reasons = all_verified(run, duties.uploads, duties.upload_extras)
        stages = {status.stage for status in statuses(run, duties.uploads, duties.upload_extras)}
        is_due = due(run, duties.uploads, duties.upload_extras, now=now)
        return Uploaded(pending=bool(stages & _OPEN), due=is_due, unverified=reasons)
    except (WanTrainError, OSError) as error:
        return Uploaded(unverified=(f"the uploads of {run.run_id} are unknown: {one_line(str(error))}",))
