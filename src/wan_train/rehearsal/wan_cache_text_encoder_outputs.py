"""Cache the text-encoder outputs of a dataset; a program, run by path."""

from __future__ import annotations

from wan_train.rehearsal.caching import cache_text
from wan_train.rehearsal.logs import start_logging
from wan_train.rehearsal.options import text_parser


def main() -> None:
    """Parse the command line and fill the caches; any failure ends with exit code 1 and its reason on stderr."""
    start_logging()
    cache_text(text_parser().parse_args())


if __name__ == "__main__":
    main()
