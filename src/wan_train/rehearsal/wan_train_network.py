"""Train the LoRA of one expert; a program, run by path, alone or through `accelerate launch`."""

from __future__ import annotations

import logging
import sys

from wan_train.rehearsal.options import parse_training
from wan_train.rehearsal.training import train


def main() -> None:
    """Parse the command line and train; whatever goes wrong ends the program with exit code 1 and says
    why.
    """
    logging.basicConfig(level=logging.INFO)
    train(parse_training(sys.argv[1:]))


if __name__ == "__main__":
    main()
