"""Everything a report tells, as one value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wan_train.dataset.layout import Layout
from wan_train.dataset.previews import Preview
from wan_train.dataset.scan import Check
from wan_train.run.curves import Curve
from wan_train.run.events import Event
from wan_train.run.live import GpuSample
from wan_train.run.samples import Sample
from wan_train.views.dataset_page.selection import Material, Selection
from wan_train.views.model import RunView


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownDataset:
    """The dataset as its files are now, and some of them to look at."""

    check: Check
    outlook: Layout
    selection: Selection
    material: Material


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """One run, told at `made` (seconds since 1970). Mappings are by step id; `commands` by step id and attempt."""

    view: RunView
    made: float
    version: str
    """Of the wan-train that tells it."""
    events: Sequence[Event] = ()
    curves: Mapping[str, Curve] = field(default_factory=dict)
    gpus: Sequence[GpuSample] = ()
    commands: Mapping[tuple[str, int], str] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    """Versions of what the trainer's environment holds."""
    model_bytes: Mapping[Path, int] = field(default_factory=dict)
    dataset: ShownDataset | None = None
    dataset_missing: str | None = None
    """Why there is no dataset to show."""

    samples: Sequence[Sample] = ()
    sample_pictures: Mapping[Path, Preview] = field(default_factory=dict)
    """Of the samples that are shown, by path."""

    @property
    def is_final(self) -> bool:
        return self.view.state.is_over
