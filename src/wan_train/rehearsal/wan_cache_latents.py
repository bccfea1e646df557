"""Cache the latents of a dataset; a program, run by path."""

from __future__ import annotations

import logging

from wan_train.rehearsal.caching import cache_latents
from wan_train.rehearsal.options import latents_parser


def main() -> None:
    """Parse the command line and do it; whatever goes wrong ends the program with exit code 1 and says
    why.
    """
    logging.basicConfig(level=logging.INFO)
    cache_latents(latents_parser().parse_args())


if __name__ == "__main__":
    main()
