"""One download by huggingface_hub's HTTP client in a process of its own, so that one which hangs can be ended.

Called as `python -m wan_train.provision.fetch_child PART ANSWER` with the task as JSON on stdin.
Bytes go to the end of PART.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from wan_train.provision.hub import answer_of, wrong_length

_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


def main() -> None:
    """Fetch, and write what came of it to ANSWER; always exits with 0."""
    part, answer = (Path(word) for word in sys.argv[1:])
    task = json.load(sys.stdin)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    said: dict[str, object] = {"failed": False, "status": None, "words": "", "retry_after": None, "is_hub": True}
    said["disk"] = None
    try:
        said["words"] = _fetch(task, part, said)
        said["failed"] = bool(said["words"])
    except OSError as error:  # httpx wraps those of the network
        said["disk"] = (error.strerror or str(error)).lower()
    except Exception as error:  # noqa: BLE001  whatever it is, the parent says it in words
        found = answer_of(error)
        said.update(failed=True, status=found.status, words=found.words, retry_after=found.retry_after)
    answer.write_text(json.dumps(said), encoding="utf-8")


def _fetch(task: dict[str, Any], part: Path, said: dict[str, object]) -> str:
    """What went wrong, in words; empty when the server sent all that was asked for."""
    from huggingface_hub import get_session, get_token, hf_hub_url

    url = hf_hub_url(task["repo"], task["file"], revision=task["commit"])
    with part.open("ab", buffering=0) as file:
        there = file.tell()
        headers = {"Accept-Encoding": "identity"}
        if there:
            headers["Range"] = f"bytes={there}-"
        if token := get_token():
            headers["Authorization"] = f"Bearer {token}"  # httpx drops it when it follows to another host
        with get_session().stream(
            "GET", url, headers=headers, timeout=task["timeout"], follow_redirects=True
        ) as response:
            said["is_hub"] = urlsplit(str(response.url))[:2] == urlsplit(url)[:2]
            if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                file.truncate(0)
            response.raise_for_status()
            if response.status_code != HTTPStatus.PARTIAL_CONTENT:
                file.truncate(0)  # the whole file comes, whatever was asked for
            elif wrong := _wrong_range(response.headers, there, task["size"]):
                return wrong
            for block in response.iter_bytes():
                file.write(block)
                if file.tell() > task["size"]:
                    file.truncate(0)
                    return f"more than the {task['size']} bytes that the hub told"
    return ""


def _wrong_range(headers: Any, there: int, size: int) -> str | None:  # noqa: ANN401  httpx's or its successor's
    if headers.get("Content-Encoding", "identity") != "identity":
        return "a part came compressed, which cannot be joined"
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
    if match is None or int(match[1]) != there:
        return "another part came than was asked for"
    return None if int(match[2]) == size else wrong_length(match[2], size)


def _end_with_parent(parent: int) -> None:
    """A provision that is killed must not leave a download behind that holds its lock."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


if __name__ == "__main__":
    main()
