"""A stand-in for the REST service: a real HTTP server with scripted answers, for the tests of its clients."""

import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: Any


@dataclass
class FakeService:
    """Answers by method and path; a list of answers is given out one by one. It keeps what it was asked."""

    url: str = ""
    requests: list[Request] = field(default_factory=list)
    _answers: dict[tuple[str, str], list[tuple[int, dict[str, str], bytes]]] = field(default_factory=dict)

    def answers(self, method: str, path: str, status: int, body: Any = None, **headers: str) -> None:
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        self._answers.setdefault((method, path), []).append((status, headers, raw))

    def refuses(self, method: str, path: str, status: int, code: str, **more: Any) -> None:
        problem = {"type": "about:blank", "title": "Refused", "status": status, "code": code, **more}
        self.answers(method, path, status, problem, **{"Content-Type": "application/problem+json"})

    def answer_to(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        self.requests.append(request)
        scripted = self._answers.get((request.method, request.path))
        if not scripted:
            return 501, {}, b"no answer was scripted"
        return scripted.pop(0) if len(scripted) > 1 else scripted[0]


def _content(raw: bytes, media_type: str) -> Any:
    """JSON, but text where it says so."""
    if not raw:
        return None
    return json.loads(raw) if media_type.endswith("json") else raw.decode()


def _handler(service: FakeService) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            raw = self.rfile.read(length)
            parts = urlsplit(self.path)
            request = Request(
                self.command,
                parts.path,
                parse_qs(parts.query),
                dict(self.headers.items()),
                _content(raw, self.headers.get("Content-Type") or ""),
            )
            status, headers, body = service.answer_to(request)
            self.send_response(status)
            for name, value in ({"Content-Type": "application/json"} | headers).items():
                self.send_header(name, value)
            if status != 204 and "Content-Length" not in headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_DELETE = do  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

        def address_string(self) -> str:
            return "client"

    return Handler


class _UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


@contextmanager
def fake_service(socket_path: Path | None = None) -> Iterator[FakeService]:
    """On a free TCP port of the loopback, or on a Unix socket."""
    service = FakeService()
    server: socketserver.BaseServer
    if socket_path is None:
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(service))
        service.url = f"http://127.0.0.1:{server.server_address[1]}"
    else:
        server = _UnixServer(str(socket_path), _handler(service))
        service.url = f"unix:{socket_path}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
