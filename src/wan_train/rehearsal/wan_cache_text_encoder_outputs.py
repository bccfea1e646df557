"""Cache the text-encoder outputs of a dataset; a program, run by path."""

from __future__ import annotations

from wan_train.rehearsal.command_line import start_logging, text_parser


def main() -> None:
    """Parse the command line and fill the caches. Errors exit with 1 (invalid options: 2) and are shown on stderr."""
    start_logging()
    args = text_parser().parse_args()
    # Imported late: torch takes seconds, and an invalid command line should fail at once.
    from wan_train.rehearsal.cache_programs import cache_text

    cache_text(args)


if __name__ == "__main__":
    main()
