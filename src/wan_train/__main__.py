"""`python -m wan_train`: the console script, for whoever knows only the interpreter."""

from __future__ import annotations

from wan_train.cli.main import main

if __name__ == "__main__":
    main()
