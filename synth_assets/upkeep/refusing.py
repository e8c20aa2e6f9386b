"""An endpoint on this machine that refuses every call, and counts them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_BODY = b'{"error": {"message": "nothing may be asked here", "type": "refused"}}'


@dataclass
class Refusing:
    """``base_url`` is where it listens, ``calls`` how often it was asked."""

    base_url: str
    calls: int = 0


@contextmanager
def refusing_endpoint() -> Iterator[Refusing]:
    """Listens while the block runs. A refusal with 403 is final: no client tries again."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def _refuse(self) -> None:
            with lock:
                found.calls += 1
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(HTTPStatus.FORBIDDEN)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(_BODY)))
            self.end_headers()
            self.wfile.write(_BODY)

        do_GET = do_POST = _refuse

        def log_message(self, format: str, *args: object) -> None:
            return None

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found = Refusing(f"http://127.0.0.1:{server.server_port}/v1")
        thread = threading.Thread(target=server.serve_forever, name="refusing", daemon=True)
        thread.start()
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()
