"""Fetches one model in a process of its own, as a step of a provision does, with less patience.

Called as `python fetch_driver.py TRAINER_DIR MODEL PATIENCE`; says what the board hears, at last how it went as JSON.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

from wan_train.base.errors import NotReadyError
from wan_train.provision import workspace_lock
from wan_train.provision.download import Patience
from wan_train.provision.download_queue import Lane
from wan_train.provision.hub import Hub
from wan_train.provision.models import Model
from wan_train.provision.status_table import Board, Phase
from wan_train.provision.work import Work
from wan_train.recipe.model_files import known_models


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def tell(board: Board, over: threading.Event) -> None:
    while True:
        is_last = over.wait(0.05)
        for said in board.take_said():
            say(said.text)
        if is_last:
            return


def main() -> None:
    folder, name, patience = Path(sys.argv[1]), sys.argv[2], Patience(**json.loads(sys.argv[3]))
    model = Model(model=known_models()[name], trainer_dir=folder, hub=Hub(), lane=Lane([name]), patience=patience)
    board = Board()
    board.enter(name, name, Phase.RUNNING)
    over = threading.Event()
    telling = threading.Thread(target=tell, args=(board, over))
    telling.start()
    failed = None
    with workspace_lock.held(folder) as descriptor:
        found = model.check()
        work = Work(step=name, board=board, log=folder / "logs" / "fetch.log", lock=descriptor, ended=threading.Event())
        try:
            model.apply(work)
        except NotReadyError as error:
            failed = {"message": error.message, "hint": error.hint}
        finally:
            over.set()
            telling.join()
    row = board.rows()[0]
    said = {"failed": failed, "fetched": row.fetched, "detail": found.detail, "to_fetch": found.size}
    say(json.dumps({**said, "state": model.check().state}))


if __name__ == "__main__":
    main()
