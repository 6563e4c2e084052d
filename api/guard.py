"""What a request must be before any handler sees it, and what becomes of an exception that none foresaw.

Owns the protection of an unauthenticated local API against web pages: a page in a browser on this host can
send requests to 127.0.0.1. Those that change something carry an Origin header, and those that got here by
DNS rebinding carry the page's name as Host. Neither is accepted.
"""

from __future__ import annotations

import ipaddress
import re

import structlog
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import RequestRefused, internal_error_response

MOST_BODY_BYTES = 64 << 20
CHANGING = frozenset(("POST", "PUT", "PATCH", "DELETE"))
MEDIA_TYPES: dict[str, tuple[str, ...]] = {"PATCH": ("application/json", "application/merge-patch+json")}
# What the body sent to these may be, if not JSON alone.
POSTED: dict[str, tuple[str, ...]] = {
    "/v1/rules/import": ("text/plain", "application/x-ndjson"),
    "/v1/test": (
        "application/json",
        "application/vnd.tcpdump.pcap",
        "application/x-pcapng",
        "application/octet-stream",
    ),
}
# Lists for sets are read part by part, and may be larger than what is held whole.
LIST_MEDIA_TYPES = (
    "text/plain", "application/x-ndjson", "text/csv", "application/json", "application/octet-stream",
)  # fmt: skip
LIST_IMPORT = re.compile(r"/v1/sets/[^/]+/import")
LIST_FACTOR = 4

log = structlog.get_logger(__name__)


class Guard:
    """Pure ASGI: it never holds a body."""

    def __init__(self, app: ASGIApp, most_body_bytes: int) -> None:
        self._app = app
        self._most_body_bytes = most_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_answered = False

        async def send_answer(message: Message) -> None:
            nonlocal is_answered
            is_answered = True
            await send(message)

        path = scope["path"]
        try:
            self._check(scope, Headers(scope=scope))
            await self._app(scope, self._limited(receive, self._most_bytes(scope)), send_answer)
        except RequestRefused as refusal:
            await refusal.response(path)(scope, receive, send)
        except ClientDisconnect:
            log.info("client went away before its request was whole", method=scope["method"], path=path)
        except Exception:
            log.exception("request failed", method=scope["method"], path=path)
            if is_answered:
                raise
            await internal_error_response(path)(scope, receive, send)

    def _check(self, scope: Scope, headers: Headers) -> None:
        """Raises RequestRefused."""
        is_unix_socket = (scope.get("server") or ("", None))[1] is None
        host = headers.get("host", "")
        if host and not is_unix_socket and not is_local_name(host):
            raise RequestRefused(
                421,
                "misdirected_request",
                f"this service is not {host!r}",
                "ask for an IP address or localhost",
            )
        method = scope["method"]
        if method not in CHANGING:
            return
        if "origin" in headers:
            raise RequestRefused(403, "cross_origin", "a web page must not change the firewall")
        length = headers.get("content-length", "0")
        most = self._most_bytes(scope)
        if length.isdecimal() and int(length) > most:
            raise self._too_large(most)
        if length != "0" or "transfer-encoding" in headers:
            allowed = MEDIA_TYPES.get(method) or POSTED.get(scope["path"], ("application/json",))
            if is_list_import(scope):
                allowed = LIST_MEDIA_TYPES
            _check_media_type(allowed, headers.get("content-type"))

    def _most_bytes(self, scope: Scope) -> int:
        return self._most_body_bytes * (LIST_FACTOR if is_list_import(scope) else 1)

    def _limited(self, receive: Receive, most: int) -> Receive:
        """The same for a body that does not tell its length."""
        seen = 0

        async def receive_some() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > most:
                raise self._too_large(most)
            return message

        return receive_some

    def _too_large(self, most: int) -> RequestRefused:
        return RequestRefused(
            413,
            "body_too_large",
            f"the body is larger than {most} bytes",
            "send the rules in several batches",
            headers={"Connection": "close"},
        )


def is_list_import(scope: Scope) -> bool:
    return scope["method"] == "POST" and LIST_IMPORT.fullmatch(scope["path"]) is not None


def is_local_name(host: str) -> bool:
    """Whether a Host header is an IP address or localhost, with or without a port."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if name.lower() == "localhost":
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _check_media_type(allowed: tuple[str, ...], content_type: str | None) -> None:
    """None passes: what a program forgets to say; a web page's requests fail by their Origin."""
    if content_type is None:
        return
    if content_type.partition(";")[0].strip().lower() not in allowed:
        raise RequestRefused(
            415,
            "unsupported_media_type",
            f"the body is {content_type!r}; it must be {' or '.join(allowed)}",
            f"send the header Content-Type: {allowed[0]}",
        )
