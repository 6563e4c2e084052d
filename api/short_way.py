"""The short way of a change of one rule: to its handler, past the routing and the dependencies of FastAPI.

Owns recognizing the three requests that a busy client sends by the thousand: POST /v1/rules, PUT and DELETE
/v1/rules/{id}. Their routes, which describe them in the OpenAPI document, have the same handlers. Whatever is not
plain (a query, a preference, a body that is no JSON object, a service that starts) goes the long way, which has the
words for it.
"""

from __future__ import annotations

from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import rules
from api.asking import client_of
from api.errors import firewall_error_response
from api.measured import ROUTE
from api.running import Running
from firewall.caution import Caution
from firewall.errors import FirewallError

RULES = rules.router.prefix
CHANGES_ONE = frozenset(("PUT", "DELETE"))


class ShortWay:
    """Pure ASGI, behind the guard."""

    def __init__(self, app: ASGIApp, running: Running) -> None:
        self._app = app
        self._running = running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._running.phase != "running" or _is_particular(scope):
            await self._app(scope, receive, send)
            return
        method, rule_id = scope["method"], _rule_id(scope["path"])
        is_short = rule_id == "" if method == "POST" else bool(rule_id) and method in CHANGES_ONE
        if not is_short:
            await self._app(scope, receive, send)
            return
        scope[ROUTE] = f"{RULES}/{{rule_id}}" if rule_id else RULES
        messages: list[Message] = []
        fields = None if method == "DELETE" else await _json_object(receive, messages)
        if method != "DELETE" and fields is None:
            await self._app(scope, _again(messages, receive), send)
            return
        response = await self._changed(method, rule_id or "", fields or {}, scope)
        await response(scope, receive, send)

    async def _changed(self, method: str, rule_id: str, fields: dict[str, Any], scope: Scope) -> Response:
        asked = Caution(f"{method} {scope['path']}", client=client_of(scope))
        try:
            if method == "POST":
                return await rules.add_rule(self._running, asked, fields)
            if method == "PUT":
                return await rules.replace_rule(self._running, asked, rule_id, fields)
            return await rules.delete_rule(self._running, asked, rule_id)
        except FirewallError as error:
            return firewall_error_response(error, scope["path"])


def _is_particular(scope: Scope) -> bool:
    """A change that asks for more than the change (api.asking)."""
    return bool(scope["query_string"]) or any(name == b"prefer" for name, _ in scope["headers"])


def _rule_id(path: str) -> str | None:
    """Empty for all rules, None for another address."""
    if path == RULES:
        return ""
    place, _, rule_id = path.rpartition("/")
    return rule_id or None if place == RULES else None


async def _json_object(receive: Receive, messages: list[Message]) -> dict[str, Any] | None:
    """The body, if it is one. `messages`: what was received, for another to read."""
    is_whole = False
    while not is_whole:
        message = await receive()
        messages.append(message)
        if message["type"] != "http.request":
            return None
        is_whole = not message.get("more_body", False)
    try:
        content = orjson.loads(b"".join(message.get("body", b"") for message in messages))
    except orjson.JSONDecodeError:
        return None
    return content if isinstance(content, dict) else None


def _again(messages: list[Message], receive: Receive) -> Receive:
    left = iter(messages)

    async def receive_again() -> Message:
        message = next(left, None)
        return await receive() if message is None else message

    return receive_again
