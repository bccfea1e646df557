"""The last answers, offered as the next defaults."""

from __future__ import annotations

from wan_train.base import codec
from wan_train.base.files import write_whole
from wan_train.base.settings import user_data_dir
from wan_train.recipe.model import Answers


def recall() -> Answers | None:
    """The answers of the last run, None when there are none or they cannot be read: they are only a convenience."""
    path = user_data_dir() / "answers.json"
    try:
        return codec.from_json(path.read_bytes(), Answers, where=str(path))
    except (OSError, codec.CorruptRecordError):
        return None


def remember(answers: Answers) -> None:
    path = user_data_dir() / "answers.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, codec.to_json(answers))
    except OSError:
        return  # a home directory that cannot be written must not stop a training
