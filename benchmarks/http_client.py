"""HTTP/1.1 over a Unix socket, one request after the other on one connection.

Owns just that. It reads no more of an answer than status and length, so that the service is measured more than its
client.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

TIMEOUT_S = 300


class Answer(NamedTuple):
    status: int
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def encoded(method: str, path: str, body: bytes = b"", media_type: str = "application/json") -> bytes:
    """A request as it goes over the wire."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    if body:
        head += f"Content-Type: {media_type}\r\n"
    return head.encode() + b"\r\n" + body


class Connection:
    """A context."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(TIMEOUT_S)
        self._socket.connect(str(path))

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def request(
        self, method: str, path: str, body: bytes = b"", media_type: str = "application/json"
    ) -> Answer:
        return self.exchange(encoded(method, path, body, media_type))

    def exchange(self, request: bytes) -> Answer:
        self._socket.sendall(request)
        received = self._received()
        head, separator, body = received.partition(b"\r\n\r\n")
        while not separator:
            received += self._received()
            head, separator, body = received.partition(b"\r\n\r\n")
        length = _content_length(head)
        while len(body) < length:
            body += self._received()
        return Answer(int(head[9:12]), body)

    def _received(self) -> bytes:
        received = self._socket.recv(1 << 16)
        if not received:
            raise ConnectionError("the service closed the connection")
        return received


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0
