"""Uploads a run: sends the due files to each target, verifies and records them. A kill loses nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import assert_never

from wan_train.base import locks
from wan_train.base.clock import Clock
from wan_train.base.errors import NotReadyError
from wan_train.base.settings import Settings
from wan_train.base.text import one_line, visible
from wan_train.base.units import count, duration, file_size
from wan_train.run.directory import RunDirectory
from wan_train.run.follow import read_run
from wan_train.upload.card import CARD, model_card
from wan_train.upload.content import LORA_SUFFIX, Item, captions_of, ready
from wan_train.upload.destinations import HubTarget, RcloneTarget, Target
from wan_train.upload.hub import HubStore
from wan_train.upload.rclone import RcloneStore, find_rclone, rclone_folder
from wan_train.upload.status import missing
from wan_train.upload.store import ChangedError, Payload, Store, StoreError, payload_of, payload_of_bytes
from wan_train.upload.transfers import Began, Failed, TargetState, Verified, append, read_states

_LOCK_TRIES = 20
_LOCK_PAUSE_SECONDS = 0.1


@dataclass(slots=True, kw_only=True)
class Uploader:
    """Sends the due files of one run to its targets, one after the other.

    A failed upload is retried after each of `pauses`, which restart with every verified file. The failure is then
    recorded with the time of the next try. `say` receives one line at a time.
    """

    run: RunDirectory
    extras: Sequence[str]
    stores: Callable[[Target, int], Store]
    """Makes the store of a target. The number is the descriptor of the held lock."""
    clock: Clock
    sleep: Callable[[float], None]
    say: Callable[[str], None]
    pauses: Sequence[float] = (2.0, 8.0, 30.0)
    longest_pause: float = 300.0
    """For a target that asks for a pause."""
    problems: dict[str, StoreError] = field(default_factory=dict)
    """Why a target did not accept everything, by target."""

    def upload(self, targets: Sequence[Target]) -> None:
        """Send all due files, including those that become ready meanwhile. Raise NotReadyError if another upload runs.

        Afterwards every target that is not in `problems` has verified everything.
        """
        with self._lock() as lock:
            for target in targets:
                try:
                    self._to(target, self.stores(target, lock))
                except StoreError as error:
                    self.problems[str(target)] = error

    def _to(self, target: Target, store: Store) -> None:
        tries = 0
        while True:
            known = self._known(target)
            items = missing(self._ready(), known)
            if not items:
                return
            try:
                self._once(target, store, items, known)
                tries = 0
            except (StoreError, ChangedError) as error:
                problem = _as_store_error(target, error)
                has_progress = self._known(target).verified != known.verified
                tries = 1 if has_progress else tries + 1
                if problem.final or tries > len(self.pauses):
                    self._record_failure(target, problem)
                    raise problem from None
                pause = max(self.pauses[tries - 1], min(problem.retry_after or 0.0, self.longest_pause))
                self.say(f"{target}: {problem.reason}; retry in {duration(pause)} ({tries} of {len(self.pauses)})")
                self.sleep(pause)

    def _once(self, target: Target, store: Store, items: Sequence[Item], known: TargetState) -> None:
        payloads = [payload_of(item) for item in items]
        _require_names(target, payloads)
        if isinstance(target, HubTarget):
            payloads.append(self._card())
        size = sum(payload.size for payload in payloads)
        self.say(f"{target}: {count(len(payloads), 'file')}, {file_size(size)}")
        began = Began(
            at=self.clock.now(),
            target=str(target),
            files={payload.name: payload.sha256 for payload in payloads},
            blobs=tuple(payload.blob for payload in payloads),
            bytes=size,
        )
        append(self.run, began)
        ours = known.ours | {*began.files.values(), *began.blobs}
        for stored in store.put(payloads, ours):
            payload = stored.payload
            append(
                self.run,
                Verified(
                    at=self.clock.now(),
                    target=str(target),
                    name=payload.name,
                    where=stored.where,
                    bytes=payload.size,
                    mtime_ns=payload.mtime_ns,
                    sha256=payload.sha256,
                ),
            )
            if stored.where.endswith(LORA_SUFFIX):
                self.say(f"{target}: {visible(stored.where)} verified")

    def _card(self) -> Payload:
        plan, state = read_run(self.run)
        return payload_of_bytes(CARD, model_card(plan, state, self._ready(), captions_of(self.run, plan)))

    def _ready(self) -> tuple[Item, ...]:
        plan, state = read_run(self.run)
        return ready(self.run, plan, state, self.extras)

    def _known(self, target: Target) -> TargetState:
        return read_states(self.run).get(str(target), TargetState())

    def _record_failure(self, target: Target, problem: StoreError) -> None:
        now = self.clock.now()
        pause = self._known(target).pause_after(problem.retry_after, final=problem.final)
        failed = Failed(
            at=now,
            target=str(target),
            reason=problem.reason,
            hint=problem.hint,
            final=problem.final,
            not_before=now + pause,
        )
        append(self.run, failed)

    @contextmanager
    def _lock(self) -> Iterator[int]:
        """Only one uploader works on a run. After a kill, the next one waits a moment for the lock."""
        with ExitStack() as stack:
            for _ in range(_LOCK_TRIES):
                try:
                    descriptor = stack.enter_context(locks.held(self.run.uploads_lock))
                    break
                except BlockingIOError:
                    self.sleep(_LOCK_PAUSE_SECONDS)
            else:
                raise NotReadyError(
                    f"another upload of {self.run.run_id} is running",
                    hint=f"See how far it is: `wan-train status {self.run.run_id}`.",
                )
            yield descriptor


def store_of(target: Target, settings: Settings, *, run_id: str = "", lock: int | None = None) -> Store:
    """Return the store of a target. `lock` is the descriptor of the uploader's lock."""
    match target:
        case HubTarget():
            return HubStore(target=target, run_id=run_id, environ=os.environ)
        case RcloneTarget():
            program = find_rclone(rclone_folder(settings))
            return RcloneStore(target=target, run_id=run_id, program=program, lock=lock)
        case _:
            assert_never(target)


def _as_store_error(target: Target, error: StoreError | ChangedError) -> StoreError:
    if isinstance(error, StoreError):
        return error
    reason = f"{one_line(str(error))} changed while it was read"
    return StoreError(target, reason, hint="Wait until no program is writing to it.", final=False)


def _require_names(target: Target, payloads: Sequence[Payload]) -> None:
    """Refuse names that cannot pass through lists of lines and JSON to other machines."""
    for payload in payloads:
        if visible(payload.name) != payload.name or not _is_text(payload.name):
            raise StoreError(
                target,
                f"this file name cannot be sent: {one_line(payload.name)}",
                hint="Rename the file, or leave `--upload-with dataset` out.",
            )


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
