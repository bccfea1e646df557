"""Which shard of a split caching makes which item, as it is on record in the run directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from wan_train.base import codec
from wan_train.base.files import write_whole
from wan_train.caching.split import Share, Shares
from wan_train.run.directory import RunDirectory
from wan_train.run.plan import Step, StepKind


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    shares: Mapping[StepKind, Shares]


def write_shares(run: RunDirectory, shares: Mapping[StepKind, Shares]) -> None:
    """Only kinds of caching that are split; nothing is written when none is."""
    if shares:
        write_whole(run.shards, codec.to_json(_Record(shares=shares)) + "\n")


def share_of(run: RunDirectory, step: Step) -> Share | None:
    """The items of a shard; None for a step that makes all of its kind.

    Without the record items go by their names: every shard still comes to the same answer.
    """
    if step.shard is None:
        return None
    try:
        record: _Record = codec.from_json(run.shards.read_bytes(), _Record, where=str(run.shards))
        shares = record.shares.get(step.kind)
    except (OSError, codec.CorruptRecordError):
        shares = None
    if shares is None or shares.of != step.shard.of:
        shares = Shares(of=step.shard.of)
    return Share(number=step.shard.number, shares=shares)
