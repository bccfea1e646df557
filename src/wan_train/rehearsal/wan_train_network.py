"""Train the LoRA of one expert; a program, run by path, alone or through `accelerate launch`."""

from __future__ import annotations

import sys

from wan_train.rehearsal.command_line import parse_training, start_logging


def main() -> None:
    """Parse the command line and train. Errors exit with 1 (invalid options: 2) and are shown on stderr."""
    start_logging()
    args = parse_training(sys.argv[1:])
    # Imported late: torch takes seconds, and an invalid command line should fail at once.
    from wan_train.rehearsal.training import train

    train(args)


if __name__ == "__main__":
    main()
