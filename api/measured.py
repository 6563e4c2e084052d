"""Counts every request: by method, route, class of status, and how long it took.

Owns what the labels can be, which is bounded: a path that is no route, and a method that HTTP does not name, are
"other". Answers nothing.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from firewall.timings import Timing, Timings

METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
ROUTE = "ebpf_fw.route"  # of the scope: set by whoever answers without FastAPI's routing
_NO_ANSWER = "none"


class Requests:
    """What was counted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answered: Counter[tuple[str, str, str]] = Counter()
        self._took: defaultdict[tuple[str, str], Timings] = defaultdict(Timings)

    def add(self, method: str, route: str, status: str, seconds: float) -> None:
        with self._lock:
            self._answered[method, route, status] += 1
            timings = self._took[method, route]
        timings.add(seconds)

    def answered(self) -> dict[tuple[str, str, str], int]:
        """By method, route, class of status such as 2xx; none where the client got no answer."""
        with self._lock:
            return dict(self._answered)

    def took(self) -> dict[tuple[str, str], Timing]:
        """By method and route."""
        with self._lock:
            timings = list(self._took.items())
        return {labels: each.read() for labels, each in timings}


class Measured:
    """Pure ASGI, before all others."""

    def __init__(self, app: ASGIApp, requests: Requests) -> None:
        self._app = app
        self._requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = _NO_ANSWER

        async def send_answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = f"{message['status'] // 100}xx"
            await send(message)

        began = time.perf_counter()
        try:
            await self._app(scope, receive, send_answer)
        finally:
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._requests.add(method, _route(scope), status, time.perf_counter() - began)


def _route(scope: Scope) -> str:
    found: Any = scope.get(ROUTE) or getattr(scope.get("route"), "path", None)
    return str(found) if found else "other"
