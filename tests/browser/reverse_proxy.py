"""A small real reverse proxy in a thread: it passes a request on, and every piece of the answer as soon as it comes.

strip     takes the prefix off before it asks (nginx: `proxy_pass http://api/;`)
keep      leaves it (nginx: `proxy_pass http://api;`), for a server that knows its root_path
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "te", "upgrade", "proxy-connection"})


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True
    prefix = ""
    strip = True
    port = 0
    """Of the server behind it."""


class _Handler(BaseHTTPRequestHandler):
    server: _Proxy
    protocol_version = "HTTP/1.1"

    def _pass_on(self) -> None:
        prefix, path = self.server.prefix, self.path
        if path == prefix:
            self._answer(308, [("Location", f"{prefix}/"), ("Content-Length", "0")])
            return
        if not path.startswith(f"{prefix}/"):
            self._answer(404, [("Content-Length", "0")])
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        sent = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
        sent |= {"X-Forwarded-For": self.client_address[0], "X-Forwarded-Proto": "http", "X-Forwarded-Prefix": prefix}
        behind = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        try:
            target = path.removeprefix(prefix) if self.server.strip else path
            behind.request(self.command, target, body or None, sent)
            answer = behind.getresponse()
            headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in HOP_BY_HOP]
            self._answer(answer.status, [*headers, ("Connection", "close")])
            while piece := answer.read1(65536):
                self.wfile.write(piece)
                self.wfile.flush()
        except (OSError, http.client.HTTPException):
            pass  # one of both went away
        finally:
            behind.close()
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on

    def _answer(self, status: int, headers: list[tuple[str, str]]) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: tests read no log of it."""


@contextmanager
def proxy(port: int, prefix: str, strip: bool) -> Iterator[int]:
    """Listens in front of a server; its port."""
    server = _Proxy(("127.0.0.1", 0), _Handler)
    server.prefix, server.strip, server.port = prefix, strip, port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
