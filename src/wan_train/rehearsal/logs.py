"""Log lines as musubi-tuner writes them: `LEVEL:logger:message` on stderr."""

from __future__ import annotations

import logging

_RANK = "[RANK 0] "


def start_logging() -> None:
    """Log everything from INFO up, of the libraries too."""
    handler = logging.StreamHandler()
    handler.addFilter(_without_rank)
    logging.basicConfig(level=logging.INFO, handlers=[handler], format=logging.BASIC_FORMAT)


def _without_rank(record: logging.LogRecord) -> bool:
    # Newer versions of accelerate say which process speaks; the one that musubi-tuner pins does not.
    if isinstance(record.msg, str):
        record.msg = record.msg.removeprefix(_RANK)
    return True
