"""One download by huggingface_hub in a process of its own, so that one which hangs can be ended.

Called as `python -m wan_train.box.fetch_child REPO FILE COMMIT FOLDER ANSWER`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from wan_train.box.hub import status_of
from wan_train.printable import one_line


def main() -> None:
    """Fetch, and write what came of it to ANSWER; always exits with 0."""
    repo, file, commit, folder, answer = sys.argv[1:]
    from huggingface_hub import hf_hub_download  # noqa: PLC0415  the parent imports this module's neighbours only

    said: dict[str, object] = {"path": None, "status": None, "words": ""}
    try:
        said["path"] = hf_hub_download(repo, file, revision=commit, local_dir=folder)
    except Exception as error:  # noqa: BLE001  whatever it is, the parent says it in words
        said["status"] = status_of(error)
        said["words"] = one_line(f"{type(error).__name__}: {error}")
    Path(answer).write_text(json.dumps(said), encoding="utf-8")


if __name__ == "__main__":
    main()
