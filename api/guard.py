"""What a request must be before any handler sees it, and what becomes of an exception that none foresaw.

Owns the protection against web pages: a page in a browser on this host can send requests to 127.0.0.1. Those that
change something carry an Origin header, and those that got here by DNS rebinding carry the page's name as Host. Neither
is accepted, whatever credentials there are; and no answer ever has a header of CORS. Every answer has the request's id.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from functools import lru_cache

import structlog
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import RequestRefused, internal_error_response
from api.export import ExportEnded
from api.origin import REQUEST_ID, request_id_of

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

_REQUEST_ID = "ebpf_fw.request_id"  # of the scope

log = structlog.get_logger(__name__)


class Guard:
    """Pure ASGI: it never holds a body."""

    def __init__(self, app: ASGIApp, most_body_bytes: int, allowed_hosts: Collection[str] = ()) -> None:
        """`allowed_hosts`: names of this host, besides its addresses and localhost; lower case."""
        self._app = app
        self._most_body_bytes = most_body_bytes
        self._allowed_hosts = frozenset(allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_answered = False
        headers = Headers(scope=scope)
        scope[_REQUEST_ID] = request_id_of(headers)
        header = (REQUEST_ID.encode(), scope[_REQUEST_ID].encode())

        async def send_answer(message: Message) -> None:
            nonlocal is_answered
            is_answered = True
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        path = scope["path"]
        try:
            self._check(scope, headers)
            await self._app(scope, self._limited(receive, self._most_bytes(scope)), send_answer)
        except RequestRefused as refusal:
            await refusal.response(path)(scope, receive, send_answer)
        except ClientDisconnect:
            log.info("client went away before its request was whole", method=scope["method"], path=path)
        except ExportEnded:  # uvicorn closes what is not complete
            log.warning("an export took too long and was ended", path=path)
        except Exception:
            log.exception("request failed", method=scope["method"], path=path)
            if is_answered:
                raise
            await internal_error_response(path)(scope, receive, send_answer)

    def _check(self, scope: Scope, headers: Headers) -> None:
        """Raises RequestRefused."""
        for host in () if is_unix_socket(scope) else headers.getlist("host"):
            if host and not self._is_ours(host):
                raise RequestRefused(
                    421,
                    "misdirected_request",
                    f"this service is not {host!r}",
                    "ask for an IP address or localhost; other names: api.allowed_hosts in the config",
                )
        _check_page(headers)
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

    def _is_ours(self, host: str) -> bool:
        return is_local_name(host) or host.partition(":")[0].lower().rstrip(".") in self._allowed_hosts

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
    """By the path: what other methods find there is for the routing to say."""
    return LIST_IMPORT.fullmatch(scope["path"]) is not None


def is_unix_socket(scope: Scope) -> bool:
    return (scope.get("server") or ("", None))[1] is None


def request_id(scope: Scope) -> str:
    return str(scope.get(_REQUEST_ID, ""))


@lru_cache(maxsize=1024)
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


def _check_page(headers: Headers) -> None:
    """A page of elsewhere could not read the answer, but hold connections by events that never end."""
    is_page = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
    if is_page and headers.get("sec-fetch-mode") != "navigate":
        raise RequestRefused(403, "cross_origin", "a web page of another place must not ask the firewall")


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
