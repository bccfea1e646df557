"""Train the LoRA of one expert; a program, run by path, alone or through `accelerate launch`."""

from __future__ import annotations

import sys

from wan_train.rehearsal.logs import start_logging
from wan_train.rehearsal.options import parse_training
from wan_train.rehearsal.training import train


def main() -> None:
    """Parse the command line and train; any failure ends with exit code 1 and its reason on stderr."""
    start_logging()
    train(parse_training(sys.argv[1:]))


if __name__ == "__main__":
    main()
