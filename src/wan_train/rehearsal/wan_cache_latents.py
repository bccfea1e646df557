"""Cache the latents of a dataset; a program, run by path."""

from __future__ import annotations

from wan_train.rehearsal.caching import cache_latents
from wan_train.rehearsal.logs import start_logging
from wan_train.rehearsal.options import latents_parser


def main() -> None:
    """Parse the command line and fill the caches; any failure ends with exit code 1 and its reason on stderr."""
    start_logging()
    cache_latents(latents_parser().parse_args())


if __name__ == "__main__":
    main()
