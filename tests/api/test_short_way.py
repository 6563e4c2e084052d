"""Changes of one rule are answered the same on the short way as on the long one."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from api.short_way import ShortWay
from firewall.enforcer import Enforcer
from tests.api.client import ApiClient

REQUESTS: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/v1/rules", {"json": {"id": "a", "sources": "192.0.2.1"}}),
    ("POST", "/v1/rules", {"json": {"id": "a", "sources": ["192.0.2.1"]}}),
    ("POST", "/v1/rules", {"json": {"id": "a", "sources": "192.0.2.2"}}),
    ("POST", "/v1/rules", {"json": {"id": "a b"}}),
    ("POST", "/v1/rules", {"json": {"id": "p", "protocols": ["tcp"], "destination_ports": [22]}}),
    ("POST", "/v1/rules", {"json": {"sourcse": "192.0.2.1", "priority": -1}}),
    ("POST", "/v1/rules", {"json": {}, "headers": {"Origin": "http://example.org"}}),
    ("POST", "/v1/rules", {"json": [1]}),
    ("POST", "/v1/rules", {"json": None}),
    ("POST", "/v1/rules", {"content": b"{"}),
    ("POST", "/v1/rules", {"content": b""}),
    ("POST", "/v1/rules", {"content": b'{"id": "b"}', "headers": {"Content-Type": "text/plain"}}),
    ("POST", "/v1/rules", {"content": b" " * 200_000}),
    ("POST", "/v1/rules?x=1", {"json": {"id": "b"}}),
    ("POST", "/v1/rules/", {"json": {"id": "b"}}),
    ("PUT", "/v1/rules/a", {"json": {"sources": "192.0.2.3", "description": "ünï"}}),
    ("PUT", "/v1/rules/a", {"json": {"id": "b"}}),
    ("PUT", "/v1/rules/none", {"json": {}}),
    ("PUT", "/v1/rules/batch", {"json": {}}),
    ("PUT", "/v1/rules/a/b", {"json": {}}),
    ("PUT", "/v1/rules/a", {"json": 7}),
    ("PUT", "/v1/rules", {"json": {}}),
    ("DELETE", "/v1/rules", {}),
    ("DELETE", "/v1/rules/", {}),
    ("DELETE", "/v1/rules/a?force=1", {}),
    ("DELETE", "/v1/rules/%61", {}),
    ("DELETE", "/v1/rules/a", {}),
    ("DELETE", "/v1/rules/p", {"headers": {"Host": "evil.example"}}),
]


def answers(api: ApiClient) -> list[tuple[Any, ...]]:
    found = []
    for method, path, options in REQUESTS:
        response = api(method, path, **options)
        body = response.json() if response.content else None
        if isinstance(body, dict):
            body = {name: value for name, value in body.items() if name not in ("created_at", "updated_at")}
        own = ("content-length", "x-request-id")
        headers = {name: value for name, value in response.headers.items() if name not in own}
        found.append((method, path, response.status_code, headers, body))
    return found


def test_both_ways_answer_the_same(api: ApiClient, monkeypatch: pytest.MonkeyPatch) -> None:
    short = answers(api)
    for left in ("a", "p", "b"):
        api("DELETE", f"/v1/rules/{left}")

    async def long_way(self: ShortWay, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    monkeypatch.setattr(ShortWay, "__call__", long_way)
    assert answers(api) == short
    assert {status for _, _, status, _, _ in short} >= {200, 201, 204, 403, 404, 405, 409, 413, 415, 421, 422}


def test_an_expected_change_takes_the_short_way(api: ApiClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the comparison above would compare the long way with itself."""
    ways: list[str] = []
    changed = ShortWay._changed

    async def counted(self: ShortWay, method: str, *arguments: Any) -> Any:
        ways.append(method)
        return await changed(self, method, *arguments)

    monkeypatch.setattr(ShortWay, "_changed", counted)
    api("POST", "/v1/rules", {"id": "a"})
    api("PUT", "/v1/rules/a", {"sources": "192.0.2.1"})
    api("GET", "/v1/rules/a")
    api("DELETE", "/v1/rules/a")
    assert ways == ["POST", "PUT", "DELETE"]


def test_requests_that_wait_for_a_change_are_made_together(api: ApiClient, enforcer: Enforcer) -> None:
    commits: list[str] = []
    enforcer._store._writer.set_trace_callback(
        lambda sql: commits.append(sql) if sql.startswith("COMMIT") else None
    )
    with enforcer._lock:  # the writer takes the first and waits; the others come meanwhile
        requests = [("POST", "/v1/rules", {"id": f"r{n}", "sources": f"192.0.2.{n}"}) for n in range(20)]
        answered: list[Any] = []
        thread = threading.Thread(target=lambda: answered.extend(api.together(*requests)))
        thread.start()
        thread.join(0.3)
        assert not answered
    thread.join(10)
    assert [each.status_code for each in answered] == [201] * 20
    assert len(commits) <= 2
    assert enforcer.count() == 20
