"""Cache the latents of a dataset; a program, run by path."""

from __future__ import annotations

from wan_train.rehearsal.command_line import latents_parser, start_logging


def main() -> None:
    """Parse the command line and fill the caches; any failure exits with 1 and says why on stderr."""
    start_logging()
    args = latents_parser().parse_args()
    # Imported here because torch takes seconds, which a refused command line need not wait for.
    from wan_train.rehearsal.cache_programs import cache_latents

    cache_latents(args)


if __name__ == "__main__":
    main()
