"""HTTP servers on loopback for tests: the parts that all of them need."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

POLL_SECONDS = 0.02
"""How soon a server notices that it must end. Python's default of half a second would slow down each test."""


class QuietServer(ThreadingHTTPServer):
    """A server that prints no errors: tests make clients hang up and kill them."""

    def handle_error(self, *_: object) -> None:
        pass


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler], let_go: Callable[[], object]) -> Iterator[str]:
    """Run a server in the block and yield its address. `let_go` ends requests that hang."""
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
