"""HTTP servers on loopback for tests: what every one of them needs beside its answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

POLL_SECONDS = 0.02
"""How long a server takes to notice that it is to end; Python's own half a second would be paid by each test."""


class QuietServer(ThreadingHTTPServer):
    """Clients that hang up or are killed are part of the tests."""

    def handle_error(self, *_: object) -> None:
        pass


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler], let_go: Callable[[], object]) -> Iterator[str]:
    """The address of a server, which ends with the block; `let_go` ends requests that hang."""
    server = QuietServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(POLL_SECONDS,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        let_go()
        server.shutdown()
        server.server_close()
        thread.join()
