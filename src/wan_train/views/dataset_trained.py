"""What a dataset amounts to in training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from wan_train.dataset.model import Inventory
from wan_train.dataset.summary import summary
from wan_train.views import words
from wan_train.views.lines import Line, Screenful, line

if TYPE_CHECKING:
    from rich.console import RenderableType


def trained_lines(inventory: Inventory, *, image_to_video: bool) -> RenderableType:
    """Items, sizes and steps of an inventory that can be trained."""
    return Screenful(lambda _width: _lines(inventory, image_to_video=image_to_video))


def _lines(inventory: Inventory, *, image_to_video: bool) -> Iterator[Line]:
    counted = summary(inventory, image_to_video=image_to_video)
    sizes = {(bucket.width, bucket.height, bucket.frames) for each in counted.subsets for bucket in each.buckets}
    said = [words.count(counted.files, "file"), words.count(len(sizes), "size")]
    if counted.batches_per_epoch is not None:
        said.append(f"{words.count(counted.batches_per_epoch, 'batch', 'batches')} per epoch")
    yield line(" · ".join(said))
